"""Whether hnswlib works here, and which vector instructions it was built with.

The search is for byte sequences that compilers emit all over a module if allowed, and that hardly
occur otherwise. For AVX, ``vzeroupper`` (C5 F8 77) ends every function that used 256-bit registers.
For AVX-512, moves between memory and 512-bit registers (EVEX prefix, length 512, ``vmovups`` or
``vmovaps``). hnswlib 0.8.0 was built by GCC 12 for seven kinds of processor; these were counted in
the executable segments of each file, some 330,000 bytes:

=====================================  ============  ===============
built for                              vzeroupper    512-bit moves
=====================================  ============  ===============
any x86-64 (HNSWLIB_NO_NATIVE=1)       0             0
Nehalem (no AVX)                       0             0
Sandy Bridge, Haswell, Zen 3           1741 to 1746  0
Skylake-X, Rocket Lake (AVX-512)       1676 to 1808  12
=====================================  ============  ===============

The same number of random bytes would contain 0.02 of the first and 0.001 of the second.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

from ..devices import cpu_features
from ..shell import pip
from .finding import Finding, ok, problem, skipped, warning
from .isolated import Outcome, search_small_graph, try_apart
from .packages import installed_version

__all__ = ["graph_library_finding", "vector_instructions"]


_VZEROUPPER = b"\xc5\xf8\x77"
_MOVE_512 = re.compile(rb"\x62[\x51\x61\x71\x91\xa1\xb1\xd1\xe1\xf1]\x7c\x48[\x10\x11\x28\x29]")
_MIN_VZEROUPPER, _MIN_MOVES_512 = 50, 4

_ELF64_LITTLE_ENDIAN, _X86_64 = b"\x7fELF\x02\x01", 62
_LOADED, _EXECUTABLE = 1, 1
_MAX_FILE_BYTES = 256 * 2**20

_CHECK = "hnswlib build"
_NAMES = {"avx": "AVX", "avx512f": "AVX-512"}
# The probe searches 300 vectors with as many candidates, so a sound build finds nearly all.
_MIN_RECALL = 0.99


def graph_library_finding() -> Finding:
    """Build and search small graphs in a subprocess, and inspect how hnswlib was compiled."""
    if installed_version("hnswlib") is None:
        return skipped(_CHECK, "hnswlib is not installed")
    outcome = try_apart(search_small_graph)
    if outcome.value is None:
        return problem(_CHECK, _failure(outcome), rebuild())
    recall = float(outcome.value["recall"])
    if not recall >= _MIN_RECALL:
        return problem(
            _CHECK, f"a small graph finds {recall:.3f} of the nearest neighbours; expected {_MIN_RECALL}", rebuild()
        )
    built_with = vector_instructions(Path(outcome.value["file"]))
    return describe_build(built_with, cpu_features(), f"builds and searches small graphs, recall {recall:.3f}")


def describe_build(built_with: frozenset[str] | None, here: frozenset[str], works: str) -> Finding:
    """Return the target processor of a working build, as a finding.

    Args:
        built_with: see :func:`vector_instructions`.
        here: the features of this processor; see :func:`~..devices.cpu_features`.
        works: description of the successful probe.

    """
    if built_with is None or not here:
        return ok(_CHECK, f"{works}; the processor that it was built for is unknown")
    foreign = [name for feature, name in _NAMES.items() if feature in built_with - here]
    if foreign:
        return warning(
            _CHECK,
            f"{works}, but it was built for a processor with {' and '.join(foreign)}, which this one lacks: it may "
            "crash with an illegal instruction at any time",
            rebuild(),
        )
    used = [name for feature, name in _NAMES.items() if feature in built_with]
    if used or "avx" not in here:
        return ok(_CHECK, f"{works}; built with {' and '.join(used) or 'all features of this processor'}")
    return ok(
        _CHECK,
        f"{works}; built for any processor of this kind, without AVX: built on this machine, it searches 15 to 35 % "
        "faster",
        rebuild(),
    )


def _failure(outcome: Outcome) -> str:
    if outcome.illegal_instruction:
        return f"it was built for another processor: building and searching a small graph, {outcome.failure}"
    if outcome.died:
        return f"it cannot build and search a small graph: {outcome.failure}"
    return f"it does not work: {outcome.failure}"


def vector_instructions(module: Path) -> frozenset[str] | None:
    """Return which of ``avx`` and ``avx512f`` the machine code of a shared library uses.

    Args:
        module: an ELF file for x86-64, as on Linux.

    Returns:
        the features; None for another kind of file, or one that cannot be read.

    """
    try:
        with module.open("rb") as file:
            code = b"".join(_executed(file.read(_MAX_FILE_BYTES)))
    except (OSError, ValueError, struct.error):
        return None
    if not code:
        return None
    instructions = {"avx"} if code.count(_VZEROUPPER) >= _MIN_VZEROUPPER else set()
    if len(_MOVE_512.findall(code)) >= _MIN_MOVES_512:
        instructions.add("avx512f")
    return frozenset(instructions)


def _executed(data: bytes) -> Iterator[bytes]:
    """Yield the executable segments of an ELF file; debugging information is many times as long."""
    if not data.startswith(_ELF64_LITTLE_ENDIAN) or struct.unpack_from("<H", data, 18)[0] != _X86_64:
        return
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for number in range(count):
        kind, flags, offset, _, _, length = struct.unpack_from("<IIQQQQ", data, table + number * size)
        if kind == _LOADED and flags & _EXECUTABLE:
            yield data[offset : offset + length]


def rebuild() -> str:
    """Return the command that builds hnswlib for this processor."""
    command = pip("install", "--no-binary", "hnswlib", "--no-cache-dir", "--force-reinstall", "--no-deps", "hnswlib")
    return f"{command}  # needs a C++ compiler and the Python headers"
