"""The rules, a file for each family; every rule is a function that looks at one graph for one target."""
