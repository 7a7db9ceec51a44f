"""Compare embedding speeds in one process, by turns, so that a busy moment affects all runners."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from ..images import Picture
from ..progress import Advance, no_progress

__all__ = ["THROUGHPUT_BATCH", "Runner", "Speed", "measure_speeds"]

# Embeds uint8 [n, S, S, 3] and returns when done; the result is ignored.
Runner = Callable[[Picture], object]

THROUGHPUT_BATCH = 32

# The first call allocates; TorchScript profiles in it, and compiles in the second.
_WARM_UP = 2
_MIN_ROUNDS, _MAX_ROUNDS = 3, 100


@dataclass(frozen=True)
class Speed:
    """``latency_ms``: time of a single picture; ``pictures_per_second``: in batches of 32."""

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
    """Measure the networks without decoding: the median over rounds with one turn per runner.

    Args:
        runners: by name; each takes uint8 ``[n, S, S, 3]`` (noise, equal for equal sides).
        side: S of each runner, or of all.
        seconds: average time per runner, once for latency and once for throughput; from 3 to 100
            rounds.
        advance: called after each call of a runner.

    Returns:
        the speed of each runner, by name, in the given order.

    Raises:
        Exception: any error of a runner; KeyError for a runner without a side.

    """
    sides = {name: side if isinstance(side, int) else side[name] for name in runners}
    latencies = _median_seconds(runners, sides, 1, seconds, advance)
    batches = _median_seconds(runners, sides, THROUGHPUT_BATCH, seconds, advance)
    return {name: Speed(1000 * latencies[name], THROUGHPUT_BATCH / batches[name]) for name in runners}


def _median_seconds(
    runners: Mapping[str, Runner], sides: Mapping[str, int], count: int, seconds: float, advance: Advance
) -> dict[str, float]:
    """Return each runner's median seconds for ``count`` pictures."""
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
    for done in range(_MAX_ROUNDS):
        if done >= _MIN_ROUNDS and time.perf_counter() >= end:
            break
        for name in runners:
            turns[name].append(turn(name))
    return {name: statistics.median(times) for name, times in turns.items()}


def _noise(count: int, side: int) -> Picture:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
