"""``deeprank-index`` as a user types it."""

import json
import os
import pty
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_command
from tiny_model import write_model, write_picture, write_pictures

from deeprank.runtime.index.database.writer import writing

HOSTILE = ["[/x] a.png", "<script>alert(1)<", "esc\x1b[31m.png", "new\nline.png", "tab\t.png", "café \u202egnp.png"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "photos", [f"{label}/{i}.png" for label in ("cats", "dogs") for i in range(5)])
    write_model(tmp_path / "model.onnx")
    return tmp_path / "photos"


@pytest.mark.thorough
def test_sync_info_verify_remove(photos: Path, tmp_path: Path) -> None:
    first = run_command("deeprank-index", "sync", "photos", cwd=tmp_path)
    assert first.stdout == (
        "10 added, 0 updated, 0 moved, 0 removed, 0 unchanged, 0 skipped: deeprank.index holds 10 pictures\n"
    )
    assert "uses the model model.onnx" in first.stderr
    info = run_command("deeprank-index", "info", cwd=tmp_path).stdout
    for shown in ("10", str(photos), "cats (5), dogs (5)", "tiny-0", "16 numbers from 8 x 8", "10 vectors"):
        assert shown in info
    assert run_command("deeprank-index", "verify", cwd=tmp_path).stdout == "deeprank.index is sound: 10 pictures\n"
    refused = run_command("deeprank-index", "remove", "photos/cats/*", cwd=tmp_path, status=1)
    assert refused.stdout.count("cats") == 5
    assert "--yes" in refused.stderr
    run_command("deeprank-index", "remove", "photos/cats/*[12].png", "photos/dogs/0.png", "--yes", cwd=tmp_path)
    assert document("info", cwd=tmp_path)["labels"] == {"cats": 3, "dogs": 4}
    run_command("deeprank-index", "remove", "--label", "dogs", "--yes", cwd=tmp_path)
    assert document("info", cwd=tmp_path)["labels"] == {"cats": 3}
    assert document("sync", "photos", cwd=tmp_path)["added"] == 7
    run_command("deeprank-index", "remove", "photos/cats", "--yes", cwd=tmp_path)
    assert document("info", cwd=tmp_path)["labels"] == {"dogs": 5}
    run_command("deeprank-index", "remove", "--root", "photos", "--yes", cwd=tmp_path)
    empty = document("info", cwd=tmp_path)
    assert (empty["items"], empty["roots"], empty["graph"]) == (0, [], None)
    run_command("deeprank-index", "verify", cwd=tmp_path)


def document(*command: object, cwd: Path, status: int = 0) -> dict:
    answer = json.loads(run_command("deeprank-index", *command, "--json", cwd=cwd, status=status).stdout)
    assert answer["schema"] == 1
    return answer


def test_json_forms(photos: Path, tmp_path: Path) -> None:
    (photos / "bad.jpg").write_text("no picture")
    (photos / "notes.txt").touch()
    synced = document("sync", "photos", cwd=tmp_path)
    assert set(synced) == {
        *("schema", "index", "dry_run", "items", "added", "updated", "moved", "removed", "kept", "unchanged"),
        *("redecoded", "relabelled", "embedded", "seconds", "left_out", "skipped", "unknown_extensions", "remarks"),
    }
    assert synced["unknown_extensions"] == {".txt": 1}
    (skipped,) = synced["skipped"]
    assert skipped["path"] == str(photos / "bad.jpg")
    assert "not a picture" in skipped["reason"]
    info = document("info", cwd=tmp_path)
    assert info["roots"] == [{"path": str(photos), "items": 10}]
    assert info["model"]["name"] == "tiny-0"
    assert info["graph"]["items"] == 10
    assert document("verify", cwd=tmp_path)["problems"] == []


@pytest.mark.thorough
def test_info_states_what_the_model_states(photos: Path, tmp_path: Path) -> None:
    run_command("deeprank-index", "sync", "photos", cwd=tmp_path)
    model = document("info", cwd=tmp_path)["model"]
    assert (model["license"], model["unrelated_distance"], model["superseded"]) == (None, None, False)
    shown = run_command("deeprank-index", "info", cwd=tmp_path).stdout
    assert [line.split()[0] for line in shown.splitlines()] == [
        "index",
        "pictures",
        "folder",
        "labels",
        "model",
        "graph",
    ]
    stating = write_model(tmp_path / "stating.onnx", license="ours \x1b[31m\u202e", unrelated_distance=1.25)
    run_command("deeprank-index", "sync", "photos", "--index", "other", "--model", stating, cwd=tmp_path)
    model = document("info", "--index", "other", cwd=tmp_path)["model"]
    assert (model["license"], model["unrelated_distance"]) == ("ours \x1b[31m\u202e", 1.25)
    shown = run_command("deeprank-index", "info", "--index", "other", cwd=tmp_path).stdout
    assert "license    ours \\x1b[31m\\u202e, of the model\n" in shown
    assert (
        "similar    up to a distance of 1.25 (similarity 0.375); farther pictures are not similar any more\n" in shown
    )


def test_strict(photos: Path, tmp_path: Path) -> None:
    (photos / "bad.jpg").write_text("no picture")
    result = run_command("deeprank-index", "sync", "photos", "--strict", cwd=tmp_path, status=1)
    assert "10 added" in result.stdout
    assert "skipped" in result.stderr


