"""Hostile index folders: links, pipes and devices in them, races beside them, and permissions of what is made."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import BIN, run_command
from tiny_model import as_another_user, open_the_way, write_model, write_pictures

ATTACK = Path(__file__).parent.parent / "benchmarks" / "attack"
sys.path.append(str(ATTACK))
import folders  # noqa: E402

from deeprank.runtime.files import NotRegularError, Permissions, open_regular, placed, prepared_for  # noqa: E402
from deeprank.runtime.index.maintenance.compact import compact  # noqa: E402
from deeprank.runtime.index.maintenance.copy import copy  # noqa: E402
from deeprank.runtime.index.maintenance.reembed import reembed  # noqa: E402
from deeprank.runtime.index.maintenance.verify import verify  # noqa: E402
from deeprank.runtime.index.sync.options import SyncOptions  # noqa: E402
from deeprank.runtime.index.sync.sync import sync  # noqa: E402
from deeprank.runtime.index.uploads.items import Upload, add_uploads  # noqa: E402

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
NOBODY = 65534


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, a model, and an index of them that has an upload; to be copied."""
    folder = tmp_path_factory.mktemp("made")
    write_pictures(folder / "photos", [f"{label}/{number}.png" for label in "ab" for number in range(6)])
    write_model(folder / "model.onnx")
    sync(folder / "index", [folder / "photos"], model=folder / "model.onnx")
    upload(folder / "index", folder)
    return folder


def upload(index: Path, folder: Path, seed: int = 77) -> str:
    """Add an upload to an index, and return its path in the index."""
    from tiny_model import write_picture

    from deeprank.runtime.embedder import Embedder

    picture = folder / f"upload-{seed}.png"
    write_picture(picture, seed)
    embedder = Embedder(index / "model.onnx")
    vector = embedder.embed([picture])[0]
    (added,) = add_uploads(index, [Upload(picture.read_bytes(), vector)], model_sha256=embedder.sha256)
    return f"uploads/{added.relative}"


@pytest.fixture
def index(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "index", tmp_path / "index")
    return tmp_path / "index"


def modes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): f"{stat.S_IMODE(path.lstat().st_mode):o}"
        for path in (folder, *sorted(folder.rglob("*")))
    }


# Opening and placing


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to pipe").symlink_to("pipe")
    assert open_regular(tmp_path / "file").read() == b"x"
    assert open_regular(tmp_path / "link", follow_links=True).read() == b"x"
    for name, follow, what in (
        ("link", False, "a link, which is not followed"),
        ("pipe", False, "a pipe"),
        ("to pipe", True, "a pipe"),
        (".", False, "a folder"),
        ("/dev/zero", True, "a device"),
    ):
        with pytest.raises(NotRegularError) as raised:
            open_regular(tmp_path / name, follow_links=follow)
        assert raised.value.strerror == f"it is {what}"


def test_a_file_is_placed_whole_or_not_at_all(tmp_path: Path) -> None:
    victim, target = tmp_path / "victim", tmp_path / "target"
    victim.write_bytes(b"victim")
    target.symlink_to(victim)
    with pytest.raises(TypeError), placed(target) as file:
        file.write("half")  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target", "victim"]
    with placed(target, Permissions(0o604)) as file:
        file.write(b"new")
        # Nobody can prepare a link under that name.
        assert prepared_for(Path(file.name).name) == "target"
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o604
    assert (target.is_symlink(), target.read_bytes(), victim.read_bytes()) == (False, b"new", b"victim")
    with placed(target) as file:
        file.write(b"newer")
    assert stat.S_IMODE(target.stat().st_mode) == 0o604


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("pipe", "null"):
        with pytest.raises(NotRegularError), placed(tmp_path / name):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["null", "pipe"]


def test_a_long_name_can_be_placed(tmp_path: Path) -> None:
    with placed(tmp_path / ("x" * 255)) as file:
        assert prepared_for(Path(file.name).name) == "deeprank"
    assert (tmp_path / ("x" * 255)).exists()


