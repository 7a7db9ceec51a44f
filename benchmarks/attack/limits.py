"""A command under limits of memory, CPU time and patience: what it took, how it ended, and that nothing of it is left.

Memory is what a process and all that it started hold together. It is looked at every few milliseconds, and each
process's own peak counts. Beyond ``STOP_BYTES``, and by ``RLIMIT_AS``, all of it is killed: the machine is not at risk.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "STOP_BYTES",
    "Limits",
    "Meter",
    "Usage",
    "adopt_orphans",
    "children_of",
    "end_tree",
    "over_limits",
    "prepare_child",
    "prepare_parent_death",
    "reset_peak",
    "run_limited",
]

STOP_BYTES = 3_000_000_000
_ADDRESS_SPACE = 8_000_000_000
_MAX_FILE = 2_000_000_000
_POLL_S = 0.01
_TICKS = os.sysconf("SC_CLK_TCK")
# No CPU time is used for so long: whatever it waits for does not come.
_IDLE_S = 40.0
_SET_DEATH_SIGNAL, _SET_SUBREAPER = 1, 36


@dataclass(frozen=True)
class Limits:
    """What one input may cost.

    Attributes:
        memory: bytes.
        cpu_s: seconds of CPU time, all processes together.
        wall_s: seconds.

    """

    memory: int
    cpu_s: float
    wall_s: float = 90.0


@dataclass(frozen=True)
class Usage:
    """What a command took: its exit status (negative: the signal), bytes at most, seconds; and which limit it broke."""

    status: int
    peak: int
    cpu_s: float
    wall_s: float
    over: str = ""
    left_behind: int = 0


def adopt_orphans() -> None:
    """Become the parent of grandchildren whose parent ended, so that none is lost (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_SUBREAPER, 1, 0, 0, 0)


def prepare_child() -> None:
    """Limit what a child may take; it ends with its parent. Runs between fork and exec."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_FILE, _MAX_FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    prepare_parent_death()


def prepare_parent_death() -> None:
    """Let a child end with its parent (Linux). Runs between fork and exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def children_of(pid: int) -> list[int]:
    """Return a process's descendants, without itself."""
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError, ValueError):
                for child in (thread / "children").read_text().split():
                    found += [int(child), *children_of(int(child))]
    return found


def reset_peak(pid: int) -> None:
    """Forget the most memory that a process had."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


class Meter:
    """Looks at a process and its descendants again and again."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peak = 0
        self.cpu_s = 0.0

    def read(self) -> tuple[int, float]:
        """Return bytes held now, and seconds of CPU time, of all together; ``peak`` and ``cpu_s`` keep the most."""
        family = [self.pid, *children_of(self.pid)]
        held, seconds = 0, 0.0
        for pid in family:
            now, most = _memory(pid)
            # One process may have had its peak between two looks; the peaks of several need not have come together.
            held += most if len(family) == 1 else now
            seconds += _cpu(pid)
        if len(family) > 1 and held > self.peak:
            held = sum(map(_proportional, family)) or held
        self.peak = max(self.peak, held)
        self.cpu_s = max(self.cpu_s, seconds)
        return held, seconds


def _memory(pid: int) -> tuple[int, int]:
    """Return the bytes that a process has in memory, and has had at most."""
    now = most = 0
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                most = int(line.split()[1]) * 1024
            elif line.startswith("VmRSS:"):
                now = int(line.split()[1]) * 1024
                break
    return now, most


def _proportional(pid: int) -> int:
    """Return the bytes of a process, shared pages divided among those that share them."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _cpu(pid: int) -> float:
    """Return the seconds of CPU time of a process and of those of its children that ended."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / _TICKS
    return 0.0


def end_tree(pid: int) -> None:
    """Kill a process and its descendants, and wait for those that are ours."""
    family = [*children_of(pid), pid]
    for number in family:
        with contextlib.suppress(OSError):
            os.kill(number, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)


def run_limited(
    words: Sequence[str],
    folder: Path,
    said: Path,
    limits: Limits,
    stdin: Path | None = None,
) -> Usage:
    """Run a command in a folder; what it says goes to a file.

    Args:
        words: of the command.
        folder: in which it runs.
        said: file for stdout and stderr.
        limits: what it may take; it is killed beyond them.
        stdin: its standard input; default: nothing.

    """
    started, before = time.monotonic(), set(children_of(os.getpid()))
    with said.open("wb") as out, (stdin or Path(os.devnull)).open("rb") as source:
        process = subprocess.Popen(
            words,
            cwd=folder,
            stdin=source,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=prepare_child,
            env={**os.environ, "COLUMNS": "160", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONFAULTHANDLER": "1"},
        )
        meter = Meter(process.pid)
        over, status = _watch(process, meter, limits, started)
    left = [pid for pid in children_of(os.getpid()) if pid not in before]
    for pid in left:
        end_tree(pid)
        with contextlib.suppress(OSError):
            os.waitpid(pid, 0)
    return Usage(status, meter.peak, meter.cpu_s, time.monotonic() - started, over, len(left))


def _watch(process: subprocess.Popen[bytes], meter: Meter, limits: Limits, started: float) -> tuple[str, int]:
    """Wait for the end of a command, or bring it about; return the limit that it broke, and its status."""
    moved, last = started, 0.0
    over = ""
    while True:
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            meter.cpu_s = max(meter.cpu_s, used.ru_utime + used.ru_stime)
            break
        held, seconds = meter.read()
        now = time.monotonic()
        if seconds > last + 0.05:
            moved, last = now, seconds
        over = over_limits(held, seconds, now - started, now - moved, limits)
        if over:
            end_tree(process.pid)
            process.wait()
            break
        time.sleep(_POLL_S)
    if not over and meter.cpu_s > limits.cpu_s:
        over = f"{meter.cpu_s:.1f} s of CPU time"
    if not over and meter.peak > limits.memory:
        over = f"{meter.peak / 1e6:.0f} MB"
    return over, process.returncode


def over_limits(held: int, cpu_s: float, wall_s: float, idle_s: float, limits: Limits) -> str:
    """Return which limit is broken, in words; empty: none."""
    if held > min(STOP_BYTES, 2 * limits.memory, limits.memory + 500_000_000):
        return f"{held / 1e6:.0f} MB"
    if cpu_s > limits.cpu_s:
        return f"{cpu_s:.1f} s of CPU time"
    if idle_s > _IDLE_S:
        return f"hangs: no CPU time for {idle_s:.0f} s"
    if wall_s > limits.wall_s:
        return f"not done after {wall_s:.0f} s"
    return ""
