"""Readers while a writer writes: every answer is the brute force over some state that was committed."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from checks import Tally, agree, brute_force, queries_of
from fixture import World, sha256_of
from forked_commands import Child, Outcome
from index_rows import Row, Rows, read_rows

from deeprank.runtime.errors import IndexStateError
from deeprank.runtime.index.search.index import Hit, Index

READERS = 3
_ALL = 1_000_000
_REPLACED = "was replaced while it was open"

# What the writer does, again and again; each line is a command, of which unknown ones are left out.
_SERIES = (
    ("sync", "{photos}", "--index", "index"),
    ("remove", "--label", "a", "--yes", "--index", "index"),
    ("compact", "--index", "index"),
    ("sync", "{photos}", "--index", "index"),
    ("remove", "{photos}/moved", "--yes", "--index", "index"),
    ("sync", "--reembed", "--model", "{folder}/model1.onnx", "--index", "index"),
    ("verify", "--index", "index"),
    ("sync", "--reembed", "--model", "{folder}/model0.onnx", "--index", "index"),
)

Version = tuple[str, str, int]


def run(world: World, *, seconds: float, seed: int) -> Iterator[Tally]:
    """Let readers ask for ``seconds`` while the writer goes through its series."""
    tally = Tally(f"{READERS} readers while a writer syncs, removes, compacts and embeds anew")
    shutil.rmtree(world.case, ignore_errors=True)
    shutil.copytree(world.index("old"), world.case / "index")
    stop = world.folder / "stop"
    stop.unlink(missing_ok=True)
    names = _names(world)
    first = _versions(world.old, names)
    states = {_key(first): _rows(world, first)}
    readers = [
        world.forks.start(functools.partial(_read, world, stop, random.Random(f"{seed} {each}")), digest=None)
        for each in range(READERS)
    ]
    for outcome in _write(world, seconds, names):
        _note_writer(outcome, tally)
        for _, _, text, _ in outcome.reports:
            versions = frozenset((path, sha256, model) for path, sha256, model in json.loads(text))
            states[_key(versions)] = _rows(world, versions)
    stop.touch()
    _judge(world, readers, states, tally)
    yield tally


def _names(world: World) -> dict[bytes, int]:
    """Return which model a vector is of."""
    other = read_rows(world.index("other")) or frozenset()
    return {row.vector: 0 for row in world.old | world.new} | {row.vector: 1 for row in other}


def _versions(rows: Rows, names: dict[bytes, int]) -> frozenset[Version]:
    return frozenset((row.path, row.sha256, names.get(row.vector, -1)) for row in rows)


def _key(versions: frozenset[Version]) -> str:
    return hashlib.sha256(repr(sorted(versions)).encode()).hexdigest()[:16]


def _rows(world: World, versions: frozenset[Version]) -> Rows:
    """Return rows for the brute force; the model stands where the time would."""
    root = str(world.photos)
    return frozenset(Row(root, path, None, 0, model, sha256, b"") for path, sha256, model in versions)


def _write(world: World, seconds: float, names: dict[bytes, int]) -> Iterator[Outcome]:
    import deeprank.runtime.index.cli as cli

    known = {registered.name for registered in cli.app.registered_commands}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for words in _SERIES:
            if words[0] in known:
                filled = [word.format(photos=world.photos, folder=world.folder) for word in words]
                yield world.run(filled, digest=lambda rows: json.dumps(sorted(_versions(rows, names))))


def _note_writer(outcome: Outcome, tally: Tally) -> None:
    if outcome.crashed or outcome.signal:
        tally.fail("crashes", "the writer", f"signal {outcome.signal}: {outcome.err[-600:]}")
    elif outcome.status != 0:
        tally.fail("lost", "the writer", outcome.err[-600:])


def _read(world: World, stop: Path, chance: random.Random) -> int:
    """Ask until told to stop, now and then with an index that stays open; print what was answered."""
    index, opened = world.case / "index", None
    while not stop.exists():
        try:
            if opened is None:
                opened = Index.open(index)
            number = chance.randrange(3)
            query_of_both = [queries_of(world, seed)[number] for seed in (0, 1)]
            model = _model_of(world, opened)
            query = query_of_both[model]
            k = chance.choice((10, _ALL))
            way = "exact" if k == _ALL else chance.choice(("exact", "hnsw"))
            hits = opened.search(query, k, method=way)  # type: ignore[arg-type]
            print(json.dumps(_answer(world, hits, number, model, k, way)))
        except IndexStateError as error:
            print(json.dumps({"said": str(error)}))
            if _REPLACED not in str(error):
                print(json.dumps({"failed": str(error)}))
            _closed(opened)
            opened = None
        except Exception as error:
            print(json.dumps({"failed": f"{type(error).__name__}: {error}"}))
            _closed(opened)
            opened = None
        if chance.random() < 0.3:
            _closed(opened)
            opened = None
    _closed(opened)
    return 0


def _closed(opened: Index | None) -> None:
    """Close an index, if one is open."""
    if opened is not None:
        opened.close()


def _model_of(world: World, opened: Index) -> int:
    """Return the seed of the model of an open index."""
    return int(opened._model_sha256 == sha256_of(world.folder / "model1.onnx"))


def _answer(world: World, hits: list[Hit], number: int, model: int, k: int, way: str) -> dict[str, object]:
    """Find out which version of its picture each hit is of, by its distance."""
    query = queries_of(world, model)[number].astype("float64")
    found, unknown = [], []
    for hit in hits:
        relative = os.path.relpath(hit.path, world.photos)
        for sha256 in sorted(world.versions.get(relative, ())):
            right = float(((world.known[model, sha256] - query) ** 2).sum())
            if abs(right - hit.distance) < 1e-5:
                found.append((relative, sha256, model))
                break
        else:
            unknown.append(relative)
    if any(one.distance > other.distance for one, other in itertools.pairwise(hits)):
        unknown.append("not in order")
    if k == _ALL:
        return {"state": _key(frozenset(found)), "unknown": unknown}
    return {
        "top": [(hit.distance, hit.path) for hit in hits],
        "query": number,
        "way": way,
        "model": model,
        "unknown": unknown,
    }


def _judge(world: World, readers: list[Child], states: dict[str, Rows], tally: Tally) -> None:
    tops: dict[str, bool] = {}
    for reader in readers:
        outcome = reader.wait()
        if outcome.status != 0 or outcome.crashed:
            tally.fail("crashes", "a reader", f"signal {outcome.signal}: {outcome.err[-600:]}")
        for line in outcome.out.splitlines():
            answer = json.loads(line)
            if "said" in answer:
                tally.say(answer["said"])
                continue
            tally.runs += 1
            tally.looked_at += 1
            if "failed" in answer:
                tally.fail("wrong", "a reader", answer["failed"])
            elif answer["unknown"]:
                tally.fail("wrong", "a reader", f"{answer['unknown'][:3]} are not what they were")
            elif "state" in answer and answer["state"] not in states:
                tally.fail("wrong", "a reader", "all pictures of a state that never was")
            elif "top" in answer:
                if line not in tops:
                    tops[line] = _is_of_some_state(world, answer, states)
                if not tops[line]:
                    tally.fail("wrong", "a reader", f"the ten nearest of no state that ever was: {line[:2000]}")


def _is_of_some_state(world: World, answer: dict[str, Any], states: dict[str, Rows]) -> bool:
    model = answer["model"]
    query = queries_of(world, model)[answer["query"]]
    found = [(distance, path) for distance, path in answer["top"]]
    return any(
        agree(found, brute_force(rows, query, world, model, 10))
        for rows in states.values()
        if all(row.mtime_ns == model for row in rows)
    )
