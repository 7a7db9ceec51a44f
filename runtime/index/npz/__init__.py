"""An index as one npz file: its format, export and import."""
