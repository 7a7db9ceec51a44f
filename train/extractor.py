"""The frozen part of a network as a function from pictures to features, by the fastest engine that is right.

On a CPU, ONNX Runtime runs the exported backbone about four times as fast as torch does (measured: 310 against 70
pictures a second, Lite0 at 160 px on two cores). Its features differ in the last bits, which is no matter for features
that are stored in half precision; the reference never goes this way.
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

# Half precision keeps 11 bits; a difference below this share of the largest feature is lost in storing it.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Extractor:
    """``run``: uint8 ``[n, S, S, 3]`` to float32 ``[n, W]``; ``engine``: what runs it; ``remark``: why not faster."""

    run: Callable[[Picture], Features]
    engine: str
    remark: str = ""


class _Features(nn.Module):
    """The part of the network that is frozen."""

    def __init__(self, network: EmbeddingNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.network.front(pictures)


def make_extractor(network: EmbeddingNet, device: torch.device, threads: int) -> Extractor:
    """Return the fastest engine that works here, checked against torch on random pictures.

    Args:
        network: on ``device``; its backbone is put into evaluation mode.
        device: a GPU computes in torch.
        threads: for ONNX Runtime.

    """
    network.eval()
    in_torch = _torch_run(network, device)
    if device.type != "cpu":
        return Extractor(in_torch, "torch")
    try:
        run = _onnx_run(network, threads)
        difference = _difference(run, in_torch, network.config.image_size)
    # Whatever keeps a network from being exported or run there, torch itself can still run it.
    except Exception as error:
        return Extractor(in_torch, "torch", f"ONNX Runtime cannot run this backbone ({type(error).__name__})")
    if not difference < _TOLERANCE:
        return Extractor(in_torch, "torch", f"ONNX Runtime's features differ by {difference:.1e}")
    return Extractor(run, "onnxruntime")


def extractor_when_needed(network: EmbeddingNet, device: torch.device, threads: int, monitor: Monitor) -> Extractor:
    """Return :func:`make_extractor`'s, which takes seconds to make: that is done when the first picture comes.

    Where all features are kept already, none does. ``monitor`` is told why it is a slow one.
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
    """Return the largest difference over three random pictures, as a share of the largest feature."""
    pictures = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    reference = expected(pictures)
    return float(np.abs(run(pictures) - reference).max() / max(float(np.abs(reference).max()), 1e-12))
