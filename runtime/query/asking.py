"""From the pictures that were asked to their answers: embedded or looked up, and searched in one state of the index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PictureError, QueryError
from ..text import display_path
from .answer import Answer, Asked
from .arguments import STDIN, QueryArguments

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..embedder import Embedder
    from ..images import PictureSource
    from ..index.search.index import Hit, Index

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
    queries = list(_of_files(index, wanted))
    with index.snapshot():
        queries += [_of_item(index, which) for which in wanted.items]
        readable = [query for query in queries if query.vector is not None]
        failed = [Answer([query.asked], error=query.error) for query in queries if query.vector is None]
        if not readable:
            return failed
        answered = _search(index, readable, wanted)
        if wanted.mean:
            return [*answered, *failed]
        results, failures = iter(answered), iter(failed)
        return [next(failures) if query.vector is None else next(results) for query in queries]


def _search(index: Index, queries: Sequence[_Query], wanted: QueryArguments) -> list[Answer]:
    """Return an answer for each query that could be read, or one for their mean; without hits it has the reason."""
    import numpy as np

    vectors = np.stack([query.vector for query in queries if query.vector is not None])
    contents = [{query.sha256} for query in queries]
    groups = [[query.asked] for query in queries]
    if wanted.mean:
        from ..index.search.mean import mean_vector

        vectors = mean_vector(vectors)[None]
        contents = [set().union(*contents)]
        groups = [[query.asked for query in queries]]
    search: dict[str, Any] = {
        "farthest": wanted.farthest,
        "label": wanted.label,
        "path": wanted.path,
        "max_distance": wanted.max_distance,
        "exclude_sha256": contents if wanted.leave_out_query else None,
        "unique": wanted.unique,
        "method": wanted.method,
    }
    hits: list[list[Hit]] = index.hits(vectors, wanted.k, **search)
    answers = [Answer(group, found, mean=wanted.mean) for group, found in zip(groups, hits, strict=True)]
    return _with_reasons(index, answers, vectors, search)


def _with_reasons(index: Index, answers: list[Answer], vectors: Any, search: dict[str, Any]) -> list[Answer]:
    empty = [place for place, each in enumerate(answers) if not each.hits]
    if empty:
        from .empty import empty_reasons

        if search["exclude_sha256"] is not None:
            search = {**search, "exclude_sha256": [search["exclude_sha256"][place] for place in empty]}
        for place, reason in zip(empty, empty_reasons(index, vectors[empty], search), strict=True):
            answers[place] = replace(answers[place], reason=reason)
    return answers


def _of_files(index: Index, wanted: QueryArguments) -> Iterator[_Query]:
    """Yield the queries that are files, or come through standard input, in their order."""
    if not wanted.images:  # no model is opened
        return
    asked = list(map(_asked, wanted.images))
    readable = [each for each in asked if isinstance(each, Asked)]
    vectors = _vectors(index.embedder, [_source(each) for each in readable]) if readable else iter(())
    for each in asked:
        if isinstance(each, Asked):
            yield _of_file(each, next(vectors), wanted)
        else:
            yield _Query(Asked(STDIN), None, error=str(each))


def _asked(image: str) -> Asked | PictureError:
    if image == STDIN:
        from .standardinput import read_picture

        try:
            return Asked(STDIN, content=read_picture())
        except PictureError as error:
            return error
    # Nothing but "-" itself is standard input, and an address is shown as it was typed.
    path = str(Path(image))
    return Asked(image if not image or path == STDIN or "://" in image else path)


def _source(asked: Asked) -> PictureSource:
    if asked.content is None:
        return asked.path
    from .standardinput import StandardInput

    return StandardInput(asked.content)


def _of_file(asked: Asked, vector: npt.NDArray[np.float32] | PictureError, wanted: QueryArguments) -> _Query:
    if isinstance(vector, PictureError):
        return _Query(asked, None, error=str(vector))
    if not wanted.leave_out_query:
        return _Query(asked, vector)
    if asked.content is not None:
        import hashlib

        return _Query(asked, vector, hashlib.sha256(asked.content).digest())
    from ..files import file_sha256

    try:
        return _Query(asked, vector, bytes.fromhex(file_sha256(Path(asked.path))))
    except OSError as error:
        return _Query(asked, None, error=f"{display_path(asked.path)} cannot be read again ({error.strerror}).")


def _of_item(index: Index, which: str) -> _Query:
    try:
        found = index.item(which)
    except QueryError as error:
        return _Query(Asked(which), None, error=str(error))
    from ..index.search.hit import Content

    content = Content(found.sha256, found.size)
    return _Query(Asked(found.path, found.id, indexed=content), found.vector, found.sha256)


def _vectors(embedder: Embedder, sources: Sequence[PictureSource]) -> Iterator[npt.NDArray[np.float32] | PictureError]:
    if len(sources) == 1:  # no threads for a single one: they would take longer to start than it takes
        try:
            yield embedder.embed(sources)[0]
        except PictureError as error:
            yield error
        return
    for _, vector in embedder.stream(sources, embedder.load):
        yield vector
