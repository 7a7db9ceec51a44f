"""Patterns of ``deeprank-index remove``: it removes what ``deeprank-query --path`` shows, never more."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import run_command
from tiny_model import expected as expected_vectors
from tiny_model import square, write_model, write_picture, write_pictures

from deeprank.runtime.errors import QueryError
from deeprank.runtime.files import file_sha256
from deeprank.runtime.index import Index
from deeprank.runtime.index.maintenance.remove import plan_removal
from deeprank.runtime.index.search.paths import Paths
from deeprank.runtime.index.sync.sync import sync
from deeprank.runtime.index.uploads import Upload, add_uploads

NAMES = ["a/1.png", "a/b/2.png", "a/b/c/3.png", "2019/4.png", "2019/05/5.png", "x[1].png", "x1.png", "raw/6.png"]
NAMES += ["d/raw/7.png", "a b/8.png", "é/9.png", "raw.png", "d/raw.png"]
PATTERNS = ["a/*.png", "*.png", "a", "a/", "a/*", "a/**", "**/raw", "raw", "raw/", "raw.png", "[ad]/*", "2019/*"]
PATTERNS += [
    "2019/*.png",
    "?/*.png",
    "x[1].png",
    "x[[]1].png",
    "**",
    "*",
    "a/*/2.png",
    "é/*",
    "a b/*",
    "*/*/*.png",
    "./a/*",
]
# Read from the current folder, which is the one above the synced one.
PATTERNS += ["photos/*", "photos/2019/*", "photos/**/*.png", "photos/a", "../work/photos/a/*.png", "photos/my.index/**"]
PATTERNS += ["photos/my.index/uploads/*"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder ``work`` with an index of ``photos`` in it, within that folder, with an upload."""
    work = tmp_path_factory.mktemp("removal") / "work"
    write_pictures(work / "photos", NAMES)
    index = work / "photos" / "my.index"
    model = write_model(work / "model.onnx")
    sync(index, [work / "photos"], model=model)
    write_picture(work / "new.png", 99)
    vector = expected_vectors(square(work / "new.png")[None])[0].astype(np.float32)
    add_uploads(index, [Upload((work / "new.png").read_bytes(), vector)], model_sha256=file_sha256(model))
    return work


@pytest.fixture
def work(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def shown(index: Path, pattern: str) -> set[int]:
    """Return the ids that a search with this pattern may return."""
    with Index.open(index) as opened, opened.snapshot():
        try:
            return set(Paths(opened._store).ids_matching(pattern).tolist())
        except QueryError:
            return set()


def taken(index: Path, pattern: str) -> set[int]:
    try:
        return set(plan_removal(index, [pattern]).ids)
    except QueryError:
        return set()


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_removal_takes_no_more_than_a_search_shows(work: Path, pattern: str, absolute: bool) -> None:
    index = work / "photos/my.index"
    pattern = f"{work}/photos/{pattern}" if absolute else pattern
    seen, out = shown(index, pattern), taken(index, pattern)
    if "x[1]" not in pattern:  # a picture of this very name comes before what the pattern means
        assert out <= seen
    uploads = len(NAMES) + 1
    if out != seen:  # where a path is meant, or an upload is not named
        assert seen - out == {uploads} or not re.search(r"[*?]", pattern), (seen, out)
    if "uploads" not in pattern and "/" in pattern.rstrip("/"):
        assert uploads not in out or pattern.startswith("**")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a/*.png", ["a/1.png"]),
        ("photos/2019/*", ["2019/4.png", "2019/05/5.png"]),
        ("photos/a/*.png", ["a/1.png"]),
        ("photos/a", ["a/1.png", "a/b/2.png", "a/b/c/3.png"]),
        ("x[1].png", ["x[1].png"]),  # the picture of this name, not what the pattern means
        ("photos/x[1].png", ["x[1].png"]),
        ("x?1].png", ["x[1].png"]),
        ("raw.png", ["raw.png"]),  # a path from the synced folder
        ("**/raw.png", ["raw.png", "d/raw.png"]),
        ("raw", ["raw/6.png", "d/raw/7.png"]),
        ("photos", NAMES),
        ("photos/*", NAMES),
    ],
)
def test_what_is_named(work: Path, pattern: str, expected: list[str]) -> None:
    removal = plan_removal("photos/my.index", [pattern])
    assert sorted(removal.paths) == sorted(f"{work}/photos/{name}" for name in expected)
    assert removal.uploads == 0


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("2019/5.png", "'2019/5.png' matches no picture of photos/my.index; nothing was removed."),
        ("a/*3.png", r"\*\* for any folders. 'a/\*\*/\*3.png' matches 1; nothing was removed."),
        ("d*7.png", r"'d\*/\*\*/\*7.png' matches 1; nothing"),
        ("photos/my.index/up*", "matches no picture of photos/my.index but uploads. Name their folder"),
        ("../nothing/*", "matches no picture"),
        ("", "matches no path"),
    ],
)
def test_what_matches_nothing(work: Path, pattern: str, sentence: str) -> None:
    with pytest.raises(QueryError, match=sentence):
        plan_removal(Path("photos/my.index"), [pattern])


def test_uploads_are_named_by_their_folder_or_by_a_pattern_for_names(work: Path) -> None:
    index = "photos/my.index"
    for pattern in (f"{work}/photos/my.index/uploads/*", f"{index}/uploads/*", f"{index}/uploads", "*.png"):
        assert plan_removal(index, [pattern]).uploads == 1, pattern


@pytest.mark.thorough
def test_the_commands_agree(work: Path, tmp_path: Path) -> None:
    """Of what people type: the query shows what the removal then takes out."""
    shutil.copytree(work / "photos", tmp_path / "photos")
    index, query = tmp_path / "i", work / "new.png"
    model = work / "model.onnx"
    run_command("deeprank-index", "sync", tmp_path / "photos", "--index", index, "--model", model)
    for pattern in ("a/*.png", "photos/2019/*", str(tmp_path / "photos/d/*")):
        words = ["--path", pattern, "--k", "50", "--json", "--index", index]
        hits = json.loads(run_command("deeprank-query", query, *words, cwd=tmp_path).stdout)["results"][0]["hits"]
        removed = run_command("deeprank-index", "remove", pattern, "--yes", "--index", index, cwd=tmp_path)
        assert hits
        assert f"removed {len(hits)} picture" in removed.stderr
        assert sorted(re.findall(r"/\S+\.png", removed.stdout)) == sorted(os.fspath(hit["path"]) for hit in hits)
    refused = run_command("deeprank-index", "remove", "a/*3.png", "--index", index, "--yes", cwd=tmp_path, status=1)
    assert "'a/**/*3.png' matches 1" in refused.stderr
