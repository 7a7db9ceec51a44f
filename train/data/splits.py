"""The splits of a run: training, validation and held-out pictures."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...runtime.datasets import HOLDOUT_RULE, DataSet, Sample, holdout
from ...runtime.errors import DataError, PictureError, TrainingError, TrainingInterrupted
from ...runtime.images import PictureRule
from ...runtime.progress import Monitor
from ...runtime.text import printable
from ..metrics import MAX_K
from .loaders import read_plain, threaded

__all__ = ["GALLERY_PER_CLASS", "Positions", "TrainingData", "check_pictures", "prepare", "sampled"]

Positions = npt.NDArray[np.int64]

_STREAM = 3
# A gallery of fewer pictures says nothing about a network.
_MIN_GALLERY = 10
# Pictures of each class in the gallery of the evaluation after each epoch.
GALLERY_PER_CLASS = 50


@dataclass(frozen=True)
class TrainingData:
    """Pictures and class numbers; leaving out positions later does not renumber the others.

    ``train``, ``val``: the pictures. ``train_labels``, ``val_labels``: int64, the index of the
    label in ``classes``, the trained classes; other labels have higher numbers. ``fit``, ``held``:
    positions in ``train`` of the training pictures, and of the held-out tenth. ``gallery``,
    ``queries``: positions in ``train`` and in ``val`` for the final evaluation. ``unseen``:
    positions in ``train`` of held-out pictures of the trained classes, a gallery without the
    training pictures' bias. ``all_train``, ``all_val``: positions of every readable picture.
    ``viewed``: positions in ``train`` of all but the held-out tenth. Augmented views are computed
    of these, so runs that leave out different pictures share them.
    ``k``: of every precision@k of the run. ``rule``: version of the holdout rule, see
    :func:`~...runtime.datasets.holdout`.
    """

    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    train_labels: Positions
    val_labels: Positions
    fit: Positions
    held: Positions
    gallery: Positions
    queries: Positions
    unseen: Positions
    all_train: Positions
    all_val: Positions
    viewed: Positions
    k: int
    rule: int = HOLDOUT_RULE

    @property
    def unseen_k(self) -> int:
        """The k of the unseen gallery; in rule 1, at most the size of its smallest class."""
        if self.rule > 1:
            return self.k
        return min(self.k, int(np.bincount(self.train_labels[self.unseen])[self.train_labels[self.unseen]].min()))

    @property
    def holds_out_classes(self) -> bool:
        """Whether some train pictures are of classes left out of training."""
        return bool((self.train_labels >= len(self.classes)).any())

    @property
    def reports_unseen(self) -> bool:
        """Whether the unseen gallery is large enough to report on."""
        return len(self.unseen) >= (_MIN_GALLERY if self.rule > 1 else 1)

    def without(self, train: Iterable[int], val: Iterable[int]) -> TrainingData:
        """Leave out unreadable pictures, by their positions in ``train`` and in ``val``."""
        bad_train = np.array(sorted(set(train)), dtype=np.int64)
        bad_val = np.array(sorted(set(val)), dtype=np.int64)
        return dataclasses.replace(
            self,
            fit=np.setdiff1d(self.fit, bad_train),
            held=np.setdiff1d(self.held, bad_train),
            gallery=np.setdiff1d(self.gallery, bad_train),
            queries=np.setdiff1d(self.queries, bad_val),
            unseen=np.setdiff1d(self.unseen, bad_train),
            all_train=np.setdiff1d(self.all_train, bad_train),
            all_val=np.setdiff1d(self.all_val, bad_val),
        )

    def check(self, monitor: Monitor, said: Sequence[str] = ()) -> None:
        """Warn about classes with too few pictures, and refuse data without a triplet.

        Args:
            monitor: told each of :meth:`oddities`.
            said: oddities that the monitor knows already.

        Raises:
            TrainingError: fewer than two classes, or no class with two pictures.

        """
        counts = Counter(self.train_labels[self.fit].tolist())
        if len(counts) < 2:
            raise TrainingError(
                f"The training pictures have {len(counts)} class{'es' if not counts else ''}"
                f"{': ' + printable(self.classes[next(iter(counts))]) if counts else ''}; "
                "expected at least 2, because a triplet needs a picture of another class."
            )
        if max(counts.values()) < 2:
            raise TrainingError(self._no_pairs())
        for oddity in self.oddities():
            if oddity not in said:
                monitor.remark(oddity)

    def oddities(self) -> list[str]:
        """Return warnings about classes with one training picture or none."""
        counts = Counter(self.train_labels[self.fit].tolist())
        single = [label for label, count in sorted(counts.items()) if count == 1]
        vanished = sorted(set(range(len(self.classes))) - set(counts))
        oddities = []
        if single:
            oddities.append(
                f"{len(single)} of {len(counts)} classes have only one training picture ({self._names(single)}); it "
                "serves as a negative, but not as a positive."
            )
        if vanished:
            oddities.append(f"Classes without a readable training picture: {len(vanished)} ({self._names(vanished)}).")
        return oddities

    def _no_pairs(self) -> str:
        listed = np.bincount(self.train_labels[self.train_labels < len(self.classes)])
        if listed.max() < 2:
            fault = "Every class has one training picture"
        else:
            fault = "No class has two readable training pictures besides the held-out ones"
        return f"{fault}; a triplet needs two pictures of one class. Add pictures to the classes."

    def _names(self, labels: Sequence[int]) -> str:
        return ", ".join(printable(self.classes[label]) for label in labels[:5]) + (", ..." if len(labels) > 5 else "")

    def remark_measures(self, monitor: Monitor) -> None:
        """Report if no best epoch can be chosen, and if k is below the usual one."""
        if not len(self.held):
            monitor.remark(
                "No pictures are held out to choose the best epoch, which needs a class of three training pictures; "
                "the network of the last epoch is kept."
            )
        if self.k < MAX_K:
            monitor.remark(
                f"This run measures rankings as precision@{self.k}: the classes or galleries are too small for "
                f"{MAX_K} neighbours."
            )


def prepare(
    dataset: DataSet,
    val: DataSet | None = None,
    *,
    holdout_classes: int = 0,
    holdout_pictures: int = 0,
    rule: int = HOLDOUT_RULE,
) -> TrainingData:
    """Number the classes and set the splits.

    Holding out depends on names alone (order by sha256), never on a seed.

    Args:
        dataset: its train pictures are for training and are the gallery of the final evaluation.
        val: all its pictures are the final queries, instead of the val pictures of ``dataset``.
        holdout_classes: number of classes left out of training; the gallery and the queries are then
            of these alone.
        holdout_pictures: pictures of each class left out of training, as long as two stay. They
            include the tenth for choosing the best epoch, which counts instead where it is larger.
        rule: version of the holdout rule by which ``dataset`` was split.

    Raises:
        DataError: no query is of a class of the evaluation.
        TrainingError: fewer than two classes would be left.

    """
    unlearned = _last_by_name(dataset.classes, holdout_classes)
    dataset, queries = _with_queries(dataset, val, unlearned, rule)
    known = tuple(label for label in dataset.classes if label not in unlearned)
    train_labels, val_labels = _numbered(known, unlearned, dataset.train, queries)
    learned = train_labels < len(known)
    tenth = _is_in(dataset.train, holdout(dataset.train, rule=rule)[1])
    kept_out = _is_in(dataset.train, holdout(dataset.train, minimum=holdout_pictures, rule=rule)[1])
    every, asked = np.arange(len(train_labels)), np.arange(len(val_labels))
    data = TrainingData(
        classes=known,
        train=dataset.train,
        val=tuple(queries),
        train_labels=train_labels,
        val_labels=val_labels,
        fit=np.flatnonzero(learned & ~kept_out),
        held=np.flatnonzero(learned & tenth),
        gallery=np.flatnonzero(~learned) if unlearned else every,
        queries=np.flatnonzero(val_labels >= len(known)) if unlearned else asked,
        unseen=np.flatnonzero(learned & kept_out) if not unlearned else np.zeros(0, dtype=np.int64),
        all_train=every,
        all_val=asked,
        viewed=np.flatnonzero(~tenth),
        k=MAX_K,
        rule=rule,
    )
    return data if rule == 1 else dataclasses.replace(data, k=_common_k(data))


def _common_k(data: TrainingData) -> int:
    """Return the k with which every gallery of a run can be measured.

    It is 30, but less where no class has 30 pictures, or where 30 is more than half of a gallery:
    precision over a whole gallery does not depend on the order.
    """
    counts = np.bincount(data.train_labels[data.fit])
    sizes = [int(np.minimum(counts, GALLERY_PER_CLASS).sum()), len(data.gallery)]
    if data.reports_unseen:
        sizes.append(len(data.unseen))
    largest = int(np.bincount(data.train_labels[data.gallery]).max(initial=1))
    return max(1, min(MAX_K, largest, min(sizes) // 2))


def _with_queries(
    dataset: DataSet, val: DataSet | None, unlearned: frozenset[str], rule: int
) -> tuple[DataSet, Sequence[Sample]]:
    """Return the data set and the queries of the final evaluation, see :func:`prepare`.

    Raises:
        DataError: no query is of a class of the evaluation.

    """
    if val is None and rule > 1:
        dataset = _with_untrained_queries(dataset, unlearned)
    queries = dataset.val if val is None else (*val.train, *val.val)
    classes, whose = (unlearned, "held-out") if unlearned else (frozenset(dataset.classes), "training")
    if queries and not any(sample.label in classes for sample in queries):
        raise DataError(
            f"No picture of the evaluation has a class of the {whose} pictures: "
            f"found {printable(queries[0].label)}, "
            f"expected one of {', '.join(map(printable, sorted(classes)[:5]))}{', ...' if len(classes) > 5 else ''}."
        )
    return dataset, queries


def _with_untrained_queries(dataset: DataSet, classes: frozenset[str]) -> DataSet:
    """Move train pictures of untrained ``classes`` of two to val, where val has none of the class.

    Such a class may keep one train picture: it is ranked, not learned from.
    """
    counts = Counter(sample.label for sample in dataset.train)
    lacking = {label for label in classes if counts[label] == 2} - {sample.label for sample in dataset.val}
    chosen = holdout([sample for sample in dataset.train if sample.label in lacking], salt="", rule=1)[1]
    queries = _is_in(dataset.train, chosen)
    train = tuple(sample for sample, query in zip(dataset.train, queries, strict=True) if not query)
    return dataclasses.replace(dataset, train=train, val=(*dataset.val, *chosen))


def _last_by_name(classes: Sequence[str], count: int) -> frozenset[str]:
    """Choose ``count`` classes by the sha256 of their names.

    Raises:
        TrainingError: fewer than two classes would be left.

    """
    if count and count > len(classes) - 2:
        raise TrainingError(
            f"--holdout-classes {count}: the data set has {len(classes)} classes; expected at most "
            f"{max(0, len(classes) - 2)}, so that two are left to train on."
        )
    ordered = sorted(classes, key=lambda label: hashlib.sha256(label.encode("utf-8", "surrogateescape")).digest())
    return frozenset(ordered[:count])


def _is_in(samples: Sequence[Sample], chosen: Sequence[Sample]) -> npt.NDArray[np.bool_]:
    paths = {sample.path for sample in chosen}
    return np.array([sample.path in paths for sample in samples], dtype=bool)


def _numbered(
    known: tuple[str, ...], unlearned: frozenset[str], train: Sequence[Sample], queries: Sequence[Sample]
) -> tuple[Positions, Positions]:
    """Return the labels of both as numbers, int64 ``[n]`` and ``[q]``: first the known classes, then all others."""
    others = sorted(({sample.label for sample in queries} | unlearned) - set(known))
    codes = {label: code for code, label in enumerate((*known, *others))}
    ours, theirs = (np.array([codes[each.label] for each in samples], dtype=np.int64) for samples in (train, queries))
    return ours, theirs


def sampled(positions: Positions, labels: Positions, limit: int, seed: int) -> Positions:
    """Return at most ``limit`` positions of each class, drawn with ``seed``, sorted.

    Args:
        positions: int64 ``[n]``, into ``labels``.
        labels: int64, of all pictures.
        limit: limit for each class.
        seed: of the draw.

    """
    random = np.random.default_rng((seed, _STREAM))
    shuffled = random.permutation(positions)
    of_shuffled = labels[shuffled]
    chosen = [shuffled[of_shuffled == label][:limit] for label in np.unique(of_shuffled)]
    return np.sort(np.concatenate(chosen)) if chosen else positions


def check_pictures(
    samples: Sequence[Sample], rule: PictureRule, threads: int, monitor: Monitor, title: str
) -> list[int]:
    """Decode every picture once and return the positions of unreadable ones, with a remark on each.

    A damaged file must not end a training run after hours.

    Raises:
        TrainingInterrupted: asked to stop.

    """
    read = read_plain(samples, rule)

    def problem(position: int) -> PictureError | None:
        try:
            read(position)
        except PictureError as error:
            return error
        return None

    bad = []
    advance = monitor(title, len(samples))
    for position, error in enumerate(threaded(problem, range(len(samples)), threads)):
        if error is not None:
            bad.append(position)
            monitor.remark(f"Left out: {error}")
        if monitor.stopping():
            raise TrainingInterrupted("Stopped while the pictures were checked.")
        advance()
    return bad
