"""The library as a target: one worker process takes many inputs, under limits, and is started anew when it dies."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from budgets import allowed
from cases import Case
from fixture import FARTHEST, World
from harm import Harm
from limits import Limits, Meter, end_tree, over_limits, prepare_child, reset_peak
from outcomes import ANSWERED, CRASHED, OVER, REFUSED, WRONG, Outcome

__all__ = ["Library"]

_INPUTS_A_PROCESS = 300
_POLL_S = 0.01


class Library:
    """Runs inputs through the library."""

    name = "library"

    def __init__(self, world: World) -> None:
        self._world = world
        self._worker: subprocess.Popen[bytes] | None = None
        self._said = world.folder / "cases" / "worker.txt"
        self._taken = 0

    def accepts(self, case: Case) -> bool:
        """Tell whether such inputs are tried here."""
        return case.kind.family != "http"

    def run(self, case: Case, folder: Path, path: Any, only: str = "") -> Iterator[Outcome]:
        """Let the worker take an input and say what came of it."""
        worker = self._started()
        harm = Harm(folder)
        meter = Meter(worker.pid)
        reset_peak(worker.pid)
        idle, spent = meter.read()
        meter.peak = 0
        assert worker.stdin is not None
        asked = {"family": case.kind.family, "path": str(path)}
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.write(json.dumps(asked).encode() + b"\n")
            worker.stdin.flush()
        limits = allowed(case.kind.family, path, planted=case.kind.group == "planted")
        said, over = self._wait(worker, meter, idle, spent, limits)
        grown = max(0, meter.peak - idle)
        if not over and grown > limits.memory:
            over = f"{grown / 1e6:.0f} MB"
        verdict, detail = self._judged(case, said, over, harm)
        # What a model that was refused has begun runs to its end: it would count for the next input.
        if said is None or verdict == OVER or case.kind.family == "model":
            self.close()
        cpu_s = meter.cpu_s - spent if said is None else float(said["cpu_s"])
        yield Outcome(case.name, case.kind.group, self.name, case.kind.family, verdict, detail, grown, cpu_s)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._worker is not None and (self._worker.poll() is not None or self._taken >= _INPUTS_A_PROCESS):
            self.close()
        if self._worker is None:
            self._taken = 0
            self._said.parent.mkdir(exist_ok=True)
            with self._said.open("wb") as said:
                self._worker = subprocess.Popen(
                    [
                        sys.executable,
                        str(Path(__file__).with_name("worker.py")),
                        str(self._world.folder / "world.json"),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    start_new_session=True,
                    preexec_fn=prepare_child,
                    env={**os.environ, "PYTHONFAULTHANDLER": "1", "OMP_WAIT_POLICY": "PASSIVE"},
                )
        self._taken += 1
        return self._worker

    def _wait(
        self, worker: subprocess.Popen[bytes], meter: Meter, idle: int, spent: float, limits: Limits
    ) -> tuple[dict[str, Any] | None, str]:
        """Return the answer, or None and the limit that was broken; None without one: the worker died."""
        assert worker.stdout is not None
        started = moved = time.monotonic()
        last = spent
        with selectors.DefaultSelector() as selector:
            selector.register(worker.stdout, selectors.EVENT_READ)
            while True:
                if selector.select(_POLL_S):
                    line = worker.stdout.readline()
                    meter.read()
                    return (json.loads(line) if line else None), ""
                held, seconds = meter.read()
                now = time.monotonic()
                if seconds > last + 0.05:
                    moved, last = now, seconds
                over = over_limits(held - idle, seconds - spent, now - started, now - moved, limits)
                if over:
                    return None, over

    def _judged(self, case: Case, said: dict[str, Any] | None, over: str, harm: Harm) -> tuple[str, str]:
        if over:
            return OVER, over
        if said is None:
            assert self._worker is not None
            end = self._said.read_bytes()[-600:].decode("utf-8", "replace")
            return CRASHED, f"the process ended with {self._worker.wait()}: {end}"
        if said["errors"]:
            return CRASHED, json.dumps(said["errors"])
        if not said["honest"]:
            return WRONG, "after it, an honest query of an honest index is answered wrongly"
        # Whoever writes an index decides what it says; but not that a distance is no distance.
        if not all(0 <= distance <= FARTHEST for _, distance in said["hits"]):
            return WRONG, f"distances that no vectors have: {said['hits']}"
        if found := harm.done():
            return WRONG, found
        if said["refused"] and len(said["refused"]) >= len(said["answered"]):
            return REFUSED, json.dumps(said["refused"])
        return ANSWERED, ""

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            end_tree(self._worker.pid)
            self._worker.wait()
            for stream in (self._worker.stdin, self._worker.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            self._worker = None
