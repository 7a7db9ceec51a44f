"""An index as one file, npz or Parquet: what both hold, the two formats, export and import."""