# Links and pipes in an index, whatever asks it

WORK = """
import json, os, random, resource, shutil, signal, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import folders
from test_hostile_folders import upload
from deeprank.runtime.errors import DeepRankError
from deeprank.runtime.index import Index
from deeprank.runtime.index.maintenance.compact import compact
from deeprank.runtime.index.maintenance.reembed import reembed
from deeprank.runtime.index.maintenance.remove import remove
from deeprank.runtime.index.maintenance.verify import verify
from deeprank.runtime.index.sync.dry_run import dry_run
from deeprank.runtime.index.sync.options import SyncOptions
from deeprank.runtime.index.sync.sync import sync
from deeprank.runtime.index.info import index_info
from deeprank.runtime.index.maintenance.copy import copy
from deeprank.runtime.index.exchange.export import export_index
from deeprank.runtime.index.uploads.items import remove_items

made, place, every = Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5])
resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))
photos = made / "photos"

def search(index):
    with Index.open(index) as opened:
        hits = opened.search(photos / "a" / "1.png", 3, method="hnsw" if random.random() < 0.5 else None)
        assert hits[0].distance < 1e-6, hits

works = {
    "search": search,
    "info": index_info,
    "verify": verify,
    "repair": lambda index: verify(index, repair=True),
    "dry run": lambda index: dry_run(index, [photos]),
    "sync": lambda index: sync(index, [photos]),
    "compact": compact,
    "copy": lambda index: copy(index, index.with_name("copied")),
    "replace": lambda index: copy(made / "index", index, replace=True),
    "export": lambda index: export_index(index, index.with_name("e.npz")),
    "remove": lambda index: remove_items(index, list(range(1, 14))),
    "upload": lambda index: upload(index, index.parent, random.randrange(100)),
    "reembed": lambda index: reembed(index, SyncOptions(model=made / "model.onnx")),
}

def hang(number, frame):
    raise SystemError("it hangs")

signal.signal(signal.SIGALRM, hang)
for number, (kind, change) in enumerate(folders.KINDS.items()):
    for turn, (name, work) in enumerate(works.items()):
        if (number + turn) % every:
            continue
        seed = number * 100 + turn
        random.seed(seed)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        index = place / "index"
        shutil.copytree(made / "index", index)
        change(index, random.Random(seed))
        victims = folders.victims(index)
        before = folders.contents(victims)
        signal.alarm(60)
        try:
            work(index)
            said = ""
        except DeepRankError as error:
            said = str(error)
        except BaseException as error:
            said = f"CRASH {type(error).__name__} {error}"
        signal.alarm(0)
        print(json.dumps([kind, name, seed, said, folders.harmed(before, victims)]), flush=True)
"""


def tried(made: Path, tmp_path: Path, every: int) -> Iterator[tuple[str, str, int, str, list[str]]]:
    words = [sys.executable, "-c", WORK, ATTACK, Path(__file__).parent, made, tmp_path / "case", str(every)]
    result = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stderr[-3000:]
    yield from map(json.loads, result.stdout.splitlines())


def check_tried(made: Path, tmp_path: Path, every: int) -> None:
    count = 0
    for kind, work, seed, said, harmed in tried(made, tmp_path, every):
        assert not harmed, (kind, work, seed, said, harmed)
        assert not said.startswith("CRASH"), (kind, work, seed, said)
        if kind not in ("hard link", "one file under two names"):
            assert "damaged" not in said or "database" not in said, (kind, work, seed, said)
        count += 1
    assert count >= len(folders.KINDS)


def test_nothing_is_reached_through_a_folder(made: Path, tmp_path: Path) -> None:
    check_tried(made, tmp_path, 9)


@pytest.mark.thorough
def test_nothing_is_reached_through_a_folder_whatever_is_done(made: Path, tmp_path: Path) -> None:
    check_tried(made, tmp_path, 1)


