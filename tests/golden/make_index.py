"""How ``index-schema-3`` was made; no test runs it: later versions must read what this version wrote.

``PYTHONPATH=tests python tests/golden/make_index.py FOLDER`` makes a small index of two folders, one of which has
filters and labels of whole paths, with a removed item, a file that is no picture, names that are not UTF-8, and a
graph. It prints what a plain computation finds in it.
When the schema changes, the folder gets a new name, and the old one stays.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from tiny_model import DIM, expected, square, write_model, write_pictures

from deeprank.runtime.index.database.writer import writing
from deeprank.runtime.index.patterns import RootFilters
from deeprank.runtime.index.root_labels import parse_labels
from deeprank.runtime.index.sync.sync import sync

FILTERS = RootFilters(include=("*.png", "caf\udce9/"), exclude=("raw", "a/[45]*"))
NAMES = [*(f"{folder}/{i}.png" for folder in ("a", "b", "raw") for i in range(6)), "caf\udce9/\udcff.png", "top.png"]


def main() -> None:
    target = Path(sys.argv[1])
    query = np.random.default_rng(0).normal(size=DIM).astype(np.float32)
    query /= np.linalg.norm(query)
    with tempfile.TemporaryDirectory() as scratch:
        one, two = Path(scratch, "one"), Path(scratch, "two")
        write_pictures(one, NAMES)
        write_pictures(two, ["c/0.png", "c/1.png"], 100)
        for path in (*one.rglob("*.png"), *two.rglob("*.png")):
            os.utime(path, ns=(1_700_000_000_123_456_789, 1_700_000_000_123_456_789))
        (one / "b" / "broken.png").write_bytes(b"no picture")
        os.utime(one / "b" / "broken.png", ns=(1_700_000_000_123_456_789, 1_700_000_000_123_456_789))
        model = write_model(Path(scratch, "model.onnx"))
        sync(target, [one], model=model, filters=FILTERS, labels=parse_labels("path"))
        sync(target, [two])
        (one / "a" / "0.png").unlink()
        sync(target, [one])
        (one / "b" / "broken.png").unlink()
        left = [path for path in (*one.rglob("*.png"), *two.rglob("*.png")) if kept(path.relative_to(scratch))]
        vectors = expected(np.stack([square(path) for path in left]))
        distances = ((vectors - query) ** 2).sum(axis=1)
        for place in np.argsort(distances)[:3]:
            print(repr(str(left[place].relative_to(scratch))), float(distances[place]))
        with writing(target) as writer:
            writer.move_roots({1: b"/nowhere/one=\xff", 2: b"/nowhere/two"})
            writer.commit()
    (target / "model.onnx").rename(target / "model.bin")  # git leaves *.onnx out
    (target / "write.lock").unlink(missing_ok=True)


def kept(path: Path) -> bool:
    return "raw" not in path.parts and path.parts[-2:] not in (("a", "4.png"), ("a", "5.png"))


if __name__ == "__main__":
    main()
