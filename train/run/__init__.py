"""The run folder, and what surrounds a run: its device, terminal, progress and errors."""
