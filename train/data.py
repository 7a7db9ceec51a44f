"""The pictures of a run: which are learned from, which choices are made on, and which are reported on."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..runtime.datasets import DataSet, Sample, holdout
from ..runtime.errors import DataError, PictureError, TrainingError
from ..runtime.images import PictureRule
from ..runtime.text import printable
from .monitor import Monitor, TrainingInterrupted
from .pictures import read_plain, threaded

__all__ = ["Positions", "TrainingData", "check_pictures", "prepare", "sampled"]

Positions = npt.NDArray[np.int64]

_STREAM = 3


@dataclass(frozen=True)
class TrainingData:
    """Pictures with classes as numbers; positions that are left out later keep the others' numbers.

    ``train``, ``val``: the pictures; ``train_labels``, ``val_labels``: int64, the place of the label in ``classes``,
    which are those that are learned (any other label gets a number of its own). ``fit``, ``held``: positions in
    ``train`` that are learned from, and the held-out tenth. ``gallery``, ``queries``: positions in ``train`` and in
    ``val`` of the final evaluation. ``unseen``: positions in ``train`` of pictures of the learned classes that are
    never learned from, a gallery that does not flatter. ``viewed``: positions in ``train`` of all but the held-out
    tenth, whatever else is left out: augmented views are computed of these, so that runs that differ in what they leave
    out share them.
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
    viewed: Positions

    def without(self, train: Iterable[int], val: Iterable[int]) -> TrainingData:
        """Leave out pictures that cannot be read, by their positions in ``train`` and in ``val``."""
        bad_train = np.array(sorted(set(train)), dtype=np.int64)
        bad_val = np.array(sorted(set(val)), dtype=np.int64)
        return dataclasses.replace(
            self,
            fit=np.setdiff1d(self.fit, bad_train),
            held=np.setdiff1d(self.held, bad_train),
            gallery=np.setdiff1d(self.gallery, bad_train),
            queries=np.setdiff1d(self.queries, bad_val),
            unseen=np.setdiff1d(self.unseen, bad_train),
        )

    def check(self, monitor: Monitor) -> None:
        """Say what is odd about the classes, and refuse what cannot be learned from.

        Raises:
            TrainingError: fewer than two classes, or no class with two pictures.

        """
        counts = Counter(self.train_labels[self.fit].tolist())
        if len(counts) < 2:
            raise TrainingError(
                f"The training pictures are of {len(counts)} class{'es' if not counts else ''}"
                f"{': ' + printable(self.classes[next(iter(counts))]) if counts else ''}; "
                "a triplet needs a picture of another class, so expected at least 2."
            )
        single = [self.classes[label] for label, count in sorted(counts.items()) if count == 1]
        if len(single) == len(counts):
            raise TrainingError("Every class has one training picture; a triplet needs two pictures of one class.")
        if single:
            shown = ", ".join(printable(label) for label in single[:5]) + (", ..." if len(single) > 5 else "")
            monitor.remark(
                f"{len(single)} of {len(counts)} classes have one training picture ({shown}): they teach what is "
                "different, not what is alike."
            )
        if not len(self.held):
            raise TrainingError("No picture is left to choose the best network on; add pictures to the classes.")
        vanished = sorted(set(range(len(self.classes))) - set(counts))
        if vanished:
            shown = ", ".join(printable(self.classes[label]) for label in vanished[:5])
            monitor.remark(f"No readable training picture is left of {len(vanished)} classes ({shown}).")


