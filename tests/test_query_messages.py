"""Messages of ``deeprank-query``: tables that fit, empty results, names without a picture, standard input."""

import hashlib
import io
import json
import os
import pty
import re
import subprocess
import sys
import termios
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import run_command
from PIL import Image
from tiny_model import write_model, write_picture

from deeprank.runtime import Index
from deeprank.runtime.errors import PictureError, QueryError
from deeprank.runtime.index.sync.sync import sync
from deeprank.runtime.query import run
from deeprank.runtime.query.run import MAX_BYTES
from deeprank.runtime.text import display_width, file_size, printable, shortened

BIN = Path(sys.executable).parent
LONG = "a-label-that-goes-on-and-on-and-on"
NAMES = [
    "cats/0.png",
    "cats/1.png",
    "dogs/2.png",
    "dogs/3.png",
    f"{LONG}/{'x' * 90}.png",
    "衣類の長い名前のフォルダ/写真テスト用の画像.png",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    for number, name in enumerate(NAMES):
        write_picture(folder / "photos" / name, number)
    write_picture(folder / "photos" / "dogs" / "esc\x1b[31m\n.png", 50)
    sync(folder / "deeprank.index", [folder / "photos"], model=write_model(folder / "model.onnx"))
    (folder / "query.png").write_bytes((folder / "photos" / "cats" / "0.png").read_bytes())
    write_picture(folder / "other.png", 77)
    return folder


def query(place: Path, *words: object, status: int = 0, stdin: bytes | None = None) -> subprocess.CompletedProcess:
    if stdin is None:
        return run_command("deeprank-query", *words, cwd=place, status=status)
    command = [str(BIN / "deeprank-query"), *map(str, words)]
    result = subprocess.run(command, cwd=place, input=stdin, capture_output=True)
    said = result.stderr.decode()
    assert result.returncode == status, said
    assert "Traceback" not in said
    assert "internal error" not in said
    return subprocess.CompletedProcess(command, status, result.stdout.decode("utf-8", "surrogateescape"), said)


def on_a_terminal(place: Path, columns: int, *words: str) -> list[str]:
    child, terminal = pty.fork()
    if child == 0:
        termios.tcsetwinsize(0, (40, columns))
        os.chdir(place)
        environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
        os.execve(BIN / "deeprank-query", ["deeprank-query", *words], environment)
    shown = b""
    try:
        while more := os.read(terminal, 10_000):
            shown += more
    except OSError:  # the terminal goes with the command
        pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return shown.decode().replace("\r", "").splitlines()


# Tables


@pytest.mark.parametrize("columns", [60, 80, 100, 300])
def test_a_table_fits_the_terminal(place: Path, columns: int) -> None:
    lines = on_a_terminal(place, columns, "query.png", "-k", "7")
    assert lines[0].split() == ["rank", "distance", "similarity", "label", "path"]
    assert len(lines) == 8
    assert max(map(display_width, lines)) <= columns
    paths = lines[0].index("path")
    for line in lines:  # columns line up, with wide characters in them as well
        before = next(cut for cut in range(len(line) + 1) if display_width(line[:cut]) == paths)
        assert line[:before].endswith("  ")
        assert line[before] in "p/"
        assert "\x1b" not in line
    whole = query(place, "query.png", "-k", "7").stdout.splitlines()
    assert (lines == whole) == (columns == 300)


def test_nothing_is_shortened_for_programs(place: Path) -> None:
    shown = subprocess.run(
        [str(BIN / "deeprank-query"), "query.png", "-k", "7"],
        cwd=place, capture_output=True, text=True, env={**os.environ, "COLUMNS": "40"},
    )  # fmt: skip
    assert "…" not in shown.stdout
    assert f"/{LONG}/{'x' * 90}.png" in shown.stdout


@pytest.mark.parametrize("width", range(1, 30))
def test_shortened(width: int) -> None:
    for text in (
        "abcdefghijklmnopqrstuvwxyz",
        "衣類の長い名前の画像",
        "e\u0301" * 20,
        "a\x1b[31mb\u202ec\udcff" * 3,
        "ไม้กี่ตัว" * 3,
    ):
        cut = shortened(text, width)
        assert display_width(cut) <= width
        if cut != printable(text):
            head, ellipsis, tail = cut.partition("…")
            assert ellipsis
            assert printable(text).startswith(head)
            assert printable(text).endswith(tail)
            # Neither half begins or ends within an escape, or with an accent that belongs to the letter before.
            cuts = {len("".join(map(printable, text[:count]))) for count in range(len(text) + 1)}
            assert len(head) in cuts
            assert len(printable(text)) - len(tail) in cuts
            assert not tail or unicodedata.category(tail[0]) not in ("Mn", "Me")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1000, "1.0 kB"), (45_230, "45.2 kB"), (999_949, "999.9 kB"),
     (999_950, "1.0 MB"), (3_100_000_000, "3.1 GB"), (7 * 10**15, "7000.0 TB")],
)  # fmt: skip
def test_sizes(size: int, text: str) -> None:
    assert file_size(size) == text


