"""The authoritative data of an index: a SQLite database, with every row checked."""
