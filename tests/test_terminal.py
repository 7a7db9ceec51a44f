"""What the commands show on a terminal: tables and lines that fit, links where known, and no escape elsewhere."""

import json
import os
import re
import socket
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest
from conftest import some_digits
from terminal import environment, in_terminal, links, screen
from tiny_model import write_model, write_picture

from deeprank.runtime.columns import Column, Columns
from deeprank.runtime.hyperlinks import file_address, file_link, shows_links
from deeprank.runtime.text import display_width, short_duration, wrapped

BIN = Path(sys.executable).parent
NAMES = ("猫の写真とても長い名前の分類その一", "犬", "鳥の写真", "非常に長い分類名前がここにあります")
TRAIN = [
    *("--config", "digits", "--epochs", "3", "--head-epochs", "1", "--steps-per-epoch", "8", "--no-report"),
    *("--backbone", "timm:resnet10t", "--embedding-dim", "8", "--classes-per-batch", "4", "--pictures-per-class", "4"),
    *("--threads", "1", "--device", "cpu", "--out", "run"),
]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four classes whose names are twice as wide as they are long."""
    folder = some_digits(tmp_path_factory.mktemp("wide") / "pictures", classes=4, each=24)
    for number, name in enumerate(NAMES):
        (folder / str(number)).rename(folder / name)
    return folder


def rows_of(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "epoch"]


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("columns", "titles"),
    [
        (100, "epoch trains loss active rate precision@10 recall@1 time pictures/s"),
        (80, "epoch trains loss rate precision@10 recall@1 time pictures/s"),
        (60, "epoch trains loss precision@10 time pictures/s"),
    ],
)
def test_training_is_a_table_that_fits(wide: Path, tmp_path: Path, columns: int, titles: str) -> None:
    status, written = in_terminal([str(BIN / "deeprank-train"), str(wide), *TRAIN], tmp_path, columns=columns)
    assert status == 0, written
    lines = screen(written, columns)
    at = [number for number, line in enumerate(lines) if line.split()[:1] == ["epoch"]]
    assert len(at) == 1
    header, epochs = lines[at[0]], lines[at[0] + 1 : at[0] + 4]
    assert re.sub(r"@\d+ ", "@10 ", " ".join(header.split()), count=1) == titles
    figures = rows_of(tmp_path / "run")
    for number, (line, row) in enumerate(zip(epochs, figures, strict=True)):
        shown = dict(zip(titles.split(), re.sub(r" (s|min|h)\b", r"\1", line).split(), strict=True))
        assert shown["epoch"] == f"{number + 1}/3"
        assert shown["trains"] == ("all" if number else "head")
        assert shown["loss"] == f"{row['loss']:.4f}"
        assert shown["precision@10"] == f"{row['precision_at_k']:.4f}{'*' if row['best'] else ''}"
        assert "rate" not in shown or float(shown["rate"]) > 0
        assert shown["pictures/s"] == f"{row['pictures_per_second']:,.0f}"
        assert line.index(shown["loss"]) + len(shown["loss"]) == header.index("loss") + len("loss")
    assert not any(line.startswith("epoch 1:") for line in lines)
    assert any(line.startswith("network") and line.endswith("MB)") for line in lines)
    assert any(line.startswith("time") for line in lines)


@pytest.mark.thorough
def test_training_in_a_log_is_lines_without_escapes(wide: Path, tmp_path: Path) -> None:
    forced = environment(FORCE_HYPERLINK="1", VTE_VERSION="7600", COLUMNS="60")
    command = [str(BIN / "deeprank-train"), str(wide), *TRAIN]
    ended = subprocess.run(command, cwd=tmp_path, env=forced, capture_output=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert b"\x1b" not in ended.stdout + ended.stderr
    assert b"\r" not in ended.stdout + ended.stderr
    said = ended.stderr.decode()
    assert [line.split(":")[0] for line in said.splitlines() if line.startswith("epoch ")] == [
        "epoch 1",
        "epoch 2",
        "epoch 3",
    ]
    best = max(rows_of(tmp_path / "run"), key=lambda row: row["precision_at_k"])["epoch"]
    assert re.search(rf"^Training took \d+ s: 3 epochs, [\d,]+ pictures/s; epoch {best} is the best\.$", said, re.M)
    assert re.search(r"^run           run$", ended.stdout.decode(), re.M)


# -- links -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        write_picture(folder / "photos" / f"label{number % 2}" / f"{number}.png", number)
    write_model(folder / "model.onnx")
    return folder


@pytest.mark.parametrize(
    ("variables", "linked"),
    [
        ({"VTE_VERSION": "7600"}, True),
        ({"TERM": "xterm-kitty"}, True),
        ({"FORCE_HYPERLINK": "1"}, True),
        ({}, False),
        ({"VTE_VERSION": "7600", "NO_COLOR": "1"}, False),
        ({"FORCE_HYPERLINK": "1", "TERM": "dumb"}, False),
        ({"VTE_VERSION": "7600", "FORCE_HYPERLINK": "0"}, False),
        ({"VTE_VERSION": "7600", "TMUX": "/tmp/tmux"}, False),
    ],
)
def test_a_sync_links_its_index(photos: Path, variables: dict[str, str], linked: bool) -> None:
    index = photos / f"{len(variables)}{linked} 'ü.index"
    command = [str(BIN / "deeprank-index"), "sync", "photos", "--model", "model.onnx", "--index", index.name]
    status, written = in_terminal(command, photos, variables=variables)
    assert status == 0, written
    found = links(written)
    assert ("\x1b]8" in written) == linked
    assert set(found) == ({index.name} if linked else set())
    for address in found.values():
        assert path_of(address) == index
    assert re.search(r"the index takes [\d.]+ [kM]B\.", written)


def path_of(address: str) -> Path:
    """Return the path that an address names, read by another library than the one that wrote it."""
    parts = urllib.parse.urlsplit(address)
    assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("file", socket.gethostname(), "", "")
    return Path(urllib.parse.unquote(parts.path))


def test_a_measurement_links_its_sheets(photos: Path) -> None:
    command = [
        str(BIN / "deeprank-eval"),
        "--model",
        "model.onnx",
        "--data",
        "photos",
        "--demo",
        "2",
        "--out",
        "sheets",
    ]
    status, written = in_terminal(command, photos, variables={"VTE_VERSION": "7600"})
    assert status == 0, written
    found = links(written)
    assert {path_of(address).name for address in found.values()} == {
        *("01-nearest.png", "01-farthest.png", "02-nearest.png", "02-farthest.png", "nearest.png")
    }
    assert all(path_of(address).is_file() for address in found.values())
    assert re.search(r"Took \d+ s: \d pictures embedded\.", written)
    piped = subprocess.run(command, cwd=photos, capture_output=True, env=environment(FORCE_HYPERLINK="1"))
    assert piped.returncode == 0
    assert b"\x1b" not in piped.stdout + piped.stderr


def test_one_json_document_and_nothing_else(photos: Path) -> None:
    command = [
        str(BIN / "deeprank-index"),
        "sync",
        "photos",
        "--model",
        "model.onnx",
        "--index",
        "json.index",
        "--json",
    ]
    ended = subprocess.run(command, cwd=photos, capture_output=True, env=environment(FORCE_HYPERLINK="1"))
    assert json.loads(ended.stdout)["items"] == 6
    assert b"Took" not in ended.stderr


@pytest.mark.parametrize("name", ["a b", "%41", "ü#?", "\x1b]8;;http://x\x1b\\", "\udcff", "\n", "a;b"])
def test_an_address_is_plain_and_names_the_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    address = file_address(name)
    assert re.fullmatch(r"[!-~]+", address)
    assert os.fsencode(tmp_path / name) == urllib.parse.unquote_to_bytes(urllib.parse.urlsplit(address).path)
    link = file_link(name)
    assert link.count("\x1b") == 4
    assert "\n" not in link


@pytest.mark.parametrize("version", ["4999", "", "new", "²"])
def test_terminals_that_may_not_bear_links(version: str) -> None:
    assert not shows_links({"TERM": "xterm-256color", "VTE_VERSION": version})


# -- the parts ---------------------------------------------------------------------------------------------------------


def test_columns_line_up_whatever_stands_in_them() -> None:
    table = Columns((Column("名前", 8), Column("n", 3, 1), Column("rest", 6, 2)))
    for width in (21, 13, 8):
        rows = [
            table.header(width),
            *(table.row([name, "7", "x" * 20], width) for name in (*NAMES, "e\u0301", "\x1b[1m")),
        ]
        assert {display_width(row) for row in rows} == {width}
    assert table.header(7) == table.header(8)
    assert table.row(["犬", "7", "ab"], 21) == "      犬    7      ab"


@pytest.mark.parametrize("width", [1, 10, 14, 60])
def test_lines_are_broken_between_words(width: int) -> None:
    for text in ("", "one", " ".join(NAMES), "precision@30  0.9977  (185 val queries against others)", "a" * 70 + " b"):
        lines = wrapped(text, width, indent=4)
        assert " ".join(line.strip() for line in lines).split() == text.split()
        assert all(display_width(line) <= width or len(line.split()) == 1 for line in lines)
        assert all(line.startswith("    ") for line in lines[1:])
    assert wrapped("a  b", 60) == ["a  b"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0.0 s"), (59.94, "59.9 s"), (59.96, "1.0 min"), (3599, "1.0 h"), (3540, "59.0 min"), (1e6, "277.8 h")],
)
def test_short_times(seconds: float, shown: str) -> None:
    assert short_duration(seconds) == shown
    assert len(shown) <= 8
