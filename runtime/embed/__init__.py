"""``deeprank-embed``: embed pictures into a folder of parts, here or on many machines."""
