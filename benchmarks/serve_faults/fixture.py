"""The pictures, the index, the server and the truth about them that every answer is held against."""

from __future__ import annotations

import functools
import hashlib
import io
import re
import secrets
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from client import Client
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from conftest import BIN
from server_process import Server
from tiny_model import expected, write_model

__all__ = ["DIMS", "SIZES", "Picture", "World", "make_world", "noise", "resident", "run", "run_well"]

Vector = npt.NDArray[np.float64]

# Of the two models, by their seeds: the side of their pictures, the length of their vectors.
SIZES = {0: 8, 1: 10}
DIMS = {0: 16, 1: 24}


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture: the bytes of its file, and what both models give for it, computed by their formula alone."""

    content: bytes

    @functools.cached_property
    def sha256(self) -> str:
        """Hex, of its file."""
        return hashlib.sha256(self.content).hexdigest()

    @functools.cached_property
    def vectors(self) -> dict[int, Vector]:
        """By the seed of the model."""
        return {seed: self._vector(seed) for seed in SIZES}

    def _vector(self, seed: int) -> Vector:
        size = SIZES[seed]
        with Image.open(io.BytesIO(self.content)) as image:
            pixels = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
        return expected(pixels[None], seed, DIMS[seed])[0]


def noise(number: int, scale: int = 1, kind: str = "PNG") -> Picture:
    """Return a picture of noise, 12 x 10 squares of ``scale`` pixels a side; each number gives another one."""
    pixels = np.random.default_rng(number).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.repeat(scale, 0).repeat(scale, 1)).save(file, kind)
    return Picture(file.getvalue())


@dataclass(frozen=True)
class World:
    """What is made once.

    Attributes:
        folder: for everything.
        photos: the folder that is synced; ``pictures`` lie there, under their names.
        index: of these.
        token: that servers with a token are started with.

    """

    folder: Path
    photos: Path
    index: Path
    pictures: dict[str, Picture]
    token: str

    def model(self, seed: int) -> Path:
        """Return the file of a model."""
        return self.folder / f"model{seed}.onnx"

    def serve(self, *options: object, index: Path | None = None, writes: bool = False) -> Server:
        """Start a server; with ``writes`` it takes pictures, and needs the token."""
        words: list[object] = ["--index", index or self.index]
        if writes:
            words += ["--token-file", self.folder / "token", "--allow-writes"]
        return Server(*words, *options)

    def client(self, server: Server) -> Client:
        """Return a client with the token, which also works if none is needed."""
        return Client(server.port, self.token)

    def copied(self, name: str) -> Path:
        """Copy photos and index as they were made, the index synced from the new place; return the folder of both."""
        folder = self.folder / name
        write_all(folder / "photos", self.pictures)
        sync = ("sync", folder / "photos", "--index", folder / "my.index", "--model", self.model(0))
        run_well(*sync)
        return folder


def make_world(folder: Path, pictures: int) -> World:
    """Write pictures and both models, and index the pictures with the first."""
    for seed, size in SIZES.items():
        write_model(folder / f"model{seed}.onnx", seed=seed, size=size, dim=DIMS[seed])
    named = {f"{'abcd'[number % 4]}/{number}.png": noise(number) for number in range(pictures)}
    world = World(folder, folder / "photos", folder / "my.index", named, secrets.token_urlsafe(32))
    write_all(world.photos, named)
    (folder / "token").write_text(world.token)
    (folder / "token").chmod(0o600)
    run_well("sync", world.photos, "--index", world.index, "--model", world.model(0))
    return world


def write_all(folder: Path, pictures: dict[str, Picture]) -> None:
    """Write pictures under their names."""
    for name, picture in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture.content)


def run(*words: object) -> tuple[int, str]:
    """Run ``deeprank-index`` and return its exit status and all that it says."""
    command = [str(BIN / "deeprank-index"), *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return result.returncode, result.stdout + result.stderr


def run_well(*words: object) -> None:
    """Run ``deeprank-index``, which has to succeed."""
    status, said = run(*words)
    if status != 0:
        raise RuntimeError(f"{words} ended with {status}:\n{said}")


def resident(server: Server, field: str = "VmRSS") -> int:
    """Return the bytes that a server has in memory (VmRSS), or has had at most (VmHWM)."""
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def megabytes(counts: Sequence[int]) -> str:
    """Return bytes in words."""
    return ", ".join(f"{count / 1e6:.0f}" for count in counts) + " MB"
