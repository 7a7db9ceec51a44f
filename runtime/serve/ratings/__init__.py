"""Ratings over HTTP: questions, answers and marks."""
