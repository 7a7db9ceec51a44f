"""Pictures with awkward names, an index folder of them, and the same rows in a collection of Milvus."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from milvus_server import MilvusServer
from tiny_model import write_model, write_picture

from deeprank.runtime.index.database.store import Store
from deeprank.runtime.index.milvus.address import parse_address
from deeprank.runtime.index.milvus.collection import Description, create, describe
from deeprank.runtime.index.milvus.connection import Connection
from deeprank.runtime.index.sync.sync import sync

# Folders, so labels: siblings with a common beginning, wildcards of LIKE, quotes, escapes, other scripts.
LABELS = (
    "cats",
    "cats2",
    "cats%",
    "cats_",
    "ca[t]s",
    "ca*s",
    'ca"ts',
    "ca'ts",
    "ca\\ts",
    "größe",
    "日本",
    "ca\nts",
    "\x1b[31m",
)
EACH = 12


@dataclass(frozen=True)
class World:
    """A folder with ``photos``, ``my.index``, ``model.onnx`` and ``query.png``."""

    folder: Path

    @property
    def index(self) -> Path:
        return self.folder / "my.index"

    @property
    def model(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def query(self) -> Path:
        return self.folder / "query.png"


def make_world(folder: Path) -> World:
    """Write pictures, some of them copies and some without a label, and sync them."""
    photos = folder / "photos"
    for seed in range(len(LABELS) * EACH):
        label = LABELS[seed % len(LABELS)]
        write_picture(photos / label / ("deeper" if seed % 3 == 0 else ".") / f"{seed}.png", seed)
    for seed in range(1000, 1010):
        write_picture(photos / f"{seed}.png", seed)
    for number in range(5):
        shutil.copy(photos / "cats/13.png", photos / "cats2" / f"copy{number}.png")
    write_picture(folder / "query.png", 5000)
    shutil.copy(photos / "cats/13.png", folder / "outside.png")
    write_model(folder / "model.onnx", unrelated_distance=1.5)
    sync(folder / "my.index", [photos], model=folder / "model.onnx")
    return World(folder)


def rows_of(index: Path) -> tuple[list[dict[str, Any]], dict[int, str], str, int]:
    """Return the rows of an index folder as those of a collection, its roots, its model's sha256 and dim."""
    with Store.open(index) as store, store.snapshot():
        ids, vectors = store.vectors()
        items = {item.id: item for item in store.all_items()}
        rows = [
            {
                "id": number,
                "root": items[number].root,
                "path": items[number].path.decode(),
                "label": items[number].label or "",
                "sha256": items[number].sha256.hex(),
                "size": items[number].size,
                "mtime_ns": items[number].mtime_ns,
                "vector": vector,
            }
            for number, vector in zip(np.asarray(ids).tolist(), np.asarray(vectors), strict=True)
        ]
        meta = store.meta()
        roots = {number: path.decode() for number, path in store.roots().items()}
    return rows, roots, meta.model_sha256, meta.dim


def fill(server: MilvusServer, name: str, index: Path, *, index_type: str = "HNSW", suffix: str = "") -> str:
    """Put the rows of an index folder into a collection, point the alias to it, and return its address."""
    address = server.address(name)
    rows, roots, sha256, dim = rows_of(index)
    collection = f"{name}_{sha256[:12]}{suffix}"
    labels: dict[str, int] = {}
    for row in rows:
        if row["label"]:
            labels[row["label"]] = labels.get(row["label"], 0) + 1
    with Connection(parse_address(address)) as connection:
        description = Description(sha256, dim, index_type, roots, len(rows), dict(sorted(labels.items())))
        create(connection, collection, description)
        describe(connection, collection, description)
        for start in range(0, len(rows), 500):
            connection.call("upsert", collection, rows[start : start + 500], timeout=60)
        point(connection, collection, name)
    return address


def point(connection: Connection, collection: str, alias: str) -> None:
    """Let the alias lead to a collection."""
    connection.call("alter_alias" if _has(connection, alias) else "create_alias", collection, alias)


def _has(connection: Connection, alias: str) -> bool:
    from deeprank.runtime.errors import StoreError

    try:
        connection.call("describe_alias", alias)
    except StoreError:
        return False
    return True
