"""``deeprank``: all commands under one name, and shell completion."""
