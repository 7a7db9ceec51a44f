"""Check ONNX Runtime: several packages share one import folder; exactly one must be installed."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping

from ..shell import pip
from .apart import Outcome
from .finding import Finding, ok, problem, warning
from .packages import Requirement, compared, installed_version, requirements

__all__ = ["onnxruntime_finding", "right_onnxruntime", "runtimes_finding"]

CHECK = "onnxruntime"
# All packages that are imported as onnxruntime.
_PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-rocm",
    "onnxruntime-migraphx",
    "onnxruntime-qnn",
    "onnxruntime-vitisai",
    "onnxruntime-cann",
    "onnxruntime-silicon",
    "onnxruntime-coreml",
    "onnxruntime-azure",
    "onnxruntime-training",
    "ort-nightly",
    "ort-nightly-gpu",
)


def runtimes_finding() -> Finding:
    """Check that exactly one package of ONNX Runtime is installed, and recent enough."""
    there = installed_runtimes()
    if not there:
        return problem(CHECK, "is not installed", pip("install", right_onnxruntime().to_install()))
    if len(there) > 1:
        return problem(
            CHECK,
            f"{_listed(there)} are both installed: they share one import folder, and what was installed last has "
            "overwritten parts of the other"
            if len(there) == 2
            else f"{_listed(there)} are all installed: they share one import folder, and overwrite each other",
            f"{pip('uninstall', '-y', *there)} && {pip('install', right_onnxruntime().to_install())}",
        )
    ((name, version),) = there.items()
    bound = right_onnxruntime().at_least
    return compared(CHECK, version, Requirement(name, bound, None))


def installed_runtimes() -> Mapping[str, str]:
    """Return the installed packages of ONNX Runtime, with their versions."""
    versions = {name: installed_version(name) for name in _PACKAGES}
    return {name: version for name, version in versions.items() if version is not None}


def right_onnxruntime() -> Requirement:
    """Return the package of ONNX Runtime that deeprank requires on this kind of machine."""
    gpu = (sys.platform, platform.machine()) in (("linux", "x86_64"), ("win32", "AMD64"))
    name = "onnxruntime-gpu" if gpu else "onnxruntime"
    return requirements().get(name, Requirement(name, None, None))


def onnxruntime_finding(packages: Finding, outcome: Outcome) -> Finding:
    """Return the finding for the import of ONNX Runtime.

    Args:
        packages: from :func:`runtimes_finding`; returned unchanged if it is not ok.
        outcome: of :func:`~.attempts.import_onnxruntime`.

    """
    there = installed_runtimes()
    if outcome.value is None:
        again = f"{pip('uninstall', '-y', *there)} && " if there else ""
        return problem(
            CHECK,
            f"cannot be imported: {outcome.failure}",
            f"{again}{pip('install', '--no-cache-dir', right_onnxruntime().to_install())}",
        )
    if packages.status != "ok":
        return packages
    imported = str(outcome.value["version"])
    ((name, version),) = there.items()
    if imported != version:
        return warning(
            CHECK,
            f"its files are of version {imported}, its package {name} of {version}",
            pip("install", "--force-reinstall", "--no-deps", f"{name}=={version}"),
        )
    return ok(CHECK, f"{imported} ({name}), providers {', '.join(outcome.value['providers'])}")


def _listed(there: Mapping[str, str]) -> str:
    names = [f"{name} {version}" for name, version in there.items()]
    return f"{', '.join(names[:-1])} and {names[-1]}"
