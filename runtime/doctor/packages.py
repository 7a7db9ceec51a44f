"""Check the versions of installed packages against the bounds in deeprank's metadata."""

from __future__ import annotations

import platform
import re
import sqlite3
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata

from ..shell import DISTRIBUTION, pip, source_of_deeprank
from .finding import Finding, ok, problem, warning

__all__ = [
    "DISTRIBUTION",
    "Requirement",
    "installed_version",
    "is_older",
    "package_findings",
    "requirements",
    "versions",
]

# The dependencies, without ONNX Runtime, which has several packages.
_BASE = ("numpy", "pillow", "filelock", "typer", "hnswlib")
_OPTIONAL = ("pi-heif",)

_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(\[[^\]]*\])?([^;]*)(?:;(.*))?")
_AT_LEAST = re.compile(r">=\s*([0-9][0-9A-Za-z.!+_-]*)")
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
    found = [_python(), _deeprank()]
    found += [_package(name, bounds.get(name, Requirement(name, None, None))) for name in _BASE]
    found += [_package(name, bounds[name]) for name in _OPTIONAL if name in bounds and installed_version(name)]
    return [*found, ok("sqlite", sqlite3.sqlite_version)]


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
    at_least, extra = _AT_LEAST.search(version), _EXTRA.search(marker or "")
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
    mine, asked = _numbers(version), _numbers(bound)
    return mine is not None and asked is not None and mine < asked


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
            "runs without being installed, so that the versions of what it needs cannot be checked",
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
            f"{version} is older than {requirement.at_least}, the oldest that deeprank is made for",
            pip("install", "--upgrade", requirement.to_install()),
        )
    return ok(name, version)
