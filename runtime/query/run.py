"""From queries to results: read, embedded or looked up, and searched in one state of the index."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..console import as_typed
from ..errors import IndexReplacedError, PictureError, PictureProblem, QueryError
from ..text import display_path
from .arguments import STDIN, QueryArguments

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..embedder import Embedder
    from ..images import PictureSource
    from ..index.search.items import Hit, IndexedImage
    from ..index.search.request import SearchRequest
    from ..index.search.searchable import Searchable

__all__ = [
    "Query",
    "QueryResult",
    "StandardInput",
    "answer",
    "count_similar",
    "empty_reasons",
    "read_picture",
    "read_queries",
    "unrelated_note",
]

MAX_BYTES = 256_000_000
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Query:
    """A query picture.

    Attributes:
        path: the path on the command line; ``-`` for standard input.
        id: id of a picture of the index, else None.
        content: bytes from standard input, else None.
        indexed: the picture, if it is one of the index, else None.

    """

    path: str
    id: int | None = None
    content: bytes | None = field(default=None, repr=False)
    indexed: IndexedImage | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The name of the file."""
        if self.content is not None:
            return "standard input"
        return os.path.basename(self.path)  # noqa: PTH119 - text that need not be a path

    def document(self) -> dict[str, Any]:
        """Return the JSON fields of the query."""
        return {"query": self.path} | ({} if self.id is None else {"id": self.id})


@dataclass(frozen=True)
class QueryResult:
    """The result of one query.

    Attributes:
        queries: the query picture, or all pictures of the mean.
        hits: best first.
        error: why the query failed, else None.
        mean: whether the query is the mean of the pictures.
        reason: why there are no hits; empty if there are hits or an error.

    """

    queries: Sequence[Query]
    hits: Sequence[Hit] = ()
    error: str | None = None
    mean: bool = False
    reason: str = ""

    @property
    def subject(self) -> str:
        """The query in a few words, untrusted text."""
        return ("mean of " if self.mean else "") + ", ".join(query.path for query in self.queries)

    def document(self, *, unique: bool) -> dict[str, Any]:
        """Return the JSON fields of the result; ``unique``: the request hides near-duplicates."""
        queries = [query.document() for query in self.queries]
        document: dict[str, Any] = {"queries": queries} if self.mean else queries[0]
        if self.error is not None:
            return {**document, "error": self.error}
        hits = [hit.document(rank, unique=unique) for rank, hit in enumerate(self.hits, 1)]
        return {**document, "hits": hits} | ({"reason": self.reason} if self.reason else {})


@dataclass(frozen=True)
class _Embedded:
    """A query with its vector, float32 ``[d]``, and its file's sha256 if needed; or an error."""

    query: Query
    vector: npt.NDArray[np.float32] | None
    sha256: bytes = b""
    error: str = ""


def read_queries(arguments: QueryArguments) -> list[Query | PictureError]:
    """Return the queries from files and standard input, in order; standard input is read, once."""
    return list(map(_query, arguments.images))


def answer(index: Searchable, arguments: QueryArguments, queries: Sequence[Query | PictureError]) -> list[QueryResult]:
    """Return the result of each picture, or of their mean; an unreadable picture has an error.

    Args:
        index: the index.
        arguments: the request, and the pictures of the index that are queries, too.
        queries: by :func:`read_queries`.

    Raises:
        IndexReplacedError: the index was replaced meanwhile; open it again.
        QueryError, IndexStateError, ModelFileError: no query can be answered.

    """
    # Before the snapshot: embedding takes long, and a snapshot keeps writers waiting.
    of_files = list(_of_files(index, arguments, queries))
    try:
        return _answer(index, of_files, arguments)
    except IndexReplacedError:  # a store may exchange one collection for another of the same model
        return _answer(index, of_files, arguments)


def _answer(index: Searchable, of_files: Sequence[_Embedded], arguments: QueryArguments) -> list[QueryResult]:
    with index.snapshot():
        queries = [*of_files, *(_of_item(index, which) for which in arguments.items)]
        readable = [each for each in queries if each.vector is not None]
        failed = [QueryResult([each.query], error=each.error) for each in queries if each.vector is None]
        if not readable:
            return failed
        answered = _search(index, readable, arguments.request, mean=arguments.mean)
        if arguments.mean:
            return [*answered, *failed]
        results, failures = iter(answered), iter(failed)
        return [next(failures) if each.vector is None else next(results) for each in queries]


def count_similar(hits: Sequence[Hit], unrelated_distance: float | None) -> int:
    """Return how many hits, nearest first, are not beyond the distance; without a distance, all."""
    if unrelated_distance is None:
        return len(hits)
    return next((place for place, hit in enumerate(hits) if hit.distance > unrelated_distance), len(hits))


def unrelated_note(unrelated_distance: float) -> str:
    """Return what is shown between the hits within the distance and those beyond."""
    return f"not similar any more: farther than {unrelated_distance:g}"


