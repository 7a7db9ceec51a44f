"""``deeprank``: every command under one name, and completion for shells."""
