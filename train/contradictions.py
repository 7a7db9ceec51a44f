"""Check combinations of options: each is allowed alone, but not together."""

from __future__ import annotations

from collections.abc import Iterator

from ..runtime.errors import TrainingError
from ..runtime.text import printable
from .config import TrainConfig

__all__ = ["check_together"]

# Whether the options contradict each other, and the message without its full stop.
Contradiction = tuple[bool, str]


def check_together(config: TrainConfig) -> None:
    """Refuse options that contradict each other.

    Only for a new run: a resumed run has its stored options, and any others are reported as
    differences.

    Raises:
        TrainingError: names the options, and the one to leave out.

    """
    for found in (_of_the_backbone, _of_low_sizes, _of_the_loss, _of_the_finish):
        for holds, sentence in found(config):
            if holds:
                raise TrainingError(f"{sentence}.")


def _of_the_backbone(config: TrainConfig) -> Iterator[Contradiction]:
    yield (
        bool(config.unfreeze) and not config.freeze_backbone,
        "--unfreeze counts stages of a frozen backbone, and --no-freeze-backbone trains all of it; leave out one",
    )
    yield (
        bool(config.freeze_last) and config.freeze_backbone,
        "--freeze-last counts stages of a backbone that is trained; add --no-freeze-backbone, or leave it out",
    )


def _of_low_sizes(config: TrainConfig) -> Iterator[Contradiction]:
    size, epochs = bool(config.low_image_size), bool(config.low_epochs)
    yield size != epochs, "--low-image-size and --low-epochs go together; give both, or neither"
    yield (
        size and config.freeze_backbone,
        "--low-image-size is for a backbone that is trained on pictures; add --no-freeze-backbone, or leave it out",
    )
    yield (
        size and config.multiscale,
        "The low-resolution paths of --multiscale have one picture size; leave out --low-image-size",
    )
    yield (
        config.low_image_size > config.image_size,
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
        f"--bnneck stands before the softmax term, which --loss {config.loss} has not; name {config.loss}+softmax, "
        "or leave it out",
    )


def _of_the_finish(config: TrainConfig) -> Iterator[Contradiction]:
    share, whitened = bool(config.start_share), config.whiten or config.whiten_first
    yield (
        share and config.freeze_backbone and not config.unfreeze,
        "--start-share goes back towards the starting backbone, and a frozen one never leaves it; add --unfreeze, or "
        "leave it out",
    )
    yield (
        share and not config.freeze_norms,
        "--start-share mixes weights, which batch statistics of their own would not fit; add --freeze-norms",
    )
    yield (
        whitened and bool(config.hidden),
        "Whitening fits a head of one linear layer; add --hidden none, or leave it out",
    )
    yield (
        whitened and config.multiscale,
        "Whitening fits a head over the backbone alone; leave out --multiscale, or it",
    )
    yield (
        bool(config.start_classes) and not whitened,
        "--start-classes has a say in what whitening keeps; add --whiten, or leave it out",
    )
