"""Training options: the table of all options, and a value for each.

Defaults are in ``recipes/default.toml`` alone; this module has none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..models.normalisation import NORMALISATIONS
from ..runtime.errors import TrainingError
from ..runtime.text import printable
from .option import Option, hint

__all__ = ["Augmentation", "TrainConfig", "config_from_dict", "differences", "options"]


@dataclass(frozen=True)
class Augmentation:
    """How training pictures are augmented.

    ``crop``: the smallest share of the area that a crop keeps (1: no cropping). ``flip``: mirror
    half of the pictures. ``jitter``: scale brightness, contrast and saturation by up to 1 ± jitter
    (0: not at all).
    """

    crop: float
    flip: bool
    jitter: float


def _option(section: str, help_text: str, **limits: Any) -> Any:
    return dataclasses.field(metadata={"section": section, "help": help_text, **limits})


@dataclass(frozen=True)
class TrainConfig:
    """Every training option; the defaults are in ``recipes/default.toml``."""

    backbone: str = _option(
        "network", "resnet18|50|101, mobilenet_v3_small|large, efficientnet_lite0|1|2, timm:NAME", common=True
    )
    weights: str = _option("network", "auto, imagenet, none, a .pth or .safetensors file, or an earlier run's best.pt")
    normalisation: str = _option(
        "network", "pixel scaling; auto: what belongs to the weights", choices=("auto", *NORMALISATIONS)
    )
    embedding_dim: int = _option("network", "numbers in an embedding", least=2, most=4096, common=True)
    hidden: tuple[int, ...] = _option("network", "widths of the head's hidden layers", least=1, most=65536)
    dropout: float = _option("network", "share of hidden units dropped", least=0.0, most=0.95)
    input_dropout: float = _option("network", "share of backbone features dropped", least=0.0, most=0.95)
    last_channels: int = _option(
        "network", "channels that an EfficientNet's last convolution keeps; 0: all", least=0, most=1_000_000
    )
    freeze_backbone: bool = _option("network", "compute the backbone's features once, and train on those", common=True)
    unfreeze: int = _option("network", "last stages of a frozen backbone to train beside the head", least=0, most=64)
    freeze_last: int = _option("network", "last stages of a trained backbone that stay as they were", least=0, most=64)
    freeze_norms: bool = _option("network", "keep the statistics of the backbone's batch norms as they were")
    multiscale: bool = _option("network", "the paper's two low-resolution paths beside the backbone")

    image_size: int = _option("picture", "side of the square input in pixels", least=16, most=1024, common=True)
    low_image_size: int = _option("picture", "side of the input in the first epochs; 0: as later", least=0, most=1024)
    low_epochs: int = _option("picture", "epochs at the low size", least=0)
    picture_mode: str = _option("picture", "the whole picture or its centre", choices=("stretch", "crop"))

    views: int = _option("augmentation", "augmented views cached of each picture (frozen)", least=0, most=64)
    crop: float = _option("augmentation", "smallest share of the area kept by a crop", least=0.05, most=1.0)
    flip: bool = _option("augmentation", "mirror half of the pictures")
    jitter: float = _option("augmentation", "strength of colour changes", least=0.0, most=1.0)

    classes_per_batch: int = _option("batch", "classes in a batch", least=2, most=4096, common=True)
    pictures_per_class: int = _option("batch", "pictures of each class in a batch", least=2, most=1024, common=True)
    steps_per_epoch: int = _option("batch", "batches in an epoch; 0: as many as the pictures fill", least=0)

    sampler: str = _option(
        "sampling", "P x K pictures, or triplets drawn by relevance (P x K / 3)", choices=("balanced", "online")
    )
    out_of_class: float = _option("sampling", "share of negatives from other classes", least=0.0, most=1.0)
    positive_threshold: float = _option("sampling", "T_p, relevance above which positives are drawn alike", least=0.0)
    relevance_margin: float = _option("sampling", "T_r, by which an in-class negative is less relevant", least=0.0)
    buffer: int = _option("sampling", "pictures of a class that an epoch draws from; 0: all", least=0)
    teacher: str = _option("sampling", "network whose features say what is relevant; not the one that is trained")
    colour_weight: float = _option("sampling", "share of the colours in relevance", least=0.0, most=1.0)
    relevance: str = _option("sampling", "in the teacher's place: .npz (paths, vectors) or .csv (a,b,relevance)")

    loss: str = _option(
        "loss",
        "what is minimised; NAME: a loss of pytorch-metric-learning",
        choices=("triplet", "triplet+softmax", "softmax"),
        forms=("pml:NAME", "pml:NAME+softmax"),
    )
    arguments: Mapping[str, Any] = _option("loss", "of a pml: loss, such as alpha=2.0,base=0.5")
    negatives: str = _option(
        "loss", "how a triplet's negative is chosen", choices=("random", "semi-hard", "batch-hard")
    )
    margin: float = _option("loss", "the paper's gap g, in squared distance", least=0.0, most=4.0)
    softmax_weight: float = _option("loss", "weight of the softmax term", least=0.0, most=1e6)
    temperature: float = _option("loss", "of the normalised softmax", least=0.001, most=10.0)
    label_smoothing: float = _option("loss", "of the normalised softmax", least=0.0, most=0.9)
    bnneck: bool = _option("loss", "batch normalisation between the embedding and the softmax term")

    epochs: int = _option("optimizer", "passes over the training pictures", least=1, most=100000, common=True)
    optimizer: str = _option("optimizer", "update rule", choices=("adamw", "sgd"))
    learning_rate: float = _option("optimizer", "learning rate of the head", least=0.0, most=1e6, common=True)
    backbone_learning_rate: float = _option(
        "optimizer", "learning rate of the backbone, where it is trained", least=0.0, most=1e6
    )
    proxy_learning_rate: float = _option(
        "optimizer", "learning rate of class vectors, also of a pml: loss", least=0.0, most=1e6
    )
    head_epochs: int = _option("optimizer", "first epochs, never the last, in which the head is trained alone", least=0)
    ema: float = _option(
        "optimizer", "decay of the averaged weights that are kept; 0: the last", least=0.0, most=0.99999
    )
    start_share: float = _option(
        "optimizer", "share of the starting backbone in the final one (WiSE-FT); 0: none", least=0.0, most=0.95
    )
    whiten_first: bool = _option("optimizer", "begin with a head fitted by learned whitening of the features")
    whiten: bool = _option("optimizer", "in the end, fit the head anew by learned whitening of the features")
    start_classes: float = _option(
        "optimizer", "share of the start's own classes in the choice of what whitening keeps", least=0.0, most=1.0
    )
    weight_decay: float = _option("optimizer", "on weights, not on biases and norms", least=0.0, most=1e6)
    momentum: float = _option("optimizer", "of sgd", least=0.0, most=0.9999)
    schedule: str = _option("optimizer", "of the learning rates", choices=("cosine", "constant"))
    warmup_epochs: float = _option("optimizer", "epochs in which the rates rise from 0", least=0.0)

    holdout_classes: int = _option("data", "classes left out of training; evaluated on these alone", least=0)
    holdout_pictures: int = _option("data", "pictures of each class left out of training, at least a tenth", least=0)

    mixed_precision: str = _option("run", "half precision on CUDA", choices=("auto", "off"))
    seed: int = _option("run", "of every random choice", least=0, most=2**31 - 1)
    report: bool = _option("run", "write report.html when the run is finished")

    @property
    def backbone_begins(self) -> int:
        """The first epoch, from 0, that trains the backbone; at most the last epoch."""
        return min(self.head_epochs, self.epochs - 1)

    @property
    def augmentation(self) -> Augmentation:
        """How training pictures are augmented."""
        return Augmentation(self.crop, self.flip, self.jitter)

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms of the loss: ``triplet`` or ``pml:NAME``, and ``softmax``."""
        return tuple(self.loss.split("+"))

    @property
    def pml_loss(self) -> str | None:
        """NAME of the loss from pytorch-metric-learning, or None for another loss."""
        kind, _, name = self.terms[0].partition(":")
        return name if kind == "pml" else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON and checkpoints."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}


