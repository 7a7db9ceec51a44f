"""Cache of the frozen part's features: float16 files, named by a hash of their inputs.

A file's name is the sha256 over the frozen weights, the picture rule, the augmentation and its
seed, the view's number and the content of every picture. A change of any of them makes another
file. A kill loses at most one chunk.

On a CPU, ONNX Runtime runs the exported backbone about four times as fast as torch (measured: 310
against 70 pictures a second, Lite0 at 160 px on two cores). Its features differ in the last bits,
which half-precision storage drops anyway. The reference never uses it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ...models.conversion import to_onnx
from ...models.network import EmbeddingNet
from ...runtime.datasets import Sample
from ...runtime.errors import PictureError, TrainingError, TrainingInterrupted
from ...runtime.files import create_file, file_sha256, is_own_file
from ...runtime.images import Picture, PictureRule
from ...runtime.pipeline import embed_stream
from ...runtime.progress import Monitor
from ...runtime.text import display_path
from ..options.config import Augmentation
from ..run.folder import write_json
from .loaders import Reader, read_augmented, read_plain, threaded

__all__ = [
    "CachedFeatures",
    "Extractor",
    "FeatureCache",
    "View",
    "content_digests",
    "extractor_when_needed",
    "make_extractor",
    "weights_digest",
]


Features = npt.NDArray[np.float32]

# Half precision keeps 11 bits; storing it loses a difference below this share of the largest
# feature.
_TOLERANCE = 1e-3

HalfFeatures = npt.NDArray[np.float16]
_CHUNK = 2048
_FORMAT = 1
# Part of the seeds of these draws alone.
_STREAM = 1


@dataclass(frozen=True)
class Extractor:
    """A feature function and its engine.

    ``run``: uint8 ``[n, S, S, 3]`` to float32 ``[n, W]``; ``engine``: its name; ``remark``: why it
    is not the fastest.
    """

    run: Callable[[Picture], Features]
    engine: str
    remark: str = ""


class _Features(nn.Module):
    """The frozen part of the network as a module."""

    def __init__(self, network: EmbeddingNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.network.front(pictures)


def make_extractor(network: EmbeddingNet, device: torch.device, threads: int) -> Extractor:
    """Return the fastest engine that works here, checked against torch on random pictures.

    Args:
        network: on ``device``; its backbone is put into evaluation mode.
        device: a GPU always uses torch.
        threads: for ONNX Runtime.

    """
    network.eval()
    in_torch = _torch_run(network, device)
    if device.type != "cpu":
        return Extractor(in_torch, "torch")
    try:
        run = _onnx_run(network, threads)
        difference = _difference(run, in_torch, network.config.image_size)
    # An error of the exporter or of ONNX Runtime is no obstacle: torch can run the network.
    except Exception as error:
        return Extractor(in_torch, "torch", f"ONNX Runtime cannot run this backbone ({type(error).__name__})")
    if not difference < _TOLERANCE:
        return Extractor(in_torch, "torch", f"ONNX Runtime's features differ by {difference:.1e}")
    return Extractor(run, "onnxruntime")


def extractor_when_needed(network: EmbeddingNet, device: torch.device, threads: int, monitor: Monitor) -> Extractor:
    """Return an extractor that calls :func:`make_extractor` at the first picture.

    That call takes seconds, and is not needed if all features are cached. ``monitor`` is told why
    the engine is slow.
    """

    @functools.cache
    def made() -> Extractor:
        extractor = make_extractor(network, device, threads)
        if extractor.remark:
            monitor.remark(f"{extractor.remark}; torch computes the features, more slowly.")
        return extractor

    return Extractor(lambda pictures: made().run(pictures), "made when needed")


def _torch_run(network: EmbeddingNet, device: torch.device) -> Callable[[Picture], Features]:
    def run(pictures: Picture) -> Features:
        with torch.inference_mode():
            features: Features = network.front(torch.from_numpy(pictures).to(device)).float().cpu().numpy()
            return features

    return run


def _onnx_run(network: EmbeddingNet, threads: int) -> Callable[[Picture], Features]:
    import onnxruntime as ort

    size = network.config.image_size
    program = to_onnx(_Features(network).eval(), torch.zeros(2, size, size, 3, dtype=torch.uint8), "features")
    data = program.model_proto.SerializeToString()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    # Spinning threads would take the cores that decode the next pictures.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(pictures: Picture) -> Features:
        return np.asarray(session.run(None, {"image": pictures})[0], dtype=np.float32)

    return run


def _difference(run: Callable[[Picture], Features], expected: Callable[[Picture], Features], size: int) -> float:
    """Return the largest difference over three random pictures, relative to the largest feature."""
    pictures = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    reference = expected(pictures)
    return float(np.abs(run(pictures) - reference).max() / max(float(np.abs(reference).max()), 1e-12))


@dataclass(frozen=True)
class View:
    """A view of each picture: 0 is the plain one for evaluation, 1 and up are augmented."""

    number: int
    augmentation: Augmentation | None = None
    seed: int = 0


@dataclass(frozen=True)
class CachedFeatures:
    """Features ``values``, float16 ``[n, W]``, a read-only memory map.

    The rows of ``unreadable`` pictures are 0.
    """

    values: HalfFeatures
    unreadable: tuple[int, ...]
    sha256: str


def weights_digest(network: EmbeddingNet) -> str:
    """Return the hex sha256 of the network's frozen part: name, normalisation, every tensor."""
    digest = hashlib.sha256()
    config = network.config
    digest.update(repr((config.backbone, config.image_size, config.mean, config.deviation)).encode())
    if config.pool != "auto":
        digest.update(f"pooled by {config.pool}".encode())
    if config.multiscale:
        digest.update(b"with the sub-sampled picture")
    for module in network.front_modules():
        for key, value in module.state_dict().items():
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def content_digests(samples: Sequence[Sample], threads: int) -> list[bytes]:
    """Return the sha256 of every picture's content, in order; zeros for one that cannot be read."""
    return list(threaded(_content, samples, threads))


