"""A disk that is full, at every point of a command, or that reports an error.

The shim lets every write fail from the n-th on; as root a real small disk (a tmpfs) is filled besides.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import shim
from checks import Tally, check_after
from fixture import Command, World, commands_of
from forked_commands import Outcome
from kills import chosen, count_calls
from shim import Fault

_PAGE = 4096


def run(world: World, *, calls: int, seed: int) -> Iterator[Tally]:
    """Let every command run out of space, at ``calls`` points each (0: everywhere)."""
    for command in commands_of(world):
        if shim.has_shim():
            yield _at_calls(world, command, Fault.FULL, calls, f"disk full from a write on, {command.name}")
            yield _at_calls(world, command, Fault.BROKEN, calls, f"one call reports an I/O error, {command.name}")
        if os.geteuid() == 0 and os.uname().sysname == "Linux":
            yield _on_small_disk(world, command, calls, random.Random(f"{seed} {command.name}"))


def refusal(outcome: Outcome, tally: Tally, where: str) -> None:
    """Check that the command did its work, or said in one sentence why not."""
    if outcome.crashed or outcome.signal:
        tally.fail("crashes", where, f"signal {outcome.signal}: {outcome.err[-600:]}")
    elif outcome.status == 1:
        tally.say(outcome.sentence)
        errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
        if len(errors) != 1 or not outcome.sentence.endswith((".", ")")):
            tally.fail("wrong", where, f"not one sentence: {outcome.err!r} {outcome.out!r}")
    elif outcome.status != 0:
        tally.fail("wrong", where, f"exit status {outcome.status}: {outcome.err[-300:]}")


def _at_calls(world: World, command: Command, fault: Fault, limit: int, name: str) -> Tally:
    tally = Tally(name)
    total = count_calls(world, command)
    for number in chosen(total, limit):
        world.place(command)
        outcome = world.run(command.words, watched=world.case, fault=fault, at=number)
        where = f"call {number} of {total}"
        refusal(outcome, tally, where)
        if fault == Fault.FULL:  # whatever reports an error may be what clears away
            _nothing_left(world, outcome, tally, where)
        check_after(world, command, outcome.reports, tally, where)
    return tally


def _nothing_left(world: World, outcome: Outcome, tally: Tally, where: str) -> None:
    """A command that was refused for want of space must not keep what it had prepared."""
    if outcome.status != 1:
        return
    half = [path.name for path in world.case.rglob("*") if path.name.endswith((".tmp", ".reembed", ".making"))]
    if half:
        tally.fail("wrong", where, f"half-made {half} is left on the full disk")


def _on_small_disk(world: World, command: Command, limit: int, chance: random.Random) -> Tally:
    tally = Tally(f"a full tmpfs, {command.name}")
    needed = _needed(world, command)
    for number in range(limit or 40):
        with _small_disk(world.case) as disk:
            if disk is None:
                return tally
            world.place_in(command)
            room = chance.randint(0, needed // _PAGE + 1) * _PAGE
            _fill(disk, room)
            outcome = world.run(command.words)
            where = f"run {number}, {room:,} bytes free"
            refusal(outcome, tally, where)
            (disk / "filling").unlink()
            _nothing_left(world, outcome, tally, where)
            check_after(world, command, outcome.reports, tally, where)
    return tally


def _needed(world: World, command: Command) -> int:
    """Return how much room a command takes at most, about."""
    world.place(command)
    size = sum(path.stat().st_size for path in world.case.rglob("*") if path.is_file())
    world.run(command.words)
    return 2 * max(size, sum(path.stat().st_size for path in world.case.rglob("*") if path.is_file()))


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[Path | None]:
    """Mount a disk of 8 MB; None where that is not allowed (in a container, say)."""
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _fill(disk: Path, room: int) -> None:
    """Leave ``room`` bytes free."""
    status = os.statvfs(disk)
    with (disk / "filling").open("wb") as file, contextlib.suppress(OSError):
        file.write(b"\0" * max(0, status.f_bavail * status.f_frsize - room))
