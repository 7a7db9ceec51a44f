"""The flags of ``deeprank-train``: generated from the table of options, and parsed."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ...runtime.cli import DeviceOption, HelpAllOption, LabelsOption, VerboseOption, VersionOption, YesOption
from ...runtime.errors import TrainingError
from ...runtime.text import printable
from .config import AUTO, Option, options
from .recipes import load_config

__all__ = ["OTHER_NAMES", "typed_options", "with_flags"]

_ConfigOption = Annotated[
    str | None, typer.Option("--config", help="Recipe (default, digits, scenes, seed) or TOML file. Default: that of "
    "the data set digits or scenes, else default.", metavar="RECIPE|FILE", show_default=False)
]  # fmt: skip


# Common to all commands; help lists them last.
_LAST = ("verbose", "version", "help_all")

_FIXED: dict[str, Any] = {
    "data": (
        Annotated[
            str | None,
            typer.Argument(
                help="Folder or zip of class folders, or of train, val and test folders with class folders in them; "
                "CSV of path,label[,split]; the word scenes or digits. Default: data/tiny-imagenet-200, fetched once.",
                metavar="[DATA]",
                show_default=False,
            ),
        ],
        None,
    ),
    "config": (_ConfigOption, None),
    "val": (
        Annotated[
            str | None,
            typer.Option("--val", help="Evaluate on all pictures of this data set instead.", metavar="DATA"),
        ],
        None,
    ),
    "labels": (LabelsOption, None),
    "ratings": (
        Annotated[
            Path | None,
            typer.Option(
                "--ratings",
                help="Learn a head on a model's vectors from a CSV of query,positive,negative, paths in DATA or "
                "--index.",
                metavar="CSV",
            ),
        ],
        None,
    ),
    "index": (
        Annotated[
            Path | None,
            typer.Option(
                "--index", help="Learn from the ratings and vectors of an index, without DATA.", metavar="INDEX"
            ),
        ],
        None,
    ),
    "model": (
        Annotated[
            str | None,
            typer.Option(
                "--model",
                help="With --ratings and DATA: the model that learns. Default: ./model.onnx, else the bundled one.",
                metavar="FILE",
                hidden=True,
            ),
        ],
        None,
    ),
    "with_labels": (
        Annotated[bool, typer.Option("--with-labels", help="Learn from class labels, too.", hidden=True)],
        False,
    ),
    "force": (
        Annotated[
            bool,
            typer.Option("--force", help="Write the head even if it is not better.", hidden=True),
        ],
        False,
    ),
    "out": (
        Annotated[
            Path | None,
            typer.Option("--out", help="Run folder. Default: runs/<time>-<backbone>, or -ratings.", metavar="RUN"),
        ],
        None,
    ),
    "resume": (
        Annotated[
            Path | None,
            typer.Option("--resume", help="Resume this run; without RUN: runs/latest.", metavar="[RUN]"),
        ],
        None,
    ),
    "cache": (
        Annotated[
            Path,
            typer.Option(
                "--cache", help="Folder for the cached features of frozen backbones.", metavar="DIR", hidden=True
            ),
        ],
        Path("runs/.cache"),
    ),
    "yes": (YesOption, False),
    "device": (DeviceOption, "auto"),
    "threads": (
        Annotated[
            int | None,
            typer.Option(
                "--threads", min=1, help="CPU threads of the network. Default: all usable cores.", hidden=True
            ),
        ],
        None,
    ),
    "verbose": (VerboseOption, False),
    "version": (VersionOption, False),
    "help_all": (HelpAllOption, False),
}

_PANELS = {"network": "Network", "picture": "Picture", "augmentation": "Augmentation", "batch": "Batches",
           "sampling": "Sampling", "loss": "Loss", "optimizer": "Optimisation", "data": "Data",
           "run": "Run"}  # fmt: skip


def with_flags(command: Any) -> Any:
    """Give a function with keyword arguments one flag per option.

    A flag that is not given is None. Help shows the defaults of the default recipe.
    """
    defaults = load_config("default", {})
    fixed = {
        name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _FIXED.items()
    }
    last = [fixed.pop(name) for name in _LAST]
    flags = [(_parameter(option, getattr(defaults, option.name)), option.common) for option in options()]
    common, others = ([flag for flag, of_all in flags if of_all is common] for common in (True, False))
    parameters = [*fixed.values(), *common, *last, *others]
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _parameter(option: Option, default: Any) -> inspect.Parameter:
    name = option.name.replace("_", "-")
    on, off = f"--{name}", f"--no-{name}"
    flag, shown = on, _shown(default)
    if option.kind is bool:
        flag, shown = f"{on}/{off}", on if default else off
    help_text = option.help + (f" ({', '.join((*option.choices, *option.forms))})" if option.choices else "")
    typed: Any = str if option.auto or option.kind in (tuple, dict) else option.kind
    number = f"N|{AUTO}" if option.auto else "N"
    flagged = typer.Option(
        flag,
        help=help_text,
        metavar=number if option.kind in (int, float) else None,
        show_default=shown,
        hidden=not option.common,
        rich_help_panel=None if option.common else _PANELS[option.section],
    )
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[typed | None, flagged]
    )


def _shown(default: Any) -> str:
    """Return a default as typed on the command line."""
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "none"
    if isinstance(default, Mapping):
        return ",".join(f"{name}={value}" for name, value in default.items()) or "none"
    return str(default)


def typed_options(typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options given on the command line, each in its type.

    Raises:
        TrainingError: a list or a table has the wrong syntax.

    """
    overrides = {name: value for name, value in typed.items() if value is not None}
    for option in options():
        if option.auto and option.name in overrides:
            overrides[option.name] = _number_or_word(overrides[option.name], option.kind)
    if "hidden" in overrides:
        overrides["hidden"] = _widths(overrides["hidden"])
    if "arguments" in overrides:
        overrides["arguments"] = _table(overrides["arguments"])
    return overrides


