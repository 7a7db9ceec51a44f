"""A start with a head, as the network of an export, and as the original that its file is proved against."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from ...runtime.errors import ExportError, PictureError
from ...runtime.images import Picture, PictureRule
from ...runtime.modelfile import INPUT_NAME, OUTPUT_NAME, ModelInfo
from ...runtime.pipeline import embed_stream
from ...train.ratings.head import Head
from ..adopt.session import BareSession
from ..formats.formats import Form, Precision
from ..parity import Exported
from .start import Start

if TYPE_CHECKING:
    import onnx

__all__ = ["TaughtNetwork", "TaughtReference"]

T = TypeVar("T")
Vectors = npt.NDArray[np.float32]

_CHUNK = 16


class TaughtNetwork:
    """A start with a head as a :class:`~..formats.writer.Network`."""

    def __init__(self, start: Start, head: Head) -> None:
        self._start, self._head = start, head

    @property
    def precision(self) -> Precision:
        """The precision of the start; a head is always float32."""
        return cast(Precision, self._start.info.precision)

    def graph(self) -> onnx.ModelProto:
        """Return the graph with the head."""
        return self._start.with_head(self._head)

    def write(self, form: Form, path: object, info: ModelInfo) -> Exported:
        """Refuse other forms than ONNX.

        Raises:
            ExportError: always.

        """
        raise ExportError(f"{form.name} needs a network in PyTorch; a head on a model file becomes ONNX alone.")

    def packages(self, form: Form) -> tuple[str, ...]:
        """Return the packages that make a form, for its metadata."""
        return ("onnx", "torch")


class TaughtReference:
    """The start, run by bare ONNX Runtime, and its head in PyTorch.

    Nothing of the taught graph is used here.

    Args:
        start: the model.
        head: of its vectors.
        info: the metadata of the exported file.
        threads: of ONNX Runtime.

    """

    # Its name in reports of parity.
    engine = "learned"

    def __init__(self, start: Start, head: Head, info: ModelInfo, threads: int | None = None) -> None:
        self._session = BareSession(start.content, threads=threads)
        self._info, self._strength = info, head.strength
        self._mean, self._weight = torch.tensor(head.mean), torch.tensor(head.weight)

    @property
    def info(self) -> ModelInfo:
        """The metadata of the exported file."""
        return self._info

    @property
    def rule(self) -> PictureRule:
        """The rule that turns a picture into the network's input."""
        return self._info.picture

    def embed_batch(self, pictures: Picture) -> Vectors:
        """Map uint8 ``[n, S, S, 3]`` to float32 ``[n, d + k]``, unit rows.

        Raises:
            ExportError: the start cannot be run.

        """
        chunks = [self._vectors(pictures[start : start + _CHUNK]) for start in range(0, len(pictures), _CHUNK)]
        return np.concatenate(chunks) if chunks else np.empty((0, self._info.embedding_dim), np.float32)

    def stream(
        self, items: Iterable[T], read: Callable[[T], Picture]
    ) -> Iterator[tuple[T, npt.NDArray[np.float32] | PictureError]]:
        """Embed any number of items in bounded memory, like ``Embedder.stream``."""
        return embed_stream(items, read, self.embed_batch)

    def _vectors(self, pictures: Picture) -> Vectors:
        (vectors,) = self._session.run([OUTPUT_NAME], {INPUT_NAME: np.ascontiguousarray(pictures)})
        with torch.inference_mode():
            start = torch.from_numpy(np.array(vectors, np.float32))
            learned = functional.normalize(functional.linear(start - self._mean, self._weight), dim=1)
            parts = [math.sqrt(1 - self._strength) * start, math.sqrt(self._strength) * learned]
            return functional.normalize(torch.cat(parts, dim=1), dim=1).numpy()