@pytest.mark.thorough
@pytest.mark.parametrize("form", ["link to a file", "link to itself", "pipe", "socket", "folder", "device"])
@pytest.mark.parametrize(
    "name", ["items.sqlite", "model.onnx", "graph.hnsw", "write.lock", "items.sqlite-wal", "uploads"]
)
def test_a_part_that_is_none_is_refused_with_a_sentence(index: Path, made: Path, name: str, form: str) -> None:
    if name == "uploads" and form == "folder":
        return
    folders.put(index, name, form, random.Random(1))
    said = {}
    for words in (
        ["deeprank-query", made / "photos" / "a" / "1.png", "--index", index],
        ["deeprank-index", "sync", made / "photos", "--index", index],
        ["deeprank-index", "verify", "--index", index],
    )[: 3 if form in ("link to a file", "pipe") else 1]:
        result = subprocess.run([str(BIN / words[0]), *map(str, words[1:])], capture_output=True, text=True, timeout=60)
        assert result.returncode == 1, (words, result.stdout, result.stderr)
        said[str(words[1])] = result.stderr
    for text in said.values():
        what = "the folder of the uploads" if name == "uploads" else "a file of the index itself"
        assert text.startswith(f"error: {index}/{name} is a "), text
        assert f"; expected {what}. Put that there, or delete the " in text
        assert text.count("\n") == 1


