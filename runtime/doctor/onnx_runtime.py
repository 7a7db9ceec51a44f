"""ONNX Runtime: exactly one of its packages is installed, and which providers run a model."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..devices import Device, nvidia_gpus
from ..shell import pip
from .finding import Finding, ok, problem, skipped, warning
from .isolated import CPU, CUDA, TENSORRT, Outcome, run_model, try_apart
from .packages import Requirement, compared, installed_version, requirements

__all__ = ["device_finding", "onnxruntime_finding", "provider_findings", "right_onnxruntime", "runtimes_finding"]

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

_NVIDIA = (CUDA, TENSORRT)


def runtimes_finding() -> Finding:
    """Check that exactly one package of ONNX Runtime is installed, and recent enough."""
    there = installed_runtimes()
    if not there:
        return problem(CHECK, "is not installed", pip("install", right_onnxruntime().to_install()))
    if len(there) > 1:
        return problem(
            CHECK,
            f"{_listed(there)} are both installed: they share one import folder, and the one installed last has "
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
        outcome: of :func:`~.isolated.import_onnxruntime`.

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


def provider_findings(providers: Sequence[str], model: Path) -> list[Finding]:
    """Run a model on every provider that ONNX Runtime lists.

    Args:
        providers: their names.
        model: a valid model file.

    """
    gpus = nvidia_gpus()
    results = [_try(provider, model, gpus) for provider in providers]
    if gpus and CUDA not in providers:
        results.append(
            warning(CUDA, f"this ONNX Runtime cannot use the GPU: {_gpus(gpus)} found", _with_cuda(reinstall=False))
        )
    # The CPU first: if it fails, nothing else matters.
    return sorted(results, key=lambda finding: (finding.check != CPU, finding.check != CUDA))


def device_finding(device: Device, tried: Sequence[Finding]) -> Finding:
    """Return the provider that a device selects, as a finding.

    Args:
        device: the requested one.
        tried: from :func:`provider_findings`.

    """
    status = {finding.check: finding.status for finding in tried}
    if device == "cuda" and status.get(CUDA) != "ok":
        return problem("device", "cuda was requested, but does not work here", _with_cuda(reinstall=True))
    if device != "cpu" and status.get(CUDA) == "ok":
        return ok("device", f"{device} uses the GPU ({CUDA})")
    return ok("device", f"{device} uses the CPU ({CPU})")


def _try(provider: str, model: Path, gpus: int) -> Finding:
    if provider in _NVIDIA and not gpus:
        return skipped(provider, "this machine has no NVIDIA driver or no GPU")
    return describe(provider, try_apart(run_model, provider, str(model)))


def describe(provider: str, outcome: Outcome) -> Finding:
    """Return the finding for a model run on a provider.

    A failure is a problem on the CPU, a warning on CUDA, and irrelevant elsewhere.
    """
    failure = outcome.failure
    if outcome.value is not None:
        if provider in outcome.value["providers"]:
            unused = "" if provider in (CPU, CUDA) else "; deeprank uses only the CPU and CUDA"
            threads = outcome.value["threads"]
            by = f" with {threads} thread{'' if threads == 1 else 's'}" if provider == CPU else ""
            return ok(provider, f"runs a model{by}{unused}")
        failure = f"ONNX Runtime used {', '.join(outcome.value['providers'])} instead"
    if provider == CPU:
        fix = pip("install", "--force-reinstall", "--no-deps", right_onnxruntime().to_install())
        return problem(provider, f"does not run a model: {failure}", fix)
    if provider == CUDA:
        return warning(
            provider, f"does not run a model, although there is a GPU: {failure}", _with_cuda(reinstall=True)
        )
    return skipped(provider, f"does not run a model ({failure}), which deeprank does not need")


def _gpus(count: int) -> str:
    return "an NVIDIA GPU" if count == 1 else f"{count} NVIDIA GPUs"


def _with_cuda(*, reinstall: bool) -> str:
    bound = right_onnxruntime().at_least
    package = f"onnxruntime-gpu[cuda,cudnn]{f'>={bound}' if bound else ''}"
    if reinstall:
        return f"{pip('install', '--upgrade', package)}  # and the driver of the GPU, if nvidia-smi does not find it"
    return f"{pip('uninstall', '-y', 'onnxruntime')} && {pip('install', package)}"
