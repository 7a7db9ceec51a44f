"""Taking an index elsewhere: copies, and plain numpy files."""
