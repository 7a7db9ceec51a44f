"""What browsing costs the server: pages of lists of a large index, and a page of thumbnails.

Lists: an index of ``--rows`` pictures whose files do not exist. For each order, the first page of 50, the median and
the slowest of 20 behind it, and the first page after a change of the index. Thumbnails: ``--pictures`` photographs of
12 megapixels, in each size, cold and warm, for one viewer and for eight with six connections each.

    python benchmarks/browsing.py --model model.onnx
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from common import machine
from http_client import Load, run_load
from made_index import make_index
from PIL import Image
from serving import Way, server

from deeprank.runtime.index.sync.sync import sync
from deeprank.runtime.index.uploads import remove_items
from deeprank.runtime.modelfile import open_model

PAGE = 50
NEXT = 20
SIZES = (256, 512, 1024, 2048)
VIEWERS = (1, 8)
CONNECTIONS = 6
_DISTINCT = 1000


def main() -> None:
    """Measure both, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("model.onnx"))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pictures", type=int, default=50)
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        measure_lists(Path(scratch) / "large.index", arguments.model, arguments.rows)
        measure_thumbnails(Path(scratch), arguments.model, arguments.pictures)


def measure_lists(index: Path, model: Path, rows: int) -> None:
    """Make an index, and time its lists."""
    rng = np.random.default_rng(0)
    some = rng.standard_normal((_DISTINCT, open_model(model).info.embedding_dim)).astype(np.float32)
    some /= np.linalg.norm(some, axis=1, keepdims=True)
    make_index(index, some[np.arange(rows) % _DISTINCT], model)
    with server(index, Way("")) as port:
        before = _memory(port)
        print(f"\n{rows:,} pictures, pages of {PAGE}, in ms\n")
        print("| list | first | next | slowest | after a change |\n|---|---|---|---|---|")
        filters: list[dict[str, str]] = [{}, {"label": "n00000007"}, {"folder": "n00000007"}]
        for number, (order, chosen) in enumerate((o, f) for f in filters for o in ("folder", "newest", "shuffle")):
            parameters = {"order": order, "limit": str(PAGE), **chosen}
            first, document = _page(port, parameters)
            behind = []
            while document["next"] is not None and len(behind) < NEXT:
                seconds, document = _page(port, parameters | {"cursor": document["next"]})
                behind.append(seconds)
            remove_items(index, [1 + number])
            changed, _ = _page(port, parameters)
            figures = (first, statistics.median(behind), max(behind), changed)
            shown = " | ".join(f"{1000 * each:.1f}" for each in figures)
            print(f"| {' '.join([order, *chosen.values()])} | {shown} |", flush=True)
            time.sleep(rows / 50_000)  # until the catalogue of the new state is made
        print(f"\nmemory of the server: {before / 1e6:,.0f} MB at the start, {_memory(port) / 1e6:,.0f} MB at the end")


def _page(port: int, parameters: dict[str, str]) -> tuple[float, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    start = time.perf_counter()
    connection.request("GET", f"/v1/items?{urlencode(parameters)}")
    document = json.loads(connection.getresponse().read())
    return time.perf_counter() - start, document


def measure_thumbnails(folder: Path, model: Path, count: int) -> None:
    """Make photographs, and time pages of their thumbnails."""
    _write_photographs(folder / "photos", count)
    sync(folder / "photos.index", [folder / "photos"], model=model)
    print(f"\n{count} thumbnails of photographs of 12 megapixels\n")
    print("| size | viewers | cold, s | warm, s | KB a viewer |\n|---|---|---|---|---|")
    for size in SIZES:
        for viewers in VIEWERS:
            with server(folder / "photos.index", Way("")) as port:
                cold, warm = (_thumbnails(port, size, count, viewers) for _ in range(2))
            kilobytes = sum(len(answer.body) for answer in warm.answers) / viewers / 1000
            print(f"| {size} | {viewers} | {cold.seconds:.2f} | {warm.seconds:.2f} | {kilobytes:,.0f} |", flush=True)


def _thumbnails(port: int, size: int, count: int, viewers: int) -> Load:
    requests = [
        f"GET /v1/items/{number}/thumbnail?size={size} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        for number in range(1, count + 1)
    ]
    return run_load(_repeated(requests, viewers), port, CONNECTIONS * viewers)


def _repeated(requests: Sequence[bytes], viewers: int) -> list[bytes]:
    return [request for request in requests for _ in range(viewers)]


def _write_photographs(folder: Path, count: int) -> None:
    """Write smooth pictures with the noise of a camera, of about 2.5 MB each."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(count):
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((4000, 3000), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = smooth + rng.normal(0, 6, (3000, 4000, 1)).astype(np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:03}.jpg", quality=88)


def _memory(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    found = re.search(r"^process_resident_memory_bytes (\S+)$", connection.getresponse().read().decode(), re.MULTILINE)
    return 0 if found is None else int(float(found[1]))


if __name__ == "__main__":
    main()