def prepare(
    dataset: DataSet, val: DataSet | None = None, *, holdout_classes: int = 0, holdout_pictures: int = 0
) -> TrainingData:
    """Number the classes and set the splits.

    What is held out depends on names alone (order by sha256), never on a seed.

    Args:
        dataset: its train pictures are learned from and are the gallery of the final evaluation.
        val: all of its pictures are the queries of the final evaluation, instead of the val pictures of ``dataset``.
        holdout_classes: classes that are not learned; then the final evaluation is on these alone.
        holdout_pictures: pictures of each class that are not learned from, never all of a class; the tenth that choices
            are made on is among them, and stands for them where it is more.

    Raises:
        DataError: none of the queries is of a class that the evaluation is about.
        TrainingError: fewer than two classes would be left.

    """
    queries = dataset.val if val is None else (*val.train, *val.val)
    unlearned = _last_by_name(dataset.classes, holdout_classes)
    known = tuple(label for label in dataset.classes if label not in unlearned)
    asked = unlearned or frozenset(known)
    others = sorted(({sample.label for sample in queries} | unlearned) - set(known))
    _refuse_other_classes(queries, asked, "held-out" if unlearned else "training")
    codes = {label: code for code, label in enumerate((*known, *others))}
    train_labels, val_labels = _labels(dataset.train, codes), _labels(queries, codes)
    learned = train_labels < len(known)
    tenth = _is_in(dataset.train, holdout(dataset.train)[1])
    kept_out = _is_in(dataset.train, holdout(dataset.train, least=holdout_pictures)[1])
    about = ~learned if unlearned else np.ones_like(learned)
    return TrainingData(
        classes=known,
        train=dataset.train,
        val=tuple(queries),
        train_labels=train_labels,
        val_labels=val_labels,
        fit=np.flatnonzero(learned & ~kept_out),
        held=np.flatnonzero(learned & tenth),
        gallery=np.flatnonzero(about),
        queries=np.flatnonzero(val_labels >= len(known)) if unlearned else np.arange(len(queries)),
        unseen=np.flatnonzero(learned & kept_out) if not unlearned else np.zeros(0, dtype=np.int64),
        viewed=np.flatnonzero(~tenth),
    )


def _refuse_other_classes(queries: Sequence[Sample], asked: frozenset[str], whose: str) -> None:
    if queries and not any(sample.label in asked for sample in queries):
        raise DataError(
            f"No picture of the evaluation has a class of the {whose} pictures: "
            f"found {printable(queries[0].label)}, "
            f"expected one of {', '.join(map(printable, sorted(asked)[:5]))}{', ...' if len(asked) > 5 else ''}."
        )


def _last_by_name(classes: Sequence[str], count: int) -> frozenset[str]:
    """Choose ``count`` classes by the sha256 of their names.

    Raises:
        TrainingError: fewer than two classes would be left.

    """
    if count and count > len(classes) - 2:
        raise TrainingError(
            f"--holdout-classes {count}: the data set has {len(classes)} classes; expected at most "
            f"{max(0, len(classes) - 2)}, so that two are left to learn from."
        )
    ordered = sorted(classes, key=lambda label: hashlib.sha256(label.encode("utf-8", "surrogateescape")).digest())
    return frozenset(ordered[:count])


def _is_in(samples: Sequence[Sample], chosen: Sequence[Sample]) -> npt.NDArray[np.bool_]:
    paths = {sample.path for sample in chosen}
    return np.array([sample.path in paths for sample in samples], dtype=bool)


def _labels(samples: Sequence[Sample], codes: dict[str, int]) -> Positions:
    return np.array([codes[sample.label] for sample in samples], dtype=np.int64)


def sampled(positions: Positions, labels: Positions, most: int, seed: int) -> Positions:
    """Return at most ``most`` positions of each class, drawn from ``seed``, sorted.

    Args:
        positions: int64 ``[n]``, into ``labels``.
        labels: int64, of all pictures.
        most: of each class.
        seed: of the draw.

    """
    random = np.random.default_rng((seed, _STREAM))
    shuffled = random.permutation(positions)
    of_shuffled = labels[shuffled]
    chosen = [shuffled[of_shuffled == label][:most] for label in np.unique(of_shuffled)]
    return np.sort(np.concatenate(chosen)) if chosen else positions


def check_pictures(
    samples: Sequence[Sample], rule: PictureRule, threads: int, monitor: Monitor, title: str
) -> list[int]:
    """Decode every picture once and return the positions of those that cannot be read, each with a remark.

    A training run that lasts hours must not end at a damaged file.

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
    monitor.begin(title, len(samples), "pictures")
    for position, error in enumerate(threaded(problem, range(len(samples)), threads)):
        if error is not None:
            bad.append(position)
            monitor.remark(f"Left out: {error}")
        if monitor.stopping():
            raise TrainingInterrupted("Stopped while the pictures were checked.")
        monitor.advance(1)
    monitor.end()
    return bad
