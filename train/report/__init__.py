"""The report of a run: one page that opens from disk, and the files it is made of."""

from .write import write_report

__all__ = ["write_report"]
