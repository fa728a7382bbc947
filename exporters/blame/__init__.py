"""Which layer is to blame when it is not."""
