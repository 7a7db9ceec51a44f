"""A read-only folder, and another user who may not write: at rest, and in every state that a kill leaves."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from checks import Tally, wrong_answers
from disk import refusal
from fixture import Command, World, commands_of
from index_rows import Rows, read_rows
from kills import chosen, count_calls
from shim import Fault, has_shim

from deeprank.runtime.errors import DeepRankError
from deeprank.runtime.index.maintenance.verify import verify

NOBODY = 65534
_LEFT = "was left by an interrupted command"


def run(world: World, *, calls: int) -> Iterator[Tally]:
    """Ask and write as another user, of an index at rest and after kills."""
    if os.geteuid() != 0:
        return
    commands = {command.name: command for command in commands_of(world)}
    rest = Tally("a read-only folder of another user, at rest")
    _place(world)
    _look(world, rest, "at rest", may_refuse=False)
    yield rest
    shared = Tally("a folder that all may write to, with files of another user")
    _place(world)
    _look(world, shared, "at rest", may_refuse=False, folder_mode=0o777)
    yield shared
    if has_shim():
        for name in [name for name in ("sync", "remove", "reembed") if name in commands]:
            yield _after_kills(world, commands[name], calls)


def _place(world: World) -> None:
    shutil.rmtree(world.case, ignore_errors=True)
    shutil.copytree(world.index("new"), world.case / "index")


def _after_kills(world: World, command: Command, limit: int) -> Tally:
    tally = Tally(f"a read-only folder of another user, after kill -9, {command.name}")
    total = count_calls(world, command)
    for number in chosen(total, limit):
        world.place(command)
        world.run(command.words, watched=world.case, fault=Fault.KILL, at=number)
        _look(world, tally, f"call {number} of {total}", may_refuse=True)
    return tally


def _look(world: World, tally: Tally, where: str, *, may_refuse: bool, folder_mode: int = 0o555) -> None:
    """Look at an index that is not ours as nobody, then as its owner."""
    tally.runs += 1
    index = world.case / "index"
    rows = _rows(world, index)
    seed = _seed(world, rows)  # of an index that is private
    for path in index.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o444)
    index.chmod(folder_mode)
    world.case.chmod(folder_mode)

    def ask() -> int:
        try:
            print(json.dumps({"wrong": wrong_answers(index, rows or frozenset(), world, seed)}))
            problems = [problem for problem in verify(index).problems if problem.part != "graph"]
            print(json.dumps({"wrong": [f"verify: {problem}" for problem in problems]}))
        except DeepRankError as error:
            print(json.dumps({"refused": str(error)}))
        return 0

    outcome = world.forks.run(ask, user=NOBODY, digest=None)
    if outcome.status != 0 or outcome.crashed:
        tally.fail("crashes", where, f"signal {outcome.signal}: {outcome.err[-600:]}")
    for line in outcome.out.splitlines():
        answer = json.loads(line)
        if refused := answer.get("refused"):
            tally.say(refused)
            if not (may_refuse and _LEFT in refused):
                tally.fail("wrong", where, f"refused: {refused}")
        else:
            tally.looked_at += 1
            for what in answer["wrong"]:
                tally.fail("wrong", where, what)
    _may_not_write(world, tally, where)
    world.case.chmod(0o755)
    index.chmod(0o755)
    for path in index.iterdir():
        path.chmod(0o644)
    if _rows(world, index) != rows:
        tally.fail("lost", where, "another user changed it")


def _rows(world: World, index: Path) -> Rows | None:
    """Read a copy, so that the state the kill left stays as it is."""
    copy = world.folder / "as owner"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(index, copy)
    (copy / "items.sqlite-shm").unlink(missing_ok=True)
    return read_rows(copy, "rw")


def _seed(world: World, rows: Rows | None) -> int:
    return int(rows == read_rows(world.index("other")))


def _may_not_write(world: World, tally: Tally, where: str) -> None:
    known = {command.words[0] for command in commands_of(world)}
    for words in (
        ("sync", str(world.photos), "--index", "index"),
        ("remove", "--label", "b", "--yes", "--index", "index"),
        ("compact", "--index", "index"),
    ):
        if words[0] not in known:
            continue
        outcome = world.run(words, user=NOBODY)
        refusal(outcome, tally, f"{where}, {words[0]} as nobody")
        if outcome.status == 0:
            tally.fail("wrong", where, f"{words[0]} as nobody was done")
