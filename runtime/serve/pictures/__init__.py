"""The files of the index's pictures, as clients get them: renditions, sizes, originals."""
