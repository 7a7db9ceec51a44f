"""The parameters of a graph in the database: untrusted JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..database.records import GraphRow
from .backend import GraphUnusableError
from .copies import NO_IDS, encode_copies
from .costs import Costs

__all__ = ["COPIES", "plain_parameters", "read_parameters", "to_json", "with_parameters"]

# The parameter for items that share a node.
COPIES = "copies"
MEASURED = "measured"
# Characters besides the copies, and of the copies for each item: two packed numbers of 8 bytes.
_MAX_CHARACTERS = 1 << 16
_MAX_CHARACTERS_A_COPY = 24
_MAX_TEXT_CHARACTERS = 100
_MAX_NUMBER = 2**53


def read_parameters(text: str, limit: int) -> dict[str, Any]:
    """Read the parameters of a graph of at most ``limit`` items; the copies are not checked.

    Raises:
        GraphUnusableError: not a JSON object, or too long.

    """
    if len(text) > _MAX_CHARACTERS + _MAX_CHARACTERS_A_COPY * limit:
        raise GraphUnusableError(f"its parameters have {len(text):,} characters, more than a graph of this size needs")
    try:
        parameters = json.loads(text)
    except (ValueError, RecursionError):
        parameters = None
    if not isinstance(parameters, dict):
        raise GraphUnusableError("its parameters cannot be read")
    return parameters


def plain_parameters(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the usable parameters: short texts, numbers, and a measurement that makes sense."""
    plain = {name: value for name, value in parameters.items() if _is_text(name) and _is_plain(value)}
    measured = plain.pop(MEASURED, parameters.get(MEASURED))
    return {**plain, MEASURED: measured} if _is_measurement(measured) else plain


def with_parameters(row: GraphRow, **changed: Any) -> GraphRow:
    """Return the row of a graph with changed parameters, in this version's form."""
    parameters = json.loads(row.parameters)
    return replace(row, parameters=to_json({COPIES: encode_copies(NO_IDS, NO_IDS), **parameters, **changed}))


def to_json(parameters: Mapping[str, Any]) -> str:
    """Return parameters as stored in the database."""
    return json.dumps(parameters, sort_keys=True)


def _is_measurement(measured: object) -> bool:
    """Tell whether this is a result of :func:`~..graph_update.measure`."""
    if not isinstance(measured, Mapping) or set(measured) != {"items", "queries", "k", "recall", "costs"}:
        return False
    numbers = [measured[name] for name in ("items", "queries", "k", "recall")]
    counts = all(isinstance(number, int) for number in numbers[:3])
    return counts and all(map(_is_number, numbers)) and Costs.from_json(measured["costs"]) is not None


def _is_plain(value: object) -> bool:
    return _is_text(value) or _is_number(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT_CHARACTERS


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= _MAX_NUMBER
