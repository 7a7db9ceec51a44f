"""Adding to an index and removing from it, several pictures in one transaction where several come at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ..errors import DeepRankError, IndexLockedError, IndexStateError
from ..index.uploads import Added, Removed, Upload, add_uploads, remove_items
from .batching import Batcher

__all__ = ["Writing"]

R = TypeVar("R")

_MOST_TOGETHER = 64
# A sync that ends soon is waited for; one that goes on for hours is not.
_PATIENCE_S = 5.0
_PAUSE_S = 0.05


class Writing:
    """Writes to an index, from one thread."""

    def __init__(self, index: Path) -> None:
        self._index = index
        self._adding: Batcher[tuple[Upload, str], Added] = Batcher(self._add, most=_MOST_TOGETHER, name="add")
        self._removing: Batcher[tuple[int, bytes], Removed] = Batcher(self._remove, most=_MOST_TOGETHER, name="remove")

    async def add(self, upload: Upload, model_sha256: str) -> Added:
        """Add a picture with its vector, which the model of this sha256 made.

        Raises:
            IndexLockedError: another process is writing, and did not end.
            IndexStateError: the index has another model now.

        """
        return await self._adding.do((upload, model_sha256))

    async def remove(self, number: int, sha256: bytes) -> Removed:
        """Remove a picture if it is still the one with this content.

        Raises:
            IndexLockedError: as for :meth:`add`.

        """
        return await self._removing.do((number, sha256))

    def close(self) -> None:
        """End the threads when they have done what they have."""
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
            return _patiently(lambda: add_uploads(self._index, uploads, model_sha256=model))
        except IndexStateError as error:
            return [error] * len(uploads)
        except DeepRankError as error:
            if len(uploads) == 1:
                return [error]
        # One of them is refused, and nothing was added: the others need not suffer from it.
        return [self._add_of(model, [upload])[0] for upload in uploads]

    def _remove(self, pictures: list[tuple[int, bytes]], _: bool) -> list[Removed]:
        numbers, contents = [number for number, _ in pictures], [content for _, content in pictures]
        return _patiently(lambda: remove_items(self._index, numbers, contents))


def _patiently(write: Callable[[], R]) -> R:
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return write()
        except IndexLockedError:
            if time.monotonic() > until:
                raise
        time.sleep(_PAUSE_S)
