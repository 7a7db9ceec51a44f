"""A power cut: what was not synced when it came may be there, or not, or half.

The calls of a command are recorded with their bytes, and played back up to a point onto a model of a disk. Content is
durable once its file is synced, a name once its folder is; nothing else is promised (POSIX). Three disks are tried at
each point: one that kept only what is promised, one that kept all names but no content that was not synced (a rename
that overtakes the content), and one that kept some of either, torn at 512 bytes.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import shim
from checks import Tally, check_after
from fixture import Command, World, commands_of
from kills import chosen

_SECTOR = 512
DISKS = ("keeps what is synced", "keeps all names, content only as far as synced", "keeps some of what is not synced")


@dataclass(frozen=True)
class Call:
    """One recorded call."""

    number: int
    kind: str
    inode: int
    offset: int
    one: str
    other: str
    data: bytes


@dataclass
class File:
    """Content: what is durable, and what was done to it since."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[Call] = field(default_factory=list)
    is_folder: bool = False

    def settle(self, calls: list[Call]) -> bytearray:
        """Return the content after these calls."""
        content = bytearray(self.durable)
        for call in calls:
            if call.kind == "cut":
                content = content[: call.offset].ljust(call.offset, b"\0")
            else:
                end = call.offset + len(call.data)
                content = content.ljust(call.offset, b"\0")
                content[call.offset : end] = call.data
        return content


class Disk:
    """What the calls of a command leave when they were not synced."""

    def __init__(self, start: Path, folder: Path) -> None:
        self._folder = folder
        self.names: dict[str, File] = {str(folder): File(is_folder=True)}
        self._by_inode: dict[int, File] = {}
        for path in sorted(start.rglob("*")):
            file = File(is_folder=path.is_dir())
            if path.is_file():
                file.durable = bytearray(path.read_bytes())
            self.names[str(folder / path.relative_to(start))] = file
        self._durable_names = dict(self.names)
        self._changes: list[tuple[str, Call, File | None]] = []

    def meet(self, inodes: dict[str, int]) -> None:
        """Learn the inodes of the files that are there from the beginning."""
        for name, inode in inodes.items():
            self._by_inode[inode] = self.names[name]

    def apply(self, call: Call) -> None:
        """Do one call."""
        if call.kind in ("create", "folder"):
            file = File(is_folder=call.kind == "folder")
            self._by_inode[call.inode] = file
            self._change(call, file)
        elif call.kind in ("write", "cut"):
            self._by_inode[call.inode].pending.append(call)
        elif call.kind == "sync":
            self._sync(self._by_inode[call.inode])
        else:
            self._change(call, None)

    def _change(self, call: Call, file: File | None) -> None:
        folder = str(Path(call.other or call.one).parent)
        self._changes.append((folder, call, file))
        _rename(self.names, call, file)

    def _sync(self, file: File) -> None:
        if not file.is_folder:
            file.durable, file.pending = file.settle(file.pending), []
            return
        folders = {name for name, other in self.names.items() if other is file}
        kept = []
        for folder, call, changed in self._changes:
            if folder in folders:
                _rename(self._durable_names, call, changed)
            else:
                kept.append((folder, call, changed))
        self._changes = kept

    def write(self, target: Path, disk: str, chance: random.Random) -> None:
        """Write what is left after a power cut now."""
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        names = dict(self._durable_names)
        if disk == DISKS[1]:
            names = dict(self.names)
        elif disk == DISKS[2]:
            for _, call, file in self._changes[: chance.randint(0, len(self._changes))]:
                _rename(names, call, file)
        for name in sorted(names):
            file, path = names[name], target / Path(name).relative_to(self._folder)
            if name.endswith("-shm") or not path.parent.is_dir():
                continue
            if file.is_folder:
                path.mkdir(exist_ok=True)
            else:
                path.write_bytes(bytes(file.settle(_kept(file.pending, disk, chance))))


def _kept(pending: list[Call], disk: str, chance: random.Random) -> list[Call]:
    if disk != DISKS[2]:
        return []
    kept: list[Call] = []
    for call in pending:
        if call.kind == "cut":
            kept += [call] * chance.randint(0, 1)
            continue
        for start in range(0, len(call.data), _SECTOR):
            if chance.random() < 0.5:
                part = call.data[start : start + _SECTOR]
                kept.append(Call(call.number, "write", call.inode, call.offset + start, "", "", part))
    return kept


def _rename(names: dict[str, File], call: Call, file: File | None) -> None:
    """Change names as a call does; where an earlier change was lost, so is what builds on it."""
    if call.kind in ("create", "folder"):
        assert file is not None
        names[call.one] = file
    elif call.kind == "unlink":
        names.pop(call.one, None)
    elif call.kind == "link" and call.one in names:
        names[call.other] = names[call.one]
    elif call.kind in ("rename", "exchange"):
        one, other = _taken(names, call.one), _taken(names, call.other)
        names.update({call.other + rest: each for rest, each in one.items()})
        if call.kind == "exchange":
            names.update({call.one + rest: each for rest, each in other.items()})


def _taken(names: dict[str, File], top: str) -> dict[str, File]:
    """Take a name and all below it out."""
    mine = [name for name in names if name == top or name.startswith(top + "/")]
    return {name[len(top) :]: names.pop(name) for name in mine}


def read_trace(path: Path) -> list[Call]:
    """Read what the shim recorded."""
    content, place, calls = path.read_bytes(), 0, []
    while place < len(content):
        end = content.index(b"\n", place)
        number, kind, inode, offset, *lengths = content[place:end].split(b" ")
        one, other, size = map(int, lengths)
        start = end + 1
        calls.append(
            Call(
                int(number),
                kind.decode(),
                int(inode),
                int(offset),
                content[start : start + one].decode(),
                content[start + one : start + one + other].decode(),
                content[start + one + other : start + one + other + size],
            )
        )
        place = start + one + other + size
    return calls


def run(world: World, *, calls: int, seed: int) -> Iterator[Tally]:
    """Cut the power after the calls of every command (0: after each of them)."""
    if not shim.has_shim():
        return
    for command in commands_of(world):
        yield from cut(world, command, calls, random.Random(f"{seed} {command.name}"))


def cut(world: World, command: Command, limit: int, chance: random.Random) -> list[Tally]:
    """Cut the power at some calls of one command."""
    world.place(command)
    start, trace = world.folder / "start", world.folder / "trace"
    shutil.rmtree(start, ignore_errors=True)
    shutil.copytree(world.case, start)
    disk = Disk(start, world.case)
    disk.meet({str(path): path.stat().st_ino for path in [world.case, *world.case.rglob("*")]})
    outcome = world.run(command.words, watched=world.case, trace=trace)
    recorded = read_trace(trace)
    points = set(chosen(len(recorded), limit))
    tallies = {name: Tally(f"power cut, a disk that {name}, {command.name}") for name in DISKS}
    for point, call in enumerate(recorded, 1):
        disk.apply(call)
        if point not in points:
            continue
        reports = [report for report in outcome.reports if report[3] <= call.number]
        for name, tally in tallies.items():
            disk.write(world.case, name, chance)
            check_after(world, command, reports, tally, f"after {call.kind} {point} of {len(recorded)}")
    return list(tallies.values())
