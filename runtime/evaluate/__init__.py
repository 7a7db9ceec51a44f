"""Evaluate a model: embed the queries and the gallery of a data set, search, and measure."""
