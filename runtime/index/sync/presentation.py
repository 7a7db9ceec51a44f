"""Output of ``deeprank-index sync``: lines of text, and JSON documents."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...text import display_path, duration, file_size, printable
from ..presentation import MAX_LINES, SCHEMA, pictures

if TYPE_CHECKING:
    from .dry_run import DryRun
    from .report import SyncReport

__all__ = ["dry_run_document", "dry_run_lines", "sync_document", "sync_line", "sync_remarks", "sync_time"]

_A_MINUTE = 60
# A rate from which decimals do not matter.
_MANY = 10
# Names of faults in a summary; others stay as they are.
_KINDS = {"not a picture": "no pictures"}


def sync_remarks(report: SyncReport | DryRun) -> list[str]:
    """Return remarks on pictures and files left out of the index, and why."""
    skipped = report.skipped_files
    lines = [f"skipped {display_path(file.path)}: {printable(file.short)}" for file in skipped[:MAX_LINES]]
    if len(skipped) > MAX_LINES:
        lines.append(f"skipped {len(skipped) - MAX_LINES:,} others (--json lists them all)")
    if report.unknown_extensions:
        kinds = ", ".join(f"{count:,} {printable(kind) or 'without one'}" for kind, count in _most_common(report))
        lines.append(f"left alone, by extension: {kinds}")
    return [*lines, *report.remarks]


def sync_line(index: str, report: SyncReport) -> str:
    """Return the summary of a sync; ``index`` is the folder as it is shown."""
    kept = f"{report.kept:,} kept, " if report.kept else ""
    again = f"{report.redecoded:,} embedded again, " if report.redecoded else ""
    relabelled = f"{report.relabelled:,} relabelled, " if report.relabelled else ""
    return (
        f"{report.added:,} added, {report.updated:,} updated, {report.moved:,} moved, {report.removed:,} removed, "
        f"{kept}{again}{relabelled}{report.unchanged:,} unchanged, {_left_and_skipped(report)}: "
        f"{index} holds {pictures(report.items)}"
    )


def sync_time(report: SyncReport, size: int) -> str:
    """Return the time of a sync, its rate in pictures per second, and the size of the index in bytes."""
    seconds = report.seconds
    took = f"{seconds:.1f} s" if round(seconds, 1) < _A_MINUTE else duration(seconds)
    taken = f"the index takes {file_size(size)}."
    if not report.embedded:
        return f"Took {took}; {taken}"
    rate = report.embedded / max(seconds, 0.001)
    return f"Took {took}: {pictures(report.embedded)} embedded, {rate:,.{0 if rate >= _MANY else 1}f} a second; {taken}"


def _left_and_skipped(report: SyncReport | DryRun) -> str:
    kinds = Counter(_KINDS.get(file.kind, file.kind) for file in report.skipped_files)
    by_kind = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    skipped = f"{len(report.skipped_files):,} skipped{f' ({by_kind})' if by_kind else ''}"
    folders = f"{report.left_out_folders:,} folder{'' if report.left_out_folders == 1 else 's'}"
    left_out = [pictures(report.left_out)] if report.left_out else []
    left_out += [folders] if report.left_out_folders else []
    return f"{' and '.join(left_out)} left out, {skipped}" if left_out else skipped


def dry_run_lines(index: Path, report: DryRun) -> Iterator[str]:
    """Yield the predicted changes, the first of each kind by name, and totals."""
    for verb, paths in (("add", report.added), ("update", report.updated)):
        yield from _first_of(f"would {verb}", [display_path(path) for path in paths])
    yield from _first_of("would embed again", [display_path(path) for path in report.redecoded])
    yield from _first_of("would move", [f"{display_path(old)} to {display_path(new)}" for old, new in report.moved])
    yield from _first_of("would remove", [display_path(path) for path in report.removed])
    yield from _first_of("would keep", [display_path(path) for path in report.kept])
    kept = f"{len(report.kept):,} kept, " if report.kept else ""
    again = f"{len(report.redecoded):,} embedded again, " if report.redecoded else ""
    relabelled = f"{len(report.relabelled):,} relabelled, " if report.relabelled else ""
    yield (
        f"{len(report.added):,} would be added, {len(report.updated):,} updated, {len(report.moved):,} moved, "
        f"{len(report.removed):,} removed, {kept}{again}{relabelled}{report.unchanged:,} unchanged, "
        f"{_left_and_skipped(report)}: {display_path(index)} would hold {pictures(report.items)}"
    )


def _first_of(verb: str, names: Sequence[str]) -> Iterator[str]:
    yield from (f"{verb} {name}" for name in names[:MAX_LINES])
    if len(names) > MAX_LINES:
        yield f"{verb} {len(names) - MAX_LINES:,} others (--json lists them all)"


def dry_run_document(index: Path, report: DryRun) -> dict[str, Any]:
    """Return the predicted changes for ``--json``."""
    return {
        "schema": SCHEMA,
        "index": os.fsdecode(index),
        "dry_run": True,
        "items": report.items,
        "added": list(report.added),
        "updated": list(report.updated),
        "redecoded": list(report.redecoded),
        "relabelled": list(report.relabelled),
        "moved": [{"from": old, "to": new} for old, new in report.moved],
        "removed": list(report.removed),
        "kept": list(report.kept),
        "unchanged": report.unchanged,
        **_outside(report),
    }


def _outside(report: SyncReport | DryRun) -> dict[str, Any]:
    return {
        "left_out": {"pictures": report.left_out, "folders": report.left_out_folders},
        "skipped": [{"path": file.path, "reason": file.reason, "kind": file.kind} for file in report.skipped_files],
        "unknown_extensions": dict(report.unknown_extensions),
        "remarks": list(report.remarks),
    }


def sync_document(index: Path, report: SyncReport) -> dict[str, Any]:
    """Return the result of a sync for ``--json``."""
    return {
        "schema": SCHEMA,
        "index": os.fsdecode(index),
        "dry_run": False,
        "items": report.items,
        "added": report.added,
        "updated": report.updated,
        "redecoded": report.redecoded,
        "relabelled": report.relabelled,
        "moved": report.moved,
        "removed": report.removed,
        "kept": report.kept,
        "unchanged": report.unchanged,
        "embedded": report.embedded,
        "seconds": round(report.seconds, 3),
        **_outside(report),
    }


def _most_common(report: SyncReport | DryRun) -> list[tuple[str, int]]:
    return sorted(report.unknown_extensions.items(), key=lambda entry: (-entry[1], entry[0]))[:MAX_LINES]