_KINDS: dict[str, type] = {
    "str": str, "int": int, "float": float, "bool": bool, "tuple[int, ...]": tuple, "Mapping[str, Any]": dict,
}  # fmt: skip


def options() -> tuple[Option, ...]:
    """Return the table of all options, in the order of the sections."""
    return tuple(
        Option(field.name, kind=_KINDS[str(field.type)], **field.metadata) for field in dataclasses.fields(TrainConfig)
    )


def config_from_dict(values: Mapping[str, Any], where: str) -> TrainConfig:
    """Check every value and return the options; messages name the source ``where``.

    Raises:
        TrainingError: a key is missing or unknown, or a value is not allowed.

    """
    table = {option.name: option for option in options()}
    for key in values:
        if key not in table:
            raise TrainingError(f"{where}: unknown option {printable(repr(key))}{hint(key, table)}.")
    missing = [name for name in table if name not in values]
    if missing:
        raise TrainingError(
            f"{where}: no value for {', '.join(missing)}; another version of deeprank wrote it. Train again."
        )
    return TrainConfig(**{name: option.check(values[name], where) for name, option in table.items()})


def differences(stored: TrainConfig, asked: TrainConfig) -> list[str]:
    """Return ``name: stored value, now other value`` for every option that differs."""
    before, after = stored.to_dict(), asked.to_dict()
    return [f"{name}: {before[name]!r}, now {after[name]!r}" for name in before if before[name] != after[name]]
