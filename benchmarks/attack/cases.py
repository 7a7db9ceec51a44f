"""All kinds of hostile input: those that the makers know, and mutations of honest and hostile ones.

A case is a seed, a kind and a number; the same three give the same input.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import picture_mutations
from archive_mutations import changed_arrays, changed_zip, honest_zip
from fixture import World

__all__ = ["FAMILIES", "Case", "Kind", "all_kinds", "case_of", "chosen", "planted_kinds"]

# What an input is: which modules know makers, and under which name the input lies in the folder of its case.
FAMILIES = {
    "picture": ("pictures",),
    "archive": ("archives",),
    "index": ("graphs", "databases", "folders"),
    "model": ("models",),
    "arrays": (),
    "http": ("http_bytes",),
}
_NAMES = {"archive": "data.zip", "index": "evil.index", "model": "model.onnx", "arrays": "arrays.npz"}
_SUFFIXES = {
    "jpeg": ".jpg",
    "png": ".png",
    "webp": ".webp",
    "bmff": ".heic",
    "gif": ".gif",
    "tiff": ".tif",
    "bmp": ".bmp",
}
# A mutation of a hostile picture begins with one of at most so many bytes.
_MOST_BASE = 300_000

Make = Callable[[Path, Random, World], Path | Any]


@dataclass(frozen=True)
class Kind:
    """One kind of hostile input.

    Attributes:
        group: row of the table.
        name: within it.
        family: what the input is: one of ``FAMILIES``.
        make: writes the input into a folder and returns its path; for HTTP, returns the bytes or what yields them.
        mutates: whether each number gives something new, rather than the same with other numbers in it.

    """

    group: str
    name: str
    family: str
    make: Make
    mutates: bool = False

    @property
    def full_name(self) -> str:
        """Group and name."""
        return f"{self.group}/{self.name}"


@dataclass(frozen=True)
class Case:
    """One input."""

    seed: int
    kind: Kind
    number: int

    @property
    def name(self) -> str:
        """What ``--again`` takes."""
        return f"{self.seed}/{self.kind.full_name}/{self.number}"

    def make(self, folder: Path, world: World) -> Any:
        """Write the input into a folder and return its path, or the bytes for a socket."""
        return self.kind.make(folder, Random(self.name), world)


def case_of(name: str) -> Case:
    """Return the case with this name.

    Raises:
        ValueError: there is no such kind, or it is no name of a case.

    """
    seed, _, rest = name.partition("/")
    full_name, _, number = rest.rpartition("/")
    for kind in (*all_kinds(), *planted_kinds()):
        if kind.full_name == full_name:
            return Case(int(seed), kind, int(number))
    raise ValueError(f"there is no kind {full_name!r}")


def chosen(names: Iterable[str]) -> list[Kind]:
    """Return the kinds whose group, family or full name is among these; without any, all.

    Raises:
        ValueError: a name is none of them.

    """
    names = list(names)
    kinds = all_kinds()
    known = {name for kind in kinds for name in (kind.group, kind.family, kind.full_name)}
    if unknown := sorted(set(names) - known):
        raise ValueError(f"unknown kinds: {', '.join(unknown)}; expected some of {', '.join(sorted(_groups(kinds)))}")
    return [kind for kind in kinds if not names or {kind.group, kind.family, kind.full_name} & set(names)]


def _groups(kinds: Iterable[Kind]) -> set[str]:
    return {kind.group for kind in kinds} | set(FAMILIES)


@functools.cache
def all_kinds() -> tuple[Kind, ...]:
    """Return every kind, those of the makers first."""
    kinds = []
    for family, modules in FAMILIES.items():
        for module in modules:
            if importlib.util.find_spec(module) is None:
                continue
            makers: Mapping[str, Callable[..., Any]] = importlib.import_module(module).KINDS
            kinds += [Kind(module, name, family, _made(family, maker)) for name, maker in makers.items()]
    return (*kinds, *_mutations())


def planted_kinds() -> list[Kind]:
    """Return pictures that do what they say to a package with planted faults."""
    import planted_faults

    def maker(name: str) -> Make:
        return lambda folder, chance, world: _write_picture(folder, planted_faults.MARK + name.encode() + b" ")

    return [Kind("planted", name, "picture", maker(name)) for name in planted_faults.NAMES]


def _made(family: str, maker: Callable[..., Any]) -> Make:
    if family == "http":
        return lambda folder, chance, world: maker(chance)
    if family == "picture":
        return lambda folder, chance, world: _write_picture(folder, maker(chance))
    if family == "index":
        return lambda folder, chance, world: _changed_index(folder, chance, world, maker)

    def make(folder: Path, chance: Random, world: World) -> Path:
        path = folder / _NAMES[family]
        maker(path, chance)
        return path

    return make


def _write_picture(folder: Path, content: bytes) -> Path:
    found = picture_mutations.format_of(content)
    suffix = ".avif" if content[8:12] in (b"avif", b"avis") else _SUFFIXES.get(found, ".png")
    path = folder / f"picture{suffix}"
    path.write_bytes(content)
    return path


def _changed_index(folder: Path, chance: Random, world: World, maker: Callable[[Path, Random], object]) -> Path:
    path = folder / _NAMES["index"]
    shutil.copytree(world.index, path)
    maker(path, chance)
    return path


def _mutations() -> list[Kind]:
    import databases
    import graphs
    import index_mutations
    import picture_mutators

    def kind(group: str, name: str, family: str, make: Make) -> Kind:
        return Kind(group, name, family, make, mutates=True)

    def index(group: str, name: str, maker: Callable[[Path, Random], object]) -> Kind:
        return kind(group, name, "index", _made("index", maker))

    return [
        *(
            kind("mutated pictures", name, "picture", functools.partial(_mutated_picture, name))
            for name in picture_mutations.FORMATS
        ),
        *(
            kind("mutated pictures", name, "picture", _made("picture", maker))
            for name, maker in picture_mutators.KINDS.items()
        ),
        kind("mutated archives", "zip", "archive", _mutated_zip),
        index("mutated graphs", "parts", graphs.mutate),
        index("mutated databases", "pages", databases.mutate),
        *(index("mutated databases", name, maker) for name, maker in index_mutations.KINDS.items()),
        index("mutated folders", "several at once", _several),
        kind("mutated models", "fields", "model", _mutated_model),
        kind("mutated arrays", "export", "arrays", lambda folder, chance, world: _arrays(folder, chance, world.export)),
        kind(
            "mutated arrays",
            "reference",
            "arrays",
            lambda folder, chance, world: _arrays(folder, chance, world.reference),
        ),
        kind(
            "mutated arrays",
            "carrying",
            "arrays",
            lambda folder, chance, world: _arrays(folder, chance, world.carrying),
        ),
        kind("mutated http", "requests", "http", lambda folder, chance, world: _mutated_request(chance)),
    ]


@functools.cache
def _bases() -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {name: [] for name in picture_mutations.FORMATS}
    for content in picture_mutations.honest_pictures():
        found[picture_mutations.format_of(content)].append(content)
    found["bytes"] = [content for contents in found.values() for content in contents]
    return found


def _mutated_picture(name: str, folder: Path, chance: Random, world: World) -> Path:
    import pictures

    bases = _bases()[name]
    base = chance.choice(bases)
    if chance.random() < 0.1:
        hostile = pictures.KINDS[chance.choice(sorted(pictures.KINDS))](chance)
        if len(hostile) <= _MOST_BASE and picture_mutations.format_of(hostile) == name:
            base = hostile
    return _write_picture(folder, picture_mutations.mutated(name, base, bases, chance))


def _mutated_zip(folder: Path, chance: Random, world: World) -> Path:
    path = folder / _NAMES["archive"]
    path.write_bytes(changed_zip(honest_zip(world.data), chance))
    return path


def _several(folder: Path, chance: Random) -> None:
    """Two or three kinds of folders at once."""
    import folders

    for name in chance.sample(sorted(folders.KINDS), chance.choice((2, 3))):
        try:
            folders.KINDS[name](folder, chance)
        except OSError:  # what the first left there is nothing that the second can change
            continue


def _mutated_model(folder: Path, chance: Random, world: World) -> Path:
    import models

    path = folder / _NAMES["model"]
    shutil.copyfile(world.model, path)
    models.mutate(path, chance)
    return path


def _arrays(folder: Path, chance: Random, honest: Path) -> Path:
    path = folder / honest.name
    path.write_bytes(changed_arrays(honest.read_bytes(), chance))
    return path


def _mutated_request(chance: Random) -> bytes:
    import http_bytes

    return http_bytes.mutate(chance)
