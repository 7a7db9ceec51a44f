"""How near each other pictures are that are called near-duplicates where nothing else is asked for."""

from __future__ import annotations

__all__ = ["NEAR_DUPLICATE"]

# Squared distance. Measured with the model that ships (benchmarks/near_duplicates.py, docs/results.md): it takes in
# copies that were compressed again or made a little brighter, and hardly any two different pictures.
NEAR_DUPLICATE = 0.05
