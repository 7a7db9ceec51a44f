"""What no attack may change: honest pictures, their index, the right answer to a query, and secrets beside them."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from conftest import BIN
from tiny_model import expected, square, write_model, write_picture

__all__ = ["BIN", "FARTHEST", "SECRET_COLOUR", "World", "make_world", "shows_secret", "snapshot"]

PICTURES = 150
K = 5
_CLOSE = 1e-5
# Squared, of two vectors of unit length.
FARTHEST = 4.001
# Of no honest picture: whatever shows it was copied from the secret one.
SECRET_COLOUR = (3, 250, 77)
_SECRET_PIXELS = (160, 120)


@dataclass(frozen=True)
class World:
    """What is made once.

    Attributes:
        folder: of everything.
        photos: honest pictures, which are synced.
        index: of them; never given to a command that writes.
        model: of the index.
        export: the index as arrays.
        data: a data set of class folders.
        reference: the vectors of its pictures.
        carrying: the vectors and the pictures themselves.
        query: a picture that the index does not hold.
        distances: of all pictures to it, by their paths relative to ``photos``, by brute force; the nearest first.
        vector: of the query.

    """

    folder: Path
    photos: Path
    index: Path
    model: Path
    export: Path
    data: Path
    reference: Path
    carrying: Path
    query: Path
    distances: dict[str, float]
    vector: list[float]

    @property
    def nearest(self) -> list[str]:
        """The ``K`` pictures nearest to the query."""
        return list(self.distances)[:K]

    def answer_is_right(self, hits: Sequence[tuple[str, float]]) -> bool:
        """Tell whether these paths and distances are those of the nearest pictures."""
        near = all(abs(self.distances.get(path, -1.0) - distance) < _CLOSE for path, distance in hits)
        return near and [path for path, _ in hits] == self.nearest

    def save(self, path: Path) -> None:
        """Write it for another process."""
        path.write_text(json.dumps(dataclasses.asdict(self), default=str))

    @classmethod
    def load(cls, path: Path) -> World:
        """Read what :meth:`save` wrote."""
        found = json.loads(path.read_text())
        kinds = {field.name: field.type for field in dataclasses.fields(cls)}
        return cls(**{name: Path(value) if kinds[name] == "Path" else value for name, value in found.items()})

    def case_folder(self, name: str) -> Path:
        """Make an empty folder for one input, with the secrets beside it, and return it."""
        folder = self.folder / "cases" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copytree(self.folder / "canary", folder / "canary")
        return folder


def make_world(folder: Path) -> World:
    """Write the pictures, the model and the secrets; index the pictures."""
    photos = folder / "photos"
    names = [f"{'abc'[number % 3]}/{number}.png" for number in range(PICTURES)]
    for number, name in enumerate(names):
        write_picture(photos / name, number)
    data = folder / "data"
    for number in range(24):
        write_picture(data / ("train", "val")[number % 2] / "ab"[number // 2 % 2] / f"{number}.png", 500 + number)
    model = write_model(folder / "model.onnx")
    query = folder / "query.png"
    write_picture(query, 9_999)
    vectors = expected(np.stack([square(path) for path in (query, *(photos / name for name in names))]))
    distances = ((vectors[1:] - vectors[0]) ** 2).sum(axis=1)
    order = np.argsort(distances)
    _write_canary(folder / "canary")
    world = World(
        folder,
        photos,
        folder / "honest.index",
        model,
        folder / "export.npz",
        data,
        _write_reference(folder / "reference.npz", data),
        _write_carrying(folder / "carrying.npz", data),
        query,
        {names[number]: float(distances[number]) for number in order},
        vectors[0].tolist(),
    )
    run_well("deeprank-index", "sync", photos, "--index", world.index, "--model", model)
    run_well("deeprank-index", "export", world.export, "--index", world.index)
    return world


def _files_of(data: Path) -> list[Path]:
    return [file for split in ("val", "train") for file in sorted((data / split).rglob("*.png"))]


def _write_carrying(path: Path, data: Path) -> Path:
    """Write the pictures of a data set with what PyTorch gives, as ``deeprank-export --sample-pictures`` does."""
    files = _files_of(data)
    in_gallery = np.array([file.parts[-3] == "train" for file in files])
    vectors = expected(np.stack([square(file) for file in files]))
    nearest = np.argsort(-vectors[~in_gallery] @ vectors[in_gallery].T, axis=1)[:, :30]
    rounded = np.rint(vectors[~in_gallery] * 2**15).astype(np.int64) % 2**16
    contents = [file.read_bytes() for file in files]
    np.savez_compressed(
        path,
        pictures=np.frombuffer(b"".join(contents), np.uint8),
        ends=np.cumsum([len(content) for content in contents]),
        labels=np.array([file.parent.name for file in files]),
        splits=in_gallery.astype(np.uint8),
        neighbours=nearest.astype(np.uint16),
        fractions=np.stack([rounded // 256, rounded % 256]).astype(np.uint8),
    )
    return path


def _write_reference(path: Path, data: Path) -> Path:
    """Write the vectors of a data set as an export does, by the model's formula."""
    files = _files_of(data)
    np.savez(
        path,
        hashes=np.stack([np.frombuffer(hashlib.sha256(file.read_bytes()).digest(), np.uint8) for file in files]),
        labels=np.array([file.parent.name for file in files]),
        splits=np.array([file.parts[-3] == "train" for file in files], np.uint8),
        vectors=expected(np.stack([square(file) for file in files])).astype(np.float32),
    )
    return path