def _number_or_word(text: str, kind: type) -> Any:
    """Return a number of ``kind``; text that is none stays, to be checked with all other values."""
    try:
        return kind(text)
    except ValueError:
        return text


def _widths(text: str) -> tuple[int, ...]:
    """Parse ``--hidden 1024,512`` (or ``none``)."""
    if text.strip().lower() in ("", "none"):
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise TrainingError(f"--hidden {printable(text)}: expected widths such as 1024 or 1024,512, or none.") from None


def _table(text: str) -> dict[str, Any]:
    """Parse ``--arguments alpha=2.0,base=0.5`` (or ``none``); values are TOML."""
    if text.strip().lower() in ("", "none"):
        return {}
    try:
        return dict(tomllib.loads(f"arguments = {{{text}}}")["arguments"])
    except tomllib.TOMLDecodeError:
        raise TrainingError(
            f"--arguments {printable(text)}: expected name=value pairs such as alpha=2.0,base=0.5, or none."
        ) from None


_BATCH = "the batch size is --classes-per-batch times --pictures-per-class"
_RATE = "--learning-rate (for the head; --backbone-learning-rate for the backbone)"
_DATA = "give the data set without an option: deeprank-train PHOTOS"
_VAL = "name other evaluation pictures with --val; without it, the val split or a tenth of each class is used"
_BEST = "every epoch is evaluated and the best network is kept; --epochs sets their number"
_WORKERS = "one thread per core reads pictures; --threads sets the threads of the network"
_GPU = "--device (auto, cpu or cuda)"
_PROCESSES = "start several processes with: torchrun --nproc-per-node N -m deeprank.train"
_UNFREEZE = "train the last N stages of the backbone with --unfreeze N, or all of it with --no-freeze-backbone"
_WEIGHTS = "name the starting weights with --weights; the default is ImageNet, and none means random weights"
_AUGMENTATION = "set the augmentation with --crop, --flip and --jitter"

