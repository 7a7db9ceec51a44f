"""Sync: an index follows folders of pictures."""
