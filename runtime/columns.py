"""A table that grows row by row on a terminal, with columns of fixed width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .text import display_width, shortened

__all__ = ["Column", "Columns"]

_GAP = 2


@dataclass(frozen=True)
class Column:
    """A column: its title, the width of its cells, and how late it is left out of a narrow table.

    ``rank``: 0 is never left out; of the others, the largest is left out first. The width counts
    the terminal's columns, and is at least that of the title.
    """

    title: str
    width: int
    rank: int = 0


@dataclass(frozen=True)
class Columns:
    """The columns of a table, from left to right; cells stand at the right of their columns."""

    columns: tuple[Column, ...]

    def header(self, width: int) -> str:
        """Return the titles of the columns that fit into ``width``."""
        return self.row([column.title for column in self.columns], width)

    def row(self, cells: Sequence[str], width: int) -> str:
        """Return one line of the cells, one for each column, those that do not fit left out.

        Args:
            cells: untrusted text is allowed; what is too long for its column is cut.
            width: of the terminal. Only columns of rank 0 may be wider together.

        """
        shown = self._shown(width)
        parts = [
            _right(cell, _width(column)) for column, cell in zip(self.columns, cells, strict=True) if column in shown
        ]
        return (" " * _GAP).join(parts)

    def _shown(self, width: int) -> list[Column]:
        shown = list(self.columns)
        for column in sorted(self.columns, key=lambda column: -column.rank):
            if sum(map(_width, shown)) + _GAP * (len(shown) - 1) <= width or not column.rank:
                break
            shown.remove(column)
        return shown


def _width(column: Column) -> int:
    return max(column.width, display_width(column.title))


def _right(cell: str, width: int) -> str:
    cell = shortened(cell, width)
    return " " * (width - display_width(cell)) + cell
