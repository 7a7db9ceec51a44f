"""From query pictures to results: embedded or looked up, and searched for in one state of the index."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PictureError, QueryError
from ..text import display_path
from .answer import Query, QueryResult
from .arguments import STDIN, QueryArguments

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..embedder import Embedder
    from ..images import PictureSource
    from ..index.search.index import Index
    from ..index.search.request import SearchRequest

__all__ = ["answer"]


@dataclass(frozen=True)
class _Embedded:
    """A query picture with its vector, float32 ``[d]``, and the sha256 of its file where it is needed; or an error."""

    query: Query
    vector: npt.NDArray[np.float32] | None
    sha256: bytes = b""
    error: str = ""


def answer(index: Index, arguments: QueryArguments) -> list[QueryResult]:
    """Return the result of each picture, or of their mean; those that cannot be read have an error.

    Raises:
        QueryError, IndexStateError, ModelFileError: nothing can be answered.

    """
    # Before the snapshot: embedding takes its time, in which a writer need not be kept waiting.
    queries = list(_of_files(index, arguments))
    with index.snapshot():
        queries += [_of_item(index, which) for which in arguments.items]
        readable = [each for each in queries if each.vector is not None]
        failed = [QueryResult([each.query], error=each.error) for each in queries if each.vector is None]
        if not readable:
            return failed
        answered = _search(index, readable, arguments.request, mean=arguments.mean)
        if arguments.mean:
            return [*answered, *failed]
        results, failures = iter(answered), iter(failed)
        return [next(failures) if each.vector is None else next(results) for each in queries]


def _search(index: Index, queries: Sequence[_Embedded], request: SearchRequest, *, mean: bool) -> list[QueryResult]:
    """Return the result of each query that could be read, or of their mean; without hits it has the reason."""
    import numpy as np

    vectors = np.stack([each.vector for each in queries if each.vector is not None])
    contents: list[set[bytes | str]] = [{each.sha256} for each in queries]
    groups = [[each.query] for each in queries]
    if mean:
        from ..index.search.items import mean_vector

        vectors = mean_vector(vectors)[None]
        contents = [set().union(*contents)]
        groups = [[each.query for each in queries]]
    hits = index.hits(vectors, request, contents)
    results = [QueryResult(group, row, mean=mean) for group, row in zip(groups, hits, strict=True)]
    return _with_reasons(index, results, vectors, request, contents)


def _with_reasons(
    index: Index,
    results: list[QueryResult],
    vectors: Any,
    request: SearchRequest,
    contents: Sequence[Collection[bytes | str]],
) -> list[QueryResult]:
    empty = [row for row, result in enumerate(results) if not result.hits]
    if empty:
        from .empty import empty_reasons

        reasons = empty_reasons(index, vectors[empty], request, [contents[row] for row in empty])
        for row, reason in zip(empty, reasons, strict=True):
            results[row] = replace(results[row], reason=reason)
    return results


def _of_files(index: Index, arguments: QueryArguments) -> Iterator[_Embedded]:
    """Yield the queries that are files, or come through standard input, in their order."""
    if not arguments.images:  # no model is opened
        return
    queries = list(map(_query, arguments.images))
    readable = [each for each in queries if isinstance(each, Query)]
    vectors = _vectors(index.embedder, [_source(each) for each in readable]) if readable else iter(())
    for each in queries:
        if isinstance(each, Query):
            yield _of_file(each, next(vectors), hashed=arguments.request.leave_out_query)
        else:
            yield _Embedded(Query(STDIN), None, error=str(each))


def _query(image: str) -> Query | PictureError:
    if image == STDIN:
        from .standardinput import read_picture

        try:
            return Query(STDIN, content=read_picture())
        except PictureError as error:
            return error
    # Nothing but "-" itself is standard input, and an address is shown as it was typed.
    path = str(Path(image))
    return Query(image if not image or path == STDIN or "://" in image else path)


def _source(query: Query) -> PictureSource:
    if query.content is None:
        return query.path
    from .standardinput import StandardInput

    return StandardInput(query.content)


def _of_file(query: Query, vector: npt.NDArray[np.float32] | PictureError, *, hashed: bool) -> _Embedded:
    if isinstance(vector, PictureError):
        return _Embedded(query, None, error=str(vector))
    if not hashed:
        return _Embedded(query, vector)
    if query.content is not None:
        import hashlib

        return _Embedded(query, vector, hashlib.sha256(query.content).digest())
    from ..files import file_sha256

    try:
        return _Embedded(query, vector, bytes.fromhex(file_sha256(Path(query.path))))
    except OSError as error:
        return _Embedded(query, None, error=f"{display_path(query.path)} cannot be read again ({error.strerror}).")


def _of_item(index: Index, which: str) -> _Embedded:
    try:
        image = index.item(which)
    except QueryError as error:
        return _Embedded(Query(which), None, error=str(error))
    return _Embedded(Query(image.path, image.id, indexed=image.content), image.vector, image.sha256)


def _vectors(embedder: Embedder, sources: Sequence[PictureSource]) -> Iterator[npt.NDArray[np.float32] | PictureError]:
    if len(sources) == 1:  # no threads for a single one: they would take longer to start than it takes
        try:
            yield embedder.embed(sources)[0]
        except PictureError as error:
            yield error
        return
    for _, vector in embedder.stream(sources, embedder.load):
        yield vector