def test_hostile_names(photos: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(HOSTILE):
        write_picture(photos / name / f"{name}.png", 100 + seed)
    (photos / "bad\x1b[2J.jpg").write_text("no picture")
    synced = run_command("deeprank-index", "sync", "photos", cwd=tmp_path)
    assert "16 added" in synced.stdout
    info = run_command("deeprank-index", "info", cwd=tmp_path).stdout
    removed = run_command("deeprank-index", "remove", "photos/*esc*", "photos/*new*", cwd=tmp_path, status=1).stdout
    for text in (synced.stdout, synced.stderr, info, removed):
        assert not any(character in text for character in "\x1b\t\u202e")
    assert "bad\\x1b[2J.jpg" in synced.stderr
    assert "new\\nline.png" in info
    assert len(removed.splitlines()) == 2
    run_command("deeprank-index", "remove", "--label", "[", "--label", HOSTILE[3], "--yes", cwd=tmp_path)
    run_command("deeprank-index", "remove", photos / HOSTILE[2], "--yes", cwd=tmp_path)
    labels = document("info", cwd=tmp_path)["labels"]
    assert set(labels) == {"cats", "dogs", HOSTILE[1], HOSTILE[4], HOSTILE[5]}


@pytest.mark.thorough
def test_usage_and_sentences(photos: Path, tmp_path: Path) -> None:
    assert run_command("deeprank-index", "sync", cwd=tmp_path, status=2).stderr.count("DIR")
    run_command("deeprank-index", "sync", "photos", "--reembed", cwd=tmp_path, status=2)
    for command, message in (
        (("info",), "deeprank.index does not exist"),
        (("verify", "--index", "photos"), "holds no index"),
        (("sync", "nope"), "does not exist"),
        (("sync", "photos", "--model", "nope.onnx"), "nope.onnx does not exist"),
        (("sync", "photos", "--index", "model.onnx"), "is a file"),
        (("sync", "photos", "--device", "cuda"), "cuda"),
    ):
        result = run_command("deeprank-index", *command, cwd=tmp_path, status=1)
        assert result.stderr.startswith("error: ")
        assert message.lower() in result.stderr.lower()
        assert len(result.stderr.splitlines()) <= 2
    run_command("deeprank-index", "sync", "photos", cwd=tmp_path)
    for command, message in (
        (("remove",), "Nothing to remove"),
        (("remove", "photos/wolves", "--yes"), "matches no picture"),
        (("remove", "--label", "wolves", "--yes"), "matches no picture"),
        (("remove", "--root", "photos/cats", "--yes"), "not a synced folder"),
    ):
        assert message in run_command("deeprank-index", *command, cwd=tmp_path, status=1).stderr
    assert document("info", cwd=tmp_path)["items"] == 10


def test_a_second_writer_is_told(photos: Path, tmp_path: Path) -> None:
    run_command("deeprank-index", "sync", "photos", cwd=tmp_path)
    with writing(tmp_path / "deeprank.index"):
        result = run_command("deeprank-index", "sync", "photos", cwd=tmp_path, status=1)
    assert "being written to by another process" in result.stderr


def test_reembed_and_the_environment_variable(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPRANK_INDEX", str(tmp_path / "elsewhere"))
    run_command("deeprank-index", "sync", "photos", cwd=tmp_path)
    write_model(tmp_path / "new.onnx", seed=1, dim=12)
    refused = run_command("deeprank-index", "sync", "photos", "--model", "new.onnx", cwd=tmp_path, status=1)
    assert "--reembed --model new.onnx" in refused.stderr
    run_command("deeprank-index", "sync", "--reembed", "--model", "new.onnx", cwd=tmp_path)
    assert "12 numbers" in run_command("deeprank-index", "info", cwd=tmp_path).stdout


@pytest.mark.thorough
def test_damage_is_named_and_repaired(photos: Path, tmp_path: Path) -> None:
    run_command("deeprank-index", "sync", "photos", cwd=tmp_path)
    database = tmp_path / "deeprank.index" / "items.sqlite"
    with sqlite3.connect(database) as connection:
        (vector,) = connection.execute("SELECT vector FROM items WHERE id = 4").fetchone()
    content = bytearray(database.read_bytes())
    content[content.index(vector) + 9] ^= 1
    database.write_bytes(bytes(content))
    damaged = run_command("deeprank-index", "verify", cwd=tmp_path, status=1)
    assert damaged.stdout.startswith("damaged: ")
    assert document("verify", cwd=tmp_path, status=1)["damaged"] == [4]
    repaired = run_command("deeprank-index", "verify", "--repair", cwd=tmp_path)
    assert "9 sound items were kept" in repaired.stdout
    assert document("sync", "photos", cwd=tmp_path)["added"] == 1
    run_command("deeprank-index", "verify", cwd=tmp_path)


def test_remove_asks_on_a_terminal(photos: Path, tmp_path: Path) -> None:
    run_command("deeprank-index", "sync", "photos", cwd=tmp_path)
    for answer, left in ((b"n\n", 10), (b"y\n", 5)):
        master, terminal = pty.openpty()
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "deeprank-index"), "remove", "--label", "cats"],
            cwd=tmp_path,
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        os.write(master, answer)
        output, errors = process.communicate(timeout=60)
        os.close(master)
        os.close(terminal)
        assert output.count(b"cats/") == 5
        assert b"Remove 5 pictures from" in errors
        assert b"Traceback" not in errors
        assert document("info", cwd=tmp_path)["items"] == left


def test_help_shows_an_example() -> None:
    for command in ("sync", "info", "verify", "remove"):
        assert f"\n  deeprank-index {command}" in run_command("deeprank-index", command, "--help").stdout
    assert "deeprank-index sync photos" in run_command("deeprank-index", "--help").stdout
    assert run_command("deeprank-index", "--version").stdout.startswith("deeprank ")
