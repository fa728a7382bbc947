"""Why a model is not faster."""
