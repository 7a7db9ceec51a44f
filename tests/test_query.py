"""``deeprank-query`` as a user types it: table, JSON, paths, contact sheets, and bad input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import run_command
from PIL import Image
from tiny_model import distances, expected, square, write_model, write_picture, write_pictures

from deeprank.runtime.index.sync.sync import sync

HOSTILE = ["[/x]", "<script>alert(1)<", "esc\x1b[31m", "new\nline", "tab\t", "caf\udce9"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``photos`` and an index of them in the default place."""
    folder = tmp_path_factory.mktemp("place")
    write_pictures(folder / "photos", [f"{label}/{i}.png" for label in ("cats", "dogs") for i in range(15)])
    write_picture(folder / "photos" / "top.png", 77)
    write_picture(folder / "query.png", 78)
    sync(folder / "deeprank.index", [folder / "photos"], model=write_model(folder / "model.onnx"))
    return folder


def query(place: Path, *arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    return run_command("deeprank-query", *arguments, cwd=place, status=status)


def answer(place: Path, *arguments: object, status: int = 0) -> dict:
    return json.loads(query(place, *arguments, "--json", status=status).stdout)


def test_the_json_form(place: Path) -> None:
    document = answer(place, "query.png", "photos/cats/3.png", "--k", "4")
    assert list(document) == ["schema", "index", "k", "results"]
    assert (document["schema"], document["index"], document["k"]) == (1, "deeprank.index", 4)
    pictures = sorted((place / "photos").rglob("*.png"))
    for result, asked in zip(document["results"], ("query.png", "photos/cats/3.png"), strict=True):
        assert list(result) == ["query", "hits"]
        assert result["query"] == asked
        wanted = distances(place / asked, pictures)
        vectors = expected(np.stack([square(path) for path in [place / asked, *pictures]]))
        cosines = vectors[1:] @ vectors[0]
        order = np.argsort(wanted)[:4]
        for rank, (hit, number) in enumerate(zip(result["hits"], order, strict=True), 1):
            assert list(hit) == ["rank", "path", "root", "relative", "distance", "similarity", "label", "id"]
            relative = pictures[number].relative_to(place / "photos")
            assert hit["rank"] == rank
            assert hit["path"] == str(pictures[number])
            assert hit["root"] == str(place / "photos")
            assert hit["relative"] == str(relative)
            assert hit["distance"] == pytest.approx(wanted[number], abs=1e-5)
            assert hit["similarity"] == pytest.approx(cosines[number], abs=1e-5)
            assert hit["label"] == (relative.parts[0] if len(relative.parts) > 1 else None)
            assert isinstance(hit["id"], int)


def test_every_way_of_searching_gives_the_same(place: Path) -> None:
    answers = [
        answer(place, "query.png", *options)["results"]
        for options in ((), ("--exact",), ("--search", "exact"), ("--search", "hnsw"))
    ]
    assert answers[0] == answers[1] == answers[2] == answers[3]


def test_the_table(place: Path) -> None:
    lines = query(place, "query.png", "--k", "3").stdout.splitlines()
    assert lines[0].split() == ["rank", "distance", "similarity", "label", "path"]
    hits = answer(place, "query.png", "--k", "3")["results"][0]["hits"]
    for line, hit in zip(lines[1:], hits, strict=True):
        rank, distance, similarity, label, path = line.split()
        assert float(similarity) == pytest.approx(hit["similarity"], abs=6e-5)
        assert (int(rank), label, path) == (hit["rank"], hit["label"] or "-", hit["path"])
        assert float(distance) == pytest.approx(hit["distance"], abs=6e-5)
    several = query(place, "query.png", "photos/top.png", "--k", "3").stdout
    assert several.startswith("query.png:\n")
    assert "\nphotos/top.png:\n" in several


# The line that a model draws


@pytest.fixture(scope="module")
def lined(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The same pictures in an index whose model states a distance: between the fourth and the fifth of query.png."""
    folder = tmp_path_factory.mktemp("lined")
    ordered = np.sort(distances(place / "query.png", sorted((place / "photos").rglob("*.png"))))
    limit = round(float(ordered[3:5].mean()), 4)
    assert ordered[3] < limit < ordered[4]
    model = write_model(folder / "model.onnx", unrelated_distance=limit)
    sync(folder / "deeprank.index", [place / "photos"], model=model)
    shutil.copy(place / "query.png", folder)
    return folder, limit


@pytest.mark.thorough
def test_a_line_stands_where_hits_are_not_similar_any_more(place: Path, lined: tuple[Path, float]) -> None:
    folder, limit = lined
    line = f"----  not similar any more: farther than {limit:g}"
    plain = query(place, "query.png", "--k", "9").stdout.splitlines()
    assert query(folder, "query.png", "--k", "9").stdout.splitlines() == [*plain[:5], line, *plain[5:]]
    # Not behind the last similar one, but before the first hit if that is beyond.
    assert query(folder, "query.png", "--k", "4").stdout.splitlines() == plain[:5]
    far = answer(folder, "query.png", "--farthest", "--k", "1")["results"][0]["hits"][0]["path"]
    _, *shown = query(folder, "query.png", "--path", far).stdout.splitlines()
    assert shown[0] == line
    assert len(shown) == 2
    assert query(folder, "query.png", "query.png", "--k", "9").stdout.count(line) == 2
    assert "similar any more" not in query(folder, "query.png", "--k", "31", "--farthest").stdout


@pytest.mark.thorough
def test_programs_are_told_the_distance(place: Path, lined: tuple[Path, float]) -> None:
    folder, limit = lined
    document = answer(folder, "query.png", "--k", "9")
    assert list(document) == ["schema", "index", "k", "unrelated_distance", "results"]
    assert document.pop("unrelated_distance") == limit
    assert document["schema"] == 1
    assert document == answer(place, "query.png", "--k", "9")
    for words in ((), ("--print0",)):
        paths = query(folder, "query.png", "--k", "9", "--paths-only", *words).stdout
        assert paths == query(place, "query.png", "--k", "9", "--paths-only", *words).stdout


def test_a_query_by_item_knows_the_line_without_opening_the_model(lined: tuple[Path, float], tmp_path: Path) -> None:
    folder, limit = lined
    shutil.copytree(folder / "deeprank.index", tmp_path / "deeprank.index")
    words = ("--item", "1", "--k", "31")
    before = query(tmp_path, *words).stdout.splitlines()
    assert sum("not similar any more" in line for line in before) == 1
    assert answer(tmp_path, *words)["unrelated_distance"] == limit
    (tmp_path / "deeprank.index" / "model.onnx").unlink()
    assert query(tmp_path, *words).stdout.splitlines() == [line for line in before if "similar any more" not in line]
    assert "unrelated_distance" not in answer(tmp_path, *words)


def test_filters(place: Path) -> None:
    cats = answer(place, "query.png", "--label", "cats", "--k", "15")["results"][0]["hits"]
    assert [hit["label"] for hit in cats] == ["cats"] * 15
    both = answer(place, "query.png", "--label", "cats", "--label", "dogs", "--k", "30")["results"][0]["hits"]
    assert {hit["label"] for hit in both} == {"cats", "dogs"}
    far = answer(place, "query.png", "--farthest", "--k", "31")["results"][0]["hits"]
    near = answer(place, "query.png", "--k", "31")["results"][0]["hits"]
    assert [hit["path"] for hit in far] == [hit["path"] for hit in near][::-1]
    limit = near[4]["distance"]
    assert answer(place, "query.png", "--max-distance", repr(limit))["results"][0]["hits"] == near[:5]


def test_k(place: Path) -> None:
    assert "--k" in query(place, "query.png", "--k", "0", status=2).stderr
    everything = query(place, "query.png", "--k", "1000")
    assert len(everything.stdout.splitlines()) == 32
    assert "1000 pictures were requested, 31 exist" in everything.stderr


def test_an_unreadable_query_does_not_stop_the_others(place: Path) -> None:
    document = answer(place, "nope.png", "query.png", "model.onnx", status=1)
    first, second, third = document["results"]
    assert set(first) == set(third) == {"query", "error"}
    assert "nope.png does not exist" in first["error"]
    assert "model.onnx is not a picture" in third["error"]
    assert len(second["hits"]) == 10
    alone = query(place, "nope.png", status=1)
    assert alone.stdout == ""
    assert alone.stderr == "error: nope.png does not exist; expected a picture file.\n"


def test_paths_only(place: Path) -> None:
    hits = answer(place, "query.png", "--k", "3")["results"][0]["hits"]
    assert query(place, "query.png", "--k", "3", "--paths-only").stdout.splitlines() == [hit["path"] for hit in hits]
    ended = query(place, "query.png", "--k", "3", "--paths-only", "--print0").stdout
    assert ended == "".join(hit["path"] + "\0" for hit in hits)


@pytest.mark.thorough
def test_hostile_names(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for seed, name in enumerate(HOSTILE):
        write_picture(photos / name / f"{name}.png", seed)
    sync(tmp_path / "deeprank.index", [photos], model=write_model(tmp_path / "model.onnx"))
    asked = photos / HOSTILE[2] / f"{HOSTILE[2]}.png"
    table = query(tmp_path, asked, asked, "--k", "6", "--sheet", "s.png").stdout
    assert len(table.splitlines()) == 2 * 8
    assert not any(character in table for character in "\x1b\t\udce9")
    for shown in ("[/x]/[/x].png", "<script>alert(1)<", "esc\\x1b[31m", "new\\nline", "tab\\t", "caf\\xe9"):
        assert shown in table
    hits = answer(tmp_path, asked, "--k", "6")["results"][0]["hits"]
    assert {hit["label"] for hit in hits} == {name.split("/")[0] for name in HOSTILE}
    assert all(Path(hit["path"]).is_file() for hit in hits)
    ended = query(tmp_path, asked, "--k", "6", "--paths-only", "--print0").stdout
    assert set(ended.split("\0")[:-1]) == {str(photos / name / f"{name}.png") for name in HOSTILE}
    only = answer(tmp_path, asked, "--label", HOSTILE[3])["results"][0]["hits"]
    assert [hit["label"] for hit in only] == [HOSTILE[3]]
    with Image.open(tmp_path / "s.png") as image:
        image.load()


@pytest.mark.thorough
def test_the_contact_sheet(place: Path, tmp_path: Path) -> None:
    drawn = query(place, "query.png", "--k", "12", "--sheet", tmp_path / "s.png", "--query-label", "cats")
    assert "wrote" in drawn.stderr
    hits = answer(place, "query.png", "--k", "12")["results"][0]["hits"]
    with Image.open(tmp_path / "s.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    green, red = ((pixels == colour).all(axis=1).sum() for colour in ((30, 142, 62), (217, 48, 37)))
    right = sum(hit["label"] == "cats" for hit in hits)
    assert 0 < right < 12
    assert green / right == pytest.approx(red / (12 - right), rel=0.01)
    query(place, "query.png", "--sheet", tmp_path / "plain.png")
    with Image.open(tmp_path / "plain.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert not (pixels == (30, 142, 62)).all(axis=1).any()
    refused = query(place, "query.png", "--sheet", tmp_path / "s.jpg", status=1)
    assert "ends in .png" in refused.stderr
    assert "cannot be written" in query(place, "query.png", "--sheet", tmp_path / "no" / "s.png", status=1).stderr
    assert "Traceback" not in query(place, "nope.png", "--sheet", tmp_path / "none.png", status=1).stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ((), 2, "IMAGE"),
        (("query.png", "--search", "magic"), 2, "magic"),
        (("query.png", "--exact", "--search", "hnsw"), 2, "exclude"),
        (("query.png", "--json", "--paths-only"), 2, "exclude"),
        (("query.png", "--print0"), 2, "--paths-only"),
        (("query.png", "--index", "nowhere"), 1, "nowhere does not exist"),
        (("query.png", "--label", "wolves"), 1, "'wolves'"),
        (("query.png", "--farthest", "--max-distance", "1"), 1, "one or the other"),
        (("query.png", "--max-pixels", "10"), 1, "pixels"),
        (("query.png", "--device", "abacus"), 1, "abacus"),
    ],
)
def test_usage_and_sentences(place: Path, arguments: tuple, status: int, message: str) -> None:
    assert message in query(place, *arguments, status=status).stderr


def test_a_reader_that_goes_away(place: Path) -> None:
    command = f"{Path(sys.executable).parent}/deeprank-query photos/*/*.png --k 30 | head -n 1"
    result = subprocess.run(["bash", "-c", command], cwd=place, capture_output=True, text=True)
    assert result.stdout == "photos/cats/0.png:\n"
    assert result.stderr == ""


def test_a_damaged_index(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "deeprank.index", tmp_path / "i")
    graph = bytearray((tmp_path / "i" / "graph.hnsw").read_bytes())
    graph[200] ^= 1
    (tmp_path / "i" / "graph.hnsw").write_bytes(bytes(graph))
    remarked = query(place, "query.png", "--index", tmp_path / "i")
    assert remarked.stdout == query(place, "query.png").stdout
    assert "scanned instead" in remarked.stderr
    (tmp_path / "i" / "items.sqlite").write_bytes(os.urandom(9000))
    refused = query(place, "query.png", "--index", tmp_path / "i", status=1)
    assert refused.stdout == ""
    assert "verify" in refused.stderr


def test_help_shows_an_example() -> None:
    assert "deeprank-query image.jpg --k 10" in run_command("deeprank-query", "--help").stdout


def test_nothing_is_noted_for_the_maker_of_onnx_runtime(place: Path, tmp_path: Path) -> None:
    home = {"TMPDIR": str(tmp_path), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    command = [Path(sys.executable).parent / "deeprank-query", "query.png"]
    subprocess.run(command, cwd=place, env={**environment, **home}, check=True, capture_output=True)
    assert list(tmp_path.iterdir()) == []
