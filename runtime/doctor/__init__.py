"""``deeprank-doctor``: check the installation, a model and an index, and suggest fixes."""
