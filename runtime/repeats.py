"""Pictures with the same bytes that stand in several splits, or in several classes."""

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

# Seconds after which nothing more is read: a data set on a slow disk must not be read twice as a whole.
PATIENCE = 20.0
# Two pictures that differ nearly always do so here, and a block is what a disk reads anyway.
_HEAD_BYTES = 4096
# A picture is never held whole; between two blocks the clock is looked at.
_BLOCK_BYTES = 1 << 18
_THREADS = 8


@dataclass(frozen=True)
class Repeats:
    """Groups of pictures with the same bytes, each with its split.

    ``across_splits``: in more than one split; ``across_classes``: under more than one label; ``unread``: pictures that
    time did not suffice to compare, of the ``candidates`` whose size another picture has, too.
    """

    across_splits: tuple[tuple[tuple[str, Sample], ...], ...]
    across_classes: tuple[tuple[tuple[str, Sample], ...], ...]
    candidates: int = 0
    unread: int = 0


def find_repeats(dataset: DataSet, *, patience: float = PATIENCE) -> Repeats:
    """Compare the pictures of all splits by their bytes.

    Sizes first (in a zip also the checksums of its directory), then the first 4 KiB, then a sha256 of the whole, each
    only of pictures that were alike so far. Pictures that cannot be read are left out.

    Args:
        dataset: its three splits.
        patience: seconds after which nothing more is read.

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
    # One picture may stand in two splits by its own path, as queries that lie in the gallery do.
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
    """The time is over."""


def _read(
    entries: Sequence[Entry], digest: Callable[[Sample, float], bytes], deadline: float
) -> tuple[list[bytes | None], int]:
    """Return the digest of each entry, None of one that cannot be read or came too late, and how many were too late."""
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
        return b""  # the checksum of the whole has been compared, which says more than a part
    with sample.stream() as file:
        return hashlib.sha256(file.read(_HEAD_BYTES)).digest()


def _whole(sample: Sample, deadline: float) -> bytes:
    digest = hashlib.sha256()
    with sample.stream() as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            _check_clock(deadline)
    return digest.digest()
