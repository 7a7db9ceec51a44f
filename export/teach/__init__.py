"""Teaching: from the ratings of an index to a better model in its place."""
