"""The pictures, the indexes and the truth that every fault is held against."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from forked_commands import Forks, Outcome, command
from index_rows import Ratings, Row, Rows, digest, read_ratings, read_rows

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from tiny_model import expected, square, write_model, write_picture

Vectors = npt.NDArray[np.float64]

# What an index holds at rest.
FILES = ["graph.hnsw", "items.sqlite", "model.onnx", "ratings.sqlite", "write.lock"]
_CLOSE = 1e-5


@dataclass(frozen=True)
class Command:
    """A command to be disturbed.

    Attributes:
        name: for the table.
        start: folders to copy in place before it, by their name.
        words: of the command, in which paths are relative to the folder of the case.
        may_hold: whether the index may hold exactly these pictures after a fault.
        finish: commands that bring the index to ``final`` afterwards.
        final: what it then must hold.
        seed: of the model whose vectors those are.
        target: another index (a copy) that must be absent or whole.
        file: an exported file that must be an earlier one or the new one.
        sound: whether the index is sound before.
        rated: what the ratings may be after a fault; the last is what they then must be. None: there are none.

    """

    name: str
    start: dict[str, Path]
    words: tuple[str, ...]
    may_hold: Callable[[Rows], bool]
    finish: tuple[tuple[str, ...], ...]
    final: Rows
    seed: int = 0
    target: str | None = None
    file: str | None = None
    sound: bool = True
    rated: tuple[Ratings, ...] = ()


@dataclass
class World:
    """Everything that is made once."""

    folder: Path
    forks: Forks
    photos: Path
    old: Rows = frozenset()
    new: Rows = frozenset()
    versions: dict[str, set[str]] = field(default_factory=dict)
    known: dict[tuple[int, str], npt.NDArray[np.float64]] = field(default_factory=dict)
    rated: Ratings = frozenset()
    rated_more: Ratings = frozenset()
    missing: list[str] = field(default_factory=list)
    wanted: list[str] = field(default_factory=list)

    @property
    def case(self) -> Path:
        """The folder in which a command is disturbed."""
        return self.folder / "case"

    def index(self, name: str) -> Path:
        """Return an index that is made once and copied from."""
        return self.folder / "indexes" / name

    def place(self, command: Command) -> Path:
        """Make the folder of a case anew and return the index in it."""
        shutil.rmtree(self.case, ignore_errors=True)
        self.case.mkdir()
        return self.place_in(command)

    def place_in(self, command: Command) -> Path:
        """Put what a case begins with into its folder, which is empty."""
        for name, source in command.start.items():
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, self.case / name)
        return self.case / "index"

    def run(self, words: Sequence[str], **options: object) -> Outcome:
        """Run a command in the folder of the case."""
        return self.forks.run(self.work(words), **options)  # type: ignore[arg-type]

    def work(self, words: Sequence[str]) -> Callable[[], int | None]:
        """Return what runs a command in the folder of the case."""
        case = self.case

        def work() -> int | None:
            os.chdir(case)
            return command(words)()

        return work

    def vector(self, row: Row, seed: int) -> npt.NDArray[np.float64]:
        """Return the embedding of a picture by the formula alone."""
        return self.known[seed, row.sha256]


def make_world(folder: Path, forks: Forks, pictures: int = 150) -> World:
    """Write pictures, index them, change some, index them again."""
    world = World(folder, forks, folder / "photos")
    for seed in (0, 1):
        write_model(folder / f"model{seed}.onnx", seed=seed)
    names = [f"{'abc'[i % 3]}/{i}.png" for i in range(pictures)]
    for seed, name in enumerate(names):
        write_picture(world.photos / name, seed)
    _learn(world)
    world.old = _indexed(world, "old", 0)
    _write_ratings(world, names)
    world.rated = _rate(world, "old", "rated.csv")
    _change(world, names)
    _learn(world)
    world.new = _indexed(world, "new", 0)
    shutil.copytree(world.index("new"), world.index("rated more"))
    world.rated_more = _rate(world, "rated more", "more.csv")
    assert _rate(world, "new", "rated.csv") == world.rated < world.rated_more
    _indexed(world, "other", 1)
    _rate(world, "other", "rated.csv")
    _shrunk(world)
    _broken(world)
    for name, index in (("earlier.npz", "old"), ("whole.npz", "new")):
        forks.run(command(["export", folder / name, "--index", world.index(index)]))
    return world


def _write_ratings(world: World, names: list[str]) -> None:
    """Write ratings of pictures that stay as they are, and twice as many."""
    stay = names[len(names) // 4 :]
    rows = [
        f"{query},{stay[number - 1]},{stay[number - 2]},{'Ann' if number % 2 else ''}"
        for number, query in enumerate(stay)
    ]
    for name, count in (("rated.csv", len(rows) // 2), ("more.csv", len(rows))):
        lines = ["query,positive,negative,rater", *rows[:count]]
        (world.folder / name).write_text("\n".join(lines) + "\n", "utf-8")


def _rate(world: World, index: str, table: str) -> Ratings:
    """Add ratings to an index, and hold the result against the files themselves."""
    words = ["ratings", "import", world.folder / table, "--index", world.index(index)]
    outcome = world.forks.run(command(words))
    assert outcome.status == 0, outcome.err
    ratings = read_ratings(world.index(index))
    lines = (world.folder / table).read_text("utf-8").splitlines()[1:]
    shas = {tuple(sha256_of(world.photos / path) for path in line.split(",")[:3]) for line in lines}
    assert {rating[:3] for rating in ratings} == shas
    return ratings


def _change(world: World, names: list[str]) -> None:
    """Add, change, touch, move and delete pictures."""
    photos, n = world.photos, len(names)
    for i in range(n // 2):
        write_picture(photos / "abcd"[i % 4] / f"new{i}.png", 10_000 + i)
    for i in range(0, n // 10):
        write_picture(photos / names[i], 20_000 + i)
        os.utime(photos / names[i], ns=(10**18 + i, 10**18 + i))
    for i in range(n // 10, n // 8):
        os.utime(photos / names[i], ns=(10**18 + i, 10**18 + i))
    (photos / "moved").mkdir()
    for i in range(n // 8, n // 6):
        (photos / names[i]).rename(photos / "moved" / f"{i}.png")
    for i in range(n // 6, n // 4):
        (photos / names[i]).unlink()


def _learn(world: World) -> None:
    """Compute the embeddings of what lies there now, with both models."""
    paths = sorted(world.photos.rglob("*.png"))
    pixels = np.stack([square(path) for path in paths])
    for path in paths:
        relative = str(path.relative_to(world.photos))
        world.versions.setdefault(relative, set()).add(sha256_of(path))
    for seed in (0, 1):
        for path, vector in zip(paths, expected(pixels, seed), strict=True):
            world.known[seed, sha256_of(path)] = vector


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _indexed(world: World, name: str, seed: int) -> Rows:
    """Index the pictures from scratch, and hold the result against the files themselves."""
    index = world.index(name)
    index.parent.mkdir(exist_ok=True)
    model = world.folder / f"model{seed}.onnx"
    outcome = world.forks.run(command(["sync", world.photos, "--index", index, "--model", model]))
    assert outcome.status == 0, outcome.err
    rows = read_rows(index)
    assert rows is not None
    assert facts(rows) == facts_of_files(world.photos)
    for row in rows:
        found = np.frombuffer(row.vector, "<f4")
        assert np.abs(found - world.vector(row, seed)).max() < _CLOSE, row.path
    return rows


def facts(rows: Rows) -> set[tuple[object, ...]]:
    """Return everything but the vectors."""
    return {row[:-1] for row in rows}


def facts_of_files(photos: Path) -> set[tuple[object, ...]]:
    """Return what the rows of an index of this folder should say."""
    found: set[tuple[object, ...]] = set()
    for path in photos.rglob("*.png"):
        relative, status = path.relative_to(photos), path.stat()
        found.add(
            (
                str(photos.resolve()),
                str(relative),
                relative.parts[0],
                status.st_size,
                status.st_mtime_ns,
                sha256_of(path),
            )
        )
    return found


def _shrunk(world: World) -> None:
    """Make an index of which some pictures were removed: its graph still holds them."""
    shutil.copytree(world.index("new"), world.index("shrunk"))
    words = ["remove", str(world.photos / "d"), "--yes", "--index", str(world.index("shrunk"))]
    outcome = world.forks.run(command(words))
    assert outcome.status == 0, outcome.err


def _broken(world: World) -> None:
    """Make an index with a damaged picture and a damaged graph."""
    shutil.copytree(world.index("new"), world.index("broken"))
    database = world.index("broken") / "items.sqlite"
    content = bytearray(database.read_bytes())
    place = content.index(min(world.new, key=lambda row: row.path).vector)
    content[place + 5] ^= 0x10
    database.write_bytes(bytes(content))
    with (world.index("broken") / "graph.hnsw").open("r+b") as file:
        file.seek(500)
        file.write(b"damaged")


def commands_of(world: World) -> list[Command]:
    """Return every command that writes, as far as this version has it."""
    old, new, photos = world.old, world.new, str(world.photos)
    sync = ("sync", photos, "--index", "index")
    model = str(world.folder / "model0.onnx")
    other_model = str(world.folder / "model1.onnx")
    kept = frozenset(row for row in new if row.label != "a")
    remove = ("remove", "--label", "a", "--yes", "--index", "index")
    # A removal that was committed before the kill cannot be done again; the next one puts the rest in order.
    last = max(kept, key=lambda row: row.path)
    next_remove = ("remove", str(world.photos / last.path), "--yes", "--index", "index")
    shrunk = read_rows(world.index("shrunk"))
    other = read_rows(world.index("other"))
    ratings_import = ("ratings", "import", str(world.folder / "more.csv"), "--index", "index")
    assert shrunk is not None
    assert other is not None
    whole = {"index": world.index("new")}
    exported = world.folder / "earlier.npz"
    export = ("export", "vectors.npz", "--index", "index")
    import_ = ("import", str(world.folder / "whole.npz"), "--index", "index", "--model", model)
    reembed = ("sync", "--reembed", "--model", other_model, "--index", "index")
    commands = [
        Command("sync", {"index": world.index("old")}, sync, _between(old, new), (sync,), new),
        Command("sync of a new index", {}, (*sync, "--model", model), _part_of(new), ((*sync, "--model", model),), new),
        Command("remove", whole, remove, _one_of(new, kept), (remove, next_remove), kept - {last}),
        Command("reembed", whole, reembed, _one_of(new, other), (reembed,), other, seed=1),
        Command(
            "verify --repair",
            {"index": world.index("broken")},
            ("verify", "--repair", "--index", "index"),
            _all_but_one(new),
            (("verify", "--repair", "--index", "index"), sync),
            new,
            sound=False,
        ),
        Command(
            "compact",
            {"index": world.index("shrunk")},
            ("compact", "--index", "index"),
            _one_of(shrunk),
            (("compact", "--index", "index"),),
            shrunk,
        ),
        Command(
            "copy",
            whole,
            ("copy", "copied", "--index", "index"),
            _one_of(new),
            (("copy", "copied", "--index", "index"),),
            new,
            target="copied",
        ),
        Command("export", whole | {"vectors.npz": exported}, export, _one_of(new), (export,), new, file="vectors.npz"),
        Command("import", {}, import_, _one_of(new), (import_,), new),
    ]
    commands = [replace(each, rated=(world.rated,) if "index" in each.start else ()) for each in commands]
    states = world.rated, world.rated_more
    commands.append(
        Command("ratings import", whole, ratings_import, _one_of(new), (ratings_import,), new, rated=states)
    )
    if unknown := set(world.wanted) - {each.name for each in commands}:
        raise SystemExit(f"unknown commands: {', '.join(sorted(unknown))}")
    return [each for each in commands if _exists(world, each) and (not world.wanted or each.name in world.wanted)]


def _exists(world: World, each: Command) -> bool:
    import deeprank.runtime.index.cli as cli

    known = {registered.name for registered in (*cli.app.registered_commands, *cli.app.registered_groups)}
    if each.words[0] in known:
        return True
    world.missing.append(each.name)
    return False


def _one_of(*states: Rows) -> Callable[[Rows], bool]:
    return lambda rows: rows in states


def _part_of(final: Rows) -> Callable[[Rows], bool]:
    return lambda rows: rows <= final


def _all_but_one(final: Rows) -> Callable[[Rows], bool]:
    """Allow one picture to be damaged, or dropped."""
    return lambda rows: len(rows & final) >= len(final) - 1


def _between(old: Rows, new: Rows) -> Callable[[Rows], bool]:
    """Allow every picture to be as it was or as it will be, and what was neither changed nor deleted to be there.

    A moved picture is under its old path or its new one.
    """
    of_new = {row.path: row for row in new}
    contents = {row.sha256 for row in new}
    required = {row.sha256 for row in old if row.sha256 in contents}
    paths = {row.path for row in old if row.path in of_new}

    def allowed(rows: Rows) -> bool:
        return rows <= old | new and required <= {row.sha256 for row in rows} and paths <= {row.path for row in rows}

    return allowed


def start_digest(world: World, command: Command) -> str | None:
    """Return what the index holds before the command."""
    rows = read_rows(command.start["index"]) if "index" in command.start else None
    return None if rows is None else digest(rows)
