"""``deeprank-doctor``: is this installation, this model, this index in order, and if not, what puts it right?"""
