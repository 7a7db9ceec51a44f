"""Picture formats: their readers, and what they leave to us (used by ``deeprank.runtime.images``)."""
