"""Labelled pictures: where they lie, how their labels are read, and what is reported about them."""
