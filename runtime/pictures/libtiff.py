"""libtiff, as it is loaded with Pillow: it is told to say nothing, and asked what it can decompress.

It writes lines of its own to stderr, without the name of a file; what it finds wrong is an error of its caller as well.
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
    """Set no handler of errors and of warnings; where the library is not found, it goes on speaking."""
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
    """Tell whether a compression can be undone; True where nobody can be asked."""
    library = _library()
    if compression == _RAW or library is None or not hasattr(library, "TIFFIsCODECConfigured"):
        return True
    return bool(library.TIFFIsCODECConfigured(ctypes.c_uint16(compression)))


@functools.cache
def _library() -> ctypes.CDLL | None:
    """Return the library that Pillow has loaded; another copy of it would not do."""
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
