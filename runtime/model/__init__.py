"""Parts of the model file (Contract 2): its metadata, its limits, and the one that ships."""
