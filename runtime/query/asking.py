"""From the pictures that were asked to their answers: embedded or looked up, and searched in one state of the index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PictureError, QueryError
from ..text import display_path
from .answer import Answer, Asked
from .arguments import QueryArguments

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..embedder import Embedder
    from ..index.search.index import Index

__all__ = ["answer"]


@dataclass(frozen=True)
class _Query:
    """A query picture with its vector, float32 ``[d]``, and the sha256 of its file where it is needed; or an error."""

    asked: Asked
    vector: npt.NDArray[np.float32] | None
    sha256: bytes = b""
    error: str = ""


def answer(index: Index, wanted: QueryArguments) -> list[Answer]:
    """Answer every picture by itself, or all of them by their mean; those that cannot be read have an error.

    Raises:
        QueryError, IndexStateError, ModelFileError: nothing can be answered.

    """
    # Before the snapshot: embedding takes its time, in which a writer need not be kept waiting.
    queries = [_of_file(image, vector, wanted) for image, vector in _embedded(index, wanted.images)]
    with index.snapshot():
        queries += [_of_item(index, which) for which in wanted.items]
        readable = [query for query in queries if query.vector is not None]
        failed = [Answer([query.asked], error=query.error) for query in queries if query.vector is None]
        if not wanted.mean:
            hits = iter(_search(index, readable, wanted))
            failures = iter(failed)
            return [next(failures) if q.vector is None else Answer([q.asked], next(hits)) for q in queries]
        if not readable:
            return failed
        return [Answer([q.asked for q in readable], _search(index, readable, wanted)[0], mean=True), *failed]


def _search(index: Index, queries: Sequence[_Query], wanted: QueryArguments) -> list[Any]:
    import numpy as np

    if not queries:
        return []
    vectors = np.stack([query.vector for query in queries if query.vector is not None])
    contents = [{query.sha256} for query in queries]
    if wanted.mean:
        from ..index.search.mean import mean_vector

        vectors = mean_vector(vectors)[None]
        contents = [set().union(*contents)]
    return index.hits(
        vectors,
        wanted.k,
        farthest=wanted.farthest,
        label=wanted.label,
        path=wanted.path,
        max_distance=wanted.max_distance,
        exclude_sha256=contents if wanted.leave_out_query else None,
        unique=wanted.unique,
        method=wanted.method,
    )


def _of_file(image: Path, vector: npt.NDArray[np.float32] | PictureError, wanted: QueryArguments) -> _Query:
    asked = Asked(str(image))
    if isinstance(vector, PictureError):
        return _Query(asked, None, error=str(vector))
    if not wanted.leave_out_query:
        return _Query(asked, vector)
    from ..files import file_sha256

    try:
        return _Query(asked, vector, bytes.fromhex(file_sha256(image)))
    except OSError as error:
        return _Query(asked, None, error=f"{display_path(image)} cannot be read again ({error.strerror}).")


def _of_item(index: Index, which: str) -> _Query:
    try:
        found = index.item(which)
    except QueryError as error:
        return _Query(Asked(which), None, error=str(error))
    return _Query(Asked(found.path, found.id), found.vector, found.sha256)


def _embedded(index: Index, images: Sequence[Path]) -> Iterator[tuple[Path, npt.NDArray[np.float32] | PictureError]]:
    if not images:  # no model is opened
        return
    yield from zip(images, _vectors(index.embedder, images), strict=True)


def _vectors(embedder: Embedder, images: Sequence[Path]) -> Iterator[npt.NDArray[np.float32] | PictureError]:
    if len(images) == 1:  # no threads for a single one: they would take longer to start than it takes
        try:
            yield embedder.embed(images)[0]
        except PictureError as error:
            yield error
        return
    for _, vector in embedder.stream(images, embedder.load):
        yield vector
