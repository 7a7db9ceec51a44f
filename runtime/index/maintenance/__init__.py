"""Maintenance of an index: verify, compact, remove, re-embed, copy."""