def _write_canary(folder: Path) -> None:
    folder.mkdir()
    Image.new("RGB", _SECRET_PIXELS, SECRET_COLOUR).save(folder / "secret.png")
    (folder / "secret.txt").write_text("a secret that nobody asked for\n")
    (folder / "victim").mkdir()
    (folder / "victim" / "precious.jpg").write_bytes(b"not to be overwritten" * 50)
    (folder / "victim" / "items.sqlite").write_bytes(b"nor this" * 50)


def run_well(*words: object) -> None:
    """Run a command that has to succeed."""
    command = [str(BIN / str(words[0])), *map(str, words[1:])]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if result.returncode != 0:
        raise RuntimeError(f"{words} ended with {result.returncode}:\n{result.stdout}{result.stderr}")


def snapshot(folder: Path, leave_out: frozenset[str] = frozenset()) -> dict[str, str]:
    """Return what lies in a folder: by relative path the kind, mode and content; links are not followed."""
    found = {}
    for place, folders, files in os.walk(folder):
        if Path(place) == folder:
            folders[:] = [name for name in folders if name not in leave_out]
            files = [name for name in files if name not in leave_out]
        for name in (*folders, *files):
            path = Path(place, name)
            found[str(path.relative_to(folder))] = _described(path)
    return found


def _described(path: Path) -> str:
    status = path.lstat()
    mode = f"{stat.filemode(status.st_mode)} {status.st_uid}"
    if stat.S_ISLNK(status.st_mode):
        return f"{mode} -> {path.readlink()!r}"
    if stat.S_ISREG(status.st_mode) and status.st_size < 100_000_000:
        with path.open("rb") as file:
            return f"{mode} {hashlib.file_digest(file, 'sha256').hexdigest()}"
    return f"{mode} {status.st_size if stat.S_ISREG(status.st_mode) else ''}"


def shows_secret(content: bytes) -> bool:
    """Tell whether a file is a copy of a secret, or a picture, or a page with one in it, that shows it."""
    if b"a secret that nobody asked for" in content:
        return True
    pictures = [content] if content.lstrip()[:1] != b"<" else []
    for found in re.findall(rb"data:image/[a-z]+;base64,([A-Za-z0-9+/=]+)", content):
        pictures.append(base64.b64decode(found))
    for each in pictures:
        try:
            with Image.open(io.BytesIO(each)) as image:
                pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
        except Exception:  # no picture, so it shows none
            continue
        near = (np.abs(pixels - SECRET_COLOUR) < 12).all(axis=1)
        # A sheet shows many pictures; the secret is one solid area in it.
        if near.sum() > 400:
            return True
    return False
