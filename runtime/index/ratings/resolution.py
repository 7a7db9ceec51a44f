"""What ratings say about the pictures of an index now: triplets, and how far raters agree."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import comb
from typing import NamedTuple

from ..database.store import Store
from .records import MAX_MARKS, Comparison, Mark, RatedPicture
from .store import RatingStore

__all__ = [
    "Agreement",
    "Decision",
    "Questions",
    "RaterSummary",
    "ResolvedRatings",
    "ResolvedTriplet",
    "Share",
    "answers_of",
    "resolved",
]

# Synced folders that are searched for a picture whose own folder is no longer synced.
_MAX_ROOTS_TRIED = 100


@dataclass(frozen=True)
class Share:
    """How many answers agree, ``agreeing`` of ``count``."""

    agreeing: int
    count: int

    @property
    def share(self) -> float | None:
        """The share from 0 to 1; None: there is nothing to compare."""
        return self.agreeing / self.count if self.count else None


@dataclass(frozen=True)
class Agreement:
    """How far answers to the same question agree.

    Attributes:
        own: a rater's earlier answers, each with the same rater's newest answer.
        between: pairs of raters, by their newest answers to that question.

    """

    own: Share
    between: Share


@dataclass(frozen=True)
class ResolvedTriplet:
    """What raters say: ``positive`` is more similar to ``query`` than ``negative``.

    Attributes:
        query: sha256 of the content, as are ``positive`` and ``negative``.
        query_ids: the items of that content, ascending; never empty.
        raters: who say so, None for those without a name.
        votes: their number.
        against: the number of raters who say the opposite; smaller than ``votes``.

    """

    query: bytes
    positive: bytes
    negative: bytes
    query_ids: tuple[int, ...]
    positive_ids: tuple[int, ...]
    negative_ids: tuple[int, ...]
    raters: tuple[str | None, ...]
    votes: int
    against: int


@dataclass(frozen=True)
class RaterSummary:
    """What one rater did: ``rater`` is None for all without a name.

    Attributes:
        rater: the name.
        comparisons: number of comparisons.
        marks: number of marks.
        own: agreement with this rater's own repeated answers.

    """

    rater: str | None
    comparisons: int
    marks: int
    own: Share


@dataclass(frozen=True)
class ResolvedRatings:
    """The ratings of an index as triplets, and what became of the others.

    Each answer is counted once: ``answers`` is the sum of ``gone``, ``changed``, ``repeated``,
    ``contradicting``, the votes for and against all triplets, and the votes of undecided questions.

    Attributes:
        triplets: in the order in which their questions were first answered.
        comparisons: number of comparisons.
        marks: number of marks.
        answers: comparisons, and pairs of a mark for more and one for less like it.
        gone: answers about a picture that the index no longer has.
        changed: answers about a picture whose path has another content now.
        repeated: earlier answers that their rater gave again.
        contradicting: earlier answers that their rater contradicted; the newer one counts.
        disagreeing: questions in which raters disagree; the majority counts.
        undecided: those of them with even votes, which are left out.
        of_other_models: answers given while the index had another model; they count.
        agreement: of answers to the same question.
        raters: in the order of their names, those without a name first.
        answered: the smallest ids of query, positive and negative of each answer about pictures of the index, the
            newest last.

    """

    triplets: tuple[ResolvedTriplet, ...]
    comparisons: int
    marks: int
    answers: int
    gone: int
    changed: int
    repeated: int
    contradicting: int
    disagreeing: int
    undecided: int
    of_other_models: int
    agreement: Agreement
    raters: tuple[RaterSummary, ...]
    answered: tuple[tuple[int, int, int], ...]


class _Question(NamedTuple):
    """Which of two pictures is more similar to ``query``; ``one`` is the smaller sha256."""

    query: bytes
    one: bytes
    other: bytes

    @classmethod
    def of(cls, query: bytes, positive: bytes, negative: bytes) -> _Question:
        return cls(query, *sorted((positive, negative)))


class Decision(NamedTuple):
    """What raters say to a question: by more votes, ``positive`` is more similar to ``query`` than ``negative``.

    Attributes:
        query: sha256 of the content, as are ``positive`` and ``negative``.
        raters: who say so, None for those without a name.
        against: the number of raters who say the opposite.

    """

    query: bytes
    positive: bytes
    negative: bytes
    raters: tuple[str | None, ...]
    against: int

    @property
    def votes(self) -> int:
        """The number of raters who say so."""
        return len(self.raters)

    @property
    def even(self) -> bool:
        """Whether as many raters say the opposite, so that nothing is decided."""
        return self.votes == self.against


def answers_of(comparisons: Iterable[Comparison], marks: Iterable[Mark]) -> list[Comparison]:
    """Return all answers, from the oldest to the newest.

    They are the comparisons, and one for each pair of a mark for more and a mark for less like it,
    of one query and rater. Such an answer has the id and the time of the later mark. Only the 200
    newest marks of a query and rater count.
    """
    groups: defaultdict[tuple[bytes, str | None], list[Mark]] = defaultdict(list)
    for mark in marks:
        groups[mark.query, mark.rater].append(mark)
    answers = list(comparisons)
    for (query, rater), group in groups.items():
        newest = sorted(group, key=_age)[-MAX_MARKS:]
        more, less = [mark for mark in newest if mark.more], [mark for mark in newest if not mark.more]
        for one, other in itertools.product(more, less):
            if one.picture != other.picture:
                last = max(one, other, key=_age)
                pictures = query, one.picture, other.picture
                answers.append(Comparison(last.id, *pictures, rater, last.time, last.model_sha256, "mark"))
    return sorted(answers, key=_age)


def _age(rating: Comparison | Mark) -> tuple[int, int]:
    return rating.time, rating.id


def resolved(store: RatingStore, index: Store) -> ResolvedRatings:
    """Resolve ratings against the pictures that an index holds now.

    A rater's newest answer to a question counts. Of several raters, the majority counts; a question
    with even votes is left out. Raters without a name count as one.

    Args:
        store: the ratings.
        index: the pictures.

    Raises:
        IndexStateError, IndexDamagedError: see :class:`~.store.RatingStore` and
            :class:`~..database.store.Store`.

    """
    comparisons, marks = store.ratings()
    answers = answers_of(comparisons, marks)
    contents = {content for each in answers for content in each.contents}
    with index.snapshot():
        items = index.items_of_contents(contents)
        changed = _changed(store.pictures(contents - items.keys()).values(), index)
        model = index.meta().model_sha256
    questions = Questions()
    lost = {"gone": 0, "changed": 0}
    answered = []
    for answer in answers:
        missing = [each for each in answer.contents if each not in items]
        if missing:
            lost["gone" if changed.isdisjoint(missing) else "changed"] += 1
        else:
            questions.add(*answer.contents, answer.rater)
            query, positive, negative = (items[each][0].id for each in answer.contents)
            answered.append((query, positive, negative))
    own, whole, decisions = questions.own(), questions.earlier(), questions.decisions()
    ids = {content: tuple(item.id for item in same) for content, same in items.items()}
    return ResolvedRatings(
        triplets=tuple(_triplet(each, ids) for each in decisions if not each.even),
        comparisons=len(comparisons),
        marks=len(marks),
        answers=len(answers),
        **lost,
        repeated=whole.agreeing,
        contradicting=whole.count - whole.agreeing,
        disagreeing=sum(each.against > 0 for each in decisions),
        undecided=sum(each.even for each in decisions),
        of_other_models=sum(each.model_sha256 != model for each in answers),
        agreement=Agreement(whole, questions.between()),
        raters=_raters(comparisons, marks, own),
        answered=tuple(answered),
    )


def _changed(pictures: Iterable[RatedPicture], index: Store) -> set[bytes]:
    """Return those pictures, which are not in the index, whose path has another content now."""
    roots = index.synced_roots()
    numbers = {path: root for root, path in roots.items()}
    several = list(roots)[:_MAX_ROOTS_TRIED]
    return {
        picture.sha256
        for picture in pictures
        # a folder may have moved since
        for root in ([numbers[picture.root]] if picture.root in numbers else several)
        if index.item_at(root, picture.path) is not None
    }


def _raters(
    comparisons: Iterable[Comparison], marks: Iterable[Mark], own: Mapping[str | None, Share]
) -> tuple[RaterSummary, ...]:
    compared, marked = (Counter(each.rater for each in ratings) for ratings in (comparisons, marks))
    names = sorted(compared.keys() | marked.keys(), key=lambda name: (name is not None, name or ""))
    return tuple(RaterSummary(name, compared[name], marked[name], own.get(name, Share(0, 0))) for name in names)


def _triplet(decision: Decision, ids: Mapping[bytes, tuple[int, ...]]) -> ResolvedTriplet:
    query, positive, negative, raters, against = decision
    return ResolvedTriplet(
        *(query, positive, negative), *(ids[query], ids[positive], ids[negative]), raters, decision.votes, against
    )


class Questions:
    """The answers to each question, by rater: a rater's newest answer counts, then the majority of raters."""

    def __init__(self) -> None:
        self._answers: dict[_Question, dict[str | None, list[bytes]]] = {}

    def add(self, query: bytes, positive: bytes, negative: bytes, rater: str | None) -> None:
        """Add an answer that is newer than all that were added before.

        Args:
            query: sha256 of the content.
            positive: the one that is more similar to the query.
            negative: the other one; the three are different.
            rater: None for all without a name.

        """
        raters = self._answers.setdefault(_Question.of(query, positive, negative), {})
        raters.setdefault(rater, []).append(positive)

    def own(self) -> dict[str | None, Share]:
        """Return how many earlier answers agree with the newest one, by rater."""
        own: dict[str | None, Share] = {}
        for raters in self._answers.values():
            for rater, (*earlier, newest) in raters.items():
                before = own.get(rater, Share(0, 0))
                own[rater] = Share(before.agreeing + earlier.count(newest), before.count + len(earlier))
        return own

    def earlier(self) -> Share:
        """Return how many earlier answers agree with their rater's newest one."""
        own = self.own().values()
        return Share(sum(each.agreeing for each in own), sum(each.count for each in own))

    def between(self) -> Share:
        """Return how many pairs of raters agree, over all questions."""
        agreeing = count = 0
        for raters in self._answers.values():
            votes = Counter(given[-1] for given in raters.values())
            agreeing += sum(comb(number, 2) for number in votes.values())
            count += comb(len(raters), 2)
        return Share(agreeing, count)

    def decisions(self) -> list[Decision]:
        """Return the majority's answer to each question, in the order in which they were first answered."""
        decisions = []
        for (query, one, other), raters in self._answers.items():
            ones = tuple(rater for rater, given in raters.items() if given[-1] == one)
            others = tuple(rater for rater, given in raters.items() if given[-1] == other)
            if len(ones) >= len(others):
                decisions.append(Decision(query, one, other, ones, len(others)))
            else:
                decisions.append(Decision(query, other, one, others, len(ones)))
        return decisions
