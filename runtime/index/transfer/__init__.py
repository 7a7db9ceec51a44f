"""Copy an index, and exchange it as numpy files."""