# Empty results


def distances(place: Path, name: str = "query.png", **filters: object) -> list[float]:
    with Index.open(place / "deeprank.index") as index:
        return [hit.distance for hit in index.search(place / name, 100, **filters)]


def test_a_distance_that_nothing_is_within(place: Path) -> None:
    nearest = min(distances(place, "other.png"))
    said = query(place, "other.png", "--max-distance", nearest / 2)
    assert said.stdout == ""
    assert f"the nearest is {nearest:.4f} away. Search again with a larger --max-distance." in said.stderr
    document = json.loads(query(place, "other.png", "--max-distance", nearest / 2, "--json").stdout)
    assert document["results"][0]["hits"] == []
    assert document["results"][0]["reason"] + "\n" == said.stderr
    # Said of the filter that is in the way, with the other ones in force.
    nearest = min(distances(place, "other.png", label="dogs"))
    said = query(place, "other.png", "--max-distance", nearest / 2, "--label", "dogs").stderr
    assert f"the nearest is {nearest:.4f} away" in said


def test_which_filter_to_loosen(place: Path) -> None:
    own = "cats/0.png"  # query.png is a copy of it
    said = query(place, "query.png", "--path", own, "--leave-out-query").stderr
    assert said.endswith("no picture is left; search again without --path or without --leave-out-query.\n")
    tiny = min(distances(place)[1:]) / 2
    said = query(place, "query.png", "--path", own, "--leave-out-query", "--max-distance", tiny).stderr
    assert "without --leave-out-query." in said
    assert "--path" not in said  # without it alone, nothing would be near enough
    assert "1 pictures were requested" not in said  # of the questions that found this out
    near_one = query(place, "query.png", "--label", "dogs", "--unique", "--max-distance", tiny).stderr
    assert "larger --max-distance" in near_one


def test_several_queries_are_named(place: Path) -> None:
    said = query(place, "query.png", "other.png", "--max-distance", "0.000001")
    assert said.stderr.startswith("other.png: no picture is at most 1e-06 away")
    assert said.stdout.startswith("query.png:\n")
    page = place / "empty.html"
    query(place, "other.png", "--max-distance", "0.000001", "--html", page)
    assert "No picture is at most 1e-06 away; the nearest is " in page.read_text()


def test_an_empty_index(tmp_path: Path) -> None:
    write_picture(tmp_path / "photos" / "a.png", 1)
    sync(tmp_path / "deeprank.index", [tmp_path / "photos"], model=write_model(tmp_path / "model.onnx"))
    run_command("deeprank-index", "remove", "photos/a.png", "--yes", cwd=tmp_path)
    assert "the index holds no pictures" in query(tmp_path, "photos/a.png").stderr


# Names that lead to no picture


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("https://example.com/a.jpg?x=1&y=2", "Try: curl -s 'https://example.com/a.jpg?x=1&y=2' | deeprank-query -"),
        ("http://example.com//a.jpg", "http://example.com//a.jpg is an address"),
        ("s3://bucket/a.jpg", "s3://bucket/a.jpg is an address"),
        ("file:///tmp/a%20b.jpg", "expected the file itself: '/tmp/a b.jpg'"),
        ("file://localhost/tmp/a.jpg", "expected the file itself: /tmp/a.jpg"),
        ("data:image/png;base64,AAAA", "is a data: address"),
        ("", "An empty name was given"),
        ("*.jpg", "as a pattern, it matches no file here"),
        ("photos/cats/[0-9].jpeg", "as a pattern, it matches no file here"),
        ("~/a.jpg", "the shell does not expand ~ in quotes; expected "),
        ("photos", "photos is a folder; expected a picture file"),
        ("nope.jpg", "nope.jpg does not exist; expected a picture file."),
    ],
)  # fmt: skip
def test_names_that_lead_to_no_picture(place: Path, name: str, said: str) -> None:
    result = query(place, name, "query.png", "--json", status=1)
    first, second = json.loads(result.stdout)["results"]
    assert said in first["error"]
    assert first["query"] == name
    assert second["hits"]  # the other one is answered
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert said in line
    if not name.startswith("photos"):
        with Index.open(place / "deeprank.index") as index, pytest.raises(PictureError, match=re.escape(said)):
            index.search(name)


