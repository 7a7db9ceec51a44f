"""A split of a data set with its vectors."""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..datasets import Sample
from ..errors import EvaluationError, PictureError
from ..files import placed
from ..images import DEFAULT_MAX_PIXELS, Picture, PictureRule, load_picture
from ..progress import Advance, no_progress

__all__ = ["EmbeddedSplit", "Embeds", "embed_readable", "embed_split", "save_split"]

T = TypeVar("T")


class Embeds(Protocol):
    """A network that embeds pictures: the runtime's Embedder, or the PyTorch reference."""

    @property
    def rule(self) -> PictureRule:
        """The rule that turns a picture into the network's input."""

    def stream(
        self, items: Iterable[T], read: Callable[[T], Picture]
    ) -> Iterator[tuple[T, npt.NDArray[np.float32] | PictureError]]:
        """Embed items in order; see :func:`~..embedder.embed_stream`."""


@dataclass(frozen=True)
class EmbeddedSplit:
    """Samples and their vectors, row by row.

    ``vectors``: float32 ``[n, d]``. ``hashes``: the sha256 of each file. ``unreadable``: the errors
    of pictures that could not be embedded.
    """

    samples: tuple[Sample, ...]
    vectors: npt.NDArray[np.float32]
    hashes: tuple[bytes, ...]
    unreadable: tuple[PictureError, ...] = field(default=())

    @functools.cached_property
    def labels(self) -> list[str]:
        """The label of each row."""
        return [sample.label for sample in self.samples]

    def __len__(self) -> int:
        return len(self.samples)


def embed_split(
    samples: Sequence[Sample],
    embeds: Embeds,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    advance: Advance = no_progress,
) -> EmbeddedSplit:
    """Embed labelled pictures; unreadable ones are left out and reported in the result.

    Args:
        samples: the pictures.
        embeds: the model.
        max_pixels: larger pictures are refused before decoding.
        advance: called after each picture.

    Raises:
        EvaluationError: no picture could be read.

    """
    split = embed_readable(samples, embeds, max_pixels=max_pixels, advance=advance)
    if not split:
        reason = split.unreadable[0] if split.unreadable else "there are none"
        raise EvaluationError(f"Not one of the {len(samples)} pictures can be embedded: {reason}")
    return split


def embed_readable(
    samples: Sequence[Sample],
    embeds: Embeds,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    advance: Advance = no_progress,
) -> EmbeddedSplit:
    """Embed the readable pictures, possibly none (``vectors`` is then ``[0, 0]``).

    See :func:`embed_split`.
    """
    hashes: dict[str, bytes] = {}

    def read(sample: Sample) -> Picture:
        with sample.open() as file:
            data = file.read()
        hashes[sample.path] = hashlib.sha256(data).digest()
        source = io.BytesIO(data)
        source.name = sample.path
        return load_picture(source, embeds.rule, max_pixels=max_pixels)

    readable: list[Sample] = []
    vectors: list[npt.NDArray[np.float32]] = []
    unreadable: list[PictureError] = []
    for sample, vector in embeds.stream(samples, read):
        if isinstance(vector, PictureError):
            unreadable.append(vector)
        else:
            readable.append(sample)
            vectors.append(vector)
        advance()
    return EmbeddedSplit(
        tuple(readable),
        np.stack(vectors) if vectors else np.empty((0, 0), dtype=np.float32),
        tuple(hashes[sample.path] for sample in readable),
        tuple(unreadable),
    )


def save_split(split: EmbeddedSplit, path: Path) -> None:
    """Write ``vectors`` float32 [n, d], ``labels`` and ``paths`` (text [n]) as an npz, no pickle."""
    paths = [
        sample.path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for sample in split.samples
    ]
    with placed(path) as file:
        np.savez(file, vectors=split.vectors, labels=np.array(split.labels), paths=np.array(paths))
