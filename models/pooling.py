"""How a backbone makes one vector of a picture's patches."""

from __future__ import annotations

__all__ = ["POOLS"]

# As its library does, by the class token, or by the mean of the patches.
POOLS = ("auto", "cls", "mean")
