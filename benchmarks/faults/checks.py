"""What must hold after a fault: nothing committed is lost, every answer is right, and the command can be finished."""

from __future__ import annotations

import os
import re
import sqlite3
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from fixture import FILES, Command, World, start_digest
from forked_commands import Outcome
from index_rows import Row, Rows, digest, read_ratings, read_rows

from deeprank.runtime.errors import DeepRankError
from deeprank.runtime.index.maintenance.verify import verify
from deeprank.runtime.index.search.index import Index

QUERIES = 3
_CLOSE = 1e-5
# What the commands make beside an index; what a killed one leaves and the next of its kind, or compact, deletes.
MADE = ["copied", "vectors.npz", "filling"]
LEFTOVERS = re.compile(r"repair\.tmp|\.index\.reembed|\.(index|copied)\.making|\.vectors\.npz\.\d+\.tmp")
# What a command says that was killed after its work was done.
DONE_ALREADY = ("nothing was removed", "is an index already")
EMPTY = digest(frozenset())


@dataclass
class Tally:
    """One line of the table."""

    fault: str
    runs: int = 0
    looked_at: int = 0
    lost: int = 0
    wrong: int = 0
    crashes: int = 0
    sentences: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, wrong or crashed."""
        return not (self.lost or self.wrong or self.crashes or self.failures)

    def say(self, sentence: str) -> None:
        """Count a sentence, with its names and numbers left out."""
        if sentence:
            self.sentences[shorten(sentence)] += 1

    def fail(self, kind: str, where: str, what: str) -> None:
        """Count a failure: ``lost``, ``wrong`` or ``crashes``."""
        setattr(self, kind, getattr(self, kind) + 1)
        self.failures.append(f"{self.fault}, {where}: {what}")


def shorten(sentence: str) -> str:
    """Leave out what differs from run to run."""
    sentence = re.sub(r"\S*/(\S+)", r"…/\1", sentence.removeprefix("error: "))
    sentence = re.sub(r"sha256 [0-9a-f]+…", "sha256 …", sentence)
    return re.sub(r"\d[\d,.]*", "#", sentence)


def brute_force(
    rows: Iterable[Row], query: np.ndarray, world: World, seed: int, k: int | None = None, farthest: bool = False
) -> list[tuple[float, str]]:
    """Return distance and path of the nearest pictures by numpy alone."""
    listed = list(rows)
    if not listed:
        return []
    vectors = np.stack([world.vector(row, seed) for row in listed])
    distances = ((vectors - query.astype(np.float64)) ** 2).sum(axis=1)
    order = np.argsort(-distances if farthest else distances, kind="stable")[:k]
    return [(float(distances[i]), os.path.join(listed[i].root, listed[i].path)) for i in order]  # noqa: PTH118


def agree(found: list[tuple[float, str]], right: list[tuple[float, str]]) -> bool:
    """Compare answers; pictures at one distance may come in any order."""
    if len(found) != len(right):
        return False
    if any(abs(one[0] - other[0]) > _CLOSE for one, other in zip(found, right, strict=True)):
        return False
    last = right[-1][0] - _CLOSE if right else 0.0
    return {path for distance, path in found if distance < last - _CLOSE} <= {path for _, path in right}


def queries_of(world: World, seed: int) -> list[np.ndarray]:
    """Return a few query vectors, float32 ``[d]``."""
    shas = sorted(sha256 for known, sha256 in world.known if known == seed)
    return [world.known[seed, sha256].astype(np.float32) for sha256 in shas[:: len(shas) // QUERIES][:QUERIES]]


def wrong_answers(index: Path, rows: Rows, world: World, seed: int) -> list[str]:
    """Ask an index in every way, and tell which answers differ from the brute force over ``rows``."""
    wrong = []
    with Index.open(index) as opened:
        for query in queries_of(world, seed):
            for k, way in ((10, "exact"), (10, "hnsw"), (len(rows), "exact")):
                hits = opened.search(query, max(k, 1), method=way)  # type: ignore[arg-type]
                if not agree([(hit.distance, hit.path) for hit in hits], brute_force(rows, query, world, seed, k)):
                    wrong.append(f"{way}, k={k}")
            hits = opened.search(query, 5, farthest=True)
            right = brute_force(rows, query, world, seed, 5, farthest=True)
            if [round(hit.distance, 4) for hit in hits] != [round(distance, 4) for distance, _ in right]:
                wrong.append("farthest")
    return wrong


def allowed_digests(
    outcome_reports: list[tuple[str, str, str, int]], index: Path, start: str | None
) -> set[str | None]:
    """Return the states that the index may be in: the last one committed, or the one that was being committed."""
    last: str | None = start
    pending: str | None = None
    for kind, folder, found, _ in outcome_reports:
        if kind != "rated" and os.path.realpath(folder) == os.path.realpath(index):
            last, pending = (last, found) if kind == "try" else (found, None)
    return {last} if pending is None else {last, pending}


def beside(outcome_reports: list[tuple[str, str, str, int]], index: Path) -> set[str | None]:
    """Return what was committed to other databases, which may have been put in the place of this one."""
    return {found for _, folder, found, _ in outcome_reports if os.path.realpath(folder) != os.path.realpath(index)}


def check_after(
    world: World,
    command: Command,
    reports: list[tuple[str, str, str, int]] | None,
    tally: Tally,
    where: str,
    *,
    finish: bool = True,
) -> None:
    """Look at the index of the case after a fault, then finish the command and compare with a from-scratch index.

    ``reports`` are those of the commits, None where several processes committed.
    """
    index = world.case / "index"
    tally.runs += 1
    value, outcome = world.forks.value(lambda: _look(world, command, reports))
    if value is None:
        tally.fail("crashes", where, f"looking at it: signal {outcome.signal}, {outcome.err[-600:]}")
        return
    tally.looked_at += value["looked_at"]
    for sentence in value["sentences"]:
        tally.say(sentence)
    for kind, what in value["failures"]:
        tally.fail(kind, where, what)
    if finish:
        for words in command.finish:
            _note(world.run(words), tally, where, " ".join(words))
        value, outcome = world.forks.value(lambda: _compare(world, command))
        if value is None:
            tally.fail("crashes", where, f"comparing: signal {outcome.signal}, {outcome.err[-600:]}")
            return
        for kind, what in value:
            tally.fail(kind, where, f"after finishing: {what}")
    assert index.parent == world.case


def _note(outcome: Outcome, tally: Tally, where: str, what: str) -> None:
    if outcome.crashed or outcome.signal:
        tally.fail("crashes", where, f"{what}: signal {outcome.signal}, {outcome.err[-600:]}")
    elif outcome.status != 0 and not any(done in outcome.err for done in DONE_ALREADY):
        tally.fail("lost", where, f"{what} could not be finished: {outcome.sentence}")


def _look(world: World, command: Command, reports: list[tuple[str, str, str, int]] | None) -> dict[str, object]:
    index = world.case / "index"
    failures: list[tuple[str, str]] = []
    sentences: list[str] = []
    start = start_digest(world, command)
    # The way of a user comes first: whatever has to be put in order after the fault, a reader does or goes without.
    try:
        with Index.open(index):
            pass
    except DeepRankError as error:
        committed = any(kind == "done" and os.path.realpath(where) == str(index) for kind, where, *_ in reports or ())
        if start is not None or committed:
            failures.append(("lost", f"a reader got: {error}"))
        return {"looked_at": 1, "failures": failures, "sentences": [str(error)]}
    try:
        rows = read_rows(index)
    except sqlite3.Error as error:
        return {"looked_at": 1, "failures": [("lost", f"the database cannot be read: {error}")], "sentences": []}
    if rows is None:
        return {"looked_at": 1, "failures": [("lost", "there is no database")], "sentences": []}
    failures += _state(command, reports, index, start, rows)
    problems = verify(index).problems
    sentences += [f"verify: {problem}" for problem in problems]
    if command.sound and any(problem.part != "graph" for problem in problems):
        failures.append(("lost", f"verify: {problems}"))
    seeds = [seed for seed in (0, 1) if all(_near(world, row, seed) for row in rows)]
    if not seeds and command.sound:
        failures.append(("wrong", "a vector is neither model's"))
    if command.sound or not any("damaged" in problem.fault for problem in problems):
        failures += [("wrong", what) for what in wrong_answers(index, rows, world, seeds[0] if seeds else 0)]
    failures += _look_at_ratings(command, reports, index)
    failures += _look_at_target(world, command)
    if command.file is not None:
        failures += _look_at_file(world, command, (world.old, world.new))
    return {"looked_at": len(rows) + 4 * QUERIES, "failures": failures, "sentences": sentences}


def _near(world: World, row: Row, seed: int) -> bool:
    return bool(np.abs(np.frombuffer(row.vector, "<f4") - world.vector(row, seed)).max() < _CLOSE)


def _state(
    command: Command, reports: list[tuple[str, str, str, int]] | None, index: Path, start: str | None, rows: Rows
) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if not command.may_hold(rows):
        found.append(("lost", f"{len(rows)} pictures that are none of the states between"))
    if reports is None:
        return found
    allowed = allowed_digests(reports, index, start) | ({EMPTY} if start is None else set())
    swapped = beside(reports, index)
    if digest(rows) not in allowed | swapped:
        found.append(("lost", f"{len(rows)} pictures are not what was committed last"))
    return found


def _look_at_ratings(
    command: Command, reports: list[tuple[str, str, str, int]] | None, index: Path
) -> list[tuple[str, str]]:
    """They are as they were before, or after; once they are acknowledged, as after."""
    rated = command.rated or (frozenset(),)
    acknowledged = any(kind == "rated" and os.path.realpath(where) == str(index) for kind, where, *_ in reports or ())
    try:
        found = read_ratings(index)
    except (sqlite3.Error, AssertionError) as error:
        return [("lost", f"the ratings cannot be read: {error}")]
    if found not in (rated[-1:] if acknowledged else rated):
        return [("lost", f"{len(found)} ratings that are none of the states between")]
    return []


def _look_at_target(world: World, command: Command) -> list[tuple[str, str]]:
    """A copy is not there, or it is whole."""
    if command.target is None or not (world.case / command.target / "items.sqlite").exists():
        return []
    target = world.case / command.target
    if read_rows(target) != command.final or read_ratings(target) != world.rated or verify(target).problems:
        return [("wrong", f"half of a {command.name} is there")]
    return []


def _look_at_file(world: World, command: Command, whole: Sequence[Rows]) -> list[tuple[str, str]]:
    """A file is the earlier one or the new one, and numpy reads it."""
    try:
        with np.load(world.case / str(command.file), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        return [("lost", f"{command.file} cannot be read: {error}")]
    found = {vector.astype("<f4").tobytes() for vector in arrays["vectors"]}
    return [] if found in [{row.vector for row in rows} for rows in whole] else [("wrong", f"half of {command.file}")]


def _compare(world: World, command: Command) -> list[tuple[str, str]]:
    """Hold the finished index against the from-scratch one."""
    failures: list[tuple[str, str]] = []
    for index in filter(None, [world.case / "index", world.case / command.target if command.target else None]):
        rows = read_rows(index)
        if rows != command.final:
            failures.append(("lost", f"{index.name}: {_difference(rows or frozenset(), command.final)}"))
            continue
        if read_ratings(index) != (command.rated[-1] if command.rated else frozenset()):
            failures.append(("lost", f"{index.name}: {len(read_ratings(index))} ratings"))
        if problems := verify(index).problems:
            failures.append(("lost", f"{index.name}: verify: {problems}"))
        failures += [("wrong", f"{index.name}: {what}") for what in wrong_answers(index, rows, world, command.seed)]
        failures += [("lost", f"{index.name} holds {names}") for names in _strangers(index, FILES)]
    if command.file is not None:
        failures += _look_at_file(world, command, (world.new,))
    failures += [("lost", f"beside it are {names}") for names in _strangers(world.case, ["index", *MADE])]
    return failures


def _strangers(folder: Path, known: list[str]) -> list[list[str]]:
    """Return what is there that is neither part of an index nor what the next ``compact`` clears away."""
    names = {path.name for path in folder.iterdir()} - set(known)
    log = folder / "items.sqlite-wal"
    if (
        log.exists() and log.stat().st_size == 0
    ):  # a reader makes these where the last writer could not say that it ends
        names -= {log.name, "items.sqlite-shm"}
    strangers = sorted(name for name in names if not LEFTOVERS.fullmatch(name))
    return [strangers] if strangers else []


def _difference(rows: Rows, final: Rows) -> str:
    missing, more = sorted(final - rows), sorted(rows - final)
    return f"{len(missing)} rows missing {[r.path for r in missing[:3]]}, {len(more)} more {[r.path for r in more[:3]]}"
