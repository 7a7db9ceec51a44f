"""The values of options that are ``auto``: chosen when a new run starts, by its pictures and options.

The run stores them as plain values, so a resumed run keeps them whatever a later version chooses.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ...models.backbones import preparation
from ...runtime.errors import PictureError
from ...runtime.images import name_of, opened_picture
from ...runtime.progress import Monitor
from ..data.splits import TrainingData
from ..options.config import KEPT_WEIGHT, SMALL_SIDE, SMALL_SIZE, USUAL_SIZE, TrainConfig
from .distributed import Ranks

__all__ = ["decided", "median_side", "with_kept_weight"]

# Enough for a median; the headers of as many files are read in a second.
_PICTURES = 200
# Part of the seeds of these draws alone.
_STREAM = 8
_WHY_RECORDED = "timm's weights of this network were trained with it"


def with_kept_weight(config: TrainConfig) -> TrainConfig:
    """Choose ``keep_start``, for which no pictures are needed."""
    if "keep_start" not in config.automatic:
        return config
    return dataclasses.replace(config, keep_start=_kept_weight(config)[0])


def _kept_weight(config: TrainConfig) -> tuple[float, str]:
    """Return the weight of the starting features, and the reason for it."""
    if config.unfreeze or not config.freeze_backbone:
        return 0.0, "the backbone is trained"
    if config.weights == "none":
        return 0.0, "the backbone has random weights"
    return KEPT_WEIGHT, "the backbone is pretrained and frozen"


def decided(config: TrainConfig, data: TrainingData, ranks: Ranks, monitor: Monitor) -> TrainConfig:
    """Choose every option that is ``auto``; one remark tells which values, and why."""
    chosen: dict[str, Any] = {}
    reasons: list[str] = []
    recorded = preparation(config.backbone)
    if "image_size" in config.automatic and recorded is not None and recorded.fixed:
        chosen["image_size"] = recorded.size
        reasons.append(f"--image-size {recorded.size} ({_WHY_RECORDED}; a smaller size is faster)")
    elif "image_size" in config.automatic:
        side = ranks.on_first(lambda: median_side(data, config.seed))
        chosen["image_size"] = SMALL_SIZE if side <= SMALL_SIDE else USUAL_SIZE
        reasons.append(
            f"--image-size {chosen['image_size']} (the pictures' longer side is {side:.0f} px in the median)"
        )
    if "filter" in config.automatic:
        chosen["filter"] = "bilinear" if recorded is None else recorded.filter
    if chosen.get("filter", "bilinear") != "bilinear":
        reasons.append(f"--filter {chosen['filter']} ({_WHY_RECORDED})")
    if "keep_start" in config.automatic:
        chosen["keep_start"], why = _kept_weight(config)
        reasons.append(f"--keep-start {chosen['keep_start']:g} ({why})")
    if reasons:
        monitor.remark(f"Chosen: {', '.join(reasons)}.")
    return dataclasses.replace(config, **chosen)


def median_side(data: TrainingData, seed: int) -> float:
    """Return the median longer side in pixels of a sample of the training pictures, by their headers.

    Pictures without a readable header do not count; if there are no others, it is 0.
    """
    random = np.random.default_rng((seed, _STREAM))
    drawn = random.permutation(data.fit)[:_PICTURES]
    sides = []
    for position in drawn.tolist():
        try:
            with data.train[position].open() as file, opened_picture(file, name_of(file)) as image:
                sides.append(max(image.size))
        except PictureError:  # reported when it is embedded
            continue
    return float(np.median(sides)) if sides else 0.0
