"""Choose the device for training."""

from __future__ import annotations

import torch

from ...runtime.errors import DeviceError

__all__ = ["torch_device"]


def torch_device(device: str) -> torch.device:
    """Return torch's device for ``auto`` (a GPU if available), ``cpu`` or ``cuda``.

    Raises:
        DeviceError: the name is unknown, or there is no GPU for ``cuda``.

    """
    if device not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"device {device!r} is unknown; expected auto, cpu or cuda.")
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise DeviceError("--device cuda needs a GPU, and torch finds none here; use --device cpu, or auto.")
    return torch.device("cuda" if available and device != "cpu" else "cpu")
