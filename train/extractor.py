"""Compute features with the frozen part of a network, on the fastest engine that is correct.

On a CPU, ONNX Runtime runs the exported backbone about four times as fast as torch (measured: 310
against 70 pictures a second, Lite0 at 160 px on two cores). Its features differ in the last bits,
which half-precision storage drops anyway. The reference never uses it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..models.conversion import to_onnx
from ..models.network import EmbeddingNet
from ..runtime.images import Picture
from ..runtime.progress import Monitor

__all__ = ["Extractor", "extractor_when_needed", "make_extractor"]

Features = npt.NDArray[np.float32]

# Half precision keeps 11 bits; storing it loses a difference below this share of the largest
# feature.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Extractor:
    """A feature function and its engine.

    ``run``: uint8 ``[n, S, S, 3]`` to float32 ``[n, W]``; ``engine``: its name; ``remark``: why it
    is not the fastest.
    """

    run: Callable[[Picture], Features]
    engine: str
    remark: str = ""


class _Features(nn.Module):
    """The frozen part of the network as a module."""

    def __init__(self, network: EmbeddingNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.network.front(pictures)


def make_extractor(network: EmbeddingNet, device: torch.device, threads: int) -> Extractor:
    """Return the fastest engine that works here, checked against torch on random pictures.

    Args:
        network: on ``device``; its backbone is put into evaluation mode.
        device: a GPU always uses torch.
        threads: for ONNX Runtime.

    """
    network.eval()
    in_torch = _torch_run(network, device)
    if device.type != "cpu":
        return Extractor(in_torch, "torch")
    try:
        run = _onnx_run(network, threads)
        difference = _difference(run, in_torch, network.config.image_size)
    # An error of the exporter or of ONNX Runtime is no obstacle: torch can run the network.
    except Exception as error:
        return Extractor(in_torch, "torch", f"ONNX Runtime cannot run this backbone ({type(error).__name__})")
    if not difference < _TOLERANCE:
        return Extractor(in_torch, "torch", f"ONNX Runtime's features differ by {difference:.1e}")
    return Extractor(run, "onnxruntime")


def extractor_when_needed(network: EmbeddingNet, device: torch.device, threads: int, monitor: Monitor) -> Extractor:
    """Return an extractor that calls :func:`make_extractor` at the first picture.

    That call takes seconds, and is not needed if all features are cached. ``monitor`` is told why
    the engine is slow.
    """

    @functools.cache
    def made() -> Extractor:
        extractor = make_extractor(network, device, threads)
        if extractor.remark:
            monitor.remark(f"{extractor.remark}; torch computes the features, more slowly.")
        return extractor

    return Extractor(lambda pictures: made().run(pictures), "made when needed")


def _torch_run(network: EmbeddingNet, device: torch.device) -> Callable[[Picture], Features]:
    def run(pictures: Picture) -> Features:
        with torch.inference_mode():
            features: Features = network.front(torch.from_numpy(pictures).to(device)).float().cpu().numpy()
            return features

    return run


def _onnx_run(network: EmbeddingNet, threads: int) -> Callable[[Picture], Features]:
    import onnxruntime as ort

    size = network.config.image_size
    program = to_onnx(_Features(network).eval(), torch.zeros(2, size, size, 3, dtype=torch.uint8), "features")
    data = program.model_proto.SerializeToString()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    # Spinning threads would take the cores that decode the next pictures.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(pictures: Picture) -> Features:
        return np.asarray(session.run(None, {"image": pictures})[0], dtype=np.float32)

    return run


def _difference(run: Callable[[Picture], Features], expected: Callable[[Picture], Features], size: int) -> float:
    """Return the largest difference over three random pictures, relative to the largest feature."""
    pictures = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    reference = expected(pictures)
    return float(np.abs(run(pictures) - reference).max() / max(float(np.abs(reference).max()), 1e-12))
