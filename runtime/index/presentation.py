"""Output of ``deeprank-index``: lines of text, and JSON documents."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import to_paste
from ..model.pretrained import PRETRAINED
from ..scan import similarity
from ..text import display_path, file_size, printable

if TYPE_CHECKING:
    from .exchange.export import ExportReport
    from .exchange.importer import ImportReport
    from .info import IndexInfo
    from .maintenance.compact import CompactReport
    from .maintenance.copy import CopyReport
    from .maintenance.remove import Removal
    from .maintenance.verify import VerifyReport
    from .milvus.info import StoreInfo
    from .milvus.loader import LoadReport
    from .search.duplicate_groups import DedupeReport, Removable
    from .search.items import Hit

__all__ = [
    "MAX_LINES",
    "SCHEMA",
    "compact_document",
    "compact_lines",
    "copy_document",
    "copy_line",
    "dedupe_document",
    "dedupe_lines",
    "export_document",
    "export_line",
    "import_document",
    "import_line",
    "info_document",
    "info_lines",
    "load_document",
    "load_line",
    "load_remarks",
    "pictures",
    "rating_counts",
    "ratings",
    "removable_notices",
    "removal_lines",
    "removal_question",
    "store_info_document",
    "store_info_lines",
    "verify_document",
    "verify_lines",
]

SCHEMA = 1
# Limit for skipped files and removed pictures listed by name.
MAX_LINES = 20


def pictures(count: int) -> str:
    """Return a number of pictures in words."""
    return f"{count:,} picture{'' if count == 1 else 's'}"


def ratings(count: int) -> str:
    """Return a number of ratings in words."""
    return f"{count:,} rating{'' if count == 1 else 's'}"


def rating_counts(comparisons: int, marks: int) -> str:
    """Return the numbers of comparisons and of marks in words."""
    compared = f"{comparisons:,} comparison{'' if comparisons == 1 else 's'}"
    marked = f"{marks:,} mark{'' if marks == 1 else 's'}"
    return marked if marks and not comparisons else f"{compared} and {marked}" if marks else compared


def info_document(info: IndexInfo) -> dict[str, Any]:
    """Return the description of an index for ``--json``."""
    model = info.model
    return {
        "schema": SCHEMA,
        "index": info.path,
        "items": info.items,
        "roots": [{"path": path, "items": count} for path, count in info.roots.items()],
        "uploads": info.uploads,
        "filters": [
            {"path": path, "include": list(filters.include), "exclude": list(filters.exclude)}
            for path, filters in info.filters.items()
        ],
        "labelling": [
            {"path": path, "rule": labels.rule, "splits": labels.splits, "table": labels.table or None}
            for path, labels in info.labelling.items()
        ],
        "labels": dict(info.labels),
        "unlabelled": info.unlabelled,
        "outdated": info.outdated,
        "dim": info.dim,
        "model": {
            "sha256": info.model_sha256,
            "name": model.name if model else None,
            "backbone": model.backbone if model else None,
            "precision": model.precision if model else None,
            "picture": model.picture.values() if model else None,
            "license": (model.license or None) if model else None,
            "unrelated_distance": model.unrelated_distance if model else None,
            "superseded": info.superseded,
            "problem": info.model_problem,
        },
        "graph": dict(info.graph) if info.graph is not None else None,
        "graph_problem": info.graph_problem,
        "ratings": dict(info.ratings) if info.ratings is not None else None,
        "ratings_problem": info.ratings_problem,
        "bytes": dict(info.sizes),
        "database_schema": info.schema,
    }


def info_lines(info: IndexInfo) -> list[str]:
    """Return the description of an index as lines."""
    lines = [
        f"index      {display_path(info.path)}, {sum(info.sizes.values()) / 1e6:.1f} MB",
        f"pictures   {info.items:,}",
    ]
    lines += [
        f"{'uploads' if path == info.uploads else 'folder':10} {display_path(path)}: {count:,}{_options(info, path)}"
        for path, count in info.roots.items()
    ]
    shown = list(info.labels.items())[:MAX_LINES]
    more = f" and {len(info.labels) - len(shown):,} others" if len(info.labels) > len(shown) else ""
    lines.append(f"labels     {', '.join(f'{printable(label)} ({count:,})' for label, count in shown) or 'none'}{more}")
    lines += [
        f"hint       the labels of {display_path(path)} are the names of its splits; to use the folders below "
        "them, without embedding again: "
        + to_paste("deeprank-index", "sync", Path(path), "--labels", "top", "--index", Path(info.path))
        for path in info.splits
    ]
    if info.outdated:
        lines.append(
            f"pending    {pictures(info.outdated)} read by older decoding rules; the next sync checks them, and "
            "embeds those again that now decode differently"
        )
    return [*lines, *_model_lines(info), _graph_line(info), *_ratings_line(info)]


def verify_document(index: Path, report: VerifyReport) -> dict[str, Any]:
    """Return the result of a verification for ``--json``."""
    return {
        "schema": SCHEMA,
        "index": os.fsdecode(index),
        "items": report.items,
        "damaged": list(report.damaged),
        "lost": list(report.lost),
        "problems": list(map(str, report.problems)),
        "repaired": list(report.repaired),
        "remaining": list(map(str, report.remaining)),
    }


def verify_lines(index: Path, report: VerifyReport) -> list[str]:
    """Return the result of a verification as lines."""
    if not report.problems:
        return [f"{display_path(index)} is sound: {pictures(report.items)}"]
    lines = [f"damaged: {printable(str(problem))}" for problem in report.problems]
    lines += [f"lost until the next sync: {display_path(path)}" for path in report.lost[:MAX_LINES]]
    if len(report.lost) > MAX_LINES:
        lines.append(f"lost until the next sync: {len(report.lost) - MAX_LINES:,} others (--json lists them all)")
    lines += [f"repaired: {printable(done)}" for done in report.repaired]
    return lines + [f"still damaged: {printable(str(problem))}" for problem in report.remaining if report.repaired]


def compact_document(index: Path, report: CompactReport) -> dict[str, Any]:
    """Return the result of a compaction for ``--json``."""
    return {
        "schema": SCHEMA,
        "index": os.fsdecode(index),
        "items": report.items,
        "changed": report.changed,
        "bytes": {"before": report.bytes_before, "after": report.bytes_after},
        "database_bytes": {"before": report.database_before, "after": report.database_after},
        "graph": {"vectors": report.graph_vectors, "removed": report.graph_removed, "built": report.graph_built},
        "leftovers": list(report.leftovers),
        "remarks": list(report.remarks),
    }


def compact_lines(index: Path, report: CompactReport) -> list[str]:
    """Return the result of a compaction as lines."""
    if not report.changed:
        return [f"{display_path(index)} is as compact as it can be: {_megabytes(report.bytes_after)}"]
    gained = [f"{_megabytes(report.bytes_before)} -> {_megabytes(report.bytes_after)}"]
    if report.graph_built and report.graph_removed:
        gained.append(f"the graph held {report.graph_removed:,} removed vectors of {report.graph_vectors:,}")
    elif report.graph_built:
        gained.append("the graph was built" if not report.graph_vectors else "the graph was brought up to date")
    if report.database_after < report.database_before:
        gained.append(f"the database had {_megabytes(report.database_before - report.database_after)} of unused space")
    gained += [f"{display_path(name)} was left by a process that was killed" for name in report.leftovers]
    return ["; ".join(gained)]


def copy_document(index: Path, target: Path, report: CopyReport) -> dict[str, Any]:
    """Return the result of a copy for ``--json``."""
    return {"schema": SCHEMA, "index": os.fsdecode(index), "copy": os.fsdecode(target), **asdict(report)}


def copy_line(target: Path, report: CopyReport) -> str:
    """Return the result of a copy as a line."""
    verified = "verified" if report.verified else "not verified"
    rated = f" and {ratings(report.ratings)}" if report.ratings else ""
    return f"{display_path(target)} holds {pictures(report.items)}{rated}, {_megabytes(report.bytes)}, {verified}"


def export_document(index: Path, target: Path, report: ExportReport) -> dict[str, Any]:
    """Return the result of an export for ``--json``."""
    return {"schema": SCHEMA, "index": os.fsdecode(index), "file": os.fsdecode(target), **asdict(report)}


def export_line(target: Path, report: ExportReport) -> str:
    """Return the result of an export as a line."""
    return (
        f"{display_path(target)} holds {pictures(report.items)} with vectors of {report.dim} numbers, "
        f"{_megabytes(report.bytes)}"
    )


def import_document(index: Path, report: ImportReport) -> dict[str, Any]:
    """Return the result of an import for ``--json``."""
    return {"schema": SCHEMA, "index": os.fsdecode(index), **asdict(report)}


def import_line(index: Path, report: ImportReport) -> str:
    """Return the result of an import as a line."""
    return f"{display_path(index)} holds {pictures(report.items)}, {_megabytes(report.bytes)}"


def store_info_document(info: StoreInfo) -> dict[str, Any]:
    """Return the description of a collection for ``--json``."""
    described = info.description
    labels = described.labels
    return {
        "schema": SCHEMA,
        "store": info.address,
        "server": info.server,
        "collection": info.collection,
        "items": info.rows,
        "roots": [{"path": path} for path in described.roots.values()],
        "labels": None if labels is None else dict(labels),
        "unlabelled": None if labels is None else described.rows - sum(labels.values()),
        "dim": described.dim,
        "model": {"sha256": described.model_sha256},
        "index_type": described.index_type,
    }


def store_info_lines(info: StoreInfo) -> list[str]:
    """Return the description of a collection as lines."""
    described, labels = info.description, info.description.labels or {}
    shown = [f"{printable(label)} ({count:,})" for label, count in list(labels.items())[:MAX_LINES]]
    more = f" and {len(labels) - len(shown):,} others" if len(labels) > len(shown) else ""
    unknown = "not known, or more than the store keeps" if described.labels is None else "none"
    return [
        f"store      {printable(info.address)}, Milvus {printable(info.server)}",
        f"pictures   {info.rows:,}",
        *(f"folder     {display_path(path)}" for path in described.roots.values()),
        f"labels     {', '.join(shown) or unknown}{more}",
        f"vectors    {described.dim} numbers, index {described.index_type}, in {printable(info.collection)}",
        f"model      sha256 {described.model_sha256}",
    ]


def load_document(target: str, report: LoadReport) -> dict[str, Any]:
    """Return the report of a load for ``--json``."""
    return {"schema": SCHEMA, "store": target, **asdict(report), "seconds": round(report.seconds, 3)}


def load_line(target: str, report: LoadReport) -> str:
    """Return the report of a load as one line."""
    return (
        f"{target}: {pictures(report.rows)} in {report.collection} ({report.index_type}); {report.written:,} written, "
        f"{report.removed:,} removed"
    )


def load_remarks(report: LoadReport) -> Iterator[str]:
    """Yield what a user should know about a load."""
    if report.written:
        yield f"{report.written / max(report.seconds, 1e-3):,.0f} rows a second"
    if report.replaced is not None:
        yield f"It has taken the place of {report.replaced}, which is {'kept' if report.kept else 'dropped'}."
    if report.others:
        yield f"The store keeps further collections of this name, which cost memory: {', '.join(report.others)}."


def dedupe_document(index: Path, report: DedupeReport) -> dict[str, Any]:
    """Return the groups of near-duplicates, for ``--json``."""
    return {
        "schema": SCHEMA,
        "index": os.fsdecode(index),
        "max_distance": report.max_distance,
        "keep": report.keep,
        "pictures": report.pictures,
        "near_duplicates": report.near_duplicates,
        "near_duplicate_bytes": report.bytes,
        "groups": [
            {
                "kept": _file_document(group.kept),
                "near_duplicates": [
                    {
                        **_file_document(file),
                        **file.figures(),
                        "identical": file.sha256 == group.kept.sha256,
                    }
                    for file in group.others
                ],
            }
            for group in report.groups
        ],
    }


def dedupe_lines(report: DedupeReport) -> Iterator[str]:
    """Yield the groups of near-duplicates with file sizes, and the total that could be saved."""
    for group in report.groups:
        yield f"{display_path(group.kept.path)} ({file_size(group.kept.size)})"
        for file in group.others:
            same = "identical" if file.sha256 == group.kept.sha256 else ""
            figures = f"{file.distance:.4f} (similarity {file.similarity:.4f})"
            yield f"  {figures}  {same:9}  {file_size(file.size):>8}  {display_path(file.path)}"
        yield ""
    count, groups = report.near_duplicates, len(report.groups)
    saved = f"; {file_size(report.bytes)} could be saved" if count else ""
    yield (
        f"{count:,} near-duplicate{'' if count == 1 else 's'} in {groups:,} group{'' if groups == 1 else 's'} "
        f"of {pictures(report.pictures)}{saved}"
    )


def removable_notices(files: Removable) -> list[str]:
    """Return remarks on near-duplicates that are withheld, as their better picture is missing."""
    remarks = []
    if files.changed:
        remarks.append(
            f"left out {files.changed:,}: the file or the one to keep is gone or has changed since it was synced; "
            "run deeprank-index sync first"
        )
    if files.uploads:
        remarks.append(f"left out {files.uploads:,}: uploads; remove them with deeprank-index remove")
    if files.links:
        remarks.append(f"left out {files.links:,}: another name (a link) of the file to keep")
    return remarks


def removal_lines(removal: Removal) -> list[str]:
    """Return the pictures to be removed as lines."""
    lines = [display_path(path) for path in removal.paths[:MAX_LINES]]
    if len(removal.paths) > MAX_LINES:
        lines.append(f"... and {len(removal.paths) - MAX_LINES:,} others")
    return lines


def removal_question(index: Path, removal: Removal) -> str:
    """Return the question that confirms a removal."""
    files = (
        f" and delete {removal.uploads:,} uploaded file{'' if removal.uploads == 1 else 's'}" if removal.uploads else ""
    )
    return f"Remove {pictures(len(removal.ids))} from {display_path(index)}{files}?"


def _options(info: IndexInfo, root: str) -> str:
    """Return the remembered options of a folder."""
    options = [str(info.filters[root])] if root in info.filters else []
    if root in info.labelling:
        splits = ", below its splits" if info.labelling[root].splits else ""
        options.append(f"{info.labelling[root]}{splits}")
    return f" ({'; '.join(options)})" if options else ""


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _file_document(file: Hit) -> dict[str, Any]:
    return {**file.identity(), "size": file.size}


def _model_lines(info: IndexInfo) -> Iterator[str]:
    model = info.model
    if model is None:
        yield f"model      cannot be used: {info.model_problem}"
    else:
        yield (
            f"model      {printable(model.name)} ({printable(model.backbone)}, {model.precision}), {info.dim} numbers "
            f"from {model.picture}, sha256 {info.model_sha256[:12]}"
        )
        if model.license:
            yield f"license    {printable(model.license)}, of the model"
        if model.unrelated_distance is not None:
            limit = model.unrelated_distance
            yield (
                f"similar    up to a distance of {limit:g} (similarity {similarity(limit):g}); farther pictures are "
                "not similar any more"
            )
    if info.superseded:
        yield (
            f"hint       deeprank bundles a better model now; to change to it, {pictures(info.items)} "
            f"{'is' if info.items == 1 else 'are'} embedded again, which takes about as long as a first sync: "
            + to_paste("deeprank-index", "sync", "--reembed", "--model", PRETRAINED, "--index", Path(info.path))
        )


def _ratings_line(info: IndexInfo) -> list[str]:
    if info.ratings is None:
        return [f"ratings    {printable(str(info.ratings_problem))}"]
    if not any(info.ratings.values()):
        return []
    return [f"ratings    {rating_counts(**info.ratings)}"]


def _graph_line(info: IndexInfo) -> str:
    if info.graph is None:
        return f"graph      {info.graph_problem}; searches scan, which gives the exact result"
    items, vectors = info.graph["items"], info.graph["vectors"]
    shared = f" of {items:,} pictures" if items > vectors else ""
    line = f"graph      {vectors:,} vectors{shared}, {info.graph['removed']:,} removed ones"
    measured = info.graph.get("measured")
    if measured is None:
        return line
    return f"{line}; finds {measured['recall']:.3f} of the {measured['k']} nearest ({measured['queries']} queries)"
