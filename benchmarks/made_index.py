"""Index folders made from vectors rather than pictures, by the code that a sync writes with."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vectors import Vectors

from deeprank.runtime.files import file_sha256
from deeprank.runtime.formats import DECODING_VERSION
from deeprank.runtime.index.database.records import Item
from deeprank.runtime.index.database.writer import Writer, create_database, locked, open_writer
from deeprank.runtime.index.folder import install_model
from deeprank.runtime.index.graph_update import update_graph

NO_MODEL = "0" * 64
CLASSES = 200
# About what a sync commits every two seconds on a fast box.
_ROWS_PER_COMMIT = 10_000


@dataclass(frozen=True)
class Making:
    """Seconds of all cores together that an index took: its rows, then its graph."""

    rows: float
    graph: float


def names(count: int, first: int = 0) -> Iterator[Item]:
    """Yield items whose paths look like those of a data set; no such file exists."""
    for number in range(first, first + count):
        label = f"n{number % CLASSES:08}"
        path = os.fsencode(f"{label}/images/{label}_{number}.JPEG")
        yield Item(
            0, 1, path, label, 2_000, 1_700_000_000_000_000_000 + number, number.to_bytes(32, "big"), DECODING_VERSION
        )


def make_index(
    folder: Path, vectors: Vectors, model: Path | None = None, items: Iterable[Item] | None = None, root: bytes = b"/p"
) -> Making:
    """Make an index folder under a temporary name and put it in place.

    Args:
        folder: where there is none yet.
        vectors: float32 ``[n, d]``.
        model: put into the folder; without one, the index answers vectors only.
        items: one for each vector, of root 1; default: :func:`names`.
        root: the folder that the items lie in.

    """
    prepared = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(prepared, ignore_errors=True)
    prepared.mkdir(parents=True)
    with locked(prepared):
        if model is None:
            create_database(prepared, NO_MODEL, vectors.shape[1])
        else:
            install_model(prepared, model, file_sha256(model), vectors.shape[1])
        with open_writer(prepared) as writer:
            writer.add_root(root)
            start = time.process_time()
            add_rows(writer, vectors, names(len(vectors)) if items is None else items)
            middle = time.process_time()
            refused = update_graph(writer)
            making = Making(middle - start, time.process_time() - middle)
    if refused is not None:
        raise SystemExit(f"error: there is no graph: {refused}")
    prepared.replace(folder)
    return making


def add_rows(writer: Writer, vectors: Vectors, items: Iterable[Item]) -> None:
    """Add items with their vectors, and commit them."""
    for number, (item, vector) in enumerate(zip(items, vectors, strict=True), 1):
        writer.add(item, vector.tobytes())
        if number % _ROWS_PER_COMMIT == 0:
            writer.commit()
    writer.commit()
