"""How fast ways of embedding are, measured side by side: in turn and in one process, so that a busy moment hits all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from ..images import Picture
from ..progress import Advance, no_progress

__all__ = ["THROUGHPUT_BATCH", "Runner", "Speed", "measure_speeds"]

# Embeds uint8 [n, S, S, 3], and returns when that is done; what it returns is not looked at.
Runner = Callable[[Picture], object]

THROUGHPUT_BATCH = 32

# The first call allocates; what TorchScript has seen in it is compiled in the second.
_WARM_UP = 2
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 100


@dataclass(frozen=True)
class Speed:
    """``latency_ms``: milliseconds of one picture alone; ``pictures_per_second``: in batches of 32."""

    latency_ms: float
    pictures_per_second: float

    def to_dict(self) -> dict[str, float]:
        """Return the figures for JSON."""
        return asdict(self)


def measure_speeds(
    runners: Mapping[str, Runner],
    side: Mapping[str, int] | int,
    *,
    seconds: float = 3.0,
    advance: Advance = no_progress,
) -> dict[str, Speed]:
    """Measure the network alone, without decoding: the median over rounds in which each runner has one turn.

    Args:
        runners: what is measured, by name; each takes uint8 ``[n, S, S, 3]`` (noise, the same for all of one side).
        side: S of each runner, or of all.
        seconds: how long latency is measured, and again throughput, for each runner on average; there are 3 rounds
            at least and 100 at most.
        advance: told of each call.

    Returns:
        the speed of each runner, by name, in the order given.

    Raises:
        whatever a runner raises; KeyError for a runner without a side.

    """
    sides = {name: side if isinstance(side, int) else side[name] for name in runners}
    latencies = _median_seconds(runners, sides, 1, seconds, advance)
    batches = _median_seconds(runners, sides, THROUGHPUT_BATCH, seconds, advance)
    return {name: Speed(1000 * latencies[name], THROUGHPUT_BATCH / batches[name]) for name in runners}


def _median_seconds(
    runners: Mapping[str, Runner], sides: Mapping[str, int], count: int, seconds: float, advance: Advance
) -> dict[str, float]:
    """Return the seconds that each runner takes for ``count`` pictures."""
    pictures = {name: _noise(count, size) for name, size in sides.items()}
    turns: dict[str, list[float]] = {name: [] for name in runners}

    def turn(name: str) -> float:
        start = time.perf_counter()
        runners[name](pictures[name])
        taken = time.perf_counter() - start
        advance()
        return taken

    for name in runners:
        for _ in range(_WARM_UP):
            turn(name)
    end = time.perf_counter() + seconds * len(runners)
    for done in range(_MOST_ROUNDS):
        if done >= _FEWEST_ROUNDS and time.perf_counter() >= end:
            break
        for name in runners:
            turns[name].append(turn(name))
    return {name: statistics.median(times) for name, times in turns.items()}


def _noise(count: int, side: int) -> Picture:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
