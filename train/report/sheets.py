"""The worst queries as contact sheets, and what is said below each."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...runtime.query.sheet import SheetPicture, draw_sheet
from ..data import TrainingData
from .analysis import Evaluated, Labels

__all__ = ["WorstQuery", "draw_worst"]

_HITS = 10
_JPEG_QUALITY = 85


@dataclass(frozen=True)
class WorstQuery:
    """A query and its sheet: ``right`` of ``depth`` neighbours have its class ``name``; ``jpeg`` is the sheet, small.

    ``path`` is that of the picture, relative to the data set.
    """

    path: str
    name: str
    right: int
    depth: int
    jpeg: bytes


def draw_worst(found: Evaluated, data: TrainingData, rows: Labels, folder: Path) -> Iterator[WorstQuery]:
    """Draw each of the queries with its nearest pictures, the wrong ones framed in red, as ``folder/01.png`` and so on.

    Args:
        found: what the evaluation found.
        data: the pictures.
        rows: of the queries, the worst first.
        folder: is made.

    Yields:
        each as it has been drawn.

    Raises:
        QueryError, OSError: a file cannot be written. A picture that cannot be read is drawn as a grey square.

    """
    folder.mkdir(exist_ok=True)
    for number, row in enumerate(rows.tolist(), 1):
        query = data.val[data.queries[row]]
        code = int(found.query_labels[row])
        right = int((found.neighbour_labels[row] == code).sum())
        sheet = folder / f"{number:02d}.png"
        asked = SheetPicture(query.open, ("query", found.names[code]))
        title = f"{query.path}: {right} right of the {found.depth} nearest"
        draw_sheet(asked, _hits(found, data, row), sheet, title=title)
        yield WorstQuery(query.path, found.names[code], right, found.depth, _jpeg(sheet))


def _hits(found: Evaluated, data: TrainingData, row: int) -> list[SheetPicture]:
    return [
        SheetPicture(
            data.train[data.gallery[found.ranking.neighbours[row, place]]].open,
            (f"{place + 1}.  D = {found.ranking.distances[row, place]:.3f}", found.names[label]),
            label == int(found.query_labels[row]),
        )
        for place, label in enumerate(found.neighbour_labels[row, :_HITS].tolist())
    ]


def _jpeg(sheet: Path) -> bytes:
    """Return a sheet as a JPEG: a page of PNGs would have ten megabytes."""
    file = io.BytesIO()
    with Image.open(sheet) as image:
        image.convert("RGB").save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0, optimize=True)
    return file.getvalue()
