"""Exponential moving average of the weights: what is evaluated and kept, where it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from ..models.network import EmbeddingNet

__all__ = ["MovingAverage"]


class MovingAverage:
    """The average a ← δ a + (1 − δ) w of everything in the network that changes (Polyak and Juditsky 1992).

    Early on the average would still hold the random start; until enough steps are done, δ is (1 + n) / (10 + n).

    Args:
        network: whose trained parameters and floating-point buffers are averaged.
        decay: δ; 0 keeps the weights as they are, and nothing is stored.

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
        """Take in the weights after a step."""
        if not self._decay:
            return
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        values = self._network.state_dict()
        torch._foreach_lerp_(list(self._average.values()), [values[name] for name in self._average], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the network have the averaged weights for a while."""
        values = self._network.state_dict()
        own = {name: values[name].clone() for name in self._average}
        try:
            self._network.load_state_dict(self._average, strict=False)
            yield
        finally:
            self._network.load_state_dict(own, strict=False)

    def state_dict(self) -> dict[str, object]:
        """Return what a checkpoint holds."""
        return {"average": self._average, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from a checkpoint.

        Raises:
            KeyError, TypeError, ValueError: it is of another network or of other options.

        """
        average, steps = state["average"], state["steps"]
        if not isinstance(average, Mapping) or set(average) != set(self._average) or not isinstance(steps, int):
            raise ValueError("the averaged weights are of another network")
        for name, value in self._average.items():
            value.copy_(average[name])
        self._steps = steps
