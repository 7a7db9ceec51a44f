"""``deeprank-index sync`` of a folder that has not changed, against a bare look at every file of it, whole processes.

The floor is Python that walks the same folder and asks for each file's size and time. A second figure is the sync after
one file of a thousand has changed: it embeds those pictures and brings the graph up to date. The tree holds real
pictures, each a file of its own with a few bytes of its own behind the picture. The index is made from ready vectors of
the model's length rather than by embedding all of them.

    python benchmarks/sync_unchanged.py --data tiny-imagenet-subset.zip --cache cache --files 100000
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from cold_query import timed
from interleaved_runs import caption, median_ratio, show
from made_index import make_index
from vectors import Real, real_vectors, vector_set

from deeprank.runtime.datasets import open_dataset
from deeprank.runtime.formats import DECODING_VERSION
from deeprank.runtime.index.database.records import Item
from deeprank.runtime.model.pretrained import find_model

FLOOR = """
import os, sys
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        os.stat(os.path.join(folder, name))
"""
FILES_PER_FOLDER = 500
PICTURES = 500


def write_tree(data: str, tree: Path, count: int) -> None:
    """Write ``count`` files, no two alike, in folders of ``FILES_PER_FOLDER``."""
    contents = [sample.read() for sample in open_dataset(data).val[:PICTURES]]
    for number in range(count):
        folder = tree / f"album{number // FILES_PER_FOLDER:04}"
        if number % FILES_PER_FOLDER == 0:
            folder.mkdir(parents=True)
        (folder / f"picture{number:07}.jpeg").write_bytes(contents[number % len(contents)] + b"%d" % number)


def items(tree: Path) -> Iterator[Item]:
    """Yield an item for each file, as a sync would record it."""
    for path in sorted(tree.rglob("*.jpeg")):
        status, digest = path.stat(), hashlib.sha256(path.read_bytes()).digest()
        relative = os.fsencode(path.relative_to(tree))
        mtime_ns = status.st_mtime_ns
        yield Item(0, 1, relative, path.parent.name, status.st_size, mtime_ns, digest, DECODING_VERSION)


def prepared(arguments: argparse.Namespace, real: Real) -> tuple[Path, Path]:
    """Return a tree and its index, made once and kept together in the cache."""
    home = arguments.cache / f"sync-{real.key}-{arguments.files}"
    tree, index = home / "tree", home / "photos.index"
    if not index.exists():
        shutil.rmtree(home, ignore_errors=True)
        write_tree(arguments.data, tree, arguments.files)
        vectors = vector_set(real, arguments.cache, arguments.files, real.dim).gallery
        root = os.fsencode(os.path.realpath(tree))
        make_index(index, vectors, find_model(arguments.model), items(tree), root)
    return tree, index


def change(tree: Path, count: int) -> None:
    """Make ``count`` files other ones, evenly spread: a byte more behind the picture."""
    paths = sorted(tree.rglob("*.jpeg"))
    for path in paths[:: max(1, len(paths) // count)][:count]:
        with path.open("ab") as file:
            file.write(b".")


def main() -> None:
    """Time both in turn, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pretrained", help="of the index; default: the one that ships")
    parser.add_argument("--data", required=True)
    parser.add_argument("--cache", type=Path, required=True, help="a folder that keeps what takes long to make")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    tree, index = prepared(arguments, real_vectors(arguments.model, arguments.data, arguments.cache))
    sync = [str(Path(sys.executable).with_name("deeprank-index")), "sync", str(tree), "--index", str(index)]
    floor = [sys.executable, "-c", FLOOR, str(tree)]
    changed = max(1, arguments.files // 1_000)
    timed(sync), timed(floor)  # once for the caches of the file system
    unchanged, some, bare = [], [], []
    for _ in range(arguments.rounds):
        unchanged.append(timed(sync))
        bare.append(timed(floor))
        change(tree, changed)
        some.append(timed(sync))
    rows = [
        [what, f"{statistics.median(times):.2f}", median_ratio(times, bare)]
        for what, times in (("none", unchanged), (f"{changed:,}", some), ("floor: os.walk and os.stat", bare))
    ]
    show(f"Sync of {arguments.files:,} files, whole process:", "changed files | s | ÷ floor", rows)
    print(caption())


if __name__ == "__main__":
    main()
