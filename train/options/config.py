"""Training options: the table of all options, a value for each, and contradictions between them.

Defaults are in ``recipes/default.toml`` alone; this module has none.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...models.normalisation import NORMALISATIONS
from ...models.pooling import POOLS
from ...runtime.errors import TrainingError
from ...runtime.text import printable

__all__ = [
    "AUTO",
    "KEPT_WEIGHT",
    "SMALL_SIDE",
    "SMALL_SIZE",
    "USUAL_SIZE",
    "Augmentation",
    "Option",
    "TrainConfig",
    "check_together",
    "config_from_dict",
    "differences",
    "hint",
    "options",
]


# The word for a value that a new run chooses by its pictures and its other options.
AUTO = "auto"
# The weight that it chooses for the features of a pretrained, frozen backbone. The learned classes
# lose less than a point of precision@10, and others rank better than by the head alone.
KEPT_WEIGHT = 0.5
# The picture size that it chooses: the first for pictures of at most so many pixels a side.
SMALL_SIDE, SMALL_SIZE, USUAL_SIZE = 64, 160, 224


@dataclass(frozen=True)
class Option:
    """A training option: its section in a recipe, its type, allowed values, and one line of help.

    ``choices``: the allowed texts. ``forms``: further ones, with NAME as a placeholder. ``minimum``,
    ``maximum``: bounds of numbers. ``longest``: most characters of a text, which must be printable.
    ``auto``: :data:`AUTO` is allowed, too. ``before``: the value of stored runs that are older than
    the option; None: every run has stored it. ``common``: ``--help`` shows it, not only
    ``--help-all``.
    """

    name: str
    section: str
    kind: type
    help: str
    choices: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    longest: int | None = None
    auto: bool = False
    before: Any = None
    common: bool = False

    def check(self, value: Any, where: str) -> Any:
        """Return ``value`` converted to the option's type.

        Raises:
            TrainingError: wrong type or out of range; names the option, the value and the allowed
                values.

        """
        converted = self._converted(value)
        if converted is None or not self._allowed(converted):
            raise TrainingError(f"{where}: {self.name} = {printable(repr(value))}; expected {self.expected}.")
        return converted

    @property
    def expected(self) -> str:
        """The allowed values, as the end of a sentence."""
        if self.choices:
            return "one of " + ", ".join((*self.choices, *self.forms))
        if self.longest is not None:
            return f"one line of at most {self.longest} characters"
        noun, word = _NOUNS[self.kind], f", or {AUTO}" if self.auto else ""
        if self.minimum is None and self.maximum is None:
            return f"{noun}{word}"
        if self.maximum is None:
            return f"{noun} of at least {self.minimum:g}{word}"
        return f"{noun} from {self.minimum:g} to {self.maximum:g}{word}"

    def _converted(self, value: Any) -> Any:
        if self.auto and value == AUTO:
            return value
        if self.kind is tuple:
            whole = isinstance(value, list | tuple) and all(type(item) is int for item in value)
            return tuple(value) if whole else None
        if self.kind is dict:
            return dict(value) if isinstance(value, Mapping) and all(map(_is_plain, value.values())) else None
        if self.kind is float and type(value) is int:
            return float(value)
        return value if type(value) is self.kind else None

    def _allowed(self, value: Any) -> bool:
        if self.auto and value == AUTO:
            return True
        if self.choices:
            named = (re.escape(form).replace("NAME", r"\w+") for form in self.forms)
            return value in self.choices or any(re.fullmatch(form, value) for form in named)
        if self.longest is not None:
            return len(value) <= self.longest and value.isprintable()
        numbers: Iterable[float] = value if self.kind is tuple else (value,) if self.kind in (int, float) else ()
        return all(
            (self.minimum is None or number >= self.minimum) and (self.maximum is None or number <= self.maximum)
            for number in numbers
        )


_NOUNS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a string",
    tuple: "a list of whole numbers",
    dict: "a table of strings, finite numbers, true or false",
}


def _is_plain(value: Any) -> bool:
    return type(value) in (str, bool, int) or (type(value) is float and math.isfinite(value))


def hint(key: str, allowed: Mapping[str, Option]) -> str:
    """Return the option that ``key`` probably means, or all options, as the end of a sentence."""
    close = difflib.get_close_matches(str(key), allowed, n=1)
    return f"; did you mean {close[0]}?" if close else f"; expected one of {', '.join(allowed)}"


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
    """Every training option; the defaults are in ``recipes/default.toml``.

    An option with ``auto`` may hold :data:`AUTO` instead of a value of its type until a run starts
    (:mod:`..loop.automatic`). A run and its files have values alone.
    """

    backbone: str = _option(
        "network", "resnet18|50|101, mobilenet_v3_small|large, efficientnet_lite0|1|2, timm:NAME", common=True
    )
    weights: str = _option("network", "auto, imagenet, none, a .pth or .safetensors file, or an earlier run's best.pt")
    normalisation: str = _option(
        "network", "pixel scaling; auto: that of the weights", choices=("auto", *NORMALISATIONS)
    )
    embedding_dim: int = _option(
        "network", "dimension of the head; --keep-start adds its own", minimum=2, maximum=4096, common=True
    )
    pool: str = _option(
        "network",
        "how a transformer's patches become one vector: by the class token or their mean; auto: as its library does",
        choices=POOLS,
        before="auto",
    )
    hidden: tuple[int, ...] = _option("network", "widths of the head's hidden layers", minimum=1, maximum=65536)
    dropout: float = _option("network", "share of hidden units dropped", minimum=0.0, maximum=0.95)
    input_dropout: float = _option("network", "share of backbone features dropped", minimum=0.0, maximum=0.95)
    last_channels: int = _option(
        "network", "channels that an EfficientNet's last convolution keeps; 0: all", minimum=0, maximum=1_000_000
    )
    freeze_backbone: bool = _option("network", "compute the backbone's features once and train on them", common=True)
    unfreeze: int = _option("network", "last stages of a frozen backbone to train with the head", minimum=0, maximum=64)
    freeze_last: int = _option("network", "last stages of a trained backbone to keep frozen", minimum=0, maximum=64)
    freeze_norms: bool = _option("network", "freeze the statistics of the backbone's batch norms")
    multiscale: bool = _option("network", "the paper's two low-resolution paths beside the backbone")
    keep_start: float = _option(
        "network",
        "weight of the frozen backbone's own features, which the embedding then holds beside the head, as --start-dim "
        "numbers more. --start-share mixes the backbone's weights instead. "
        f"auto: {KEPT_WEIGHT:g} if the backbone is pretrained and frozen, else 0",
        minimum=0.0,
        maximum=0.95,
        auto=True,
        before=0.0,
        common=True,
    )
    start_dim: int = _option(
        "network",
        "numbers that --keep-start whitens the features to; 0: all features, not whitened",
        minimum=0,
        maximum=4096,
        before=0,
    )

    image_size: int = _option(
        "picture",
        "side of the square input in pixels. "
        f"auto: {SMALL_SIZE} for pictures of up to {SMALL_SIDE} px, else {USUAL_SIZE}; that of timm's record for a "
        "network timm:NAME of one size",
        minimum=16,
        maximum=1024,
        auto=True,
        common=True,
    )
    low_image_size: int = _option(
        "picture", "side of the input in the first epochs; 0: --image-size", minimum=0, maximum=1024
    )
    low_epochs: int = _option("picture", "epochs with --low-image-size", minimum=0)
    picture_mode: str = _option(
        "picture",
        "the whole picture, its centre, or the whole between bars",
        choices=("stretch", "crop", "letterbox"),
    )
    filter: str = _option(
        "picture",
        "filter that makes pictures smaller; auto: that of timm's record for a backbone timm:NAME, else bilinear",
        choices=(AUTO, "bilinear", "bicubic", "lanczos"),
        auto=True,
        before="bilinear",
    )
    crop_ratio: float = _option(
        "picture",
        "part of the shorter side that --picture-mode crop keeps, of both sides with stretch; timm's crop_pct",
        minimum=0.5,
        maximum=1.0,
        before=1.0,
    )

    views: int = _option("augmentation", "augmented views cached per picture (frozen backbone)", minimum=0, maximum=64)
    crop: float = _option("augmentation", "smallest share of the area kept by a crop", minimum=0.05, maximum=1.0)
    flip: bool = _option("augmentation", "mirror half of the pictures")
    jitter: float = _option("augmentation", "strength of colour changes", minimum=0.0, maximum=1.0)

    classes_per_batch: int = _option("batch", "classes per batch", minimum=2, maximum=4096, common=True)
    pictures_per_class: int = _option("batch", "pictures of each class per batch", minimum=2, maximum=1024, common=True)
    steps_per_epoch: int = _option("batch", "batches per epoch; 0: pictures / batch size", minimum=0)

    sampler: str = _option(
        "sampling", "P x K pictures, or triplets drawn by relevance (P x K / 3)", choices=("balanced", "online")
    )
    out_of_class: float = _option("sampling", "share of negatives from other classes", minimum=0.0, maximum=1.0)
    positive_threshold: float = _option(
        "sampling", "T_p: positives above this relevance are equally likely", minimum=0.0
    )
    relevance_margin: float = _option("sampling", "T_r: least gap in relevance to an in-class negative", minimum=0.0)
    buffer: int = _option("sampling", "pictures per class that an epoch draws from; 0: all", minimum=0)
    teacher: str = _option(
        "sampling", "network whose features give the relevance, not --backbone; auto: an EfficientNet-Lite"
    )
    colour_weight: float = _option("sampling", "share of colour in the relevance", minimum=0.0, maximum=1.0)
    relevance: str = _option("sampling", "file instead of a teacher: .npz (paths, vectors) or .csv (a,b,relevance)")

    loss: str = _option(
        "loss",
        "loss function; NAME: a loss of pytorch-metric-learning",
        choices=("triplet", "triplet+softmax", "softmax"),
        forms=("pml:NAME", "pml:NAME+softmax"),
    )
    arguments: Mapping[str, Any] = _option("loss", "arguments of a pml: loss, such as alpha=2.0,base=0.5")
    negatives: str = _option(
        "loss", "how a triplet's negative is chosen", choices=("random", "semi-hard", "batch-hard")
    )
    margin: float = _option(
        "loss", "margin of the triplet loss (g in the paper), in squared distance", minimum=0.0, maximum=4.0
    )
    softmax_weight: float = _option("loss", "weight of the softmax term", minimum=0.0, maximum=1e6)
    temperature: float = _option("loss", "temperature of the normalised softmax", minimum=0.001, maximum=10.0)
    label_smoothing: float = _option("loss", "label smoothing of the normalised softmax", minimum=0.0, maximum=0.9)
    bnneck: bool = _option("loss", "batch normalisation between the embedding and the softmax term")

    epochs: int = _option("optimizer", "passes over the training pictures", minimum=1, maximum=100000, common=True)
    optimizer: str = _option("optimizer", "update rule", choices=("adamw", "sgd"))
    learning_rate: float = _option("optimizer", "learning rate of the head", minimum=0.0, maximum=1e6, common=True)
    backbone_learning_rate: float = _option(
        "optimizer", "learning rate of the backbone, if it is trained", minimum=0.0, maximum=1e6
    )
    layer_decay: float = _option(
        "optimizer",
        "factor of the backbone's learning rate from one stage to the one before it; 1: the same rate for all",
        minimum=0.1,
        maximum=1.0,
        before=1.0,
    )
    proxy_learning_rate: float = _option(
        "optimizer", "learning rate of class vectors, also of a pml: loss", minimum=0.0, maximum=1e6
    )
    head_epochs: int = _option("optimizer", "first epochs that train only the head; the last one trains all", minimum=0)
    ema: float = _option(
        "optimizer",
        "decay of the averaged weights, which are kept; 0: keep the last weights",
        minimum=0.0,
        maximum=0.99999,
    )
    start_share: float = _option(
        "optimizer",
        "share of the starting weights in a trained backbone's final ones (WiSE-FT); 0: none. --keep-start keeps the "
        "features of a frozen backbone instead",
        minimum=0.0,
        maximum=0.95,
    )
    whiten_first: bool = _option("optimizer", "start with a head fitted by learned whitening of the features")
    whiten: bool = _option("optimizer", "at the end, fit the head by learned whitening of the features")
    start_classes: float = _option(
        "optimizer", "weight of the pretraining classes when whitening selects directions", minimum=0.0, maximum=1.0
    )
    weight_decay: float = _option("optimizer", "weight decay, not on biases and norms", minimum=0.0, maximum=1e6)
    momentum: float = _option("optimizer", "momentum of sgd", minimum=0.0, maximum=0.9999)
    schedule: str = _option("optimizer", "schedule of the learning rates", choices=("cosine", "constant"))
    warmup_epochs: float = _option("optimizer", "epochs in which the learning rates rise from 0", minimum=0.0)

    holdout_classes: int = _option(
        "data", "classes left out of training, to measure what training changes for other pictures", minimum=0
    )
    holdout_pictures: int = _option(
        "data", "least number of pictures held out per class; always at least a tenth", minimum=0
    )

    mixed_precision: str = _option("run", "half precision on CUDA", choices=("auto", "off"))
    seed: int = _option("run", "seed of every random choice", minimum=0, maximum=2**31 - 1)
    report: bool = _option("run", "write report.html at the end of the run")
    license: str = _option(
        "run",
        "license of the model for its file: an SPDX identifier such as CC-BY-4.0, or a short text",
        longest=200,  # no file may have more; its module would import Pillow here
        before="",
    )

    @property
    def automatic(self) -> tuple[str, ...]:
        """Names of the options that hold :data:`AUTO`."""
        return tuple(option.name for option in options() if option.auto and getattr(self, option.name) == AUTO)

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

    Options that are younger than a stored run have the value that was fixed at its time.

    Raises:
        TrainingError: a key is missing or unknown, or a value is not allowed.

    """
    table = {option.name: option for option in options()}
    for key in values:
        if key not in table:
            raise TrainingError(f"{where}: unknown option {printable(repr(key))}{hint(key, table)}.")
    values = {name: option.before for name, option in table.items() if option.before is not None} | dict(values)
    missing = [name for name in table if name not in values]
    if missing:
        raise TrainingError(
            f"{where}: no value for {', '.join(missing)}; another version of deeprank wrote it. Train again."
        )
    return TrainConfig(**{name: option.check(values[name], where) for name, option in table.items()})


