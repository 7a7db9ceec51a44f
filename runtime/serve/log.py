"""The log of the server: what whoever runs it has to see, and clients do not."""

from __future__ import annotations

import logging

__all__ = ["LOG"]

LOG = logging.getLogger("deeprank.serve")
