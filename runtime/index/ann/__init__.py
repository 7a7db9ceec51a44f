"""Approximate nearest neighbours: the graph file, its backend interface, hnswlib, and the cost model."""
