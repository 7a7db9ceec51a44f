"""``deeprank-query``: similar pictures as a table, JSON, paths, a page or a contact sheet."""
