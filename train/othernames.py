"""Names of options in other tools, and our names for them; read when an unknown option is typed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["OTHER_NAMES"]

_BATCH = (
    "a batch is --classes-per-batch classes with --pictures-per-class pictures of each, and its size is their product"
)
_RATE = "--learning-rate (that of the head; the backbone's is --backbone-learning-rate)"
_DATA = "the data set is named without an option: deeprank-train PHOTOS"
_VAL = (
    "name other pictures to evaluate on with --val; without it, the val split of the data set is taken, or a tenth of "
    "each class"
)
_BEST = "every epoch is evaluated and the best network is kept; --epochs says how many there are"
_WORKERS = "pictures are read by as many threads as there are cores; --threads is about those of the network"
_GPU = "--device (auto, cpu or cuda)"
_PROCESSES = "several processes are started by torchrun --nproc-per-node N -m deeprank.train"
_UNFREEZE = "the last N stages of the backbone are trained by --unfreeze N, and all of it by --no-freeze-backbone"
_WEIGHTS = "starting weights are named with --weights; ImageNet's are the default, and --weights none are random ones"
_AUGMENTATION = "pictures are changed by --crop, --flip and --jitter"

# Names without dashes, by our option or by a sentence of advice; see
# :func:`~..runtime.console.unknown_option`.
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
    "--backbone": ("arch", "a", "model", "m", "architecture", "net", "network", "encoder", "trunk", "model-name"),
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
    "--yes": ("y", "assume-yes", "no-input", "force-download", "download"),
}  # fmt: skip

OTHER_NAMES: Mapping[str, str] = {
    f"{dashes}{name}": meaning
    for meaning, names in _MEANINGS.items()
    for name in names
    for dashes in (("--",) if len(name) > 1 else ("-", "--"))
}
