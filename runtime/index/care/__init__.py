"""Maintenance of an index: verify, repair, compact, remove, change the model."""
