"""Confinement of decoding processes: what they cannot do any more, and that they decode all the same."""

import io
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeprank.runtime.decoding.pool import DecodingPool
from deeprank.runtime.images import PictureRule, load_picture

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="Linux on x86-64 alone"
)

HEIC = sorted((Path(__file__).parent / "heic").glob("*.heic"))

ATTEMPTS = """
import ctypes, fcntl, mmap, os, resource, signal, socket, sys, threading
from deeprank.runtime.decoding.confinement import confine

attempts = {
    "read a file": lambda: open("/etc/passwd"),
    "write a file": lambda: os.open("/tmp/deeprank-confined", os.O_CREAT | os.O_WRONLY),
    "list a folder": lambda: os.listdir("/"),
    "look at a file": lambda: os.stat("/etc/passwd"),
    "delete a file": lambda: os.unlink("/tmp/deeprank-confined"),
    "link a file": lambda: os.symlink("/etc/passwd", "/tmp/deeprank-confined"),
    "change a mode": lambda: os.fchmod(0, 0o777),
    "reach a network": lambda: socket.socket(),
    "make a pair of sockets": lambda: socket.socketpair(),
    "fork": lambda: os._exit(7) if (child := os.fork()) == 0 else os.waitpid(child, 0),
    "start a program": lambda: os.execv("/bin/true", ["true"]),
    "signal the parent": lambda: os.kill(os.getppid(), 0),
    "own a descriptor's signals": lambda: fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid()),
    "limit the parent": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE),
    "run data": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),
    "make anonymous files": lambda: os.memfd_create("x"),
    "name the terminal": lambda: fcntl.ioctl(0, 0x5412, b"x"),
    "change identity": lambda: os.setuid(os.getuid()),
}
assert confine()
done = []
for name, attempt in attempts.items():
    try:
        attempt()
        done.append(name)
    except OSError:
        pass
libc = ctypes.CDLL(None, use_errno=True)
for name, number in {"trace": 101, "read another process": 310, "mount": 165, "open by handle": 304, "io_uring": 425,
                     "bpf": 321, "keys": 250, "user faults": 323, "x32 open": 0x40000002}.items():
    if libc.syscall(number, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 1:
        done.append(name)
thread = threading.Thread(target=lambda: None)  # decoders have some
thread.start()
thread.join()
mmap.mmap(-1, 1 << 20).close()
print(done)
"""


def test_a_confined_process_reaches_nothing() -> None:
    result = subprocess.run([sys.executable, "-c", ATTEMPTS], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_the_attempts_can_succeed() -> None:
    harmless = (
        "for name in [*attempts]:\n    if name not in ('read a file', 'fork', 'run data'):\n        del attempts[name]"
    )
    unconfined = ATTEMPTS.replace("assert confine()", harmless)
    result = subprocess.run([sys.executable, "-c", unconfined], capture_output=True, text=True, timeout=60)
    assert "['read a file', 'fork', 'run data'" in result.stdout


@pytest.mark.parametrize("way", ["forked", "interpreters"])
def test_workers_are_confined(way: str) -> None:
    with DecodingPool(2, forks=way == "forked") as pool:
        pool.wait_until_ready()
        content = io.BytesIO()
        Image.new("RGB", (30, 20), "red").save(content, "PNG")
        content.seek(0)
        pool.load_picture(content, PictureRule(8))
        confined = [status for status in _statuses() if "\nSeccomp:\t2\n" in status]
        assert confined


def _statuses() -> list[str]:
    """What the system says of the processes that this one, or one of its children, started."""
    pids, found = [os.getpid()], []
    for pid in pids:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            pids += map(int, children.read_text().split())
        found.append(Path(f"/proc/{pid}/status").read_text())
    return found


@pytest.fixture(scope="module")
def one() -> Iterator[DecodingPool]:
    with DecodingPool(1) as pool:
        yield pool


@pytest.mark.parametrize("path", HEIC, ids=lambda path: path.stem)
def test_heic_is_decoded(path: Path, one: DecodingPool) -> None:
    assert np.array_equal(one.load_picture(path, PictureRule(32)), load_picture(path, PictureRule(32)))


KINDS = [
    *(
        ("TIFF", {"compression": each})
        for each in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd")
    ),
    *(("JPEG", {"progressive": True}), ("JPEG", {"quality": 95, "subsampling": 0}), ("WEBP", {"lossless": True})),
    *(("PNG", {"compress_level": 0}), ("AVIF", {"quality": 50}), ("GIF", {"interlace": True})),
]


@pytest.mark.parametrize(("image_format", "options"), KINDS, ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "RGBA"])
def test_other_kinds_are_decoded(
    image_format: str, options: dict[str, object], mode: str, one: DecodingPool, tmp_path: Path
) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (70, 90, 3), dtype=np.uint8))
    path = tmp_path / "file"
    try:
        noise.convert(mode).save(path, image_format, **options)
    except (OSError, KeyError, RuntimeError, ValueError):
        pytest.skip(f"Pillow writes no {image_format} of this kind")
    assert np.array_equal(one.load_picture(path, PictureRule(32)), load_picture(path, PictureRule(32)))
