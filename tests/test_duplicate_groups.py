"""Groups of near-duplicates (``deeprank-index dedupe``) against a plain loop, and the files that may be spared."""

import json
import os
import shutil
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import run_command
from test_index_search import synthetic, unit
from tiny_model import expected, square, write_model, write_picture, write_pictures

from deeprank.runtime.errors import IndexDamagedError, QueryError
from deeprank.runtime.index.search import near_duplicates
from deeprank.runtime.index.search.duplicate_groups import find_near_duplicates
from deeprank.runtime.index.search.near_duplicates import representatives
from deeprank.runtime.index.sync.sync import sync

HOSTILE = ["[/x].png", "esc\x1b[31m.png", "new\nline.png", "caf\udce9.png"]


def plain(vectors: np.ndarray, limit: float) -> np.ndarray:
    """Return the row that stands for each row, by one loop over all pairs."""
    double = vectors.astype(np.float64)
    chosen = np.full(len(double), -1)
    for row, vector in enumerate(double):
        if chosen[row] < 0:
            chosen[(chosen < 0) & (np.square(double - vector).sum(axis=1) <= limit)] = row
    return chosen


def clustered(count: int, dim: int, seed: int) -> np.ndarray:
    """Return unit vectors in clusters of very different widths, the variance in few directions as in embeddings."""
    random = np.random.default_rng(seed)
    centres = unit(count // 8, dim, seed)[random.integers(0, count // 8, count)]
    width = random.choice([0.0, 0.01, 0.03, 0.1, 0.5], (count, 1))
    vectors = centres + width * random.normal(size=(count, dim)) / np.sqrt(1 + np.arange(dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("limit", [0.0, 0.01, 0.05, 0.3, 1.0, 4.0])
@pytest.mark.parametrize(("count", "dim"), [(0, 8), (1, 8), (60, 8), (1300, 16), (1300, 96)])
def test_who_stands_for_whom(monkeypatch: pytest.MonkeyPatch, count: int, dim: int, limit: float) -> None:
    monkeypatch.setattr(near_duplicates, "_COLUMNS", 100)  # several tiles beside each other, as many vectors have
    vectors = clustered(count, dim, 1) if count > 8 else unit(count, dim, 1) if count else np.empty((0, dim), "f4")
    done: list[int] = []
    chosen = representatives(vectors, limit, lambda number=1: done.append(number))
    np.testing.assert_array_equal(chosen, plain(vectors, limit))
    assert sum(done) == count


def test_few_dimensions_decide_about_most_pairs() -> None:
    assert near_duplicates._basis(unit(2600, 128, 1), np.zeros(128, "f4"), 0.05).shape[1] < 64


def test_no_chain_makes_a_group() -> None:
    angles = np.arange(8) * 0.2
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    np.testing.assert_array_equal(representatives(vectors, 0.05), [0, 0, 2, 2, 4, 4, 6, 6])


def test_very_many_equal_pictures_take_little_memory() -> None:
    vectors = np.repeat(unit(2, 16, 0), 30_000, axis=0)
    tracemalloc.start()
    chosen = representatives(vectors, 0.05)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(chosen, np.repeat([0, 30_000], 30_000))
    assert peak < 400e6  # all pairs, as single bits, would be 450 MB


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``photos``, in which there are copies and near-duplicates, and an index of it."""
    folder = tmp_path_factory.mktemp("place")
    files = write_pictures(folder / "photos", [f"{label}/{i}.png" for label in ("cats", "dogs") for i in range(8)])
    shutil.copy(files[0], folder / "photos" / "dogs" / "copy.png")
    shutil.copy(files[0], folder / "photos" / "again.png")
    # Bytes after the end of a PNG change the file, but not the picture.
    (folder / "photos" / "cats" / "larger.png").write_bytes(files[3].read_bytes() + b"more")
    os.utime(files[3], ns=(10**18, 10**18))
    sync(folder / "deeprank.index", [folder / "photos"], model=write_model(folder / "model.onnx"))
    return folder


def dedupe(place: Path, *arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    return run_command("deeprank-index", "dedupe", *arguments, cwd=place, status=status)


def document(place: Path, *arguments: object) -> dict:
    return json.loads(dedupe(place, *arguments, "--json").stdout)


def groups(place: Path, *arguments: object) -> dict[str, list[str]]:
    return {
        group["kept"]["relative"]: [file["relative"] for file in group["near_duplicates"]]
        for group in document(place, *arguments)["groups"]
    }


def test_the_groups(place: Path) -> None:
    found = document(place)
    counts = ["pictures", "near_duplicates", "near_duplicate_bytes"]
    assert list(found) == ["schema", "index", "max_distance", "keep", *counts, "groups"]
    assert (found["pictures"], found["near_duplicates"], found["max_distance"]) == (19, 3, 0.05)
    assert groups(place) == {
        "cats/0.png": ["again.png", "dogs/copy.png"],
        "cats/larger.png": ["cats/3.png"],
    }
    copies, larger = found["groups"]
    assert list(copies["kept"]) == ["path", "root", "relative", "label", "id", "size"]
    assert [file["identical"] for file in copies["near_duplicates"]] == [True, True]
    assert [file["distance"] for file in copies["near_duplicates"]] == [0, 0]
    assert [file["similarity"] for file in copies["near_duplicates"]] == [1, 1]
    assert [file["identical"] for file in larger["near_duplicates"]] == [False]
    assert larger["kept"]["path"] == str(place / "photos" / "cats" / "larger.png")


def test_the_groups_of_a_larger_distance(place: Path) -> None:
    files = [Path(path) for path in sorted(map(str, (place / "photos").rglob("*.png")))]
    order = sorted(files, key=lambda path: (-path.stat().st_size, path.stat().st_mtime_ns))
    vectors = expected(np.stack([square(path) for path in order]))
    chosen = plain(vectors, 1.3)
    found = document(place, "--max-distance", "1.3")
    assert found["near_duplicates"] == sum(chosen != np.arange(len(order)))
    by_path = {str(path): vector for path, vector in zip(order, vectors, strict=True)}
    for group in found["groups"]:
        kept = by_path[group["kept"]["path"]]
        expected_distances = [((by_path[file["path"]] - kept) ** 2).sum() for file in group["near_duplicates"]]
        np.testing.assert_allclose([f["distance"] for f in group["near_duplicates"]], expected_distances, atol=1e-5)
        cosines = [by_path[file["path"]] @ kept for file in group["near_duplicates"]]
        np.testing.assert_allclose([f["similarity"] for f in group["near_duplicates"]], cosines, atol=1e-5)
        assert max(expected_distances) <= 1.3
        sizes = [file["size"] for file in group["near_duplicates"]]
        assert group["kept"]["size"] >= max(sizes)


@pytest.mark.thorough
def test_which_picture_is_kept(place: Path) -> None:
    assert set(groups(place, "--keep", "largest")) == {"cats/0.png", "cats/larger.png"}
    assert set(groups(place, "--keep", "oldest")) == {"cats/0.png", "cats/3.png"}
    first = document(place, "--keep", "first")["groups"]
    assert all(group["kept"]["id"] < min(f["id"] for f in group["near_duplicates"]) for group in first)
    assert "largest, oldest or first" in dedupe(place, "--keep", "best", status=2).stderr


@pytest.mark.thorough
def test_filters(place: Path) -> None:
    assert groups(place, "--label", "cats") == {"cats/larger.png": ["cats/3.png"]}
    assert groups(place, "--path", "again*", "--path", "dogs/*") == {"dogs/copy.png": ["again.png"]}
    assert document(place, "--label", "cats", "--path", "*/[0-3].png")["pictures"] == 4
    assert "'wolves'" in dedupe(place, "--label", "wolves", status=1).stderr
    assert "expected 0 to 4" in dedupe(place, "--max-distance", "nan", status=1).stderr
    assert "--print0 goes with" in dedupe(place, "--print0", status=2).stderr
    assert "exclude each other" in dedupe(place, "--json", "--paths-only", status=2).stderr


def test_the_text(place: Path) -> None:
    photos = place / "photos"
    copied, larger, smaller = (
        (photos / name).stat().st_size for name in ("again.png", "cats/larger.png", "cats/3.png")
    )
    saved = 2 * copied + smaller
    assert saved >= 1000 > max(copied, larger, smaller)
    assert dedupe(place).stdout.splitlines() == [
        f"{photos}/cats/0.png ({copied} bytes)",
        f"  0.0000 (similarity 1.0000)  identical  {copied} bytes  {photos}/again.png",
        f"  0.0000 (similarity 1.0000)  identical  {copied} bytes  {photos}/dogs/copy.png",
        "",
        f"{photos}/cats/larger.png ({larger} bytes)",
        f"  0.0000 (similarity 1.0000)             {smaller} bytes  {photos}/cats/3.png",
        "",
        f"3 near-duplicates in 2 groups of 19 pictures; {saved / 1000:.1f} kB could be saved",
    ]
    assert document(place)["near_duplicate_bytes"] == saved
    assert dedupe(place, "--path", "dogs/*").stdout == "0 near-duplicates in 0 groups of 9 pictures\n"
    assert dedupe(place, "--paths-only").stdout.splitlines() == [
        f"{photos}/again.png",
        f"{photos}/dogs/copy.png",
        f"{photos}/cats/3.png",
    ]
    assert dedupe(place, "--paths-only", "--print0", "--label", "cats").stdout == f"{photos}/cats/3.png\0"


def test_hostile_names(tmp_path: Path) -> None:
    for name in HOSTILE:
        write_picture(tmp_path / "photos" / name, 1)
    sync(tmp_path / "deeprank.index", [tmp_path / "photos"], model=write_model(tmp_path / "model.onnx"))
    shown = dedupe(tmp_path).stdout
    assert len(shown.splitlines()) == 6
    assert not any(character in shown for character in "\x1b\udce9")
    found = dedupe(tmp_path, "--paths-only", "--print0").stdout.split("\0")[:-1]
    [group] = document(tmp_path)["groups"]
    assert {*found, group["kept"]["path"]} == {str(tmp_path / "photos" / name) for name in HOSTILE}


def test_only_what_is_certain_can_be_spared(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for seed in range(5):
        for number, name in enumerate(("a", "b", "c")):
            write_picture(photos / f"{seed}{name}.png", seed)
            os.utime(photos / f"{seed}{name}.png", (1e9 + number, 1e9 + number))
    (photos / "4d.png").symlink_to("4a.png")
    sync(tmp_path / "deeprank.index", [photos], model=write_model(tmp_path / "model.onnx"))
    kept = [group["kept"]["relative"] for group in document(tmp_path, "--keep", "oldest")["groups"]]
    assert kept[:4] == ["0a.png", "1a.png", "2a.png", "3a.png"]
    assert kept[4] in ("4a.png", "4d.png")  # one file
    (photos / "1a.png").unlink()
    (photos / "2b.png").write_bytes(b"something else")
    (photos / "3c.png").unlink()
    (photos / "3c.png").mkdir()
    spared = dedupe(tmp_path, "--paths-only", "--keep", "oldest")
    left = ["0b.png", "0c.png", "2c.png", "3b.png", "4b.png", "4c.png"]
    assert spared.stdout.splitlines() == [f"{photos}/{name}" for name in left]
    assert "left out 4: the file or the one to keep is gone or has changed" in spared.stderr
    assert "left out 1: another name (a link) of the file to keep" in spared.stderr


def test_an_empty_and_a_damaged_index(tmp_path: Path) -> None:
    write_picture(tmp_path / "photos" / "a.png", 0)
    sync(tmp_path / "deeprank.index", [tmp_path / "photos"], model=write_model(tmp_path / "model.onnx"))
    assert dedupe(tmp_path).stdout == "0 near-duplicates in 0 groups of 1 picture\n"
    run_command("deeprank-index", "remove", "*", "--yes", cwd=tmp_path)
    assert dedupe(tmp_path).stdout == "0 near-duplicates in 0 groups of 0 pictures\n"
    assert document(tmp_path)["groups"] == []
    vectors = unit(30, 16, 0)
    folder = synthetic(tmp_path / "i", vectors)
    assert find_near_duplicates(folder).pictures == 30
    with pytest.raises(QueryError, match="largest, oldest, first"):
        find_near_duplicates(folder, keep="best")  # type: ignore[arg-type]
    database = bytearray((folder / "items.sqlite").read_bytes())
    database[database.index(vectors[5].tobytes())] ^= 1
    (folder / "items.sqlite").write_bytes(bytes(database))
    with pytest.raises(IndexDamagedError, match="item 6"):
        find_near_duplicates(folder)
