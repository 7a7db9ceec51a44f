"""Ratings: what people said is more similar, kept beside the pictures of an index."""
