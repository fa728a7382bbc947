"""One recipe, several variants of how it is taught, several seeds: equal budgets, paired differences."""
