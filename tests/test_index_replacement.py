"""An index that takes the place of another: nothing else is lost, nothing untrue is said, nothing bars the next."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_command
from exchange_faults import Case, hidden, run_cases, words
from tiny_model import write_model, write_pictures

from deeprank.runtime.errors import IndexStateError
from deeprank.runtime.files import file_sha256
from deeprank.runtime.index.database.store import Store
from deeprank.runtime.index.folder import find_leftovers
from deeprank.runtime.index.maintenance.copy import copy
from deeprank.runtime.index.maintenance.reembed import reembed
from deeprank.runtime.index.maintenance.verify import verify
from deeprank.runtime.index.sync.options import SyncOptions
from deeprank.runtime.index.sync.sync import sync

PICTURES = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replacement")
    write_pictures(folder / "photos", [f"a/{i}.png" for i in range(PICTURES)])
    write_model(folder / "other.onnx", seed=1)
    sync(folder / "index", [folder / "photos"], model=write_model(folder / "model.onnx"))
    return folder


@pytest.fixture
def index(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "index", tmp_path / "index"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def again(index: Path, made: Path, model: str = "other.onnx") -> list[str]:
    return words("deeprank-index", "sync", "--reembed", "--model", made / model, "--index", index)


def model_of(index: Path, made: Path) -> str:
    """Return which model a sound index has."""
    assert verify(index).problems == ()
    with Store.open(index) as store:
        assert store.meta().items == PICTURES
        assert file_sha256(index / "model.onnx") == store.meta().model_sha256
        return {file_sha256(made / name): name for name in ("model.onnx", "other.onnx")}[store.meta().model_sha256]


# Files of others


@pytest.mark.parametrize("name", ["notes.txt", "uploads/notes.txt", "ratings.sqlite.damaged"])
def test_an_index_with_other_files_is_not_exchanged(name: str, index: Path, made: Path) -> None:
    if name == "ratings.sqlite.damaged":  # not as a link
        (index / name).symlink_to(made / "other.onnx")
    else:
        (index / name).parent.mkdir(exist_ok=True)
        (index / name).write_text("mine")
    before = content(index)
    said = f"index holds files that do not belong to an index ({name}) and would be lost"
    for command in (
        again(index, made),
        ["deeprank-teach", "--index", index],  # without ratings, which it would miss later
        ["deeprank-index", "copy", index, "--replace", "--index", made / "index"],
    ):
        assert said in run_command(*command, status=1).stderr
        assert content(index) == before
        assert hidden(index.parent) == []


@pytest.mark.parametrize("kind", ["reembed", "aside"])
def test_a_folder_of_the_user_beside_the_index_is_not_emptied(kind: str, index: Path, made: Path) -> None:
    mine = index.with_name(f".index.{kind}")
    mine.mkdir()
    (mine / "diary.txt").write_text("mine")
    with pytest.raises(IndexStateError, match=rf"{mine.name} holds files .*\(diary.txt\) and are in the way"):
        reembed(index, SyncOptions(model=made / "other.onnx"))
    assert find_leftovers(index) == []
    run_command("deeprank-index", "compact", "--index", index)
    assert (mine / "diary.txt").read_text() == "mine"
    assert model_of(index, made) == "model.onnx"


def test_a_file_that_is_put_there_during_the_work_comes_along(index: Path, made: Path) -> None:
    def start(*_: object) -> object:
        (index / "notes.txt").write_text("mine")
        return lambda *_: None

    reembed(index, SyncOptions(model=made / "other.onnx"), progress=start)  # type: ignore[arg-type]
    assert (index / "notes.txt").read_text() == "mine"
    assert model_of(index, made) == "other.onnx"
    assert hidden(index.parent) == []


def test_damaged_ratings_that_were_set_aside_stay(index: Path, made: Path) -> None:
    names = ["ratings.sqlite.damaged", "ratings.sqlite.damaged.2"]
    for name in names:
        (index / name).write_text(name)
    reembed(index, SyncOptions(model=made / "other.onnx"))
    copy(made / "index", index, replace=True)
    assert model_of(index, made) == "model.onnx"
    assert [(index / name).read_text() for name in names] == names
    assert hidden(index.parent) == []


# Kills


def test_what_a_killed_writer_leaves_is_not_foreign(index: Path, made: Path) -> None:
    unfinished = f".items.sqlite.{'0' * 32}.tmp"
    for folder in (index, index.with_name(".index.reembed"), index / "repair.tmp"):
        folder.mkdir(exist_ok=True)
        for suffix in ("", "-journal", "-wal"):
            (folder / (unfinished + suffix)).write_bytes(b"unfinished")
    reembed(index, SyncOptions(model=made / "other.onnx"))
    assert model_of(index, made) == "other.onnx"
    assert sorted(content(index)) == sorted(content(made / "index"))
    assert hidden(index.parent) == []


def copies(made: Path, tmp_path: Path, count: int) -> list[Path]:
    return [Path(shutil.copytree(made / "index", tmp_path / str(number) / "index")) for number in range(count)]


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_kill_between_renames_bars_no_later_exchange(made: Path, tmp_path: Path) -> None:
    steps = ("rename 1", "rename 2", "rename 3", "durable")
    indexes = copies(made, tmp_path, 2 * len(steps))
    cases = [
        Case(again(index, made), str(index), step, renames=True)
        for index, step in zip(indexes, [*steps, *steps], strict=True)
    ]
    assert {ended.status for ended in run_cases(cases)} == {9}
    models = ["model.onnx", "model.onnx", "other.onnx", "other.onnx"]
    assert [model_of(index, made) for index in indexes] == models * 2
    left = [".index.reembed", ".index.reembed", ".index.aside", ".index.reembed"]
    assert [[path.name for path in find_leftovers(index)] for index in indexes] == [[name] for name in left * 2]
    repeated = [Case(again(index, made), str(index), renames=True) for index in indexes[:4]]
    assert [ended.status for ended in run_cases(repeated)] == [0] * 4
    for index, name in zip(indexes[4:], left, strict=True):
        report = json.loads(run_command("deeprank-index", "compact", "--index", index, "--json").stdout)
        assert report["leftovers"] == [name]
    assert [hidden(index.parent) for index in indexes] == [[]] * 8
    assert [model_of(index, made) for index in indexes] == ["other.onnx"] * 4 + models


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_copy_takes_the_place_of_an_index_that_was_left_aside(index: Path, made: Path) -> None:
    (ended,) = run_cases([Case(again(index, made), str(index), "rename 3", renames=True)])
    assert ended.status == 9
    command = words("deeprank-index", "copy", index, "--replace", "--index", made / "index")
    (ended,) = run_cases([Case(command, str(index), renames=True)])
    assert ended.status == 0, ended.said
    assert model_of(index, made) == "model.onnx"
    assert hidden(index.parent) == []


# Interrupts and errors


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_what_comes_after_the_exchange_is_not_told_as_if_nothing_had_changed(made: Path, tmp_path: Path) -> None:
    done, undone = "interrupted; the index has the new model.", "interrupted; the index is unchanged."
    expected = {
        ("durable", "interrupt", False): (130, "other.onnx", done),
        ("tidy", "interrupt", False): (130, "other.onnx", done),
        ("tidy", "terminate", False): (143, "other.onnx", done),
        ("durable", "error", False): (0, "other.onnx", "index holds 5 pictures"),
        ("tidy", "error", False): (0, "other.onnx", "index holds 5 pictures"),
        ("rename 1", "interrupt", True): (130, "model.onnx", undone),
        ("rename 2", "interrupt", True): (130, "model.onnx", undone),
        ("rename 3", "interrupt", True): (130, "other.onnx", done),
        ("rename 2", "error", True): (1, "model.onnx", "cannot be written"),
        ("rename 3", "error", True): (0, "other.onnx", "index holds 5 pictures"),
    }
    indexes = copies(made, tmp_path, len(expected))
    cases = [Case(again(index, made), str(index), *case) for index, case in zip(indexes, expected, strict=True)]  # type: ignore[arg-type]
    for case, index, ended in zip(cases, indexes, run_cases(cases), strict=True):
        status, model, says = expected[case.step, case.fault, case.renames]
        assert (ended.status, model_of(index, made)) == (status, model), (case, ended)
        assert says in ended.said, (case, ended)
        reembed(index, SyncOptions(model=made / "model.onnx"))
        assert hidden(index.parent) == []


# Names of the folder


def test_an_index_is_named_from_inside(index: Path, made: Path) -> None:
    (index / "uploads").mkdir()
    query = made / "photos" / "a" / "1.png"
    (index.parent / "link").symlink_to("index")
    for cwd, name in (
        (index, "."),
        (index, "./"),
        (index / "uploads", ".."),
        (index, "../index/"),
        (index.parent, "link"),
    ):
        for command in (["deeprank-index", "info"], ["deeprank-index", "verify"], ["deeprank-query", query]):
            run_command(*command, "--index", name, cwd=cwd)
    said = run_command("deeprank-teach", "--undo", "--index", ".", cwd=index, status=1).stderr
    assert "was not taught, so there is nothing to undo" in said
    result = run_command(*again(Path(), made), cwd=index)
    assert "the index takes 0 bytes" not in result.stderr
    assert model_of(index, made) == "other.onnx"
    assert hidden(index.parent) == []


def test_a_crash_is_repaired_where_the_index_is_named_by_a_link(index: Path, made: Path) -> None:
    (index.parent / "link").symlink_to("index")
    index.rename(index.with_name(".index.aside"))
    run_command("deeprank-index", "info", "--index", index.parent / "link")
    assert model_of(index, made) == "model.onnx"


# Queries

# Exchanges the index when the model is opened, which comes after the database.
QUERY = """
import sys
from pathlib import Path
from deeprank.runtime.files import exchange_folders
from deeprank.runtime.umbrella import cli
index, times, opened = Path(sys.argv[1]), int(sys.argv[2]), False
def hook(event, arguments):
    global times, opened
    if event == "sqlite3.connect":
        opened = True
    elif event == "open" and times and opened and str(arguments[0]) == str(index / "model.onnx"):
        times, opened = times - 1, False
        exchange_folders(index.with_name("other"), index)
sys.addaudithook(hook)
sys.argv = ["deeprank-query", "-", "--index", str(index), "--json"]
cli.query()
"""


@pytest.mark.parametrize("times", [1, 2])
def test_a_query_is_answered_by_the_index_that_took_the_place(times: int, index: Path, made: Path) -> None:
    shutil.copytree(index, index.with_name("other"))
    reembed(index.with_name("other"), SyncOptions(model=made / "other.onnx"))
    picture = made / "photos" / "a" / "1.png"
    command = [sys.executable, "-c", QUERY, index, str(times)]
    result = subprocess.run(command, input=picture.read_bytes(), capture_output=True)
    if times == 2:  # it is opened again once
        assert result.returncode == 1
        assert b"was replaced while it was open" in result.stderr
        return
    assert result.returncode == 0, result.stderr
    assert model_of(index, made) == "other.onnx"
    expected = run_command("deeprank-query", picture, "--index", index, "--json").stdout
    hits = [json.loads(text)["results"][0]["hits"] for text in (result.stdout, expected)]
    assert hits[0] == hits[1]