def _search(
    index: Searchable, queries: Sequence[_Embedded], request: SearchRequest, *, mean: bool
) -> list[QueryResult]:
    """Return the result of each readable query, or of their mean; without hits, with the reason."""
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
    index: Searchable,
    results: list[QueryResult],
    vectors: Any,
    request: SearchRequest,
    contents: Sequence[Collection[bytes | str]],
) -> list[QueryResult]:
    empty = [row for row, result in enumerate(results) if not result.hits]
    if empty:
        reasons = empty_reasons(index, vectors[empty], request, [contents[row] for row in empty])
        for row, reason in zip(empty, reasons, strict=True):
            results[row] = replace(results[row], reason=reason)
    return results


def _of_files(
    index: Searchable, arguments: QueryArguments, queries: Sequence[Query | PictureError]
) -> Iterator[_Embedded]:
    """Embed the queries from files and standard input, in order; without any, no model is opened."""
    readable = [each for each in queries if isinstance(each, Query)]
    vectors = _vectors(index.embedder, [_source(each) for each in readable]) if readable else iter(())
    for each in queries:
        if isinstance(each, Query):
            yield _of_file(each, next(vectors), hashed=arguments.request.leave_out_query)
        else:
            yield _Embedded(Query(STDIN), None, error=str(each))


def _query(image: str) -> Query | PictureError:
    if image == STDIN:
        try:
            return Query(STDIN, content=read_picture())
        except PictureError as error:
            return error
    # Only "-" itself is standard input ("./-" is a file), and URLs must not be normalised.
    path = str(Path(image))
    return Query(image if not image or path == STDIN or "://" in image else path)


def _source(query: Query) -> PictureSource:
    if query.content is None:
        return query.path

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


def _of_item(index: Searchable, which: str) -> _Embedded:
    try:
        image = index.item(which)
    except QueryError as error:
        return _Embedded(Query(which), None, error=str(error))
    return _Embedded(Query(image.path, image.id, indexed=image), image.vector, image.sha256)


def _vectors(embedder: Embedder, sources: Sequence[PictureSource]) -> Iterator[npt.NDArray[np.float32] | PictureError]:
    if len(sources) == 1:  # starting threads would take longer than embedding one picture
        try:
            yield embedder.embed(sources)[0]
        except PictureError as error:
            yield error
        return
    for _, vector in embedder.stream(sources, embedder.load):
        yield vector


def empty_reasons(
    index: Searchable, vectors: Any, request: SearchRequest, contents: Sequence[Collection[bytes | str]]
) -> list[str]:
    """Return for each query the restriction that left no picture, and the option to loosen.

    Args:
        index: in a snapshot.
        vectors: vectors of the queries without hits, float32 ``[q, d]``.
        request: the request that had no hits.
        contents: contents that ``leave_out_query`` leaves out, for each query.

    """
    if not len(index):
        how = "sync adds those of a folder" if index.supported.writes else "load adds those that were embedded"
        return [f"the index holds no pictures; deeprank-index {how}."] * len(vectors)
    remarks = len(index.remarks)
    looser = {option: replace(loose, k=1) for option, loose in request.loosened().items()}
    without = {option: index.hits(vectors, loose, contents) for option, loose in looser.items()}
    del index.remarks[remarks:]  # these searches are internal
    return [
        _reason({option: hits[row] for option, hits in without.items()}, request.max_distance)
        for row in range(len(vectors))
    ]


def _reason(without: Mapping[str, Sequence[Hit]], max_distance: float | None) -> str:
    """Return the sentence for one query, from the nearest picture without each restriction."""
    alone = [option for option, hits in without.items() if hits]
    if "--max-distance" in alone:
        nearest = without["--max-distance"][0].distance
        return (
            f"no picture is at most {max_distance:g} away; the nearest is {nearest:.4f} away. "
            "Search again with a larger --max-distance."
        )
    if alone:
        return f"no picture is left; search again without {' or without '.join(alone)}."
    return f"no picture passes {' and '.join(without)} together; search again without them."


class StandardInput(io.BytesIO):
    """A picture from standard input, with the name that errors use."""

    name = "standard input"


def read_picture() -> bytes:
    """Read standard input to its end.

    Raises:
        PictureError: it is empty, too large for a picture, unreadable, or a terminal.

    """
    if sys.stdin.isatty():
        command = as_typed("deeprank-query")
        raise _unread("is a terminal", f"; expected a picture, as in: {command} - < image.jpg", kind="missing")
    content, stream = bytearray(), cast(io.BufferedReader, sys.stdin.buffer)
    try:
        while block := stream.read1(_BLOCK):  # a single read would ignore Ctrl-C
            content += block
            if len(content) > MAX_BYTES:
                raise _unread(f"has more than {MAX_BYTES:,} bytes", "; expected one picture.", kind="too large")
    except OSError as error:
        raise _unread(f"cannot be read ({error.strerror})", ".", kind="unreadable") from None
    if not content:
        raise _unread("is empty", "; expected a picture.", kind="missing")
    return bytes(content)


def _unread(fault: str, rest: str, *, kind: PictureProblem) -> PictureError:
    return PictureError(f"standard input {fault}{rest}", kind=kind, short=fault)
