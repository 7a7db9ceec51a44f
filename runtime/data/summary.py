"""The summary of a data set before long work, and warnings about duplicates and skewed classes."""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from ..datasets import DataSet, Sample
from ..text import display_path, printable

__all__ = ["Repeats", "Use", "data_warnings", "find_repeats", "reading_line", "report_pictures", "report_reading"]


K = TypeVar("K", bound=Hashable)

# Time limit in seconds, so that a data set on a slow disk is not read twice as a whole.
PATIENCE = 20.0
# Different pictures nearly always differ here, and disks read whole blocks anyway.
_HEAD_BYTES = 4096
# A picture is never held whole; the clock is checked between two blocks.
_BLOCK_BYTES = 1 << 18
_THREADS = 8

Entry = tuple[str, Sample]
# Names and paths shown for each warning.
_SHOWN = 3
_RULES = {"top": "by the top folder", "leaf": "by the innermost folder", "path": "by all folders together"}
Use = Literal["val", "test"]
# Split names in warnings.
_SPLITS = {"train": "train", "val": "val", "test": "test"}
_QUERIES_AND_GALLERY = {"train": "the gallery", "val": "the queries", "test": "test"}


@dataclass(frozen=True)
class Repeats:
    """Groups of pictures with identical bytes, each with its split.

    ``across_splits``: in more than one split; ``across_classes``: under more than one label;
    ``unread``: pictures not compared for lack of time, out of the ``candidates`` that share their
    size with another picture.
    """

    across_splits: tuple[tuple[tuple[str, Sample], ...], ...]
    across_classes: tuple[tuple[tuple[str, Sample], ...], ...]
    candidates: int = 0
    unread: int = 0


def find_repeats(dataset: DataSet, *, patience: float = PATIENCE) -> Repeats:
    """Compare the pictures of all splits by their bytes.

    First by size (in a zip also by the directory's checksums), then by the first 4 KiB, then by the
    sha256 of the whole; each step reads only pictures that were alike so far. Unreadable pictures
    are left out.

    Args:
        dataset: its three splits.
        patience: time limit for reading, in seconds.

    """
    everything = [(split, s) for split in ("train", "val", "test") for s in getattr(dataset, split)]
    deadline = time.monotonic() + patience
    alike = _alike(everything, [(entry[1].size, entry[1].crc) for entry in everything])
    candidates, unread = sum(map(len, alike)), 0
    for digest in (_head, _whole):
        entries = [entry for group in alike for entry in group]
        keys, missing = _read(entries, digest, deadline)
        unread += missing
        places = [number for number, group in enumerate(alike) for _ in group]
        alike = _alike(
            [entry for entry, key in zip(entries, keys, strict=True) if key is not None],
            [(place, key) for place, key in zip(places, keys, strict=True) if key is not None],
        )
    # One picture may be in two splits under the same path, such as queries inside the gallery.
    groups = [tuple(group) for group in alike if len({sample.path for _, sample in group}) > 1]
    return Repeats(
        tuple(group for group in groups if len({split for split, _ in group}) > 1),
        tuple(group for group in groups if len({sample.label for _, sample in group}) > 1),
        candidates,
        unread,
    )


def _alike(entries: Sequence[Entry], keys: Iterable[K]) -> list[list[Entry]]:
    """Group entries by their keys, and keep groups of two or more."""
    groups: dict[K, list[Entry]] = defaultdict(list)
    for entry, key in zip(entries, keys, strict=True):
        groups[key].append(entry)
    return [group for group in groups.values() if len(group) > 1]


class _TooLateError(Exception):
    """The time limit has passed."""


def _read(
    entries: Sequence[Entry], digest: Callable[[Sample, float], bytes], deadline: float
) -> tuple[list[bytes | None], int]:
    """Return each entry's digest, None if unreadable or out of time, and the number out of time."""
    late: list[Entry] = []

    def read(entry: Entry) -> bytes | None:
        try:
            _check_clock(deadline)
            return digest(entry[1], deadline)
        except _TooLateError:
            late.append(entry)
        except Exception:  # of a damaged zip: zlib.error, lzma.LZMAError and the like have no common base
            pass
        return None

    with ThreadPoolExecutor(_THREADS) as pool:
        keys = list(pool.map(read, entries))
    return keys, len(late)


def _check_clock(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise _TooLateError


def _head(sample: Sample, _: float) -> bytes:
    if sample.crc is not None:
        return b""  # the whole file's checksum, already compared, says more than a part
    with sample.stream() as file:
        return hashlib.sha256(file.read(_HEAD_BYTES)).digest()


def _whole(sample: Sample, deadline: float) -> bytes:
    digest = hashlib.sha256()
    with sample.stream() as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            _check_clock(deadline)
    return digest.digest()


def report_reading(
    dataset: DataSet, say: Callable[[str], None], *, use: Use = "val", val: DataSet | None = None
) -> None:
    """Report in one line how DATA was read, and warn of anything unusual.

    Args:
        dataset: from :func:`~..datasets.open_dataset`.
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
        queries: from :func:`~..datasets.open_pictures`.
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
        say(f"{_count(shared, 'query is', 'queries are')} also in the gallery; no picture counts as its own neighbour")
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
    where = "outside class folders" if dataset.reading.labels in _RULES else "without a row"
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
    """Yield what would spoil training or metrics; uses :func:`find_repeats`.

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
            f"{_some(map(printable, sorted(unknown)))}; no correct result exists for "
            f"{_count(sum(unknown.values()), 'picture', 'pictures')}."
        )


def _repeated(repeats: Repeats, words: Mapping[str, str]) -> Iterator[str]:
    if repeats.across_splits:
        splits = {split for group in repeats.across_splits for split, _ in group}
        names = " and ".join(words[split] for split in words if split in splits)
        yield (
            f"{_count(len(repeats.across_splits), 'picture is', 'pictures are')} in {names} with the same bytes, "
            f"which makes the metrics too high: {_groups(repeats.across_splits)}."
        )
    if repeats.across_classes:
        yield (
            f"{_count(len(repeats.across_classes), 'picture is', 'pictures are')} in several classes with the "
            f"same bytes: {_groups(repeats.across_classes)}."
        )
    if repeats.unread:
        yield (
            f"Not all pictures were compared by their bytes: there was no time for {repeats.unread:,} of "
            f"{repeats.candidates:,} that have the size of another picture."
        )


def _groups(groups: Sequence[Sequence[tuple[str, Sample]]]) -> str:
    return _some((" = ".join(display_path(sample.path) for _, sample in group[:_SHOWN]) for group in groups), "; ")


def _some(texts: Iterable[str], separator: str = ", ") -> str:
    listed = list(texts)
    more = f"{separator}and {len(listed) - _SHOWN:,} more" if len(listed) > _SHOWN else ""
    return separator.join(listed[:_SHOWN]) + more


def _count(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"