def differences(stored: TrainConfig, given: TrainConfig) -> list[str]:
    """Return ``name: stored value, now other value`` for every option that differs."""
    before, after = stored.to_dict(), given.to_dict()
    return [f"{name}: {before[name]!r}, now {after[name]!r}" for name in before if before[name] != after[name]]


# Whether the options contradict each other, and the message without its full stop.
Contradiction = tuple[bool, str]


def check_together(config: TrainConfig) -> None:
    """Refuse options that contradict each other.

    Only for a new run: a resumed run has its stored options, and any others are reported as
    differences.

    Raises:
        TrainingError: names the options, and the one to leave out.

    """
    for check in (_of_the_backbone, _of_the_pictures, _of_the_start, _of_low_sizes, _of_the_loss, _of_the_finish):
        for holds, sentence in check(config):
            if holds:
                raise TrainingError(f"{sentence}.")


def _of_the_backbone(config: TrainConfig) -> Iterator[Contradiction]:
    yield (
        bool(config.unfreeze) and not config.freeze_backbone,
        "--unfreeze needs a frozen backbone, but --no-freeze-backbone trains all of it; leave one of them out",
    )
    yield (
        bool(config.freeze_last) and config.freeze_backbone,
        "--freeze-last needs a backbone that is trained; add --no-freeze-backbone, or leave it out",
    )

    yield (
        config.layer_decay < 1 and config.freeze_backbone and not config.unfreeze,
        "--layer-decay is for a backbone that is trained; add --unfreeze or --no-freeze-backbone, or leave it out",
    )


