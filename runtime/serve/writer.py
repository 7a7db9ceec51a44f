"""Writes to an index: in batches, from one thread each, and patient with other writers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ..errors import DeepRankError, IndexLockedError, IndexStateError
from ..index.uploads import Added, Removed, Upload, add_uploads, remove_items
from .batching import Batcher

__all__ = ["BatchedWriter", "patiently"]

R = TypeVar("R")

_MAX_TOGETHER = 64
# A write waits for a sync that ends soon, but not for hours.
_PATIENCE_S = 5.0
_PAUSE_S = 0.05


class BatchedWriter:
    """Writes to an index, from one thread."""

    def __init__(self, index: Path) -> None:
        self._index = index
        self._adding: Batcher[tuple[Upload, str], Added] = Batcher(self._add, limit=_MAX_TOGETHER, name="add")
        self._removing: Batcher[tuple[int, bytes], Removed] = Batcher(self._remove, limit=_MAX_TOGETHER, name="remove")

    async def add(self, upload: Upload, model_sha256: str) -> Added:
        """Add a picture with its vector from the model with this sha256.

        Raises:
            IndexLockedError: another process keeps writing.
            IndexStateError: the index now has another model.

        """
        return await self._adding.do((upload, model_sha256))

    async def remove(self, number: int, sha256: bytes) -> Removed:
        """Remove a picture if it still has this content.

        Raises:
            IndexLockedError: as for :meth:`add`.

        """
        return await self._removing.do((number, sha256))

    def close(self) -> None:
        """End the threads after the batches that they have."""
        self._adding.close()
        self._removing.close()

    def _add(self, uploads: list[tuple[Upload, str]], _: bool) -> list[Added | BaseException]:
        results: list[Added | BaseException] = [IndexStateError("")] * len(uploads)
        for model in {model for _, model in uploads}:
            places = [place for place, (_, of) in enumerate(uploads) if of == model]
            for place, result in zip(places, self._add_of(model, [uploads[p][0] for p in places]), strict=True):
                results[place] = result
        return results

    def _add_of(self, model: str, uploads: list[Upload]) -> Sequence[Added | BaseException]:
        try:
            return patiently(lambda: add_uploads(self._index, uploads, model_sha256=model))
        except IndexStateError as error:
            return [error] * len(uploads)
        except DeepRankError as error:
            if len(uploads) == 1:
                return [error]
        # One upload was refused, and none was added: add the others without it.
        return [self._add_of(model, [upload])[0] for upload in uploads]

    def _remove(self, pictures: list[tuple[int, bytes]], _: bool) -> list[Removed]:
        numbers, contents = [number for number, _ in pictures], [content for _, content in pictures]
        return patiently(lambda: remove_items(self._index, numbers, contents))


def patiently(write: Callable[[], R]) -> R:
    """Call ``write`` again for some seconds while another process keeps writing; it blocks.

    Raises:
        IndexLockedError: the other process goes on.

    """
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return write()
        except IndexLockedError:
            if time.monotonic() > until:
                raise
        time.sleep(_PAUSE_S)
