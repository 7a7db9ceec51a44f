"""The graph of an index: a cache that is searched, behind an interface that others can stand behind."""
