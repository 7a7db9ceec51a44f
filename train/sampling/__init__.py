"""Batches: balanced or by relevance, and where relevance comes from."""
