"""The PyTorch reference of a finished run, in float32; exported models are checked against it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..models.network import EmbeddingNet, NetworkConfig, build_network
from ..runtime.datasets import DataSet, labels_beside, split_by_rule
from ..runtime.errors import PictureError, TrainingError
from ..runtime.images import Picture, PictureRule
from ..runtime.modelfile import ModelInfo
from ..runtime.pipeline import embed_stream
from ..runtime.text import display_path, first_line
from .data.loaders import picture_rule
from .loop.metadata import holdout_rule, stored_labels
from .options.config import TrainConfig, config_from_dict
from .run.checkpoints import read_checkpoint
from .run.device import torch_device
from .run.folder import RunFolder, open_run

__all__ = ["NetworkReference", "Reference", "load_run"]

T = TypeVar("T")
Vectors = npt.NDArray[np.float32]

_CHUNK = 64


def load_run(run: Path | None = None) -> tuple[EmbeddingNet, ModelInfo, TrainConfig]:
    """Load the best network of a run.

    Args:
        run: the run folder, or a link to one; None for ``runs/latest``.

    Returns:
        The network on the CPU in evaluation mode, the metadata of its exported file, and the run's
        options.

    Raises:
        TrainingError: there is no such run, or its files are damaged or incomplete.

    """
    folder = open_run(run)
    checkpoint = read_checkpoint(folder.best_path)
    try:
        network = build_network(NetworkConfig.from_dict(checkpoint["network"]))
        network.load_state_dict(checkpoint["model"])
        config = config_from_dict(checkpoint["config"], display_path(folder.best_path))
        info = _info(checkpoint, config, network.embedding_dim, _final_figures(folder))
    except (KeyError, TypeError, RuntimeError) as error:
        raise TrainingError(
            f"{display_path(folder.best_path)} is damaged ({first_line(error, named=True)}); "
            "expected a checkpoint written by deeprank-train."
        ) from error
    return network.eval(), info, config


def _info(checkpoint: dict[str, Any], config: TrainConfig, embedding_dim: int, metrics: dict[str, Any]) -> ModelInfo:
    return ModelInfo(
        name=str(checkpoint["name"]),
        embedding_dim=embedding_dim,
        picture=picture_rule(config),
        backbone=config.backbone,
        classes=tuple(checkpoint["classes"]),
        training={**checkpoint["training"], "best_epoch": checkpoint["epoch"]},
        metrics=metrics,
        versions=checkpoint["versions"],
        license=config.license,
    )


def _final_figures(folder: RunFolder) -> dict[str, Any]:
    """Return the metrics of the final evaluation; empty for an unfinished run."""
    return {key: value for key, value in (folder.read_final() or {}).items() if key != "kind"}


def _data_of(folder: RunFolder) -> tuple[str, str | None, int]:
    """Return the path of the data set, the source of its labels, and the holdout rule."""
    description = folder.read_config()
    try:
        return str(description["data"]["path"]), stored_labels(description), holdout_rule(description)
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{display_path(folder.config_path)} is damaged (no {error}); train again.") from error


class NetworkReference:
    """A network as a function from pictures to unit vectors, float32 throughout.

    Args:
        network: in evaluation mode; uint8 ``[n, S, S, 3]`` to float32 ``[n, d]``, unit rows.
        info: the metadata of an exported file.
        device: of the network.

    """

    # Its name in reports of parity.
    engine = "PyTorch"

    def __init__(self, network: nn.Module, info: ModelInfo, device: torch.device) -> None:
        self._network, self._info, self._device = network, info, device

    @property
    def info(self) -> ModelInfo:
        """The metadata of the exported file."""
        return self._info

    @property
    def rule(self) -> PictureRule:
        """The rule that turns a picture into the network's input."""
        return self._info.picture

    def embed_batch(self, pictures: Picture) -> Vectors:
        """Map uint8 ``[n, S, S, 3]`` to float32 ``[n, d]``, unit rows."""
        vectors = np.empty((len(pictures), self._info.embedding_dim), dtype=np.float32)
        with _full_precision(), torch.inference_mode(), torch.autocast(self._device.type, enabled=False):
            for start in range(0, len(pictures), _CHUNK):
                chunk = torch.from_numpy(np.ascontiguousarray(pictures[start : start + _CHUNK]))
                vectors[start : start + len(chunk)] = self._network(chunk.to(self._device)).cpu().numpy()
        return vectors

    def stream(
        self, items: Iterable[T], read: Callable[[T], Picture]
    ) -> Iterator[tuple[T, npt.NDArray[np.float32] | PictureError]]:
        """Embed any number of items in bounded memory, like ``Embedder.stream``."""
        return embed_stream(items, read, self.embed_batch)


class Reference(NetworkReference):
    """The best network of a run.

    Args:
        run: the run folder; None for ``runs/latest``.
        device: ``cpu``, ``cuda`` or ``auto``.

    Raises:
        TrainingError: see :func:`load_run`.
        DeviceError: ``cuda`` is not available.

    """

    def __init__(self, run: Path | None = None, device: str = "cpu") -> None:
        where = torch_device(device)
        network, info, _ = load_run(run)
        self._data, self._labels, self._rule = _data_of(open_run(run))
        self._embedding_net = network.to(where)
        super().__init__(self._embedding_net, info, where)

    @property
    def data(self) -> str:
        """The path of the run's data set at the time of training; not stored in exported files."""
        return self._data

    def labels_of(self, data: str) -> str | None:
        """Return the run's source of labels for a data set; see ``labels`` of ``open_dataset``."""
        if data == self._data or str(Path(data).resolve()) == self._data:
            return self._labels
        return labels_beside(data, self._labels)

    @property
    def rule_of_holdout(self) -> int:
        """The version of the run's holdout rule; see :func:`~..runtime.datasets.holdout`."""
        return self._rule

    def split(self, dataset: DataSet) -> DataSet:
        """Return the data set, split into train and val as in the run."""
        return split_by_rule(dataset, self._rule)

    @property
    def network(self) -> EmbeddingNet:
        """The network, in evaluation mode."""
        return self._embedding_net


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Disable TF32, which rounds the factors of products on recent GPUs to 10 bits."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
