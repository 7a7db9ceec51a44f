"""What ``deeprank-index`` shows of its results: lines for people, and the JSON documents."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..text import display_path, printable

if TYPE_CHECKING:
    from .info import IndexInfo
    from .remove import Removal
    from .sync import SyncReport
    from .verify import VerifyReport

__all__ = [
    "MOST_LINES",
    "SCHEMA",
    "info_document",
    "info_lines",
    "pictures",
    "removal_lines",
    "sync_document",
    "sync_line",
    "sync_remarks",
    "verify_document",
    "verify_lines",
]

SCHEMA = 1
# Skipped files and removed pictures that are named one by one.
MOST_LINES = 20


def pictures(count: int) -> str:
    """Return the number of pictures in words."""
    return f"{count:,} picture{'' if count == 1 else 's'}"


def sync_remarks(report: SyncReport) -> list[str]:
    """Say what was left out of the index, and why."""
    lines = [f"skipped {display_path(path)}: {reason}" for path, reason in report.skipped[:MOST_LINES]]
    if len(report.skipped) > MOST_LINES:
        lines.append(f"skipped {len(report.skipped) - MOST_LINES:,} others (--json lists them all)")
    if report.unknown_extensions:
        kinds = ", ".join(f"{count:,} {printable(kind) or 'without one'}" for kind, count in _most_common(report))
        lines.append(f"left alone, by extension: {kinds}")
    return [*lines, *report.remarks]


def sync_line(index: Path, report: SyncReport) -> str:
    """Return the summary of a sync."""
    return (
        f"{report.added:,} added, {report.updated:,} updated, {report.moved:,} moved, {report.removed:,} removed, "
        f"{report.unchanged:,} unchanged, {len(report.skipped):,} skipped: "
        f"{display_path(index)} holds {pictures(report.items)}"
    )


def sync_document(index: Path, report: SyncReport) -> dict[str, Any]:
    """Return what a sync did, for ``--json``."""
    return {
        "schema": SCHEMA,
        "index": os.fsdecode(index),
        "items": report.items,
        "added": report.added,
        "updated": report.updated,
        "moved": report.moved,
        "removed": report.removed,
        "unchanged": report.unchanged,
        "skipped": [{"path": path, "reason": reason} for path, reason in report.skipped],
        "unknown_extensions": dict(report.unknown_extensions),
        "remarks": list(report.remarks),
    }


def info_document(info: IndexInfo) -> dict[str, Any]:
    """Return what an index holds, for ``--json``."""
    model = info.model
    return {
        "schema": SCHEMA,
        "index": info.path,
        "items": info.items,
        "roots": [{"path": path, "items": count} for path, count in info.roots.items()],
        "labels": dict(info.labels),
        "unlabelled": info.unlabelled,
        "dim": info.dim,
        "model": {
            "sha256": info.model_sha256,
            "name": model.name if model else None,
            "backbone": model.backbone if model else None,
            "precision": model.precision if model else None,
            "picture": {"size": model.picture.size, "mode": model.picture.mode} if model else None,
            "problem": info.model_problem,
        },
        "graph": dict(info.graph) if info.graph is not None else None,
        "graph_problem": info.graph_problem,
        "bytes": dict(info.sizes),
        "database_schema": info.schema,
    }


def info_lines(info: IndexInfo) -> list[str]:
    """Say what an index holds."""
    lines = [
        f"index      {display_path(info.path)}, {sum(info.sizes.values()) / 1e6:.1f} MB",
        f"pictures   {info.items:,}",
    ]
    lines += [f"folder     {display_path(path)}: {count:,}" for path, count in info.roots.items()]
    shown = list(info.labels.items())[:MOST_LINES]
    more = f" and {len(info.labels) - len(shown):,} others" if len(info.labels) > len(shown) else ""
    lines.append(f"labels     {', '.join(f'{printable(label)} ({count:,})' for label, count in shown) or 'none'}{more}")
    return [*lines, _model_line(info), _graph_line(info)]


def verify_document(index: Path, report: VerifyReport) -> dict[str, Any]:
    """Return what a verification found, for ``--json``."""
    return {
        "schema": SCHEMA,
        "index": os.fsdecode(index),
        "items": report.items,
        "damaged": list(report.damaged),
        "problems": list(report.problems),
        "repaired": list(report.repaired),
        "remaining": list(report.remaining),
    }


def verify_lines(index: Path, report: VerifyReport) -> list[str]:
    """Say what a verification found and did."""
    if not report.problems:
        return [f"{display_path(index)} is sound: {pictures(report.items)}"]
    lines = [f"damaged: {printable(problem)}" for problem in report.problems]
    lines += [f"repaired: {printable(done)}" for done in report.repaired]
    return lines + [f"still damaged: {printable(problem)}" for problem in report.remaining if report.repaired]


def removal_lines(removal: Removal) -> list[str]:
    """Name what is to be taken out."""
    lines = [display_path(path) for path in removal.paths[:MOST_LINES]]
    if len(removal.paths) > MOST_LINES:
        lines.append(f"... and {len(removal.paths) - MOST_LINES:,} others")
    return lines


def _most_common(report: SyncReport) -> list[tuple[str, int]]:
    return sorted(report.unknown_extensions.items(), key=lambda entry: (-entry[1], entry[0]))[:MOST_LINES]


def _model_line(info: IndexInfo) -> str:
    if info.model is None:
        return f"model      cannot be used: {info.model_problem}"
    rule = info.model.picture
    return (
        f"model      {printable(info.model.name)} ({printable(info.model.backbone)}, {info.model.precision}), "
        f"{info.dim} numbers from {rule.size} x {rule.size} pixels ({rule.mode}), sha256 {info.model_sha256[:12]}"
    )


def _graph_line(info: IndexInfo) -> str:
    if info.graph is None:
        return f"graph      {info.graph_problem}; searches scan, which gives the exact result"
    return f"graph      {info.graph['items']:,} vectors, {info.graph['removed']:,} removed ones"
