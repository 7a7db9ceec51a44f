"""The vectors of an ONNX file from elsewhere, by bare ONNX Runtime: adopted files are checked against them.

Nothing of the adopted graph is used here. Pillow prepares pictures, and numpy normalises them, pools
outputs and scales vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ...runtime.datasets import Sample
from ...runtime.errors import ExportError, ModelFileError, PictureError
from ...runtime.images import Picture, PictureRule
from ...runtime.model.metadata import ModelInfo
from ...runtime.pipeline import embed_stream
from ...runtime.text import display_path
from .adoption import Adopted
from .graph import inputs_of, part_of, to_bytes
from .original import Original
from .plain_picture import plain_picture
from .session import BareSession

__all__ = ["OriginalReference"]

T = TypeVar("T")
Vectors = npt.NDArray[np.float32]

_CHUNK = 16


class OriginalReference:
    """The original file as a function from pictures to unit vectors.

    ONNX Runtime opens the original itself, with its side files. If that needs more inputs than the
    pictures, or has parts that the runtime refuses, the unchanged part that leads to the output is
    run; see :attr:`whole`.

    Args:
        original: the file.
        adopted: what was made from it: its input, output, pooling and preparation.
        info: the metadata of the exported file.
        threads: of ONNX Runtime.

    Raises:
        ExportError: the file has changed, or cannot be opened.

    """

    # Its name in reports of parity.
    engine = "original"

    def __init__(self, original: Original, adopted: Adopted, info: ModelInfo, threads: int | None = None) -> None:
        self._adopted, self._info = adopted, info
        self._session, self._whole = _opened(original, adopted.output, threads)

    @property
    def whole(self) -> bool:
        """Whether the whole original is run, not a part of it."""
        return self._whole

    @property
    def info(self) -> ModelInfo:
        """The metadata of the exported file."""
        return self._info

    @property
    def rule(self) -> PictureRule:
        """The rule that turns a picture into the network's input."""
        return self._adopted.rule

    def embed_batch(self, pictures: Picture) -> Vectors:
        """Map uint8 ``[n, S, S, 3]`` to float32 ``[n, d]``, unit rows.

        Raises:
            ExportError: the original cannot be run.

        """
        step = self._adopted.picture.batch or _CHUNK
        chunks = [self._vectors(pictures[start : start + step]) for start in range(0, len(pictures), step)]
        return np.concatenate(chunks) if chunks else np.empty((0, self._adopted.dim), np.float32)

    def stream(
        self, items: Iterable[T], read: Callable[[T], Picture]
    ) -> Iterator[tuple[T, npt.NDArray[np.float32] | PictureError]]:
        """Embed any number of items in bounded memory, like ``Embedder.stream``.

        Pictures of files, which have ``open``, are prepared by Pillow alone where
        :func:`~.plain_picture.plain_picture` can; others as by the runtime.
        """

        def prepared(item: T) -> Picture:
            picture = read(item)
            if isinstance(item, Sample):
                with item.open() as file:
                    plain = plain_picture(file, self.rule)
                picture = picture if plain is None else plain
            return picture

        return embed_stream(items, prepared, self.embed_batch)

    def _vectors(self, pictures: Picture) -> Vectors:
        given = self._adopted.picture
        values = self._prepared(pictures) if self._adopted.normalised else pictures
        if given.layout == "NCHW":
            values = np.moveaxis(values, 3, 1)
        (output,) = self._session.run([self._adopted.output], {given.name: np.ascontiguousarray(values, given.kind)})
        vectors = self._pooled(output.astype(np.float64))
        lengths = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
        unit: Vectors = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
        return unit

    def _prepared(self, pictures: Picture) -> npt.NDArray[np.float64]:
        normalisation = self._adopted.preparation.normalisation
        assert normalisation is not None
        mean, deviation = np.array(normalisation.mean) / 255, np.array(normalisation.deviation) / 255
        return (pictures.astype(np.float64) / 255 - mean) / deviation

    def _pooled(self, output: npt.NDArray[Any]) -> npt.NDArray[Any]:
        pooling, pooled = self._adopted.pooling, output
        if pooling.kind == "cls":
            pooled = output[:, 0]
        elif pooling.kind == "mean":
            pooled = output[:, pooling.skipped :].mean(axis=1)
        elif pooling.kind == "map":
            pooled = output.mean(axis=(2, 3))
        return pooled.reshape(len(pooled), -1)


def _opened(original: Original, output: str, threads: int | None) -> tuple[BareSession, bool]:
    original.check_unchanged()
    model = original.model
    try:
        if len(inputs_of(model.graph)) == 1:
            try:
                return BareSession(to_bytes(model), file=original.path, threads=threads), True
            except ModelFileError:  # of a part that the output does not need
                pass
        chosen = [value for value in model.graph.output if value.name == output]
        return BareSession(to_bytes(part_of(model, chosen)), threads=threads), False
    except ModelFileError as error:
        raise ExportError(f"{display_path(original.path)} cannot be run: {error}.") from None
