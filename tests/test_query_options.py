"""Options of ``deeprank-query``: paths, means, indexed pictures as queries, near-duplicates, copies of hits."""

import hashlib
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
from test_index_search import add, synthetic, unit
from tiny_model import expected, square, write_model, write_picture, write_pictures

from deeprank.runtime.errors import IndexDamagedError, QueryError
from deeprank.runtime.index import Index
from deeprank.runtime.index.database.writer import writing
from deeprank.runtime.index.search.items import mean_vector
from deeprank.runtime.index.search.request import SearchRequest
from deeprank.runtime.index.sync.sync import sync
from deeprank.runtime.query.copy_hits import file_name

NAMES = [f"{label}/{i}.png" for label in ("cats", "dogs") for i in range(10)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an index of two folders: ``photos``, with a file and its copy, and ``more``."""
    folder = tmp_path_factory.mktemp("place")
    write_pictures(folder / "photos", NAMES)
    write_pictures(folder / "more", ["cats/0.png", "birds/0.png"], first_seed=50)
    shutil.copy(folder / "photos/cats/0.png", folder / "photos/dogs/copy.png")
    write_picture(folder / "query.png", 78)
    shutil.copy(folder / "photos/cats/0.png", folder / "outside.png")
    roots = [folder / "photos", folder / "more"]
    sync(folder / "deeprank.index", roots, model=write_model(folder / "model.onnx"))
    return folder


def query(place: Path, *arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    return run_command("deeprank-query", *arguments, cwd=place, status=status)


def results(place: Path, *arguments: object, status: int = 0) -> list[dict]:
    return json.loads(query(place, *arguments, "--json", status=status).stdout)["results"]


def paths(result: dict) -> list[str]:
    return [hit["path"] for hit in result["hits"]]


def vectors(files: list[Path]) -> np.ndarray:
    return expected(np.stack([square(path) for path in files]))


def ranked(asked: np.ndarray, files: list[Path]) -> list[str]:
    """Return the paths in the order of a plain computation."""
    distances = ((vectors(files) - asked) ** 2).sum(axis=1)
    return [str(files[i]) for i in np.argsort(distances, kind="stable")]


def indexed(place: Path) -> list[Path]:
    """Return the files in the order in which they were synced, so that of equal ones the first has the lowest id."""
    with Index.open(place / "deeprank.index") as index:
        hits = index.hits(unit(1, 16, 0), SearchRequest(k=100))[0]
    return [Path(hit.path) for hit in sorted(hits, key=lambda hit: hit.id)]


def test_paths_narrow_a_search(place: Path) -> None:
    files = indexed(place)
    order = ranked(vectors([place / "query.png"])[0], files)
    cats = [path for path in order if "/cats/" in path]
    assert paths(results(place, "query.png", "--path", "cats/*", "--k", "11")[0]) == cats
    assert paths(results(place, "query.png", "--path", "dogs/[0-2].png", "--path", "birds/*", "--k", "4")[0]) == [
        path for path in order if path.endswith(("dogs/0.png", "dogs/1.png", "dogs/2.png", "birds/0.png"))
    ]
    whole = place / "more" / "*" / "0.png"
    assert paths(results(place, "query.png", "--path", whole, "--k", "2")[0]) == [p for p in order if "/more/" in p]
    both = results(place, "query.png", "--path", place / "photos" / "*" / "*", "--label", "cats", "--k", "10")[0]
    assert paths(both) == [path for path in cats if "/photos/" in path]
    far = results(place, "query.png", "--path", "cats/*", "--farthest", "--k", "11")[0]
    assert paths(far) == cats[::-1]
    with Index.open(place / "deeprank.index") as index:
        assert [hit.path for hit in index.search(place / "query.png", 11, path="cats/*")] == cats
        assert [hit.path for hit in index.search(place / "query.png", 1, path=["cats/*", "dogs/*"])] == [
            path for path in order if "birds" not in path
        ][:1]
        index.search(place / "query.png", 30, path="cats/*")
        assert index.remarks == ["30 pictures were requested, 11 exist with this path: all of them are returned."]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("query.png", "--path", "wolves/*"), 1, "No picture has a path that matches 'wolves/*'; expected a pattern"),
        (("query.png", "--path", "cats/*", "--path", "new\nline"), 1, "new\\\\nline"),
        (("query.png", "--path", "cats/*", "--label", "birds"), 1, "both this label and this path"),
        (("query.png", "--unique", "5"), 2, "0 to 4"),
        (("query.png", "--unique", "nan"), 2, "0 to 4"),
        (("query.png", "--unique=abc"), 2, "0 to 4"),
        (("--mean",), 2, "IMAGE, or --item"),
        (("--item", "9999"), 1, "no picture with the id 9999"),
        (("--item", "0"), 1, "no picture with the id 0"),
        (("--item", "9" * 5000), 1, "has no picture 999"),
        (("--item", "esc\x1b"), 1, "no picture esc\\x1b; expected its id, or its path"),
        (("--item", "cats/0.png"), 1, "expected one of them: name it by its id or its absolute path"),
    ],
)
def test_usage_and_sentences(place: Path, arguments: tuple, status: int, message: str) -> None:
    assert message in query(place, *arguments, status=status).stderr


def test_the_mean_of_several(place: Path) -> None:
    asked = [place / "query.png", place / "photos/dogs/3.png", place / "photos/cats/5.png"]
    mean = vectors(asked).mean(axis=0)
    order = ranked(mean / np.linalg.norm(mean), indexed(place))
    found = results(place, "query.png", "photos/dogs/3.png", "--item", asked[2], "--mean", "--k", "23")
    assert len(found) == 1
    assert list(found[0]) == ["queries", "hits"]
    assert [list(each) for each in found[0]["queries"]] == [["query"], ["query"], ["query", "id"]]
    assert [each["query"] for each in found[0]["queries"]] == ["query.png", "photos/dogs/3.png", str(asked[2])]
    assert paths(found[0]) == order
    first, failed = results(place, "nope.png", "query.png", "--mean", status=1)
    assert first["queries"] == [{"query": "query.png"}]
    assert first["hits"] == results(place, "query.png")[0]["hits"]
    assert set(failed) == {"query", "error"}
    assert list(results(place, "nope.png", "--mean", status=1)[0]) == ["query", "error"]
    table = query(place, "query.png", "photos/dogs/3.png", "nope.png", "--mean", status=1).stdout
    assert table.startswith("mean of query.png, photos/dogs/3.png:\n")


def test_a_mean_that_is_none() -> None:
    one = unit(1, 16, 0)
    with pytest.raises(QueryError, match="opposite directions"):
        mean_vector(np.concatenate([one, -one]))
    with pytest.raises(QueryError, match="at least one"):
        mean_vector(one[:0])
    np.testing.assert_array_equal(mean_vector(one), one[0])


def test_the_sheet_of_a_mean_shows_the_queries(place: Path, tmp_path: Path) -> None:
    colours = [(200, 10, 10), (10, 200, 10), (10, 10, 200), (200, 200, 10), (10, 200, 200)]
    for number, colour in enumerate(colours):
        Image.new("RGB", (20, 20), colour).save(tmp_path / f"{number}.png")
    asked = sorted(tmp_path.glob("*.png"))
    query(place, *asked, "--mean", "--k", "2", "--sheet", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        pixels = np.asarray(image.convert("RGB"))[:, :200].reshape(-1, 3)
    shares = [int((pixels == colour).all(axis=1).sum()) for colour in colours]
    assert len(set(shares)) == 1
    assert shares[0] > 50 * 50


@pytest.mark.parametrize("how", ["id", "absolute", "from here", "under the root", "through a link"])
def test_a_picture_of_the_index_is_a_query(place: Path, tmp_path: Path, how: str) -> None:
    file = place / "photos" / "dogs" / "4.png"
    wanted = results(place, file, "--k", "5")[0]["hits"]
    (tmp_path / "link").symlink_to(place / "photos")
    name = {
        "id": wanted[0]["id"],
        "absolute": file,
        "from here": "photos/../photos/dogs/4.png",
        "under the root": "dogs/4.png",
        "through a link": tmp_path / "link" / "dogs" / "4.png",
    }[how]
    found = results(place, "--item", name, "--k", "5")[0]
    assert list(found) == ["query", "id", "hits"]
    assert (found["query"], found["id"]) == (str(file), wanted[0]["id"])
    assert found["hits"] == wanted


def test_neither_file_nor_model_is_needed_for_a_picture_of_the_index(tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", NAMES)
    sync(tmp_path / "i", [tmp_path / "photos"], model=write_model(tmp_path / "model.onnx"))
    before = results(tmp_path, "photos/cats/3.png", "--index", "i")[0]["hits"]
    (tmp_path / "i" / "model.bin").unlink(missing_ok=True)
    for model in (tmp_path / "i").glob("model*"):
        model.unlink()
    shutil.rmtree(tmp_path / "photos")
    found = results(tmp_path, "--item", "photos/cats/3.png", "--item", "cats/9999.png", "--index", "i", status=1)
    assert found[0]["hits"] == before
    assert "no picture cats/9999.png" in found[1]["error"]
    database = bytearray((tmp_path / "i" / "items.sqlite").read_bytes())
    with Index.open(tmp_path / "i") as index:
        vector = index.item(4).vector.tobytes()
    at = database.index(vector)
    database[at] ^= 1
    (tmp_path / "i" / "items.sqlite").write_bytes(bytes(database))
    with Index.open(tmp_path / "i") as index, pytest.raises(IndexDamagedError, match="item 4"):
        index.item(4)


def test_items_in_python(place: Path) -> None:
    with Index.open(place / "deeprank.index") as index:
        item = index.item(place / "photos" / "cats" / "0.png")
        assert item == index.item(str(place / "photos" / "cats" / "0.png")) == index.item(item.id)
        assert item.sha256 == hashlib.sha256(Path(item.path).read_bytes()).digest()
        np.testing.assert_allclose(item.vector, vectors([Path(item.path)])[0], atol=1e-5)
        assert [hit.distance for hit in index.search(item, 2)] == [0, 0]
        others = index.search(item, 22, exclude_sha256=[item.sha256])
        assert {0.0}.isdisjoint(hit.distance for hit in others)
        assert len(others) == 21
        assert index.remarks == ["22 pictures were requested; only 21 can be returned."]
        assert index.search(item, 5, exclude_sha256=[item.sha256.hex()]) == others[:5]
        with pytest.raises(QueryError, match="is not a sha256"):
            index.search(item, exclude_sha256=["xyz"])
        with pytest.raises(QueryError, match="no picture nul"):
            index.item("nul\0")
        with pytest.raises(QueryError, match="0 or more"):
            index.search(item, unique=-0.1)


def test_the_query_itself_is_left_out(place: Path) -> None:
    everything = results(place, "outside.png", "--k", "23")[0]["hits"]
    assert [hit["distance"] for hit in everything[:2]] == [0, 0]
    others = [hit["path"] for hit in everything[2:]]
    for asked in (["outside.png"], ["--item", place / "photos" / "dogs" / "copy.png"]):
        for k in (1, 5, 21):
            found = results(place, *asked, "--leave-out-query", "--k", k)[0]
            assert paths(found) == others[:k]
            assert [hit["rank"] for hit in found["hits"]] == list(range(1, k + 1))
    first, second = results(place, "outside.png", "query.png", "--leave-out-query", "--k", "23")
    assert (len(first["hits"]), len(second["hits"])) == (21, 23)
    mean = results(place, "outside.png", "photos/dogs/3.png", "--mean", "--leave-out-query", "--k", "23")[0]
    assert len(mean["hits"]) == 20


def greedy(asked: np.ndarray, gallery: np.ndarray, k: int, limit: float, banned: set[int], largest: float = 9.0):
    """Return (row, number of near-duplicates left out) of each hit, one after the other in plain Python."""
    distances = ((gallery - asked) ** 2).sum(axis=1)
    kept: list[list[int]] = []
    for row in np.lexsort((np.arange(len(gallery)), distances)).tolist():
        if row in banned or distances[row] > largest:
            continue
        owner = next((entry for entry in kept if ((gallery[entry[0]] - gallery[row]) ** 2).sum() <= limit), None)
        if owner is not None:
            owner[1] += 1
        elif len(kept) == k:
            break
        else:
            kept.append([row, 0])
    return [tuple(entry) for entry in kept]


def test_only_one_of_near_duplicates(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    sizes = [1, 2, 300, 5, 1, 40, 1, 1, 3, 9] * 3
    centres = unit(len(sizes), 24, 1)
    gallery = np.repeat(centres, sizes, axis=0)
    # Some of a cluster are the same, the others a little off: near the first, not all near each other.
    gallery += random.choice([0.0, 0.03], (len(gallery), 1)).astype(np.float32) * random.normal(
        size=gallery.shape
    ).astype(np.float32)
    gallery = (gallery / np.linalg.norm(gallery, axis=1, keepdims=True))[random.permutation(len(gallery))]
    folder = synthetic(tmp_path / "i", gallery)
    double = gallery.astype(np.float64)
    asked = np.concatenate([centres[2:4], unit(2, 24, 9)])
    with Index.open(folder) as index:
        for k, limit in ((1, 0.03), (5, 0.03), (12, 0.05), (1000, 0.05), (3, 0.0)):
            found = index.hits(asked, SearchRequest(k=k, unique=limit))
            for vector, hits in zip(asked.astype(np.float64), found, strict=True):
                assert [(hit.id - 1, hit.near_duplicates) for hit in hits] == greedy(vector, double, k, limit, set())
        near = greedy(asked[0].astype(np.float64), double, 9, 0.03, set(), largest=1.5)
        hits = index.hits(asked[:1], SearchRequest(k=9, unique=0.03, max_distance=1.5))[0]
        assert [(hit.id - 1, hit.near_duplicates) for hit in hits] == near
        best = index.item(near[0][0] + 1)
        banned = {i for i, vector in enumerate(gallery) if vector.tobytes() == best.vector.tobytes()}
        assert len(banned) > 1
        hits = index.search(asked[0], 9, unique=0.03, exclude_sha256=[best.sha256])
        assert [(h.id - 1, h.near_duplicates) for h in hits] == greedy(asked[0], double, 9, 0.03, banned)
        far = index.hits(-asked[:1], SearchRequest(k=4, unique=0.03, farthest=True))[0]
        assert [(hit.id, hit.near_duplicates) for hit in far] == [
            (row + 1, hidden) for row, hidden in greedy(asked[0].astype(np.float64), double, 4, 0.03, set())
        ]
        # The graph need not find all, but none that is near a better one.
        for hits in index.hits(asked, SearchRequest(k=12, unique=0.05, method="hnsw")):
            rows = double[[hit.id - 1 for hit in hits]]
            apart = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
            assert len(hits) == 12
            assert (apart[np.triu_indices(12, 1)] > 0.05).all()


def test_unique_on_the_command_line(place: Path) -> None:
    plain = results(place, "outside.png", "--k", "3")[0]["hits"]
    for words in (("--unique", "outside.png"), ("outside.png", "--unique"), ("--unique", "0.2", "outside.png")):
        hits = results(place, *words, "--k", "2")[0]["hits"]
        assert [(hit["path"], hit["near_duplicates"]) for hit in hits] == [(plain[0]["path"], 1), (plain[2]["path"], 0)]
    assert "near_duplicates" not in plain[0]
    assert "(and 1 near-duplicate)" in query(place, "outside.png", "--unique", "--k", "2").stdout
    shown = query(place, "--k", "1", "--paths-only", "--", "outside.png").stdout
    assert shown == plain[0]["path"] + "\n"


def test_copies_of_the_hits(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    copied = query(place, "query.png", "--k", "12", "--copy-to", out)
    assert f"copied 12 files to {out}" in copied.stderr
    hits = results(place, "query.png", "--k", "12")[0]["hits"]
    names = [f"{hit['rank']:02}_{hit['distance']:.4f}_{Path(hit['path']).name}" for hit in hits]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    for hit, name in zip(hits, names, strict=True):
        assert (out / name).read_bytes() == Path(hit["path"]).read_bytes()
        assert (out / name).stat().st_mtime_ns == Path(hit["path"]).stat().st_mtime_ns
    refused = query(place, "query.png", "--copy-to", out, status=1)
    assert refused.stdout == ""
    assert "expected a new or empty folder to copy to, so that nothing is overwritten" in refused.stderr
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    assert "is a file" in query(place, "query.png", "--copy-to", place / "model.onnx", status=1).stderr
    (tmp_path / "empty").mkdir()
    query(place, "query.png", "nope.png", "photos/dogs/3.png", "--k", "1", "--copy-to", tmp_path / "empty", status=1)
    assert sorted(path.relative_to(tmp_path / "empty").parts[0] for path in (tmp_path / "empty").glob("*/*")) == [
        "01_query",
        "03_3",
    ]
    inside = query(place, "query.png", "--k", "1", "--copy-to", place / "more" / "hits")
    assert f"synced folder, {place / 'more'}: its next sync adds them" in inside.stderr
    shutil.rmtree(place / "more" / "hits")


def test_what_cannot_be_copied(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    hostile = [
        "new\nline.png",
        "esc\x1b[31m.png",
        "caf\udce9.png",
        "x" * 251 + ".png",
        "é" * 125 + ".png",
        "back\\s.png",
    ]
    for seed, name in enumerate(hostile):
        write_picture(photos / name, seed)
    for seed, name in enumerate(["gone.png", "pipe.png", "folder.png"], 20):
        write_picture(photos / name, seed)
    write_picture(tmp_path / "target.png", 40)
    (photos / "link.png").symlink_to(tmp_path / "target.png")
    sync(tmp_path / "deeprank.index", [photos], model=write_model(tmp_path / "model.onnx"))
    for name in ("gone.png", "pipe.png", "folder.png"):
        (photos / name).unlink()
    os.mkfifo(photos / "pipe.png")
    (photos / "folder.png").mkdir()
    ended = query(tmp_path, "target.png", "--k", "10", "--copy-to", "out", status=1)
    assert len(ended.stdout.splitlines()) == 11
    assert "gone.png was not copied: No such file" in ended.stderr
    assert "pipe.png was not copied: it is not a regular file" in ended.stderr
    assert "folder.png was not copied: it is not a regular file" in ended.stderr
    assert "copied 7 files" in ended.stderr
    names = [os.fsencode(path.name) for path in (tmp_path / "out").iterdir()]
    assert len(names) == 7
    assert all(len(name) <= 255 and name.endswith(b".png") for name in names)
    ends = {name.split(b"_", 2)[2] for name in names}
    assert {b"new_line.png", b"esc_[31m.png", b"caf\xe9.png", b"back_s.png", b"link.png"} <= ends
    [link] = (tmp_path / "out").glob("*_link.png")
    assert not link.is_symlink()
    assert link.read_bytes() == (tmp_path / "target.png").read_bytes()


def test_a_disk_that_becomes_full_leaves_no_half_file(tmp_path: Path) -> None:
    for seed, size in enumerate([(10, 10), (60, 60), (12, 10)]):
        write_picture(tmp_path / "photos" / f"{seed}.png", seed, size)
    sync(tmp_path / "deeprank.index", [tmp_path / "photos"], model=write_model(tmp_path / "model.onnx"))
    program = Path(sys.executable).parent / "deeprank-query"
    command = f"ulimit -f 4; {program} photos/0.png --k 3 --copy-to out"
    ended = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "out cannot be written to (File too large)" in ended.stderr
    assert "none of them in part" in ended.stderr
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "photos" / path.name.split("_")[2]).read_bytes()


def test_names_of_copies() -> None:
    assert file_name("01_", "../a/b.png") == "01_.._a_b.png"
    assert file_name("01_", "a" * 300) == "01_" + "a" * 252
    assert file_name("01_", "a" * 300 + ".jpeg") == "01_" + "a" * 247 + ".jpeg"
    assert file_name("01_", "a." + "b" * 300) == "01_a." + "b" * 250
    assert os.fsencode(file_name("01_", "\u202e\udcff€" * 90 + ".png"))[-5:] in (
        b"\xff.png",
        b"\xac.png",
        b"_.png"[-5:],
    )


def test_one_state_of_the_index_while_another_process_changes_it(tmp_path: Path) -> None:
    gallery = unit(50, 24, 0)
    folder = synthetic(tmp_path / "i", gallery)
    with Index.open(folder) as index, writing(folder) as writer:
        with index.snapshot():
            item = index.item(1)
            writer.remove([1, 2, 3])
            add(writer, writer.add_root(b"/elsewhere"), gallery[:1], prefix="new")
            writer.commit()
            assert index.item(1) == item
            assert [hit.id for hit in index.search(item, 1, unique=0.01)] == [1]
            assert len(index.search(item, 100, path="*.png")) == 50
        assert [hit.id for hit in index.search(item, 1)] == [51]
        assert len(index.search(item, 100, path="*.png")) == 48
        with pytest.raises(QueryError, match="id 1"):
            index.item(1)
