"""Decoding what strangers send: in processes of their own, under limits of memory and time."""
