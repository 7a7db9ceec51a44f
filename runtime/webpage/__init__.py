"""What all pages share: the look, and the parts of the static ones (answers, near-duplicates, reports).

A static page is one file: it holds its pictures and styles, and has no scripts and no network.
"""
