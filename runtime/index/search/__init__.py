"""Searching an index: from query vectors to hits."""
