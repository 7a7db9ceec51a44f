"""Damaged files: every region of the graph, the model, the database and its log."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from checks import Tally, queries_of, wrong_answers
from fixture import World
from forked_commands import Outcome
from index_rows import Rating, Rows, digest, read_ratings, read_rows

from deeprank.runtime.errors import DeepRankError, IndexDamagedError, IndexStateError, ModelFileError
from deeprank.runtime.index.maintenance.verify import verify
from deeprank.runtime.index.ratings import RatingStore
from deeprank.runtime.index.search.index import Index
from deeprank.runtime.index.sync.sync import sync

BLOCK = 512
LOG = "items.sqlite-wal"
RATINGS = "ratings.sqlite"
_HEADER = 128
_SWAPS = 40
# Of the damages to the database so many are synced without a look, and so many repaired: both embed pictures.
_ONE_IN = 4
# In one child; a new one begins with fresh memory and a fresh deadline.
_BATCH = 60

Damage = tuple[str, bytes]


@dataclass(frozen=True)
class How:
    """How many damages are tried."""

    each: int
    share: float
    chance: random.Random

    def cases(self, sound: bytes, others: dict[str, bytes]) -> list[Damage]:
        """Return the damages to a file."""
        found = [case for case in damages(sound, others, self.each, self.chance) if case[1] != sound]
        return found if self.share >= 1 else self.chance.sample(found, round(self.share * len(found)))


def damages(sound: bytes, others: dict[str, bytes], each: int, chance: random.Random) -> Iterator[Damage]:
    """Yield a name and the damaged bytes: bits flipped, blocks zeroed and swapped, cut, extended, replaced."""
    places = list(range(min(_HEADER, len(sound))))
    for start in range(0, len(sound), BLOCK):
        places += [min(start + chance.randrange(BLOCK), len(sound) - 1) for _ in range(each)]
    for place in places:
        content = bytearray(sound)
        content[place] ^= 1 << chance.randrange(8)
        yield f"a bit flipped at {place}", bytes(content)
    for start in range(0, len(sound), BLOCK):
        content = bytearray(sound)
        content[start : start + BLOCK] = bytes(len(content[start : start + BLOCK]))
        yield f"zeros at {start}", bytes(content)
        yield f"cut at {start}", sound[:start]
    for size in (BLOCK, 8 * BLOCK):
        for _ in range(_SWAPS):
            one, other = (chance.randrange(max(1, len(sound) // size)) * size for _ in range(2))
            content = bytearray(sound)
            content[one : one + size], content[other : other + size] = (
                sound[other : other + size],
                sound[one : one + size],
            )
            yield f"{size} bytes swapped, {one} and {other}", bytes(content)
    yield "extended by a page", sound + bytes(4096)
    yield "random bytes", chance.randbytes(len(sound))
    yield from ((f"replaced by that of {name}", content) for name, content in others.items())


def run(world: World, *, damages: int, share: float, files: str, seed: int) -> Iterator[Tally]:
    """Damage each file."""
    how = How(damages, share, random.Random(seed))
    looks = {"graph.hnsw": _graph, "model.onnx": _model, "items.sqlite": _database, RATINGS: _ratings, LOG: None}
    if unknown := set(filter(None, files.split(","))) - set(looks):
        raise SystemExit(f"unknown files: {', '.join(sorted(unknown))}; expected some of {', '.join(looks)}")
    for name, look in looks.items():
        if name in (files.split(",") if files else looks):
            yield _file(world, name, how, look) if look is not None else _log(world, how)


def _file(world: World, name: str, how: How, look: Callable[..., list[str]]) -> Tally:
    """Damage one file of an index in every way."""
    sound = (world.index("new") / name).read_bytes()
    others = {other: (world.index(other) / name).read_bytes() for other in ("old", "other")}
    others = {other: content for other, content in others.items() if content != sound}
    cases = how.cases(sound, others)
    return _in_batches(world, Tally(f"damage to {name}"), cases, lambda number, case: look(world, number, *case))


def _in_batches(world: World, tally: Tally, cases: list[Damage], look: Callable[[int, Damage], list[str]]) -> Tally:
    """Look at many cases in one child; where it crashes, go on with the next case in another."""
    done = 0
    while done < len(cases):

        def work(first: int = done) -> int:
            for number in range(first, min(first + _BATCH, len(cases))):
                for line in look(number, cases[number]):
                    print(line.replace("\n", " "))
                print(f"done {number}", flush=True)
            return 0

        outcome: Outcome = world.forks.run(work, digest=None)
        finished = _count(tally, outcome, cases)
        tally.runs += finished
        done += finished
        if outcome.status != 0:
            tally.runs += 1
            tally.fail("crashes", cases[done][0], f"signal {outcome.signal}: {outcome.err[-800:]}")
            done += 1
    return tally


def _count(tally: Tally, outcome: Outcome, cases: list[Damage]) -> int:
    finished = 0
    wrong: list[tuple[str, str]] = []
    for line in outcome.out.split("\n"):
        kind, _, what = line.partition(" ")
        if not what.isprintable():
            wrong.append(("wrong", f"said with control characters: {what!r}"))
        if kind == "done":
            for failure, text in wrong:
                tally.fail(failure, cases[int(what)][0], text)
            finished, wrong = finished + 1, []
        elif kind == "said":
            tally.say(what)
        elif kind == "looked":
            tally.looked_at += int(what)
        elif kind:
            wrong.append((kind, what))
    return finished


def _damaged(world: World, name: str, content: bytes) -> Path:
    """Return an index of which one file is as given."""
    index = world.case / "index"
    shutil.rmtree(world.case, ignore_errors=True)
    shutil.copytree(world.index("new"), index)
    (index / name).write_bytes(content)
    return index


def _answers(index: Path, rows: Rows, world: World) -> list[str]:
    """Ask in every way: nothing, ``said`` what was refused, or ``wrong``."""
    try:
        wrong = wrong_answers(index, rows, world, 0)
    except (IndexDamagedError, IndexStateError) as error:
        return [f"said {error}"]
    return [f"looked {len(rows)}", *(f"wrong {what}" for what in wrong)]


def _graph(world: World, number: int, name: str, content: bytes) -> list[str]:
    index = _damaged(world, "graph.hnsw", content)
    said = _answers(index, world.new, world)
    if any(line.startswith("said") for line in said):
        said.append("lost nothing is answered")
    with Index.open(index) as opened:
        opened.search(queries_of(world, 0)[0], 3, method="hnsw")
        if not any("scanned instead" in remark for remark in opened.remarks):
            said.append("wrong nothing is said of it")
        said += [f"said {remark}" for remark in opened.remarks]
    if not any(problem.part == "graph" for problem in verify(index).problems):
        said.append("wrong verify does not name it")
    return said


def _model(world: World, number: int, name: str, content: bytes) -> list[str]:
    index = _damaged(world, "model.onnx", content)
    said = _answers(index, world.new, world)
    if any(line.startswith("said") for line in said):
        said.append("lost a query by its vector is refused")
    with Index.open(index) as opened:
        try:
            opened.search(min(world.photos.rglob("*.png")))
            said.append("wrong a picture was embedded with it")
        except (ModelFileError, IndexStateError) as error:
            said.append(f"said {error}")
    if not any(problem.part == "model" for problem in verify(index).problems):
        said.append("wrong verify does not name it")
    return said


def _database(world: World, number: int, name: str, content: bytes) -> list[str]:
    index = _damaged(world, "items.sqlite", content)
    if number % 2:  # the graph has the vectors as well: without it they are those of the database
        (index / "graph.hnsw").unlink()
    if name.startswith("replaced"):  # a whole database with right checksums; that it is another one, two hashes tell
        return [] if verify(index).problems else ["wrong verify does not name it"]
    said = _answers(index, world.new, world)
    refused = any(line.startswith("said") for line in said)
    try:
        problems = verify(index).problems
    except IndexStateError as error:
        return [*said, *([] if refused else [f"lost verify refuses what is answered from: {error}"])]
    if not all(problem.fault.isprintable() for problem in problems):
        said.append(f"wrong verify says control characters: {problems!r}")
    if refused and not problems:
        said.append("wrong verify finds nothing in what is refused")
    if number % _ONE_IN == 0:
        said += _synced_anyway(world, index)
    if number % _ONE_IN == 1:
        said += _repaired(world, index)
    return said


def _ratings(world: World, number: int, name: str, content: bytes) -> list[str]:
    index = _damaged(world, RATINGS, content)
    said = [] if number % _ONE_IN else _answers(index, world.new, world)
    if name.startswith("replaced"):
        return said
    try:
        with RatingStore.open(index) as store:
            found = {
                Rating(each.query.hex(), each.positive.hex(), each.negative.hex(), each.rater)
                for each in store.ratings()[0]
            }
        said += ["looked 1"] if found == world.rated else ["wrong other ratings"]
        refused = False
    except (IndexDamagedError, IndexStateError) as error:
        said.append(f"said {error}")
        refused = True
    try:
        problems = verify(index).problems
        if refused and not any(problem.part == "ratings" for problem in problems):
            said.append("wrong verify finds nothing in what is refused")
        remaining = verify(index, repair=True).remaining
        said += [f"lost remaining after a repair: {remaining[0]}"] if remaining else []
        said += [] if read_ratings(index) <= world.rated else ["wrong a repair keeps other ratings"]
    except IndexStateError as error:  # a number of the schema is newer
        said.append(f"said {error}" if refused else f"lost verify refuses what is answered from: {error}")
    return said


def _synced_anyway(world: World, index: Path) -> list[str]:
    """Somebody syncs without looking: refused, or what is in it afterwards is right."""
    try:
        sync(index, [world.photos])
    except (IndexDamagedError, IndexStateError) as error:
        return [f"said sync: {error}"]
    try:
        rows = read_rows(index)
        if rows != world.new and not verify(index).problems:
            return ["wrong a sync of the damaged index left another one, which verify finds sound"]
    except Exception:
        rows = None
    return _answers(index, world.new, world)


def _repaired(world: World, index: Path) -> list[str]:
    """Repair and sync, which must leave what a sync from scratch does."""
    try:
        report = verify(index, repair=True)
        if report.remaining:
            return [f"lost remaining after a repair: {report.remaining[0]}"]
        sync(index, [world.photos])
    except DeepRankError as error:
        return [f"lost it cannot be repaired: {error}"]
    if read_rows(index) != world.new:
        return ["lost a repair and a sync leave another index than one from scratch"]
    return [line for line in _answers(index, world.new, world) if not line.startswith("looked")]


def _log(world: World, how: How) -> Tally:
    """Damage the log of a killed sync: an earlier committed state may come back, and nothing else."""
    tally = Tally(f"damage to {LOG}, left by a killed sync")
    start = world.folder / "killed"
    states = {digest(world.old)}
    for _ in range(50):
        shutil.rmtree(world.case, ignore_errors=True)
        shutil.copytree(world.index("old"), world.case / "index")
        words = ["sync", str(world.photos), "--index", "index"]
        whole = world.run(words)
        shutil.rmtree(world.case)
        shutil.copytree(world.index("old"), world.case / "index")
        outcome = world.run(words, kill_after=0.8 * whole.seconds)
        log = world.case / "index" / LOG
        if outcome.signal and log.exists() and log.stat().st_size:
            break
    else:
        return tally
    states |= {found for _, _, found, _ in outcome.reports}
    shutil.rmtree(start, ignore_errors=True)
    shutil.copytree(world.case, start)
    (start / "index" / "items.sqlite-shm").unlink(missing_ok=True)
    sound = log.read_bytes()
    cases = how.cases(sound, {})

    def look(number: int, case: Damage) -> list[str]:
        shutil.rmtree(world.case, ignore_errors=True)
        shutil.copytree(start, world.case)
        log.write_bytes(case[1])
        try:
            rows = read_rows(world.case / "index")
        except Exception as error:
            return [f"said {error}"]
        if rows is None or digest(rows) not in states:
            try:
                with Index.open(world.case / "index") as opened:
                    opened.search(queries_of(world, 0)[0], 3)
            except DeepRankError as error:
                return [f"said {error}"]
            return ["wrong a state that never was"]
        return _answers(world.case / "index", rows, world)

    return _in_batches(world, tally, cases, look)