def test_the_folder_itself_may_be_a_link(index: Path, made: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(index)
    picture = made / "photos" / "a" / "1.png"
    assert run_command("deeprank-query", picture, "--index", tmp_path / "link", "--paths-only").stdout.startswith(
        str(picture)
    )
    assert sync(tmp_path / "link", [made / "photos"]).items == 13
    reembed(tmp_path / "link", SyncOptions(model=made / "model.onnx"))
    assert (tmp_path / "link").is_symlink()
    assert verify(index).problems == ()


def test_an_upload_that_became_a_link_is_neither_followed_nor_lost(index: Path, made: Path) -> None:
    (name,) = (path.name for path in (index / "uploads").iterdir())
    path, elsewhere = index / "uploads" / name, index.with_name("elsewhere.png")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    report = verify(index, repair=True)
    assert "cannot be read (it is a link, which is not followed)" in report.remaining[0].fault
    assert upload(index, made) == f"uploads/{name}"
    assert not path.is_symlink()
    assert elsewhere.exists()
    assert verify(index).problems == ()


def test_what_killed_processes_have_left_is_deleted_and_nothing_else(index: Path, made: Path) -> None:
    left = [f".graph.hnsw.{'ab' * 16}.tmp", "graph.hnsw.tmp", f".items.sqlite.{'0' * 32}.tmp-journal"]
    for name in left:
        (index / name).write_bytes(b"half")
    half = index / "uploads" / f".{'0' * 64}.jpg.{'ab' * 16}.tmp"
    half.write_bytes(b"half")
    other = index / f".notes.txt.{'ab' * 16}.tmp"
    other.write_bytes(b"")
    link = index / f".model.onnx.{'ab' * 16}.tmp"
    link.symlink_to(made / "model.onnx")
    assert sorted(compact(index).leftovers) == sorted([*left, f"uploads/{half.name}"])
    assert other.exists()
    assert link.is_symlink()
    (index / left[0]).write_bytes(b"half")
    sync(index, [made / "photos"])
    assert not (index / left[0]).exists()


def test_a_killed_graph_is_deleted_by_the_next_sync(index: Path, made: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from deeprank.runtime import files
from deeprank.runtime.index.database.writer import writing
from deeprank.runtime.index.graph_update import update_graph
files.os.fsync = lambda descriptor: os.kill(os.getpid(), 9)
with writing(Path(sys.argv[1])) as writer:
    update_graph(writer, whole=True)
"""
    (index / "graph.hnsw").unlink()
    subprocess.run([sys.executable, "-c", code, str(index)])
    assert [prepared_for(path.name) for path in index.iterdir() if prepared_for(path.name)] == ["graph.hnsw"]
    sync(index, [made / "photos"])
    assert not any(prepared_for(path.name) for path in index.iterdir())
    assert verify(index).problems == ()


# Traps beside an index


@only_root
@pytest.mark.parametrize("name", ["making", "reembed"])
@pytest.mark.parametrize("form", ["folder", "open folder", "link", "file"])
def test_a_stranger_prepares_the_place_where_an_index_is_made(made: Path, tmp_path: Path, name: str, form: str) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    shutil.copytree(made / "index", shared / "index")
    target = shared / ("new" if name == "making" else "index")
    trap = target.with_name(f".{target.name}.{name}")
    if form == "link":
        (shared / "his").mkdir()
        trap.symlink_to(shared / "his")
    elif form == "file":
        trap.write_bytes(b"")
    else:
        trap.mkdir()
        trap.chmod(0o777 if form == "open folder" else 0o755)
    os.chown(trap, NOBODY, NOBODY, follow_symlinks=False)
    before = trap.lstat()
    if name == "making":
        words = ["deeprank-index", "copy", target, "--index", shared / "index"]
    else:
        words = ["deeprank-index", "sync", "--reembed", "--model", made / "model.onnx", "--index", target]
    said = run_command(*words, status=1).stderr
    found = {"link": "a link", "file": "a file"}.get(form, "a folder of another user (nobody)")
    assert said.splitlines()[-1] == (
        f"error: {trap} is {found}; expected a place for a new index. Delete it, or name another place."
    )
    assert os.path.samestat(trap.lstat(), before)
    assert not (shared / "new").exists()
    assert form in ("link", "file") or list(trap.iterdir()) == []
    assert verify(shared / "index").problems == ()


@only_root
def test_a_stranger_prepares_the_folder_of_an_index_itself(made: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "new").mkdir()
    os.chown(shared / "new", NOBODY, NOBODY)
    for words in (
        ["deeprank-index", "sync", made / "photos", "--model", made / "model.onnx", "--index", shared / "new"],
        ["deeprank-index", "copy", shared / "new", "--index", made / "index"],
    ):
        said = run_command(*words, status=1).stderr
        assert f"{shared / 'new'} belongs to another user and lies in a folder that all users may write to;" in said
    assert list((shared / "new").iterdir()) == []
    # Where only its owner may write, he has made it for us: a mounted volume, say.
    shared.chmod(0o755)
    sync(shared / "new", [made / "photos"], model=made / "model.onnx")


@only_root
def test_a_folder_that_a_stranger_calls_ours_is_not_renamed(made: Path, tmp_path: Path) -> None:
    aside = tmp_path / ".index.aside"
    shutil.copytree(made / "index", aside)
    os.chown(aside, NOBODY, NOBODY)
    for words in (["deeprank-index", "info"], ["deeprank-query", made / "photos" / "a" / "1.png"]):
        assert "does not exist" in run_command(*words, "--index", tmp_path / "index", status=1).stderr
    assert aside.exists()
    os.chown(aside, 0, 0)
    run_command("deeprank-index", "info", "--index", tmp_path / "index")
    assert not aside.exists()


# Who may read


@pytest.mark.parametrize("umask", [0o000, 0o077])
@pytest.mark.parametrize("shared", [False, True])
def test_the_modes_of_a_new_index_and_of_all_that_is_written_later(
    made: Path, tmp_path: Path, umask: int, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, before = tmp_path / "index", os.umask(umask)
    file, folder = ("640", "750") if shared else ("600", "700")
    try:
        model, photos = made / "model.onnx", made / "photos"
        sync(index, [photos / "a"], model=model, shared=shared)
        assert modes(index) == {".": folder, **dict.fromkeys(sorted(path.name for path in index.iterdir()), file)}
        sync(index, [photos / "a", photos / "b"], shared=shared)
        name = upload(index, tmp_path)
        uploaded = {"uploads": folder, name: file}
        expected = {".": folder, "items.sqlite": file, "model.onnx": file, "graph.hnsw": file, "write.lock": file}
        assert modes(index) == expected | uploaded
        compact(index)
        (index / "graph.hnsw").write_bytes(b"damaged")
        (index / "model.onnx").unlink()
        (index / "write.lock").unlink()
        monkeypatch.chdir(made)  # whose model.onnx is the one that is missing
        verify(index, repair=True)
        damage(index)
        verify(index, repair=True)
        assert modes(index) == expected | uploaded
        copy(index, tmp_path / "copy")
        copy(index, tmp_path / "copy", replace=True)
        reembed(index, SyncOptions(model=model))
        run_command("deeprank-index", "export", tmp_path / "e.npz", "--index", index)
        words = ["--shared"] if shared else []
        run_command("deeprank-index", "import", tmp_path / "e.npz", "--index", tmp_path / "imported", *words)
        for each in (index, tmp_path / "copy"):
            assert modes(each) == expected | uploaded
            assert verify(each).problems == ()
        assert expected.items() <= modes(tmp_path / "imported").items()
    finally:
        os.umask(before)


def damage(index: Path) -> None:
    import contextlib
    import sqlite3

    with contextlib.closing(sqlite3.connect(index / "items.sqlite")) as connection:
        connection.execute("UPDATE items SET size = size + 1 WHERE id = 1")
        connection.commit()


def test_while_it_is_written_to_the_log_is_as_private_as_the_index(made: Path, tmp_path: Path) -> None:
    from deeprank.runtime.index.database.writer import writing

    before = os.umask(0)
    try:
        sync(tmp_path / "index", [made / "photos"], model=made / "model.onnx")
        with writing(tmp_path / "index") as writer:
            writer.add_root(b"/x")
            found = modes(tmp_path / "index")
        assert (found["items.sqlite-wal"], found["items.sqlite-shm"]) == ("600", "600")
    finally:
        os.umask(before)


def test_an_older_index_keeps_its_modes(made: Path, tmp_path: Path) -> None:
    """One that was made by an earlier version: 0644 in 0755."""
    index = tmp_path / "index"
    shutil.copytree(made / "index", index)
    shutil.rmtree(index / "uploads")
    for path in (index, *index.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    verify(index, repair=True)
    before = modes(index)
    name = upload(index, tmp_path)
    (index / "write.lock").unlink()
    sync(index, [made / "photos"], shared=True)
    compact(index)
    reembed(index, SyncOptions(model=made / "model.onnx"))
    copy(index, tmp_path / "copy")
    expected = before | {"uploads": "755", name: "644"}
    assert modes(index) == modes(tmp_path / "copy") == expected


def test_a_copy_over_an_index_has_the_modes_of_that(made: Path, tmp_path: Path) -> None:
    public = tmp_path / "public"
    sync(public, [made / "photos" / "a"], model=made / "model.onnx", shared=True)
    public.chmod(0o2750)
    copy(made / "index", public, replace=True)
    assert modes(public)["."] == "2750"
    assert modes(public)["items.sqlite"] == modes(public)["graph.hnsw"] == "640"
    copy(made / "index", tmp_path / "other", shared=True)
    assert (modes(tmp_path / "other")["."], modes(tmp_path / "other")["items.sqlite"]) == ("750", "640")


@only_root
def test_owner_and_group_stay(made: Path, tmp_path: Path) -> None:
    """Root looks after the index of somebody else, who must not be locked out."""
    index = tmp_path / "index"
    sync(index, [made / "photos"], model=made / "model.onnx", shared=True)
    for path in (index, *index.iterdir()):
        os.chown(path, NOBODY, 1234)
    sync(index, [made / "photos"])
    upload(index, tmp_path)
    (index / "write.lock").unlink()
    compact(index)
    reembed(index, SyncOptions(model=made / "model.onnx"))
    assert {(path.stat().st_uid, path.stat().st_gid) for path in (index, *index.rglob("*"))} == {(NOBODY, 1234)}


@pytest.mark.skipif(not hasattr(os, "fchmod"), reason="the system has no permissions")
def test_an_index_is_made_where_files_have_no_permissions(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on FAT, which this user cannot mount: what is made shows other modes, and they cannot be changed."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    for name in ("fchmod", "fchown"):
        monkeypatch.setattr(os, name, refuse)
    sync(tmp_path / "index", [made / "photos"], model=made / "model.onnx")
    copy(tmp_path / "index", tmp_path / "copy")
    reembed(tmp_path / "copy", SyncOptions(model=made / "model.onnx"))
    assert verify(tmp_path / "copy").problems == ()


def test_shared_is_for_a_new_index(made: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    words = ["deeprank-index", "sync", made / "photos", "--model", made / "model.onnx", "--index", index]
    run_command(*words)
    said = run_command(*words, "--shared", status=1).stderr.splitlines()[-1]
    command = f"chmod -R g+rX {index}"
    assert said == (
        f"error: {index} exists already, and only its owner can read it; --shared is for a new index. To let its group "
        f"read it: {command}"
    )
    subprocess.run(command.split(), check=True)
    run_command(*words, "--shared")
    upload(index, tmp_path)
    assert set(modes(index).values()) == {"640", "750"}


@only_root
@pytest.mark.parametrize("part", ["folder", "database"])
def test_another_user_is_told_how_an_index_is_shared(made: Path, tmp_path: Path, part: str) -> None:
    index = tmp_path / "index"
    sync(index, [made / "photos"], model=made / "model.onnx")
    open_the_way(tmp_path)
    index.chmod(0o700 if part == "folder" else 0o755)
    code = f"""
from deeprank.runtime.index.maintenance.compact import compact
from deeprank.runtime.index.info import index_info
for work in (index_info, verify, compact, Index.open, lambda index: sync(index, [{str(made / "photos")!r}])):
    try:
        work({str(index)!r})
    except Exception as error:
        print(type(error).__name__, error)
"""
    result = as_another_user(code)
    assert result.returncode == 0, result.stderr
    *said, synced = result.stdout.splitlines()
    assert "you may not read it" in synced if part == "folder" else "cannot be written to" in synced
    assert said == 4 * [
        f"IndexStateError {index} belongs to another user (root), and you may not read it; expected an index of yours, "
        f"or one shared with a group of yours. Its owner shares it with: chmod -R g+rX {index}"
    ]


@only_root
@pytest.mark.parametrize("state", ["at rest", "while it is written to"])
def test_the_group_reads_a_shared_index_and_others_do_not(made: Path, tmp_path: Path, state: str) -> None:
    index = tmp_path / "index"
    sync(index, [made / "photos"], model=made / "model.onnx", shared=True)
    upload(index, tmp_path)
    subprocess.run(["chgrp", "-R", "1234", str(index)], check=True)
    open_the_way(tmp_path)
    open_the_way(made)
    for path in (made / "photos").rglob("*"):
        path.chmod(0o755)
    index.chmod(0o750)
    code = f"""
with Index.open({str(index)!r}) as opened:
    print(opened.search({str(made / "photos" / "a" / "1.png")!r}, 2)[0].relative, opened.remarks)
print(verify({str(index)!r}).problems)
try:
    sync({str(index)!r}, [{str(made / "photos")!r}])
except Exception as error:
    print(error)
"""
    from deeprank.runtime.index.database.writer import writing

    result = as_another_user(code)
    assert "belongs to another user" in result.stderr
    if state == "at rest":
        result = as_another_user(code, groups=[1234])
    else:
        with writing(index) as writer:
            writer.add_root(b"/x")
            writer.commit()
            result = as_another_user(code, groups=[1234])
    assert result.returncode == 0, result.stderr
    found, problems, refused = result.stdout.splitlines()
    assert (found, problems) == ("a/1.png []", "()")
    assert "cannot be written to" in refused or "is being written to" in refused
