"""Readers for each picture format, used by ``deeprank.runtime.images``."""
