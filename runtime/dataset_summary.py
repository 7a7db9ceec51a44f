"""Summary of a data set: one line before long work, and warnings about misleading metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from .datasets import DataSet, Sample
from .repeats import Repeats, find_repeats
from .text import display_path, printable

__all__ = ["Use", "data_warnings", "reading_line", "report_pictures", "report_reading"]

# Names and paths shown for each warning.
_SHOWN = 3

_RULES = {"top": "by the top folder", "leaf": "by the innermost folder", "path": "by all folders together"}
Use = Literal["val", "test"]
# Split names in warnings.
_SPLITS = {"train": "train", "val": "val", "test": "test"}
_QUERIES_AND_GALLERY = {"train": "the gallery", "val": "the queries", "test": "test"}


def report_reading(
    dataset: DataSet, say: Callable[[str], None], *, use: Use = "val", val: DataSet | None = None
) -> None:
    """Report in one line how DATA was read, and warn of anything unusual.

    Args:
        dataset: from :func:`~.datasets.open_dataset`.
        say: called with each line.
        use: the split used for evaluation.
        val: another data set, which is evaluated whole instead.

    """
    say(reading_line(dataset, use=use))
    if val is not None:
        say(f"Evaluated on {printable(val.name)}: {reading_line(val)}")
        for warning in val.reading.warnings:
            say(f"Warning: {warning}")
        dataset = replace(dataset, val=(*val.train, *val.val), reading=replace(dataset.reading, val_held_out=False))
    for warning in data_warnings(dataset):
        say(f"Warning: {warning}")


def report_pictures(queries: DataSet, gallery: DataSet, both: DataSet, say: Callable[[str], None]) -> None:
    """Report how queries and gallery were read, and warn of anything unusual.

    Args:
        queries: from :func:`~.datasets.open_pictures`.
        gallery: likewise.
        both: the gallery as train, the queries as val.
        say: called with each line.

    """
    for what, part in (("queries", queries), ("gallery", gallery)):
        say(f"{what}: {_whole_line(part)}")
        for warning in part.reading.warnings:
            say(f"Warning: {warning}")
    shared = len({sample.path for sample in queries.train} & {sample.path for sample in gallery.train})
    if shared:
        say(f"{_count(shared, 'query lies', 'queries lie')} in the gallery, too; none is a neighbour of itself")
    for warning in data_warnings(both, _QUERIES_AND_GALLERY):
        say(f"Warning: {warning}")


def _whole_line(dataset: DataSet) -> str:
    parts = [
        f"{_classes(dataset)}, {_count(len(dataset.train), 'picture', 'pictures')}",
        _pictures_a_class(dataset),
        _left_out(dataset),
        *_others(dataset),
    ]
    return "; ".join(part for part in parts if part)


def reading_line(dataset: DataSet, *, use: Use = "val") -> str:
    """Return one line: classes, splits, pictures per class, and the result of other label rules."""
    splits = f"{_classes(dataset)}, {_splits(dataset)}"
    parts = [splits, _pictures_a_class(dataset), _test(dataset, use), _left_out(dataset), *_others(dataset)]
    where = f"{printable(dataset.name)}/{printable(dataset.reading.root.rstrip('/'))}" if dataset.reading.root else ""
    return "; ".join(part for part in parts if part) + (f" (read from {where})" if where else "")


def _classes(dataset: DataSet) -> str:
    reading, classes = dataset.reading, dataset.classes
    rule = reading.labels
    how = ""
    if rule not in _RULES:
        how = f" by {printable(rule)}"
    elif rule != "top" or reading.other_readings:
        how = f" {_RULES[rule]}"
    return f"{_count(len(classes), 'class', 'classes')}{how} ({_span(dataset.readable(c) for c in classes)})"


def _splits(dataset: DataSet) -> str:
    train = f"{len(dataset.train):,} train"
    if not dataset.val:
        return f"{train}, no val"
    return f"{train}, {len(dataset.val):,} val{' held out from train' if dataset.reading.val_held_out else ''}"


def _span(names: Iterable[str]) -> str:
    listed = sorted(map(printable, names), key=str.casefold)
    return f"{listed[0]} … {listed[-1]}" if len(listed) > 2 else ", ".join(listed)


def _pictures_a_class(dataset: DataSet) -> str:
    counts = Counter(sample.label for sample in dataset.train).values()
    fewest, most = min(counts), max(counts)
    return f"{f'{fewest:,} to ' if fewest < most else ''}{_count(most, 'picture', 'pictures')} a class"


def _test(dataset: DataSet, use: Use) -> str:
    unlabelled = dataset.reading.unlabelled.get("test", 0)
    without = f"{unlabelled:,} without labels" if unlabelled else ""
    if not dataset.test:
        return f"test: {without}, not used" if without else ""
    used = "evaluated on" if use == "test" else "not used; --split test evaluates on it"
    return f"test: {len(dataset.test):,}{f' and {without}' if without else ''}, {used}"


def _left_out(dataset: DataSet) -> str:
    counts = {split: count for split, count in dataset.reading.unlabelled.items() if split != "test"}
    where = "in no class folder" if dataset.reading.labels in _RULES else "without a row"
    count = sum(counts.values())
    return f"{_count(count, 'picture', 'pictures')} {where}, left out" if count else ""


def _others(dataset: DataSet) -> Iterator[str]:
    reading = dataset.reading
    for rule, count in reading.other_readings.items():
        yield f"--labels {rule}: {count:,}"
    if reading.merged:
        names = _some(map(printable, reading.merged))
        yield f"folders of one name under different parents are one class: {names}"


def data_warnings(dataset: DataSet, words: Mapping[str, str] = _SPLITS) -> Iterator[str]:
    """Yield what would spoil training or metrics; uses :func:`~.repeats.find_repeats`.

    Args:
        dataset: all its splits are checked; the bytes of pictures are compared.
        words: names of the splits in the warnings.

    Yields:
        sentences with full stops.

    """
    yield from dataset.reading.warnings
    yield from _single(dataset, words)
    for split in ("val", "test"):
        yield from _unknown(dataset, getattr(dataset, split), words[split], words["train"])
    yield from _repeated(find_repeats(dataset), words)


def _single(dataset: DataSet, words: Mapping[str, str]) -> Iterator[str]:
    counts = Counter(sample.label for sample in dataset.train)
    if dataset.reading.val_held_out:
        counts.update(sample.label for sample in dataset.val)
    single = sorted(label for label, count in counts.items() if count == 1)
    if single:
        what = "class has" if len(single) == 1 else "classes have"
        yield f"{len(single):,} {what} one picture in {words['train']}: {_some(map(printable, single))}."


def _unknown(dataset: DataSet, samples: Sequence[Sample], split: str, train: str) -> Iterator[str]:
    known = set(dataset.classes)
    unknown = Counter(sample.label for sample in samples if sample.label not in known)
    if unknown:
        verb = "is" if len(unknown) == 1 else "are"
        yield (
            f"{_count(len(unknown), 'class', 'classes')} of {split} {verb} not in {train}: "
            f"{_some(map(printable, sorted(unknown)))}; nothing right can be found for "
            f"{_count(sum(unknown.values()), 'picture', 'pictures')}."
        )


def _repeated(repeats: Repeats, words: Mapping[str, str]) -> Iterator[str]:
    if repeats.across_splits:
        splits = {split for group in repeats.across_splits for split, _ in group}
        names = " and ".join(words[split] for split in words if split in splits)
        yield (
            f"{_count(len(repeats.across_splits), 'picture stands', 'pictures stand')} in {names} with the same bytes, "
            f"which flatters the figures: {_groups(repeats.across_splits)}."
        )
    if repeats.across_classes:
        yield (
            f"{_count(len(repeats.across_classes), 'picture stands', 'pictures stand')} in several classes with the "
            f"same bytes: {_groups(repeats.across_classes)}."
        )
    if repeats.unread:
        yield (
            f"Not all pictures were compared by their bytes: time did not suffice for {repeats.unread:,} of "
            f"{repeats.candidates:,} that have the size of another one."
        )


def _groups(groups: Sequence[Sequence[tuple[str, Sample]]]) -> str:
    return _some((" = ".join(display_path(sample.path) for _, sample in group[:_SHOWN]) for group in groups), "; ")


def _some(texts: Iterable[str], separator: str = ", ") -> str:
    listed = list(texts)
    more = f"{separator}and {len(listed) - _SHOWN:,} more" if len(listed) > _SHOWN else ""
    return separator.join(listed[:_SHOWN]) + more


def _count(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"