def _of_the_pictures(config: TrainConfig) -> Iterator[Contradiction]:
    yield (
        config.crop_ratio < 1 and config.picture_mode == "letterbox",
        "--crop-ratio cuts the edges off, but --picture-mode letterbox keeps the whole picture; leave one of them out",
    )


def _of_the_start(config: TrainConfig) -> Iterator[Contradiction]:
    trained = "--unfreeze" if config.freeze_backbone else "--no-freeze-backbone"
    yield (
        bool(config.keep_start) and (bool(config.unfreeze) or not config.freeze_backbone),
        f"--keep-start keeps the features of a frozen backbone, but {trained} trains it; leave one of them out, or mix "
        "in the starting weights with --start-share",
    )


def _of_low_sizes(config: TrainConfig) -> Iterator[Contradiction]:
    size, epochs = bool(config.low_image_size), bool(config.low_epochs)
    yield size != epochs, "--low-image-size and --low-epochs go together; give both, or neither"
    yield (
        size and config.freeze_backbone,
        "--low-image-size needs a backbone that is trained; add --no-freeze-backbone, or leave it out",
    )
    yield (
        size and config.multiscale,
        "The low-resolution paths of --multiscale need one picture size; leave out --low-image-size",
    )
    yield (
        "image_size" not in config.automatic and config.low_image_size > config.image_size,
        f"--low-image-size {config.low_image_size} is above --image-size {config.image_size}; expected below it",
    )


