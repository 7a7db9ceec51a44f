"""Installed packages against deeprank's bounds, picture formats, and the processor."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import sqlite3
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata

from ..devices import cpu_quota, has_vnni, processor, usable_cores
from ..shell import DISTRIBUTION, install_extra, pip, source_of_deeprank
from .finding import Finding, ok, problem, warning

__all__ = [
    "DISTRIBUTION",
    "Requirement",
    "cores_finding",
    "formats_finding",
    "installed_version",
    "is_older",
    "package_findings",
    "processor_finding",
    "requirements",
    "versions",
]

# The dependencies, without ONNX Runtime, which has several packages.
_BASE = ("numpy", "pillow", "filelock", "typer", "hnswlib")
_OPTIONAL = ("pi-heif",)

_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(\[[^\]]*\])?([^;]*)(?:;(.*))?")
_LOWER_BOUND = re.compile(r">=\s*([0-9][0-9A-Za-z.!+_-]*)")
_EXTRA = re.compile(r"extra\s*==\s*[\"']([^\"']+)[\"']")
_RELEASE = re.compile(r"v?(?:[0-9]+!)?([0-9]+(?:\.[0-9]+)*)")


@dataclass(frozen=True)
class Requirement:
    """A requirement from package metadata: ``at_least`` this version, for ``extra`` or for all."""

    name: str
    at_least: str | None
    extra: str | None

    def to_install(self) -> str:
        """Return the requirement in pip's syntax."""
        return f"{self.name}>={self.at_least}" if self.at_least else self.name


def package_findings() -> list[Finding]:
    """Check every package but ONNX Runtime."""
    bounds = requirements()
    findings = [_python(), _deeprank()]
    findings += [_package(name, bounds.get(name, Requirement(name, None, None))) for name in _BASE]
    findings += [_package(name, bounds[name]) for name in _OPTIONAL if name in bounds and installed_version(name)]
    return [*findings, ok("sqlite", sqlite3.sqlite_version)]


def requirements() -> Mapping[str, Requirement]:
    """Return deeprank's requirements by name, from its metadata; empty if it is not installed."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    return parse_requirements(lines)


def parse_requirements(lines: Iterable[str]) -> Mapping[str, Requirement]:
    """Parse requirements; for one package, a general one takes precedence over one for an extra."""
    parsed = [requirement for line in lines if (requirement := _parse(line)) is not None]
    in_order = sorted(parsed, key=lambda requirement: requirement.extra is None)
    return {requirement.name: requirement for requirement in in_order}


def _parse(line: str) -> Requirement | None:
    matched = _REQUIREMENT.match(line)
    if matched is None:
        return None
    name, _, version, marker = matched.groups()
    at_least, extra = _LOWER_BOUND.search(version), _EXTRA.search(marker or "")
    return Requirement(_normalised(name), at_least and at_least[1], extra and extra[1])


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_version(name: str) -> str | None:
    """Return the version of the package that an import finds first, or None if not installed."""
    try:
        return str(metadata.version(name) or "unknown")
    except (metadata.PackageNotFoundError, KeyError):
        return None


def is_older(version: str, bound: str) -> bool:
    """Return whether a version is below a bound, by their numbers; False without numbers."""
    mine, minimum = _numbers(version), _numbers(bound)
    return mine is not None and minimum is not None and mine < minimum


def _numbers(version: str) -> tuple[int, ...] | None:
    matched = _RELEASE.match(version.strip())
    if matched is None:
        return None
    numbers = [int(number[:18]) for number in matched[1].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def versions() -> dict[str, str | None]:
    """Return the versions of all packages by name; None if not installed."""
    names = [DISTRIBUTION, *_BASE, *_OPTIONAL, "onnxruntime", "onnxruntime-gpu"]
    return {
        "python": platform.python_version(),
        **{name: installed_version(name) for name in names},
        "sqlite": sqlite3.sqlite_version,
        "platform": platform.platform(),
    }


def _python() -> Finding:
    return ok("python", f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}")


def _deeprank() -> Finding:
    version = installed_version(DISTRIBUTION)
    if version is None:
        return warning(
            DISTRIBUTION,
            "runs without being installed, so the versions of its dependencies cannot be checked",
            pip("install", source_of_deeprank()),
        )
    return ok(DISTRIBUTION, version)


def _package(name: str, requirement: Requirement) -> Finding:
    version = installed_version(name)
    if version is None:
        return problem(name, "is not installed", pip("install", requirement.to_install()))
    return compared(name, version, requirement)


def compared(name: str, version: str, requirement: Requirement) -> Finding:
    """Compare an installed version with its bound."""
    if requirement.at_least is not None and is_older(version, requirement.at_least):
        return warning(
            name,
            f"{version} is older than {requirement.at_least}, the oldest version that deeprank supports",
            pip("install", "--upgrade", requirement.to_install()),
        )
    return ok(name, version)


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
            ", HEIF (HEIC) by pi-heif, which is no longer maintained: for untrusted pictures use pillow-heif, which "
            "includes an encoder under the GPL"
        ), install_extra("heif")
    return "; no HEIF (HEIC), a format that phones write", pip("install", "pi-heif")


def _jpeg() -> str:
    from PIL import features

    turbo = features.version("libjpeg_turbo") if features.check("libjpeg_turbo") else None
    return f"JPEG (libjpeg-turbo {turbo})" if turbo else "JPEG (without libjpeg-turbo: slower)"


def _reinstall() -> str:
    return pip("install", "--force-reinstall", "--no-deps", "--only-binary", ":all:", "pillow")


def processor_finding() -> Finding:
    """Return the name of the processor, and whether int8 is fast on it."""
    int8 = "has VNNI: int8 is the fastest form of a model" if has_vnni() else "no VNNI: fp32 is faster than int8"
    return ok("processor", f"{processor()}; {int8}")


def cores_finding() -> Finding:
    """Compare the usable cores with those of the machine, and with the CPU quota."""
    return describe_cores(os.cpu_count() or 1, usable_cores(), cpu_quota())


def describe_cores(machine: int, usable: int, quota: float | None) -> Finding:
    """Return the number of used cores, as a finding.

    Args:
        machine: cores of the machine.
        usable: cores that this process uses by default, without ``--threads``.
        quota: granted time in cores; None: no limit.

    """
    summary = f"{usable} of {machine} are used"
    return ok("cores", summary if quota is None else f"{summary}; the container's CPU quota is {quota:g}")
