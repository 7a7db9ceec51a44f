"""Check which picture formats can be read."""

from __future__ import annotations

import importlib.util

from ..shell import install_extra, pip
from .finding import Finding, ok, problem, warning

__all__ = ["formats_finding"]


def formats_finding() -> Finding:
    """Return the picture formats that Pillow was built with."""
    from PIL import features

    missing = [name for name, codec in (("WebP", "webp"), ("AVIF", "avif")) if not features.check(codec)]
    if not features.check("jpg") or not features.check("zlib"):
        return problem("picture formats", "Pillow was built without JPEG or PNG", _reinstall())
    if missing:
        return warning("picture formats", f"Pillow was built without {' and '.join(missing)}", _reinstall())
    more, hint = _heif()
    return ok("picture formats", f"{_jpeg()}, PNG, GIF, BMP, TIFF, WebP, AVIF{more}", hint)


def _heif() -> tuple[str, str | None]:
    """Return the installed reader of HEIF, and a better one."""
    kept, ended = (importlib.util.find_spec(name) is not None for name in ("_pillow_heif", "_pi_heif"))
    if kept:
        return ", HEIF (HEIC)", None
    if ended:
        return (
            ", HEIF (HEIC) by pi-heif, which is no longer kept: for pictures of strangers take pillow-heif, which "
            "brings an encoder under the GPL"
        ), install_extra("heif")
    return "; no HEIF (HEIC), which phones write", pip("install", "pi-heif")


def _jpeg() -> str:
    from PIL import features

    turbo = features.version("libjpeg_turbo") if features.check("libjpeg_turbo") else None
    return f"JPEG (libjpeg-turbo {turbo})" if turbo else "JPEG (without libjpeg-turbo: slower)"


def _reinstall() -> str:
    return pip("install", "--force-reinstall", "--no-deps", "--only-binary", ":all:", "pillow")
