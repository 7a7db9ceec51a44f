"""Sync: make an index follow its folders of pictures."""
