"""kill -9: at random moments, and at every call that changes a file."""

from __future__ import annotations

import random
from collections.abc import Iterator

import shim
from checks import Tally, check_after
from fixture import Command, World, commands_of
from shim import Fault


def run(world: World, *, kills: int, calls: int, seed: int) -> Iterator[Tally]:
    """Kill every command: ``kills`` times at random in all, and at ``calls`` calls each (0: at all of them)."""
    commands = commands_of(world)
    for number, command in enumerate(commands):
        share = kills // len(commands) + (number < kills % len(commands))
        yield at_random(world, command, share, random.Random(f"{seed} {command.name}"))
    if not shim.has_shim():
        return
    for command in commands:
        yield at_calls(world, command, Fault.KILL, calls, f"kill -9 before a call that changes a file, {command.name}")
        yield at_calls(world, command, Fault.TEAR, calls, f"kill -9 in the middle of a write, {command.name}")


def at_random(world: World, command: Command, runs: int, chance: random.Random) -> Tally:
    """Kill a command after a random time, from 0 to a little more than it takes."""
    tally = Tally(f"kill -9 at a random moment, {command.name}")
    if not runs:
        return tally
    world.place(command)
    whole = world.run(command.words)
    for _ in range(runs):
        world.place(command)
        moment = chance.uniform(0, 1.1 * whole.seconds)
        outcome = world.run(command.words, kill_after=moment)
        where = f"after {moment:.4f} s of {whole.seconds:.4f}"
        if outcome.crashed or (outcome.status not in (0, None)):
            tally.fail("crashes", where, f"status {outcome.status}, signal {outcome.signal}: {outcome.err[-600:]}")
        check_after(world, command, outcome.reports, tally, where)
    return tally


def chosen(total: int, limit: int) -> list[int]:
    """Return the numbers of the calls to fail at: all, or some that are evenly spread."""
    if not limit or limit >= total:
        return list(range(1, total + 1))
    return sorted({1 + round(i * (total - 1) / max(1, limit - 1)) for i in range(limit)})


def count_calls(world: World, command: Command) -> int:
    """Return how many calls that change files a command makes."""
    world.place(command)
    return world.run(command.words, watched=world.case).calls


def at_calls(world: World, command: Command, fault: Fault, limit: int, name: str) -> Tally:
    """Kill a command before (or within) the n-th call that changes something."""
    tally = Tally(name)
    total = count_calls(world, command)
    for number in chosen(total, limit):
        world.place(command)
        outcome = world.run(command.words, watched=world.case, fault=fault, at=number)
        where = f"call {number} of {total}"
        if outcome.crashed:
            tally.fail("crashes", where, f"signal {outcome.signal}: {outcome.err[-600:]}")
        check_after(world, command, outcome.reports, tally, where)
    return tally
