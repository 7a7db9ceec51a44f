"""Exponential moving average of the weights, which is then evaluated and saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from ..models.network import EmbeddingNet

__all__ = ["MovingAverage"]


class MovingAverage:
    """The average a ← δ a + (1 − δ) w of the network's changing values (Polyak and Juditsky 1992).

    In the first steps, δ is (1 + n) / (10 + n), so that the random start does not linger in the
    average.

    Args:
        network: the source of trained parameters and floating-point buffers.
        decay: δ; 0 keeps the weights unchanged and stores nothing.

    """

    def __init__(self, network: EmbeddingNet, decay: float) -> None:
        self._network, self._decay = network, decay
        trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
        kept = {name for name, buffer in network.named_buffers() if buffer.is_floating_point()}
        names = (trained | kept) & set(network.state_dict())
        self._average = {
            name: value.detach().clone() for name, value in network.state_dict().items() if decay and name in names
        }
        self._steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after a step to the average."""
        if not self._decay:
            return
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        values = self._network.state_dict()
        torch._foreach_lerp_(list(self._average.values()), [values[name] for name in self._average], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the network the averaged weights within the context."""
        values = self._network.state_dict()
        own = {name: values[name].clone() for name in self._average}
        try:
            self._network.load_state_dict(self._average, strict=False)
            yield
        finally:
            self._network.load_state_dict(own, strict=False)

    def state_dict(self) -> dict[str, object]:
        """Return the state for a checkpoint."""
        return {"average": self._average, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore the state from a checkpoint.

        Raises:
            KeyError, TypeError, ValueError: the state is of another network or of other options.

        """
        average, steps = state["average"], state["steps"]
        if not isinstance(average, Mapping) or set(average) != set(self._average) or not isinstance(steps, int):
            raise ValueError("the averaged weights are of another network")
        for name, value in self._average.items():
            value.copy_(average[name])
        self._steps = steps