# Names without dashes, by our option or by a sentence of advice; see
# :func:`~...runtime.console.unknown_option`.
_MEANINGS: Mapping[str, Iterable[str]] = {
    _BATCH: ("batch-size", "batchsize", "bs", "b", "batch", "train-batch-size", "per-device-train-batch-size"),
    _RATE: ("lr", "l", "rate", "eta", "base-lr", "max-lr", "init-lr", "lr-head", "head-lr", "head-learning-rate"),
    _DATA: ("data", "d", "dataset", "data-dir", "data-path", "data-set", "train-dir", "train-data", "root", "input"),
    _VAL: ("validation", "val-dir", "val-data", "val-split", "valid", "eval-data", "test", "test-size", "test-data"),
    _BEST: ("patience", "early-stopping", "early-stop", "save-best"),
    _WORKERS: ("workers", "num-workers", "n-workers", "j", "jobs", "dataloader-num-workers"),
    _GPU: ("gpu", "cuda", "cpu", "use-gpu", "use-cuda", "gpu-id", "no-cuda", "mps", "accelerator"),
    _PROCESSES: ("gpus", "num-gpus", "n-gpus", "nproc", "nproc-per-node", "devices", "world-size", "distributed"),
    _UNFREEZE: ("finetune", "fine-tune", "unfreeze-layers", "trainable-layers", "unfrozen"),
    _WEIGHTS: ("pretrained", "no-pretrained", "checkpoint", "ckpt", "init", "load", "pretrained-weights"),
    _AUGMENTATION: ("augment", "augmentation", "no-augment", "aug", "transforms", "mixup", "color-jitter"),
    "--backbone-learning-rate": ("backbone-lr", "lr-backbone", "encoder-lr"),
    "--proxy-learning-rate": ("proxy-lr", "loss-lr", "lr-proxy"),
    "--epochs": ("epoch", "e", "num-epochs", "n-epochs", "nepochs", "max-epochs", "num-train-epochs"),
    "--steps-per-epoch": ("steps", "max-steps", "iterations", "iters", "num-steps", "n-iters", "batches-per-epoch"),
    "--backbone": ("arch", "a", "m", "architecture", "net", "network", "encoder", "trunk", "model-name"),
    "--keep-start": ("keep", "keep-features", "keep-pretrained", "concat", "concatenate"),
    "--image-size": ("img-size", "imgsz", "size", "s", "resolution", "input-size", "img", "crop-size", "resize"),
    "--embedding-dim": (
        "dim", "embed-dim", "emb-dim", "embedding-size", "embedding", "emb-size", "sz-embedding", "feature-dim",
        "output-dim", "out-dim",
    ),
    "--pictures-per-class": (
        "samples-per-class", "images-per-class", "instances-per-class", "num-instances", "m-per-class", "k-per-class",
    ),
    "--freeze-backbone": ("freeze", "frozen", "linear-probe", "freeze-encoder", "freeze-layers"),
    "--out": ("output", "o", "output-dir", "save-dir", "save", "run", "run-dir", "name", "project"),
    "--resume": ("continue", "restart", "resume-from", "resume-from-checkpoint", "r"),
    "--config": ("cfg", "c", "config-file", "recipe", "yaml", "toml"),
    "--cache": ("cache-dir", "features", "feature-cache"),
    "--optimizer": ("optim", "opt", "optimiser"),
    "--weight-decay": ("wd", "decay", "l2"),
    "--schedule": ("scheduler", "lr-scheduler", "lr-schedule", "sched", "lr-scheduler-type"),
    "--warmup-epochs": ("warmup", "warm-up", "warmup-steps", "warmup-ratio"),
    "--loss": ("criterion", "loss-fn", "loss-type", "loss-name", "objective"),
    "--negatives": ("miner", "mining", "negative-mining", "hard-negatives", "triplet-mining", "mining-strategy"),
    "--margin": ("alpha", "gap", "triplet-margin"),
    "--temperature": ("temp", "tau", "t", "scale"),
    "--label-smoothing": ("smoothing", "smooth"),
    "--mixed-precision": ("amp", "fp16", "half", "bf16", "precision", "no-amp"),
    "--ema": ("ema-decay", "model-ema", "averaged-weights"),
    "--seed": ("random-seed", "random-state", "manual-seed"),
    "--holdout-classes": ("unseen-classes", "held-out-classes", "open-set"),
    "--holdout-pictures": ("holdout", "held-out", "validation-fraction", "val-fraction"),
    "--low-image-size": ("low-size", "low-resolution", "progressive-resizing"),
    "--layer-decay": ("llrd", "layerwise-lr-decay", "layer-wise-decay", "lr-decay", "layer-lr-decay"),
    "--pool": ("pooling", "global-pool", "pool-type"),
    "--filter": ("interpolation", "resample", "resampling"),
    "--crop-ratio": ("crop-pct", "crop-percent", "center-crop"),
    "--yes": ("y", "assume-yes", "no-input", "force-download", "download"),
}  # fmt: skip

OTHER_NAMES: Mapping[str, str] = {
    f"{dashes}{name}": meaning
    for meaning, names in _MEANINGS.items()
    for name in names
    for dashes in (("--",) if len(name) > 1 else ("-", "--"))
}
