"""The library in a process of its own: reads what to try as JSON lines, and says what came of it the same way.

After each input an honest query is answered by an honest index that stays open, so that what an input does to the
process shows.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fixture import K, World

from deeprank.runtime import DeepRankError, Embedder, Index
from deeprank.runtime.datasets import open_dataset
from deeprank.runtime.errors import PictureError
from deeprank.runtime.evaluate.reference import load_reference
from deeprank.runtime.images import PictureRule, load_picture, load_size, load_thumbnail
from deeprank.runtime.index.exchange.importer import import_index
from deeprank.runtime.index.maintenance.copy import copy
from deeprank.runtime.index.maintenance.verify import verify

_RULE = PictureRule(64)
_MOST_SAMPLES = 200
Steps = dict[str, Callable[[], Any]]


def main() -> None:
    """Answer until there is no more to try."""
    # Whatever a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    world = World.load(Path(sys.argv[1]))
    vector = np.array([world.vector], np.float32)
    with Index.open(world.index) as honest:
        honest.search(world.query, k=K)
        for line in sys.stdin:
            asked = json.loads(line)
            said = _try(asked["family"], Path(asked["path"]), world, vector)
            hits = honest.search(vector[0], k=K)
            said["honest"] = world.answer_is_right([(hit.relative, hit.distance) for hit in hits])
            answers.write(json.dumps(said) + "\n")
            answers.flush()


def _try(family: str, path: Path, world: World, vector: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Take every step of a family; each may refuse with an error of ours, and with no other."""
    began = time.process_time()
    said: dict[str, Any] = {"answered": [], "refused": {}, "errors": {}, "hits": []}
    for name, step in _STEPS[family](path, world, vector, said["hits"]).items():
        try:
            step()
        except DeepRankError as error:
            said["refused"][name] = str(error)[:500]
        except Exception as error:  # which the caller of a library would not expect
            said["errors"][name] = f"{type(error).__name__}: {error}"[:500]
        else:
            said["answered"].append(name)
    said["cpu_s"] = time.process_time() - began
    return said


def _picture(path: Path, world: World, vector: object, hits: object) -> Steps:
    return {
        "load_picture": lambda: load_picture(path, _RULE),
        "load_size": lambda: load_size(io.BytesIO(path.read_bytes())),
        "load_part": lambda: load_picture(io.BytesIO(path.read_bytes()), _RULE, box=(0.25, 0.0, 0.75, 0.5)),
        "load_thumbnail": lambda: load_thumbnail(io.BytesIO(path.read_bytes()), 256),
    }


def _archive(path: Path, world: World, vector: object, hits: object) -> Steps:
    def read() -> None:
        data = open_dataset(path)
        for sample in [*data.train, *data.val][:_MOST_SAMPLES]:
            with contextlib.suppress(DeepRankError):
                load_picture(io.BytesIO(sample.read()), _RULE)

    return {"open_dataset": read}


def _index(path: Path, world: World, vector: np.ndarray[Any, Any], hits: list[tuple[str, float]]) -> Steps:
    def search(method: Any) -> None:
        with Index.open(path) as index:
            hits.extend((hit.relative, hit.distance) for hit in index.search(vector[0], k=K, method=method))
            index.summary()
            index.search_vectors(np.repeat(vector, 50, axis=0), 3, method=method)

    target = path.parent / "out" / "copied.index"
    return {
        "search": lambda: search("auto"),
        "scan": lambda: search("exact"),
        "graph": lambda: search("hnsw"),
        "verify": lambda: verify(path),
        "copy": lambda: copy(path, target),
        "gone": lambda: shutil.rmtree(target, ignore_errors=True),
    }


def _model(path: Path, world: World, vector: object, hits: object) -> Steps:
    def embed() -> None:
        embedder = Embedder(path, device="cpu", threads=1)
        found = embedder.embed([world.query, world.query])
        if not np.isfinite(found).all() or np.abs(np.linalg.norm(found, axis=1) - 1).max() > 1e-3:
            raise ArithmeticError("vectors that are not of unit length were given out")

    return {"embed": embed}


def _arrays(path: Path, world: World, vector: object, hits: object) -> Steps:
    if path.name == world.reference.name:
        return {"load_reference": lambda: load_reference(path, None)}
    if path.name == world.carrying.name:
        return {"carried pictures": lambda: _read_carried(path)}
    target = path.parent / "out" / "imported.index"
    return {"import_index": lambda: import_index(path, target, model=world.model)}


def _read_carried(path: Path) -> None:
    found = load_reference(path, None)
    for sample in found.dataset().val if found.pictures else ():
        with contextlib.suppress(PictureError), sample.open() as file:
            load_picture(file, _RULE)


_STEPS: dict[str, Callable[..., Steps]] = {
    "picture": _picture,
    "archive": _archive,
    "index": _index,
    "model": _model,
    "arrays": _arrays,
}

if __name__ == "__main__":
    main()