def _of_the_loss(config: TrainConfig) -> Iterator[Contradiction]:
    yield (
        bool(config.arguments) and config.pml_loss is None,
        f"--loss {config.loss} takes no arguments, but found {', '.join(map(printable, config.arguments))}; name a "
        "loss pml:NAME, or leave out [loss.arguments]",
    )
    yield (
        config.bnneck and "softmax" not in config.terms,
        f"--bnneck needs the softmax term, which --loss {config.loss} lacks; name {config.loss}+softmax, or "
        "leave it out",
    )


def _of_the_finish(config: TrainConfig) -> Iterator[Contradiction]:
    share, whitened = bool(config.start_share), config.whiten or config.whiten_first
    yield (
        share and config.freeze_backbone and not config.unfreeze,
        "--start-share mixes in the starting backbone, but a frozen backbone never changes; add --unfreeze, or "
        "leave it out",
    )
    yield (
        share and not config.freeze_norms,
        "--start-share mixes weights, so the batch norm statistics must not change; add --freeze-norms",
    )
    yield (
        whitened and bool(config.hidden),
        "Whitening needs a head of one linear layer; add --hidden none, or leave out --whiten and --whiten-first",
    )
    yield (
        whitened and config.multiscale,
        "Whitening needs a head on the backbone alone; leave out --multiscale, or --whiten and --whiten-first",
    )
    yield (
        bool(config.start_classes) and not whitened,
        "--start-classes needs whitening; add --whiten, or leave it out",
    )
