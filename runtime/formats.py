"""Picture formats by name and first bytes, and the version of the decoding rules."""

from __future__ import annotations

import contextlib
import struct

__all__ = ["DECODING_VERSION", "EXTENSIONS", "HEAD_BYTES", "decoders", "format_of"]

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".mpo"}
    | {".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".btf"}
    | {".avif", ".avifs", ".heic", ".heif", ".hif", ".heics", ".heifs"}
)

# Raised when a correction changes the pixels of readable files. Version 1: indexes up to schema 2.
DECODING_VERSION = 2

# The bytes that format_of() needs: a container may list many brands.
HEAD_BYTES = 512

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"MM*\0", "TIFF"),  # invalid, but unambiguous
    (b"II\0*", "TIFF"),
)
_BITMAP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_BITMAP_DEPTHS = (1, 2, 4, 8, 16, 24, 32)
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2"}
)


def format_of(head: bytes) -> str | None:
    """Return Pillow's name of the format that the first :data:`HEAD_BYTES` bytes begin, or None."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _container_format(head)
    if head[:2] == b"BM" and _is_bitmap_header(head[14:]):
        return "BMP"
    return "DIB" if _is_bitmap_header(head) else None


def _container_format(head: bytes) -> str | None:
    """Tell AVIF from HEIF by the brands in the file; the first decisive one is the main brand."""
    end = min(len(head), int.from_bytes(head[:4], "big"))
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))]
    if brands[0] in (b"mif1", b"msf1", b"miaf", b"mif2"):  # only say still picture or sequence
        brands = [*brands[1:], brands[0]]
    for brand in brands:
        if brand in _AVIF_BRANDS:
            return "AVIF"
        if brand in _HEIF_BRANDS - {b"mif1", b"msf1", b"mif2"}:
            return "HEIF"
    return "HEIF" if _HEIF_BRANDS.intersection(brands) else None


def _is_bitmap_header(header: bytes) -> bool:
    """Tell whether these bytes can start a bitmap header: its size, one plane, a valid depth."""
    if len(header) < 16 or struct.unpack_from("<I", header)[0] not in _BITMAP_HEADERS:
        return False
    old = header[0] == 12
    planes, depth = struct.unpack_from("<HH", header, 8 if old else 12)
    return planes == 1 and depth in _BITMAP_DEPTHS


def decoders() -> str:
    """Return the versions of rules and decoders: a new text may make unreadable files readable."""
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec

    import PIL

    from .pictures.heif import DECODERS

    heif = "no HEIF"
    for module, package in DECODERS.items():
        if find_spec(module) is not None:
            with contextlib.suppress(PackageNotFoundError):
                heif = f"{package} {version(package)}"
            break
    return f"rules {DECODING_VERSION}, pillow {PIL.__version__}, {heif}"
