"""Index folders in which somebody put something else under a name that deeprank uses, and names prepared beside them.

Each kind changes a copied index folder in place. What it may lead to lies in a folder beside the index that
:func:`victims` names; whatever a command does, that stays as it was (:func:`harmed`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

Kind = Callable[[Path, Random], None]
Form = Callable[[Path, Path, Random], None]

SECRET = b"what the victim would not want to lose\n"

# Names in an index folder that deeprank opens, writes, or wrote in earlier versions.
TRUTH = ("items.sqlite", "model.onnx", "graph.hnsw")
SIDE = ("items.sqlite-wal", "items.sqlite-shm", "items.sqlite-journal", "write.lock")
PREPARED = ("items.sqlite.tmp", "model.onnx.tmp", "graph.hnsw.tmp", "repair.tmp", f".deeprank.{'0' * 32}.tmp")
NAMES = (*TRUTH, *SIDE, *PREPARED)
BESIDE = ("making", "aside", "reembed")


def victims(folder: Path) -> Path:
    """Return the folder, beside an index, of files that are somebody else's; it is made with its content."""
    place = folder.with_name(f"{folder.name}-victims")
    if not place.exists():
        place.mkdir()
        (place / "file").write_bytes(SECRET)
        uploads = place / "uploads"
        uploads.mkdir()
        (uploads / f"{hashlib.sha256(SECRET).hexdigest()}.jpg").write_bytes(SECRET)
        if (folder / "uploads").is_dir():
            for path in (folder / "uploads").iterdir():
                shutil.copyfile(path, uploads / path.name)
        os.mkfifo(place / "pipe")
    return place


def contents(place: Path) -> dict[str, str]:
    """Return a digest of every file below a folder of victims, and the kind of everything else, by name."""
    found = {}
    for path in sorted(place.rglob("*")):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            found[str(path.relative_to(place))] = f"{hashlib.sha256(path.read_bytes()).hexdigest()} {status.st_mode:o}"
        else:
            found[str(path.relative_to(place))] = f"{status.st_mode:o}"
    return found


def harmed(before: Mapping[str, str], place: Path) -> list[str]:
    """Return which of a victim's files have changed, are gone, or have appeared."""
    after = contents(place)
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def _cleared(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link_to_file(path: Path, place: Path, random: Random) -> None:
    """A link to the victim's file, absolute or relative."""
    path.symlink_to(random.choice([place / "file", os.path.relpath(place / "file", path.parent)]))


def link_to_nothing(path: Path, place: Path, random: Random) -> None:
    """A link by which a file would appear in the victim's folder."""
    path.symlink_to(place / f"planted-{random.randrange(1000)}")


def link_to_itself(path: Path, place: Path, random: Random) -> None:
    """A link that leads to itself."""
    path.symlink_to(path.name)


def link_to_device(path: Path, place: Path, random: Random) -> None:
    """A link to a device that never ends, or that takes everything."""
    path.symlink_to(random.choice(["/dev/zero", "/dev/null", "/dev/full", "/dev/tty"]))


def link_to_pipe(path: Path, place: Path, random: Random) -> None:
    """A link to a pipe that nobody writes to."""
    path.symlink_to(place / "pipe")


def link_to_folder(path: Path, place: Path, random: Random) -> None:
    """A link to the victim's folder."""
    path.symlink_to(random.choice([place, place / "uploads"]))


def hard_link(path: Path, place: Path, random: Random) -> None:
    """Another name of the victim's file."""
    os.link(place / "file", path)


def pipe(path: Path, place: Path, random: Random) -> None:
    """A pipe that nobody writes to."""
    os.mkfifo(path)


def listening_socket(path: Path, place: Path, random: Random) -> None:
    """A socket; its name may be too long for the system, so it is made by another and renamed."""
    short = Path(f"/tmp/deeprank-{random.getrandbits(48):x}.sock")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as made:
        made.bind(str(short))
    shutil.move(short, path) if short.stat().st_dev == path.parent.stat().st_dev else (short.unlink(), os.mkfifo(path))


def device(path: Path, place: Path, random: Random) -> None:
    """A device (only root makes one; else a link to it)."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, random.choice([os.makedev(1, 3), os.makedev(1, 5)]))
    except PermissionError:
        link_to_device(path, place, random)


def folder_with_content(path: Path, place: Path, random: Random) -> None:
    """A folder, with a link to the victim's file in it."""
    path.mkdir()
    (path / random.choice(NAMES)).symlink_to(place / "file")


FORMS: Mapping[str, Form] = {
    "link to a file": link_to_file,
    "link to nothing": link_to_nothing,
    "link to itself": link_to_itself,
    "link to a device": link_to_device,
    "link to a pipe": link_to_pipe,
    "link to a folder": link_to_folder,
    "hard link": hard_link,
    "pipe": pipe,
    "socket": listening_socket,
    "device": device,
    "folder": folder_with_content,
}


def put(folder: Path, name: str, form: str, random: Random) -> None:
    """Put something under a name in (or, with ``../``, beside) an index folder, in place of what is there."""
    place, path = victims(folder), folder / name
    _cleared(path)
    FORMS[form](path, place, random)


def _in_folder(form: str) -> Kind:
    return lambda folder, random: put(folder, random.choice(NAMES), form, random)


def _in_uploads(form: str) -> Kind:
    """Under the name of an upload, or one that an upload was prepared under."""

    def change(folder: Path, random: Random) -> None:
        (folder / "uploads").mkdir(exist_ok=True)
        known = sorted(path.name for path in (folder / "uploads").iterdir())
        name = random.choice([*known, f"{random.getrandbits(256):064x}.jpg"]) + random.choice(["", ".tmp"])
        put(folder, f"uploads/{name}", form, random)

    return change


def _for_uploads(form: str) -> Kind:
    return lambda folder, random: put(folder, "uploads", form, random)


def _beside(form: str) -> Kind:
    """Under a name beside the index that a new one is made under."""

    def change(folder: Path, random: Random) -> None:
        put(folder, f"../.{folder.name}.{random.choice(BESIDE)}", form, random)

    return change


def same_file_twice(folder: Path, random: Random) -> None:
    """Two names of an index for one file: a link from one to another of its own."""
    name, other = random.sample(TRUTH, 2)
    (folder / name).unlink(missing_ok=True)
    if random.random() < 0.5 and (folder / other).exists():
        os.link(folder / other, folder / name)
    else:
        (folder / name).symlink_to(other)


def moved_aside(folder: Path, random: Random) -> None:
    """The index is gone; under the name that it would be renamed back from is somebody else's link or folder."""
    place = victims(folder)
    aside = folder.with_name(f".{folder.name}.aside")
    if random.random() < 0.5:
        folder.rename(aside)
        aside.chmod(0o777)
    else:
        shutil.rmtree(folder)
        aside.symlink_to(place)


KINDS: Mapping[str, Kind] = {
    **{f"in the folder: {form}": _in_folder(form) for form in FORMS},
    **{f"in uploads: {form}": _in_uploads(form) for form in FORMS},
    **{f"for uploads: {form}": _for_uploads(form) for form in FORMS},
    **{f"beside the folder: {form}": _beside(form) for form in FORMS},
    "one file under two names": same_file_twice,
    "moved aside": moved_aside,
}
