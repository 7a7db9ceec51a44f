"""Which processor torch trains on."""

from __future__ import annotations

import torch

from ..runtime.errors import DeviceError

__all__ = ["torch_device"]


def torch_device(device: str) -> torch.device:
    """Return torch's device for ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.

    Raises:
        DeviceError: unknown, or a GPU was asked for where there is none.

    """
    if device not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"device {device!r} is unknown; expected auto, cpu or cuda.")
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise DeviceError("CUDA was asked for, but torch finds no GPU here; use --device cpu, or auto.")
    return torch.device("cuda" if available and device != "cpu" else "cpu")
