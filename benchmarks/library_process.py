"""One library in a process of its own, for what it takes in time and memory; prints JSON.

    python benchmarks/library_process.py build LIBRARY VECTORS.npy TARGET MODEL.onnx
    python benchmarks/library_process.py open LIBRARY TARGET QUERIES.npy EF

``build`` holds the vectors in an array, as whoever has just embedded them does; its time is that of all cores together,
which a machine that does something else besides does not change much. ``open`` reads what was built and answers the
queries, all at once. Memory is in bytes (memory.py), ``start`` before and ``end`` after.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from memory import memory
from peers import ALL, Deeprank
from vectors import K

from deeprank.runtime.devices import usable_cores


def build(library: str, vectors: str, target: str, model: str) -> dict[str, Any]:
    """Build and save an index."""
    array = np.load(vectors, allow_pickle=False)
    before, start = memory(), time.process_time()
    parts = ALL[library].build(array, Path(target), Path(model))
    seconds = time.process_time() - start
    return {"seconds": seconds, "parts": dataclasses.asdict(parts) if parts else {}, "start": before, "end": memory()}


def open_and_search(library: str, target: str, queries: str, ef: str) -> dict[str, Any]:
    """Read an index and search it; EF 0 scans instead, which deeprank alone can."""
    array = np.load(queries, allow_pickle=False)
    ALL[library].prepare()
    before, start = memory(), time.perf_counter()
    peer = ALL[library].open(Path(target), array.shape[1])
    if int(ef):
        peer.set_ef(int(ef))
        peer.search(array, K, usable_cores())
    else:
        assert isinstance(peer, Deeprank)
        peer.scan(array[:1], K)
    return {"seconds": time.perf_counter() - start, "start": before, "end": memory()}


if __name__ == "__main__":
    print(json.dumps({"build": build, "open": open_and_search}[sys.argv[1]](*sys.argv[2:])))
