"""What an exported file says about the index as a whole: a JSON object, untrusted when read.

It holds ``kind``, ``schema``, ``version`` (of deeprank), ``model_sha256``, ``dim``, ``items``, ``last_id``,
``filters`` (of each root that has any), ``labelling`` (of each root not labelled by top folders), ``uploads`` (number
of the uploads' root, or null) and ``model`` (name, backbone, precision and picture rule; null if the model file cannot
be read).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ... import __version__
from ...errors import DataError, ModelFileError, QueryError
from ...modelfile import ModelInfo, open_model
from ..database.records import MAX_ID
from ..database.store import Store
from ..layout import MODEL
from ..patterns import RootFilters
from ..root_labels import RootLabels

__all__ = ["Description", "Fault", "describe", "parse_description", "read_description"]

KIND = "deeprank-index"
SCHEMA = 1

# Makes the error for a file; its argument is the predicate of a sentence.
Fault = Callable[[str], DataError]


@dataclass(frozen=True)
class Description:
    """What an import uses of it."""

    model_sha256: str
    dim: int
    last_id: int
    model_name: str | None
    filters: dict[int, RootFilters]
    labelling: dict[int, RootLabels]
    uploads: int | None


def describe(folder: Path, store: Store, count: int) -> dict[str, Any]:
    """Return the description of an index of which ``count`` items are exported."""
    meta = store.meta()
    model = _model(folder, meta.model_sha256)
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "version": __version__,
        "items": count,
        "dim": meta.dim,
        "last_id": meta.last_id,
        "model_sha256": meta.model_sha256,
        "filters": [
            {"root": root, "include": filters.include, "exclude": filters.exclude}
            for root, filters in store.filters().items()
        ],
        "labelling": [
            {"root": root, "rule": labels.rule, "splits": labels.splits, "table": labels.table}
            for root, labels in store.labelling().items()
        ],
        "uploads": store.uploads_root(),
        "model": {
            "name": model.name,
            "backbone": model.backbone,
            "precision": model.precision,
            "picture": asdict(model.picture),
        }
        if model is not None
        else None,
    }


def _model(folder: Path, expected: str) -> ModelInfo | None:
    try:
        model = open_model(folder / MODEL, device="cpu")
    except ModelFileError:
        return None
    return model.info if model.sha256 == expected else None


def parse_description(text: bytes, fault: Fault) -> dict[str, Any]:
    """Return the JSON object of a file of ours.

    Raises:
        DataError: it is none, or of a newer schema.

    """
    try:
        values = json.loads(text.decode())
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or values.get("kind") != KIND:
        raise fault("is not marked as an exported index")
    schema = values.get("schema")
    if type(schema) is not int or schema < 1:
        raise fault("has no schema number")
    if schema > SCHEMA:
        raise fault(f"has schema {schema}, newer than this version reads (up to {SCHEMA}): upgrade deep-ranking")
    return values


def read_description(values: dict[str, Any], dim: int | None, fault: Fault) -> Description:
    """Return the description, checked.

    Args:
        values: see :func:`parse_description`.
        dim: length of the vectors in the file; None: they have none.
        fault: makes the error.

    Raises:
        DataError: a value is missing or impossible.

    """
    sha256, stated, last_id, model = (values.get(name) for name in ("model_sha256", "dim", "last_id", "model"))
    if not (isinstance(sha256, str) and len(sha256) == 64 and set(sha256) <= set("0123456789abcdef")):
        raise fault("does not name its model by a sha256")
    if type(stated) is not int or stated != dim or stated < 1:
        raise fault("holds vectors of another length than it states")
    if type(last_id) is not int or not 0 <= last_id < MAX_ID:
        raise fault("does not state its last id")
    name = model.get("name") if isinstance(model, dict) else None
    filters = _read_filters(values.get("filters", []), fault)
    uploads = values.get("uploads")
    if uploads is not None and type(uploads) is not int:
        raise fault("does not state the root of the uploads as a number")
    labelling = _read_labelling(values.get("labelling", []), fault)
    return Description(sha256, stated, last_id, name if isinstance(name, str) else None, filters, labelling, uploads)


def _read_filters(entries: Any, fault: Fault) -> dict[int, RootFilters]:
    """Return the filters of each root that has any, by number."""
    filters = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        values = entry if isinstance(entry, dict) else {}
        root, lists = values.get("root"), [values.get("include"), values.get("exclude")]
        if type(root) is not int or not all(isinstance(some, list) and all(map(_is_text, some)) for some in lists):
            raise fault("holds filters that are not lists of patterns")
        filters[root] = RootFilters(*map(tuple, lists))  # type: ignore[arg-type]
        try:
            filters[root].check()
        except QueryError as error:
            raise fault(f"holds filters that cannot be used ({error})") from None
    return filters


def _read_labelling(entries: Any, fault: Fault) -> dict[int, RootLabels]:
    """Return the label source of each root not labelled by top folders, by number."""
    labelling = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        values = entry if isinstance(entry, dict) else {}
        root, rule, splits, table = (values.get(name) for name in ("root", "rule", "splits", "table"))
        known = RootLabels.of(rule, splits, table)
        if type(root) is not int or known is None:
            raise fault("holds an invalid source of labels")
        labelling[root] = known
    return labelling


def _is_text(value: object) -> bool:
    return isinstance(value, str)
