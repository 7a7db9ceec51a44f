"""What lies in the synced folders, and making an index follow them."""
