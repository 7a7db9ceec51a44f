"""Pictures with identical bytes in several splits or several classes."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from .datasets import DataSet, Sample

__all__ = ["Repeats", "find_repeats"]

K = TypeVar("K", bound=Hashable)

# Time limit in seconds, so that a data set on a slow disk is not read twice as a whole.
PATIENCE = 20.0
# Different pictures nearly always differ here, and disks read whole blocks anyway.
_HEAD_BYTES = 4096
# A picture is never held whole; the clock is checked between two blocks.
_BLOCK_BYTES = 1 << 18
_THREADS = 8


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


Entry = tuple[str, Sample]


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
