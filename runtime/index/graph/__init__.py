"""The graph of an index: a search cache behind an exchangeable interface."""
