"""The truth of an index: its SQLite database, read and written with every row checked."""
