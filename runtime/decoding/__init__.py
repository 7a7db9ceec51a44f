"""Decode untrusted pictures in separate processes with memory and time limits."""
