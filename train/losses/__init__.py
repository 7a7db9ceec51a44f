"""Losses: the triplet hinge, pytorch-metric-learning by name, and the objective of a run."""
