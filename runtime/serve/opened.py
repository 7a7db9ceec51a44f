"""One open index with its model: pictures are embedded together, and searched for together, in threads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..embedder import Embedder
from ..errors import IndexDamagedError, QueryError
from ..images import Picture
from ..index.search.index import Hit, Index
from ..index.search.named import IndexedPicture
from ..index.search.summary import IndexSummary
from .answers import plain
from .batching import Batcher
from .errors import NotFoundError
from .log import LOG
from .metrics import Metrics
from .settings import ServeSettings

__all__ = ["Found", "OpenIndex", "Question", "Wanted"]

Vector = npt.NDArray[np.float32]

# Questions that are searched for at a time: a writer waits while they hold a state of the index.
_MOST_QUESTIONS = 64


@dataclass(frozen=True)
class Wanted:
    """What is to be returned; questions that want the same are searched for together. See ``Index.hits``."""

    k: int = 10
    farthest: bool = False
    label: tuple[str, ...] | None = None
    max_distance: float | None = None
    exact: bool = False
    unique: float | None = None
    leave_out_query: bool = False


@dataclass(frozen=True)
class Question:
    """What is searched for: a vector, float32 ``[d]``, or a picture of the index.

    ``sha256`` is that of the file that the vector comes from, where it is to be left out.
    """

    wanted: Wanted
    vector: Vector | None = None
    item: int | None = None
    sha256: bytes | None = None


@dataclass(frozen=True)
class Found:
    """The hits, and the picture of the index that was asked for, if one was."""

    hits: Sequence[Hit]
    asked: IndexedPicture | None = None


class OpenIndex:
    """An index as it was opened; one that was exchanged raises IndexReplacedError from then on."""

    def __init__(self, settings: ServeSettings, metrics: Metrics) -> None:
        """Open the index and its model, and read and load what answering takes.

        Raises:
            IndexStateError, ModelFileError, DeviceError: see ``Index.open``.

        """
        self.index = Index.open(
            settings.index, device=settings.device, threads=settings.threads, max_pixels=settings.max_pixels
        )
        try:
            self.embedder: Embedder = self.index.embedder
            self.index.load_graph()
            self._warm_up()
        except BaseException:
            self.index.close()
            raise
        self._metrics = metrics
        self.embedding: Batcher[Picture, Vector] = Batcher(
            self._embed,
            workers=self.embedder.workers,
            most=settings.batch_size,
            wait_s=settings.batch_wait_s,
            name="embed",
        )
        self.searching: Batcher[Question, Found] = Batcher(self._search, most=_MOST_QUESTIONS, name="search")
        self._graph_problem: str | None = None
        self.users = 0
        self.retired = False

    def summary(self) -> IndexSummary:
        """See ``Index.summary``."""
        return self.index.summary()

    def check(self) -> int:
        """Return the number of pictures in the index as it is now.

        Raises:
            IndexReplacedError: another index has taken its place.
            IndexDamagedError: it is damaged.

        """
        with self.index.snapshot():
            return len(self.index)

    def enter(self) -> None:
        """Say that somebody uses it."""
        self.users += 1

    def leave(self) -> None:
        """Say that somebody has done with it; one that was retired is closed by the last."""
        self.users -= 1
        if self.retired and self.users == 0:
            self.close()

    def retire(self) -> None:
        """Close it as soon as nobody uses it any more."""
        self.retired = True
        if self.users == 0:
            self.close()

    def close(self) -> None:
        """Close it now."""
        self.embedding.close()
        self.searching.close()
        self.index.close()

    def _warm_up(self) -> None:
        """Run the network once in both ways, so that the first who ask do not wait for it."""
        size = self.embedder.rule.size
        blank = np.full((1, size, size, 3), 128, dtype=np.uint8)
        self.embedder.embed_batch(blank)
        self.embedder.embed_batch_on_one_core(blank)

    def _embed(self, pictures: list[Picture], alone: bool) -> list[Vector]:
        """Embed a batch: on all cores where there is nothing else to do, else on one, beside other batches."""
        started = time.perf_counter()
        run = self.embedder.embed_batch if alone else self.embedder.embed_batch_on_one_core
        vectors = list(run(np.stack(pictures)))
        self._metrics.batches.observe(len(pictures))
        self._metrics.embedding.observe(time.perf_counter() - started)
        return vectors

    def _search(self, questions: list[Question], _: bool) -> list[Found | BaseException]:
        started = time.perf_counter()
        with self.index.snapshot():
            answers = self._answers(questions)
        self._metrics.searching.observe(time.perf_counter() - started)
        self._note_remarks()
        return answers

    def _note_remarks(self) -> None:
        """Log it once when the graph cannot be used; that fewer pictures are there than were asked for is no news."""
        problem = self.index.graph_problem
        if problem is not None and problem != self._graph_problem:
            LOG.warning("%s", problem)
        self._graph_problem = problem
        self.index.remarks.clear()

    def _answers(self, questions: list[Question]) -> list[Found | BaseException]:
        answers: list[Found | BaseException] = [QueryError("")] * len(questions)
        together: dict[Wanted, list[int]] = {}
        asked: dict[int, IndexedPicture] = {}
        for place, question in enumerate(questions):
            try:
                if question.item is not None:
                    asked[place] = self._item(question.item)
                together.setdefault(question.wanted, []).append(place)
            except (NotFoundError, IndexDamagedError) as error:  # the others need not suffer from it
                answers[place] = error
        for wanted, places in together.items():
            for place, answer in zip(places, self._hits(wanted, questions, places, asked), strict=True):
                answers[place] = answer
        return answers

    def _item(self, number: int) -> IndexedPicture:
        try:
            return self.index.item(number)
        except QueryError:
            raise NotFoundError(number) from None

    def _hits(
        self, wanted: Wanted, questions: Sequence[Question], places: Sequence[int], asked: dict[int, IndexedPicture]
    ) -> list[Found | BaseException]:
        vectors: list[Any] = [asked[p].vector if p in asked else questions[p].vector for p in places]
        try:
            hits = self.index.hits(
                np.stack(vectors),
                wanted.k,
                farthest=wanted.farthest,
                label=self._real_labels(wanted.label),
                max_distance=wanted.max_distance,
                exclude_sha256=self._left_out(wanted, questions, places, asked),
                unique=wanted.unique,
                method="exact" if wanted.exact else "auto",
            )
        except Exception as error:  # whatever it is, those who want something else need not suffer from it
            return [error] * len(places)
        return [Found(row, asked.get(place)) for place, row in zip(places, hits, strict=True)]

    def _real_labels(self, labels: tuple[str, ...] | None) -> list[str] | None:
        """Return labels as the index has them, of which some are shown with escapes."""
        if labels is None or not any("\\x" in label for label in labels):
            return None if labels is None else list(labels)
        real = {plain(label): label for label in self.index.labels()}
        return [real.get(label, label) for label in labels]

    def _left_out(
        self, wanted: Wanted, questions: Sequence[Question], places: Sequence[int], asked: dict[int, IndexedPicture]
    ) -> list[list[bytes | str]] | None:
        if not wanted.leave_out_query:
            return None
        contents = [asked[p].sha256 if p in asked else questions[p].sha256 for p in places]
        return [[] if content is None else [content] for content in contents]
