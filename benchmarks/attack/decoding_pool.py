"""How long an honest client waits for ``deeprank-serve`` while hostile pictures are uploaded to it.

Hostile are a progressive JPEG of many empty scans and a large interlaced PNG, which no check of a format can refuse.
One client searches for a small photograph every 100 ms meanwhile, whether or not it has the answers to those before.

    python benchmarks/attack/decoding_pool.py --hostile 0 1 2 8 --seconds 20
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

_BOUNDARY = "attack"
_INTERVAL_S = 0.1
_PATIENCE_S = 150.0


@dataclass
class Waits:
    """What clients met: seconds and status of each honest request, and of each hostile one."""

    honest: list[tuple[float, int]] = field(default_factory=list)
    hostile: list[tuple[float, int]] = field(default_factory=list)


def scans_jpeg(scans: int = 2000, side: int = 10_000) -> bytes:
    """Return a progressive JPEG of ``side`` x ``side`` gray pixels with empty scans of about 100 bytes."""
    blocks = -((-side // 8) ** 2)
    bits = ""
    while blocks >= 16384:
        run = min(blocks, 32767)
        bits += "0" + format(run - 16384, "014b")
        blocks -= run
    bits += "1" * (-len(bits) % 8)
    entropy = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")
    tables = b"\xff\xdb" + struct.pack(">H", 67) + b"\0" + b"\1" * 64
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, side, side, 1) + b"\1\x11\0"
    huffman = b"\xff\xc4" + struct.pack(">H", 20) + b"\x10" + bytes([1] + [0] * 15) + b"\xe0"
    scan = b"\xff\xda" + struct.pack(">HB", 8, 1) + b"\1\0\x01\x3f\0" + entropy
    return b"\xff\xd8" + tables + frame + huffman + scan * scans + b"\xff\xd9"


def interlaced_png(side: int = 9_000) -> bytes:
    """Return an interlaced RGB PNG of one colour, which inflates and is put together in seven passes."""
    packed = zlib.compressobj(9)
    content = b""
    for left, top, across, down in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        row = b"\0" + b"\x80" * (3 * -(-(side - left) // across))
        content += b"".join(packed.compress(row) for _ in range(-(-(side - top) // down)))
    content += packed.flush()

    def chunk(name: bytes, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", content) + chunk(b"IEND", b"")


BOMBS = {"empty scans": scans_jpeg, "interlaced PNG": interlaced_png}


def main() -> None:
    """Make an index and the bombs, and let each number of them be uploaded at once to a server of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hostile", type=int, nargs="+", default=[0, 1, 2, 8], help="hostile uploads at once")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a measurement")
    parser.add_argument("--bombs", nargs="+", choices=BOMBS, default=list(BOMBS))
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="options of the server; comes last")
    arguments = parser.parse_args()
    print("| bomb | hostile | honest requests | refused or lost | p50, ms | p99, ms | max, ms | hostile answers |")
    print("|:--|--:|--:|--:|--:|--:|--:|:--|")
    with tempfile.TemporaryDirectory() as scratch:
        index = make_index(Path(scratch))
        honest = (Path(scratch) / "photos" / "a" / "0.jpg").read_bytes()
        for name in arguments.bombs:
            bomb = BOMBS[name]()
            for count in arguments.hostile:
                with server(index, arguments.serve) as port:
                    waits = asyncio.run(attack(port, honest, bomb, count, arguments.seconds))
                print(row(name, count, waits), flush=True)


def row(name: str, count: int, waits: Waits) -> str:
    """Return a line of the table."""
    seconds = sorted(wait for wait, _ in waits.honest)
    lost = sum(status != 200 for _, status in waits.honest)
    answers = Counter(status for _, status in waits.hostile)
    longest = max((wait for wait, _ in waits.hostile), default=0)
    answered = ", ".join(f"{number} x {status}" for status, number in answers.items())
    p50, p99, most = (1000 * seconds[min(len(seconds) - 1, int(share * len(seconds)))] for share in (0.5, 0.99, 1))
    hostile = f"{answered} within {longest:.1f} s" if answers else ""
    return f"| {name} | {count} | {len(seconds)} | {lost} | {p50:.0f} | {p99:.0f} | {most:.0f} | {hostile} |"


def make_index(scratch: Path) -> Path:
    """Make an index of 40 pictures."""
    random = np.random.default_rng(1)
    for number in range(40):
        target = scratch / "photos" / "ab"[number % 2] / f"{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(random.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(target, quality=85)
    index = scratch / "attacked.index"
    command = [*command_of("index"), "sync", str(scratch / "photos"), "--index", str(index)]
    subprocess.run(command, check=True, capture_output=True)
    return index


def command_of(name: str) -> list[str]:
    """Return the command of the package that this interpreter imports."""
    return [sys.executable, "-P", "-c", f"from deeprank.runtime.{name}.cli import main; main()"]


@contextlib.contextmanager
def server(index: Path, options: list[str]) -> Iterator[int]:
    """Run ``deeprank-serve``, and give its port."""
    command = [*command_of("serve"), "--index", str(index), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"at http://127\.0\.0\.1:(\d+)", line):
                    yield int(found[1])
                    return
            sys.exit("error: the server did not start.")
        finally:
            process.kill()


async def attack(port: int, honest: bytes, bomb: bytes, count: int, seconds: float) -> Waits:
    """Upload the bomb so many times at once, and honest pictures meanwhile."""
    waits = Waits()
    for _ in range(10):
        await upload(port, honest, waits.honest)
    waits.honest.clear()
    hostile = [asyncio.create_task(upload(port, bomb, waits.hostile)) for _ in range(count)]
    requests = []
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        requests.append(asyncio.create_task(upload(port, honest, waits.honest)))
        await asyncio.sleep(_INTERVAL_S)
    await asyncio.gather(*hostile, *requests)
    return waits


async def upload(port: int, content: bytes, answers: list[tuple[float, int]]) -> None:
    """Search for a picture, and note how long that took and the status; 0: no answer."""
    part = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'.encode()
    body = part + content + f"\r\n--{_BOUNDARY}--\r\n".encode()
    head = f"POST /v1/search?k=5 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {len(body)}\r\n"
    head += f"Content-Type: multipart/form-data; boundary={_BOUNDARY}\r\nConnection: close\r\n\r\n"
    started = time.perf_counter()
    status = 0
    with contextlib.suppress(OSError, asyncio.TimeoutError, IndexError, ValueError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + body)
        answer = await asyncio.wait_for(reader.read(), _PATIENCE_S)
        status = int(answer.split(b" ", 2)[1])
        writer.close()
    answers.append((time.perf_counter() - started, status))


if __name__ == "__main__":
    main()