@pytest.mark.parametrize("distance", ["nan", "inf", "-inf", "-1", "-0.001", "far"])
def test_a_distance_that_is_none(place: Path, distance: str) -> None:
    said = query(place, "query.png", f"--max-distance={distance}", status=2).stderr
    assert "expected a squared distance" in said
    if distance != "far":
        with Index.open(place / "deeprank.index") as index, pytest.raises(QueryError, match="expected a squared"):
            index.search(place / "query.png", max_distance=float(distance))


def test_a_query_of_another_type(place: Path) -> None:
    with Index.open(place / "deeprank.index") as index:
        for wrong, name in (
            (["a.jpg"], "list"),
            (("a.jpg",), "tuple"),
            (None, "NoneType"),
            (7, "int"),
            (b"GIF", "bytes"),
        ):
            with pytest.raises(QueryError, match=f"^The query is a {name}; expected one picture"):
                index.search(wrong)
        with pytest.raises(QueryError, match="expected a list of pictures"):
            index.embedder.embed("query.png")
        assert index.search(io.BytesIO((place / "query.png").read_bytes()))[0].distance == 0


# Standard input


def test_standard_input(place: Path, tmp_path: Path) -> None:
    content = (place / "query.png").read_bytes()
    outputs = ("--html", tmp_path / "p.html", "--sheet", tmp_path / "s.png", "--copy-to", tmp_path / "hits")
    through = query(place, "-", "-k", "3", "--json", *outputs, stdin=content)
    by_name = json.loads(query(place, "query.png", "-k", "3", "--json").stdout)["results"]
    (found,) = json.loads(through.stdout)["results"]
    assert found == {**by_name[0], "query": "-"}
    page = (tmp_path / "p.html").read_text()
    assert "Nearest to standard input" in page
    assert 'href="file' in page
    assert "cannot be read" not in page
    assert not (place / "-").exists()
    with Image.open(tmp_path / "s.png") as sheet:
        assert len(np.unique(np.asarray(sheet)[40:200, 20:180].reshape(-1, 3), axis=0)) > 50  # the query is drawn
    assert len(list((tmp_path / "hits").iterdir())) == 3
    without = query(place, "-", "-k", "3", "--json", "--leave-out-query", stdin=content)
    hashes = [
        hashlib.sha256(Path(hit["path"]).read_bytes()) for hit in json.loads(without.stdout)["results"][0]["hits"]
    ]
    assert hashlib.sha256(content).digest() not in [each.digest() for each in hashes]


def test_standard_input_among_others(place: Path) -> None:
    content = (place / "other.png").read_bytes()
    results = json.loads(query(place, "query.png", "-", "--item", "1", "-k", "2", "--json", stdin=content).stdout)
    assert [each["query"] for each in results["results"][:2]] == ["query.png", "-"]
    mean = json.loads(query(place, "query.png", "-", "--mean", "--json", stdin=content).stdout)["results"][0]
    assert [each["query"] for each in mean["queries"]] == ["query.png", "-"]


def test_a_file_that_is_called_like_standard_input(place: Path) -> None:
    (place / "-").write_bytes((place / "other.png").read_bytes())
    try:
        (found,) = json.loads(query(place, "./-", "--json", stdin=b"").stdout)["results"]
    finally:
        (place / "-").unlink()
    assert found["query"] == "./-"


@pytest.mark.parametrize(("content", "kind"), [(b"", "missing"), (b"x" * 11, "too large")])
def test_faults_of_standard_input_have_a_kind(content: bytes, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "MAX_BYTES", 10)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))
    with pytest.raises(PictureError) as refused:
        run.read_picture()
    assert refused.value.kind == kind


def test_standard_input_that_is_no_picture(place: Path) -> None:
    assert "standard input is empty; expected a picture." in query(place, "-", stdin=b"", status=1).stderr
    assert "standard input is not a picture" in query(place, "-", stdin=b"hello", status=1).stderr
    assert "more than once" in query(place, "-", "-", stdin=b"", status=2).stderr
    endless = subprocess.run(
        ["bash", "-c", f"{BIN}/deeprank-query - < /dev/zero"], cwd=place, capture_output=True, text=True
    )
    assert endless.returncode == 1
    assert endless.stderr == f"error: standard input has more than {MAX_BYTES:,} bytes; expected one picture.\n"
