"""Contact sheets of the worst queries, with captions."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...runtime.contact_sheet import SheetPicture, draw_sheet
from ..data.splits import TrainingData
from .analysis import Evaluated, Labels

__all__ = ["WorstQuery", "draw_worst"]

_HITS = 10
_JPEG_QUALITY = 85


@dataclass(frozen=True)
class WorstQuery:
    """A query and its sheet: ``right`` of ``depth`` neighbours have its class ``name``.

    ``path`` is that of the picture, relative to the data set; ``jpeg`` is the compressed sheet.
    """

    path: str
    name: str
    right: int
    depth: int
    jpeg: bytes


def draw_worst(evaluated: Evaluated, data: TrainingData, rows: Labels, folder: Path) -> Iterator[WorstQuery]:
    """Draw each query with its nearest pictures, as ``folder/01.png`` and so on.

    Wrong neighbours have a red frame. A picture that cannot be read is drawn as a grey square.

    Args:
        evaluated: result of the evaluation.
        data: the pictures.
        rows: of the queries, the worst first.
        folder: created if missing.

    Yields:
        each query after drawing it.

    Raises:
        QueryError, OSError: a file cannot be written.

    """
    folder.mkdir(exist_ok=True)
    for number, row in enumerate(rows.tolist(), 1):
        query = data.val[data.queries[row]]
        code = int(evaluated.query_labels[row])
        right = int((evaluated.neighbour_labels[row] == code).sum())
        sheet = folder / f"{number:02d}.png"
        query_picture = SheetPicture(query.open, ("query", evaluated.names[code]))
        title = f"{query.path}: {right} right of the {evaluated.depth} nearest"
        draw_sheet(query_picture, _hits(evaluated, data, row), sheet, title=title)
        yield WorstQuery(query.path, evaluated.names[code], right, evaluated.depth, _jpeg(sheet))


def _hits(evaluated: Evaluated, data: TrainingData, row: int) -> list[SheetPicture]:
    return [
        SheetPicture(
            data.train[data.gallery[evaluated.ranking.neighbours[row, place]]].open,
            (f"{place + 1}.  D = {evaluated.ranking.distances[row, place]:.3f}", evaluated.names[label]),
            label == int(evaluated.query_labels[row]),
        )
        for place, label in enumerate(evaluated.neighbour_labels[row, :_HITS].tolist())
    ]


def _jpeg(sheet: Path) -> bytes:
    """Return a sheet as a JPEG, since a page of PNGs would be ten megabytes."""
    file = io.BytesIO()
    with Image.open(sheet) as image:
        image.convert("RGB").save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0, optimize=True)
    return file.getvalue()
