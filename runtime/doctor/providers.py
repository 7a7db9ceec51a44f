"""Check which of ONNX Runtime's providers can run a model, and which one ``--device`` selects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..devices import Device, nvidia_gpus
from ..shell import pip
from .apart import Outcome, try_apart
from .attempts import CPU, CUDA, TENSORRT, run_model
from .finding import Finding, ok, problem, skipped, warning
from .runtimes import right_onnxruntime

__all__ = ["device_finding", "provider_findings"]

_NVIDIA = (CUDA, TENSORRT)


def provider_findings(providers: Sequence[str], model: Path) -> list[Finding]:
    """Run a model on every provider that ONNX Runtime lists.

    Args:
        providers: their names.
        model: a valid model file.

    """
    gpus = nvidia_gpus()
    found = [_try(provider, model, gpus) for provider in providers]
    if gpus and CUDA not in providers:
        found.append(
            warning(CUDA, f"{_gpus(gpus)} is here, and this ONNX Runtime cannot use it", _with_cuda(reinstall=False))
        )
    # The CPU first: if it fails, nothing else matters.
    return sorted(found, key=lambda finding: (finding.check != CPU, finding.check != CUDA))


def device_finding(device: Device, tried: Sequence[Finding]) -> Finding:
    """Return the provider that a device selects, as a finding.

    Args:
        device: the requested one.
        tried: from :func:`provider_findings`.

    """
    status = {finding.check: finding.status for finding in tried}
    if device == "cuda" and status.get(CUDA) != "ok":
        return problem("device", "cuda was asked for and does not work here", _with_cuda(reinstall=True))
    if device != "cpu" and status.get(CUDA) == "ok":
        return ok("device", f"{device} takes the GPU ({CUDA})")
    return ok("device", f"{device} takes the CPU ({CPU})")


def _try(provider: str, model: Path, gpus: int) -> Finding:
    if provider in _NVIDIA and not gpus:
        return skipped(provider, "there is no NVIDIA driver, or no GPU, here")
    return describe(provider, try_apart(run_model, provider, str(model)))


def describe(provider: str, outcome: Outcome) -> Finding:
    """Return the finding for a model run on a provider.

    A failure is a problem on the CPU, a warning on CUDA, and irrelevant elsewhere.
    """
    failure = outcome.failure
    if outcome.value is not None:
        if provider in outcome.value["providers"]:
            unused = "" if provider in (CPU, CUDA) else "; deeprank uses the CPU and CUDA alone"
            threads = outcome.value["threads"]
            by = f" with {threads} thread{'' if threads == 1 else 's'}" if provider == CPU else ""
            return ok(provider, f"runs a model{by}{unused}")
        failure = f"ONNX Runtime took {', '.join(outcome.value['providers'])} instead"
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
