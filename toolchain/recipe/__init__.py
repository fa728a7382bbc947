"""What a recipe can say, how it is read, and how its mistakes are explained."""
