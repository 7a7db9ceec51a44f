"""Several writers at once: one works, the others say so and end, and the index is right in the end."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Iterator

from checks import Tally, check_after
from fixture import Command, World, commands_of

_REFUSED = (
    "is being written to by another process",
    "was made by another process",
    "Another process changed the index",
)


def run(world: World, *, seconds: float, seed: int) -> Iterator[Tally]:
    """Start several writers at moments close to each other, for ``seconds``, and then for as long on a new index."""
    commands = {command.name: command for command in commands_of(world)}
    for name in [name for name in ("sync", "sync of a new index") if name in commands]:
        tally = Tally(f"three writers at once, {name} and others")
        chance, end, number = random.Random(f"{seed} {name}"), time.monotonic() + seconds, 0
        others = [("verify", "--repair", "--index", "index"), commands[name].words]
        if "compact" in commands:
            others.append(commands["compact"].words)
        while time.monotonic() < end:
            world.place(commands[name])
            children = []
            for words in (commands[name].words, commands[name].words, chance.choice(others)):
                children.append((words, world.forks.start(world.work(words))))
                time.sleep(chance.uniform(0, 0.05))
            for words, child in children:
                outcome = child.wait()
                if outcome.crashed or outcome.signal:
                    tally.fail("crashes", f"run {number}", f"{words[0]}: {outcome.signal} {outcome.err[-600:]}")
                elif outcome.status != 0:
                    tally.say(outcome.sentence)
                    nothing_yet = name != "sync" and words != commands[name].words and "no index" in outcome.sentence
                    missing = name != "sync" and "does not exist" in outcome.sentence
                    if not nothing_yet and not missing and not any(text in outcome.sentence for text in _REFUSED):
                        tally.fail("wrong", f"run {number}", f"{words[0]}: {outcome.err[-400:]}")
            check_after(world, _without_states(commands[name]), None, tally, f"run {number}")
            number += 1
        yield tally


def _without_states(command: Command) -> Command:
    """Which of them came first is open: any committed state will do."""
    return dataclasses.replace(command, may_hold=lambda rows: True)
