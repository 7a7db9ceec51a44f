"""The report of a run: one HTML page for local use, and the files that it shows."""

from .page import write_report

__all__ = ["write_report"]