def _content(sample: Sample) -> bytes:
    try:
        return hashlib.sha256(sample.read()).digest()
    except PictureError:  # reported when it is embedded
        return bytes(32)


@dataclass(frozen=True)
class FeatureCache:
    """Computes the features of one backbone, or reads them from the cache.

    ``weights``: :func:`weights_digest` of the network of ``extractor``; ``width``: W.
    """

    folder: Path
    extractor: Extractor
    weights: str
    width: int
    rule: PictureRule
    threads: int
    monitor: Monitor

    def features(self, samples: Sequence[Sample], contents: Sequence[bytes], view: View, title: str) -> CachedFeatures:
        """Return the features of ``samples`` under ``view``.

        Args:
            samples: the pictures.
            contents: their :func:`content_digests`.
            view: plain or augmented.
            title: their name in the progress display.

        Raises:
            TrainingInterrupted: asked to stop; finished rows are kept.
            TrainingError: the folder cannot be written.

        """
        key = self.key(contents, view)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked(key):
                features = self._open(key, len(samples))
                if features is None:
                    self._compute(key, samples, view, title)
                    features = self._open(key, len(samples))
        except OSError as error:
            raise TrainingError(
                f"Features cannot be kept in {display_path(self.folder)} ({error.strerror or error}); "
                "free some space there, or name another folder with --cache."
            ) from error
        if features is None:
            raise TrainingError(f"Features written to {display_path(self.folder)} came back damaged; check the disk.")
        return features

    def key(self, contents: Sequence[bytes], view: View) -> str:
        """Return the name of the file for these features."""
        description = {
            "format": _FORMAT,
            "weights": self.weights,
            "rule": self.rule.values(),
            "content": hashlib.sha256(b"".join(contents)).hexdigest(),
            "view": dataclasses.asdict(view) if view.number else None,
        }
        return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()

    def _locked(self, key: str) -> filelock.BaseFileLock:
        """Wait for another process that computes the same features; then its result is used."""
        lock = filelock.FileLock(self.folder / f"{key[:32]}.lock")
        waited = False
        while True:
            try:
                lock.acquire(timeout=1)
                return lock
            except filelock.Timeout:
                if not waited:
                    self.monitor.remark("Waiting for another process that computes the same features.")
                waited = True
                if self.monitor.stopping():
                    raise TrainingInterrupted("Stopped while waiting for another process.") from None

    def _paths(self, key: str) -> tuple[Path, Path, Path]:
        stem = self.folder / key[:32]
        return stem.with_suffix(".npy"), stem.with_suffix(".json"), stem.with_suffix(".part")

    def _open(self, key: str, count: int) -> CachedFeatures | None:
        """Return finished features, or None if missing or damaged; damaged ones are deleted."""
        values_path, description_path, _ = self._paths(key)
        if not values_path.exists() or not description_path.exists():
            return None
        try:
            description = json.loads(description_path.read_text("utf-8"))
            if description["key"] == key and description["sha256"] == file_sha256(values_path):
                values = np.load(values_path, mmap_mode="r", allow_pickle=False)
                if values.shape == (count, self.width) and values.dtype == np.float16:
                    return CachedFeatures(values, tuple(description["unreadable"]), description["sha256"])
        except (ValueError, KeyError, TypeError):
            pass
        self.monitor.remark(f"Cached features in {display_path(values_path)} are damaged and are computed again.")
        values_path.unlink()
        description_path.unlink()
        return None

    def _compute(self, key: str, samples: Sequence[Sample], view: View, title: str) -> None:
        values_path, description_path, part = self._paths(key)
        progress_path = part.with_suffix(".progress")
        own, shape = is_own_file(part), (len(samples), self.width)
        done, unreadable = _resume_point(part, progress_path, key, shape) if own else (0, [])
        self._check_space((len(samples) - done) * self.width * np.dtype(np.float16).itemsize)
        if not own:
            part.unlink(missing_ok=True)
            create_file(part).close()
        values = np.lib.format.open_memmap(part, "r+" if done else "w+", np.float16, shape)
        advance = self.monitor(title, len(samples), "pictures", done)
        try:
            for row, features in self._rows(samples, view, done):
                if isinstance(features, PictureError):
                    unreadable.append(row)
                    values[row] = 0
                else:
                    values[row] = features
                advance()
                if (row + 1) % _CHUNK == 0:
                    values.flush()
                    write_json(progress_path, {"key": key, "rows": row + 1, "unreadable": unreadable})
            values.flush()
        finally:
            del values
        write_json(description_path, {"key": key, "sha256": file_sha256(part), "unreadable": unreadable})
        part.replace(values_path)  # without fsync: the sha256 in the description tells a torn file
        progress_path.unlink(missing_ok=True)

    def _check_space(self, needed: int) -> None:
        """Refuse more than the disk has free: a mapped file that cannot grow would end the process."""
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise TrainingError(
                f"The features take {needed / 1e9:.1f} GB, but {display_path(self.folder)} has {free / 1e9:.1f} GB "
                "free; name another folder with --cache, or lower --unfreeze, --views or --image-size."
            )

    def _rows(
        self, samples: Sequence[Sample], view: View, done: int
    ) -> Iterator[tuple[int, npt.NDArray[np.float32] | PictureError]]:
        """Yield each row from ``done`` on, in order."""
        positions = range(done, len(samples))
        reader = self._reader(samples, view)
        for row, features in embed_stream(positions, reader, self.extractor.run, threads=self.threads):
            if self.monitor.stopping():
                raise TrainingInterrupted("Stopped while features were computed; the finished ones are kept.")
            yield row, features

    def _reader(self, samples: Sequence[Sample], view: View) -> Reader:
        if view.augmentation is None:
            return read_plain(samples, self.rule)
        return read_augmented(samples, self.rule, view.augmentation, (view.seed, _STREAM, view.number))


def _resume_point(part: Path, progress_path: Path, key: str, shape: tuple[int, int]) -> tuple[int, list[int]]:
    """Return the number of rows that an interrupted process finished, and the unreadable ones."""
    try:
        progress: dict[str, Any] = json.loads(progress_path.read_text("utf-8"))
        values = np.load(part, mmap_mode="r", allow_pickle=False)
        rows, unreadable = int(progress["rows"]), [int(position) for position in progress["unreadable"]]
        if progress["key"] == key and values.shape == shape and values.dtype == np.float16 and rows <= shape[0]:
            return rows, unreadable
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return 0, []
