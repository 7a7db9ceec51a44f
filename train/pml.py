"""Losses of pytorch-metric-learning by name, with arguments from the recipe.

The library takes seconds to import, so it is imported only for one of its losses.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..runtime.errors import MissingExtraError, TrainingError
from ..runtime.text import printable
from .failures import is_out_of_memory
from .losses import BatchLoss
from .mining import Triplets

__all__ = ["PmlLoss", "check_pml"]

_REFUSED = {
    "BaseLossWrapper": "it is a base class",
    "BaseMetricLossFunction": "it is a base class",
    "CrossBatchMemory": "it wraps another loss and keeps embeddings from batch to batch, which no checkpoint holds",
    "DynamicSoftMarginLoss": "it keeps a histogram from batch to batch, which no checkpoint holds",
    "GenericPairLoss": "it is a base class",
    "InstanceLoss": "it takes the number of a class for a place in the batch",
    "ManifoldLoss": "it learns without classes",
    "MultipleLosses": "it is made of other losses, which a recipe cannot hold",
    "SelfSupervisedLoss": "it wraps another loss and compares two views of each picture, without classes",
    "SmoothAPLoss": "it finds the pictures of a class by their places in the batch, and only where P equals K",
    "VICRegLoss": "it compares two views of each picture, without classes",
}
# Objects, which a recipe cannot hold, and arguments that only the library passes between its
# classes.
_NOT_IN_RECIPES = frozenset({
    "self", "collect_stats", "distance", "embedding_reg_weight", "embedding_regularizer", "mat_based_loss", "reducer",
    "weight_init_func", "weight_reg_weight", "weight_regularizer",
})  # fmt: skip
_CLASSES, _DIMENSIONS = frozenset({"num_classes"}), frozenset({"embedding_size", "descriptors_dim"})
# Whole numbers, which their defaults do not distinguish from others.
_WHOLE = frozenset({"centers_per_class", "n_bins", "num_bins", "sub_centers"})
_REQUIRED = inspect.Parameter.empty


def check_pml(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse an unknown or unusable loss, or arguments that it does not take.

    Args:
        name: of a class in ``pytorch_metric_learning.losses``.
        arguments: by name.

    Raises:
        TrainingError: lists what is available.
        MissingExtraError: the library is not installed.

    """
    _check_arguments(name, _takes(_find(name)), arguments)


class PmlLoss(nn.Module):
    """A loss of pytorch-metric-learning on unit rows; class vectors, if any, are parameters.

    Args:
        name: of a class in ``pytorch_metric_learning.losses``.
        arguments: of the loss, by name.
        classes: C; labels are 0 to C − 1.
        dim: d, of the embedding.

    Raises:
        TrainingError: the loss is unknown or does not take these arguments.
        MissingExtraError: the library is not installed.

    """

    def __init__(self, name: str, arguments: Mapping[str, Any], classes: int, dim: int) -> None:
        super().__init__()
        kind = _find(name)
        takes = _takes(kind)
        _check_arguments(name, takes, arguments)
        required = {argument for argument, default in takes.items() if default is _REQUIRED}
        of_run = dict.fromkeys(_CLASSES & required, classes) | dict.fromkeys(_DIMENSIONS & required, dim)
        self._name = name
        with _explained(f"pml:{name} cannot be made with {_shown(arguments)}"):
            self.loss: nn.Module = kind(**arguments, **of_run)
        reducer: Any = self.loss.reducer
        reducer.register_forward_pre_hook(self._count)
        self._active = self._considered = 0

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor, triplets: Triplets | None = None) -> BatchLoss:
        """Return the loss of unit rows, float32 ``[n, d]``, of classes int64 ``[n]``.

        ``considered`` counts the elements (pairs, triplets, pictures or class vectors) that the
        loss averages, ``active`` those above 0. Both are 0 for a loss that is computed as one
        number. Random losses use torch's global generator.

        Args:
            embeddings: unit rows.
            labels: their classes.
            triplets: the triplets to train on, if the loss takes them; default: all in the batch.

        Raises:
            TrainingError: the library refuses this batch.

        """
        self._active = self._considered = 0
        tuples = None if triplets is None else (triplets.anchors, triplets.positives, triplets.negatives)
        with _explained(f"pml:{self._name} cannot be computed on this batch"):
            loss = self.loss(embeddings, labels, tuples)
        return BatchLoss(loss.reshape(()), self._active, self._considered)

    def _count(self, reducer: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Count the elements on their way to the reducer."""
        del reducer
        for term in inputs[0].values():
            losses = term["losses"]
            if isinstance(losses, torch.Tensor) and term["reduction_type"] != "already_reduced":
                self._active += int((losses.detach() > 0).sum())
                self._considered += losses.numel()


def _find(name: str) -> type[nn.Module]:
    try:
        from pytorch_metric_learning import losses
    except ModuleNotFoundError:
        raise MissingExtraError(f"--loss pml:{printable(name)}", "train") from None
    if name in _REFUSED:
        raise TrainingError(
            f"--loss pml:{name} cannot be used here: {_REFUSED[name]}; expected a loss of a batch and its classes, "
            "such as pml:MultiSimilarityLoss or pml:ProxyAnchorLoss."
        )
    known = {
        key: value
        for key, value in vars(losses).items()
        if inspect.isclass(value) and issubclass(value, nn.Module) and key not in _REFUSED
    }
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"expected one of {', '.join(sorted(known))}."
    raise TrainingError(f"--loss pml:{printable(name)}: pytorch-metric-learning has no such loss; {hint}")


def _takes(kind: type[nn.Module]) -> dict[str, Any]:
    """Return the arguments of a loss and of its base classes, with their defaults."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        parameters = inspect.signature(vars(base)["__init__"]).parameters if "__init__" in vars(base) else {}
        for parameter in parameters.values():
            by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if by_name and parameter.name not in _NOT_IN_RECIPES:
                found.setdefault(parameter.name, parameter.default)
    return found


def _check_arguments(name: str, takes: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    own = {key: default for key, default in takes.items() if key not in _CLASSES | _DIMENSIONS}
    listed = ", ".join(f"{key} ({'no default' if value is _REQUIRED else value})" for key, value in own.items())
    may = f"it takes {listed}" if own else "it takes none"
    for key, value in arguments.items():
        if key not in own:
            raise TrainingError(f"[loss.arguments] of pml:{name}: unknown argument {printable(repr(key))}; {may}.")
        kinds, noun = _expected(key, own[key])
        if type(value) not in kinds:
            raise TrainingError(
                f"[loss.arguments] of pml:{name}: {key} = {printable(repr(value))}; expected {noun}; {may}."
            )
    missing = [key for key, default in own.items() if default is _REQUIRED and key not in arguments]
    if missing:
        raise TrainingError(f"[loss.arguments] of pml:{name} lacks {', '.join(missing)}; {may}.")


def _expected(key: str, default: Any) -> tuple[tuple[type, ...], str]:
    """Return the allowed types of an argument and their name, derived from its default."""
    if isinstance(default, bool):
        return (bool,), "true or false"
    if isinstance(default, str):
        return (str, int), "a text or a whole number"
    return ((int,), "a whole number") if key in _WHOLE else ((int, float), "a number")


def _shown(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {printable(repr(value))}" for key, value in arguments.items()) or "no arguments"


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn the library's errors about arguments or a batch into one sentence."""
    try:
        yield
    except (ArithmeticError, AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise TrainingError(
            f"{what} ({printable(reason[0])}); change [loss.arguments], or name another loss."
        ) from error
