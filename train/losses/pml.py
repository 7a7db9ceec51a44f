"""Losses of pytorch-metric-learning by name, with arguments from the recipe.

The library is imported only where one of its losses is used: it takes seconds.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ...runtime.errors import MissingExtraError, TrainingError
from ...runtime.text import first_line, printable
from ..run.failures import enough_memory, is_out_of_memory
from .triplet import BatchLoss, Triplets

__all__ = ["PmlLoss", "check_pml"]

_REFUSED = {
    "BaseLossWrapper": "it is a base class",
    "BaseMetricLossFunction": "it is a base class",
    "CrossBatchMemory": "it wraps another loss and keeps embeddings from batch to batch, which no checkpoint holds",
    "DynamicSoftMarginLoss": "it keeps a histogram from batch to batch, which no checkpoint holds",
    "GenericPairLoss": "it is a base class",
    "InstanceLoss": "it uses the number of a class as a position in the batch",
    "ManifoldLoss": "it does not use classes",
    "MultipleLosses": "it combines other losses, which a recipe cannot describe",
    "SelfSupervisedLoss": "it wraps another loss and compares two views of each picture, without classes",
    "SmoothAPLoss": "it finds the pictures of a class by their positions in the batch, and only if P equals K",
    "VICRegLoss": "it compares two views of each picture, without classes",
}
# Arguments that no message names: objects, which a recipe cannot hold, and what the library's classes hand each other.
_NOT_IN_RECIPES = frozenset({
    "self", "collect_stats", "distance", "embedding_reg_weight", "embedding_regularizer", "mat_based_loss", "reducer",
    "weight_init_func", "weight_reg_weight", "weight_regularizer",
})  # fmt: skip
_CLASSES, _DIMENSIONS = frozenset({"num_classes"}), frozenset({"embedding_size", "descriptors_dim"})
_REQUIRED = inspect.Parameter.empty
# Of the batch that arguments are tried on.
_CLASSES_TRIED = 4


def check_pml(name: str, arguments: Mapping[str, Any], dim: int) -> None:
    """Make a loss and compute it on a small batch, as some constructors accept any argument.

    Args:
        name: of a class in ``pytorch_metric_learning.losses``.
        arguments: by name.
        dim: d, of the embedding.

    Raises:
        TrainingError: there is no such loss, it cannot be used here, or it does not take these arguments.
        MissingExtraError: the library is not installed.

    """
    labels = torch.arange(_CLASSES_TRIED).repeat(2)
    rows = nn.functional.normalize(torch.randn(len(labels), dim, generator=torch.Generator().manual_seed(0)))
    with torch.random.fork_rng(devices=[]), enough_memory(f"--loss pml:{name}", "its [loss.arguments]"):
        PmlLoss(name, arguments, _CLASSES_TRIED, dim)(rows, labels)


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
        required = {argument for argument, default in takes.items() if default is _REQUIRED}
        of_run = dict.fromkeys(_CLASSES & required, classes) | dict.fromkeys(_DIMENSIONS & required, dim)
        shown = ", ".join(f"{key} = {printable(repr(value))}" for key, value in arguments.items()) or "no arguments"
        self._name, self._takes = f"pml:{name} with {shown}", _listed(takes)
        with self._explained("cannot be made"):
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
            triplets: those to learn from, where the loss takes them; default: every triplet of the batch.

        Raises:
            TrainingError: the library refuses this batch.

        """
        self._active = self._considered = 0
        tuples = None if triplets is None else (triplets.anchors, triplets.positives, triplets.negatives)
        with self._explained("cannot be computed on a batch"):
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

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn what the library raises over its arguments or a batch into a sentence."""
        try:
            yield
        except Exception as error:  # the library's classes raise a dozen kinds
            if is_out_of_memory(error):
                raise
            raise TrainingError(
                f"{self._name} {what} ({first_line(error)}); it takes {self._takes}. Change [loss.arguments], or name "
                "another loss."
            ) from error


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
    takes: dict[str, Any] = {}
    for base in kind.__mro__:
        parameters = inspect.signature(vars(base)["__init__"]).parameters if "__init__" in vars(base) else {}
        for parameter in parameters.values():
            by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if by_name and parameter.name not in _NOT_IN_RECIPES:
                takes.setdefault(parameter.name, parameter.default)
    return takes


def _listed(takes: Mapping[str, Any]) -> str:
    own = {key: value for key, value in takes.items() if key not in _CLASSES | _DIMENSIONS}
    return ", ".join(f"{key} ({'no default' if value is _REQUIRED else value})" for key, value in own.items()) or "none"
