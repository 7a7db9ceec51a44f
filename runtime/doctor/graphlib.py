"""Check that hnswlib works, and that it was built for this processor."""

from __future__ import annotations

from pathlib import Path

from ..devices import cpu_features
from ..shell import pip
from .apart import Outcome, try_apart
from .attempts import search_small_graph
from .finding import Finding, ok, problem, skipped, warning
from .machinecode import vector_instructions
from .packages import installed_version

__all__ = ["graph_library_finding"]

_CHECK = "hnswlib build"
_NAMES = {"avx": "AVX", "avx512f": "AVX-512"}
# The probe searches 300 vectors with as many candidates, so a sound build finds nearly all.
_LEAST_RECALL = 0.99


def rebuild() -> str:
    """Return the command that builds hnswlib for this processor."""
    command = pip("install", "--no-binary", "hnswlib", "--no-cache-dir", "--force-reinstall", "--no-deps", "hnswlib")
    return f"{command}  # needs a C++ compiler and the Python headers"


def graph_library_finding() -> Finding:
    """Build and search small graphs in a subprocess, and inspect how hnswlib was compiled."""
    if installed_version("hnswlib") is None:
        return skipped(_CHECK, "hnswlib is not installed")
    outcome = try_apart(search_small_graph)
    if outcome.value is None:
        return problem(_CHECK, _failure(outcome), rebuild())
    recall = float(outcome.value["recall"])
    if not recall >= _LEAST_RECALL:
        return problem(
            _CHECK, f"a small graph finds {recall:.3f} of the nearest neighbours; expected {_LEAST_RECALL}", rebuild()
        )
    built_with = vector_instructions(Path(outcome.value["file"]))
    return describe_build(built_with, cpu_features(), f"builds and searches small graphs, recall {recall:.3f}")


def describe_build(built_with: frozenset[str] | None, here: frozenset[str], works: str) -> Finding:
    """Return the target processor of a working build, as a finding.

    Args:
        built_with: see :func:`~.machinecode.vector_instructions`.
        here: the features of this processor; see :func:`~..devices.cpu_features`.
        works: description of the successful probe.

    """
    if built_with is None or not here:
        return ok(_CHECK, f"{works}; for which processor it was built cannot be told here")
    foreign = [name for feature, name in _NAMES.items() if feature in built_with - here]
    if foreign:
        return warning(
            _CHECK,
            f"{works}, but it was built for a processor with {' and '.join(foreign)}, which this one has not: it may "
            "end with an illegal instruction at any time",
            rebuild(),
        )
    used = [name for feature, name in _NAMES.items() if feature in built_with]
    if used or "avx" not in here:
        return ok(_CHECK, f"{works}; built with {' and '.join(used) or 'all that this processor has'}")
    return ok(
        _CHECK,
        f"{works}; built for any processor of this kind, without AVX: built on this box it searches 15 to 35 % faster",
        rebuild(),
    )


def _failure(outcome: Outcome) -> str:
    if outcome.illegal_instruction:
        return f"it was built for another processor: building and searching a small graph, {outcome.failure}"
    if outcome.died:
        return f"it cannot build and search a small graph: {outcome.failure}"
    return f"it does not work: {outcome.failure}"
