"""Silence the libtiff that Pillow loads, and ask which compressions it has.

It prints lines on stderr without a file's name; its caller gets the same faults as errors.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["has_codec", "silence"]

_RAW = 1


@functools.cache
def silence() -> None:
    """Remove the error and warning handlers; without access to the library, they stay."""
    library = _library()
    if library is None:
        return
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        function = getattr(library, name, None)
        if function is not None:
            function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
            function(None)


@functools.cache
def has_codec(compression: int) -> bool:
    """Tell whether a compression is supported; True if libtiff cannot be asked."""
    library = _library()
    if compression == _RAW or library is None or not hasattr(library, "TIFFIsCODECConfigured"):
        return True
    return bool(library.TIFFIsCODECConfigured(ctypes.c_uint16(compression)))


@functools.cache
def _library() -> ctypes.CDLL | None:
    """Return the library that Pillow has loaded; another copy is of no use."""
    for path in _loaded():
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    return None


def _loaded() -> Iterator[str]:
    import PIL
    from PIL import _imaging  # noqa: F401  loads it

    folder = Path(PIL.__file__).parent
    if sys.platform == "linux":
        try:
            lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        except OSError:
            lines = []
        yield from dict.fromkeys(line[line.index("/") :] for line in lines if "/libtiff" in line)
    yield from map(str, (folder / ".dylibs").glob("libtiff*"))
    yield from map(str, (folder.parent / "pillow.libs").glob("libtiff*"))
