"""Demo of the original system: sheets of queries with their nearest and farthest pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..contact_sheet import SheetBlock, SheetPicture, draw_sheets
from ..datasets import DataSet
from ..scan import nearest, similarity
from .embeddings import EmbeddedSplit

__all__ = ["draw_demo"]


def draw_demo(
    dataset: DataSet, queries: EmbeddedSplit, gallery: EmbeddedSplit, count: int, hits: int, out: Path
) -> Iterator[Path]:
    """Draw two sheets, nearest and farthest, for each of ``count`` queries of different classes.

    One more sheet, ``nearest.png``, shows these queries with their nearest pictures together.

    Yields:
        the path of each sheet once written.

    """
    out.mkdir(parents=True, exist_ok=True)
    together = []
    for number, row in enumerate(_rows_of_classes(queries.labels, count), 1):
        for which in ("nearest", "farthest"):
            path = out / f"{number:02d}-{which}.png"
            block = _block(dataset, queries, gallery, row, hits, farthest=which == "farthest")
            draw_sheets([block], path)
            yield path
            if which == "nearest":
                together.append(block)
    path = out / "nearest.png"
    draw_sheets(together, path)
    yield path


def _rows_of_classes(labels: list[str], count: int) -> list[int]:
    """Return the first query of each of ``count`` classes, spread evenly over the sorted labels."""
    first = {label: row for row, label in reversed(list(enumerate(labels)))}
    classes = sorted(first)
    count = min(count, len(classes))
    return [first[classes[i * len(classes) // count]] for i in range(count)]


def _block(
    dataset: DataSet, queries: EmbeddedSplit, gallery: EmbeddedSplit, row: int, hits: int, *, farthest: bool
) -> SheetBlock:
    label = queries.labels[row]
    rows, distances = nearest(queries.vectors[row : row + 1], gallery.vectors, hits, farthest=farthest)
    neighbours = [
        SheetPicture(
            source=gallery.samples[hit].open,
            caption=(
                f"{rank}.  D = {distance:.3f}",
                f"similarity {similarity(distance):.3f}",
                dataset.readable(gallery.labels[hit]),
            ),
            correct=gallery.labels[hit] == label,
        )
        for rank, (hit, distance) in enumerate(zip(rows[0], distances[0], strict=True), 1)
    ]
    query_picture = SheetPicture(
        source=queries.samples[row].open, caption=("query", dataset.readable(label)), correct=None
    )
    title = f"{len(neighbours)} {'farthest from' if farthest else 'nearest to'} {queries.samples[row].path}"
    return SheetBlock(query_picture, neighbours, title)
