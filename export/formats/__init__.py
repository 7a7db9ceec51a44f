"""The formats of an exported model, and the writer of each."""
