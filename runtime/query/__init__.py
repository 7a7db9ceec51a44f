"""``deeprank-query``: the most similar pictures of an index, as a table, JSON, paths or a contact sheet."""
