"""Training options: the table of all, recipes, and the command line made from them."""
