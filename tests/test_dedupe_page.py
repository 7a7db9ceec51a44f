"""The page of ``deeprank-index dedupe``: the groups of --json, the removable files, hostile names, and its bounds."""

import json
import os
import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
from conftest import run_command
from PIL import Image
from test_query_page import Node, browser, every, parsed  # noqa: F401 - browser is a fixture
from tiny_model import write_model, write_picture, write_pictures

from deeprank.runtime.contact_sheet import MAX_HITS
from deeprank.runtime.index.sync.sync import sync
from deeprank.runtime.text import display_path, file_size

HOSTILE = ["<script>alert(1)<b>.png", "\"quotes' &amp;.png", "new\nline.png", "caf\udce9.png"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of two groups, one of them with hostile names, and of other pictures."""
    folder = tmp_path_factory.mktemp("place")
    files = write_pictures(folder / "photos", [f"cats/{i}.png" for i in range(6)])
    shutil.copy(files[0], folder / "photos" / "copy.png")
    larger = folder / "photos" / "cats" / "larger.png"
    larger.write_bytes(files[0].read_bytes() + b"more")
    os.utime(larger, (1_700_000_000, 1_700_000_000))
    for name in HOSTILE:
        write_picture(folder / "photos" / "names" / name, 50)
    sync(folder / "deeprank.index", [folder / "photos"], model=write_model(folder / "model.onnx"))
    return folder


def dedupe(place: Path, *words: object, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_command("deeprank-index", "dedupe", *words, cwd=place, status=status, **environment)


def made(place: Path, page: Path, *words: object) -> tuple[Node, dict]:
    """Return the page and the JSON document of one command."""
    said = dedupe(place, *words, "--html", page, "--json")
    assert f"wrote {page}" in said.stderr
    return parsed(page), json.loads(said.stdout)


def test_the_page_shows_the_groups_of_json(place: Path, tmp_path: Path) -> None:
    page, document = made(place, tmp_path / "page.html")
    saved = {
        group["kept"]["path"]: sum(file["size"] for file in group["near_duplicates"]) for group in document["groups"]
    }
    expected = sorted(document["groups"], key=lambda group: -saved[group["kept"]["path"]])
    groups = page.all("section", "group")
    assert len(groups) == len(expected) == 2
    for shown, group in zip(groups, expected, strict=True):
        files = [group["kept"], *group["near_duplicates"]]
        tiles = shown.all("li", "tile")
        assert [tile.one("p", "file-name").text for tile in tiles] == [
            display_path(Path(file["path"]).name) for file in files
        ]
        assert [bool(tile.all("p", "kept")) for tile in tiles] == [True] + [False] * (len(files) - 1)
        for tile, file in zip(tiles, files, strict=True):
            status = Path(file["path"]).stat()
            facts = tile.one("figcaption").text
            with Image.open(os.fsencode(file["path"])) as image:
                assert f"{file_size(status.st_size)} · {image.width} × {image.height}" in facts
            assert f"{datetime.fromtimestamp(status.st_mtime):%Y-%m-%d %H:%M}" in facts
            if "distance" in file:
                relation = "same content" if file["identical"] else f"distance {file['distance']:.4f}"
                assert relation in facts
        assert f"{file_size(saved[group['kept']['path']])} to save" in shown.one("h3").text
    facts = page.one("ul", "facts").text
    assert file_size(document["near_duplicate_bytes"]) in facts
    assert f"{document['near_duplicates']} in 2 groups" in facts


def test_the_removable_files_are_those_of_the_command(place: Path, tmp_path: Path) -> None:
    page, _ = made(place, tmp_path / "page.html")
    paths = dedupe(place, "--paths-only", "--print0").stdout.split("\0")[:-1]
    exact = [path for path in paths if display_path(path) == path]
    assert page.one("pre").text.splitlines() == exact
    assert len(exact) < len(paths)
    assert f"{len(paths) - len(exact)} more path" in page.one("details").text
    assert f"{len(paths)} files that can be removed" in page.one("summary").text
    # What has changed since the sync is no longer among them.
    (place / "photos" / "copy.png").write_bytes(b"changed")
    page, _ = made(place, tmp_path / "page.html")
    assert not any("copy.png" in path for path in page.one("pre").text.splitlines())
    assert "Left out 1: the file or the one to keep is gone or has changed" in page.one("header").text
    assert "it has changed since it was indexed" in page.one("div", "unreadable").text
    shutil.copy(place / "photos" / "cats" / "0.png", place / "photos" / "copy.png")


def test_names_are_text_and_nothing_is_fetched(place: Path, tmp_path: Path) -> None:
    page, _ = made(place, tmp_path / "page.html")
    assert not {node.tag for node in every(page)} & {"script", "b>", "iframe", "form", "base", "link"}
    for node in every(page):
        assert not [name for name in node.attributes if name.startswith("on") or name == "style"]
        assert node.attributes.get("src", "data:").startswith("data:image/jpeg;base64,") or "src" not in node.attributes
        assert node.attributes.get("href", "file:///").startswith("file:///")
    (policy,) = [m.attributes["content"] for m in page.all("meta") if "http-equiv" in m.attributes]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")


def test_the_page_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (first,) = write_pictures(tmp_path, ["0.png"])
    for number in range(14):
        shutil.copy(first, tmp_path / "photos" / f"same-{number:02}.png")
    for seed in range(1, MAX_HITS // 2 + 6):
        write_picture(tmp_path / "photos" / f"{seed}a.png", seed)
        shutil.copy(tmp_path / "photos" / f"{seed}a.png", tmp_path / "photos" / f"{seed}b.png")
    sync(tmp_path / "deeprank.index", [tmp_path / "photos"], model=write_model(tmp_path / "model.onnx"))
    page, document = made(tmp_path, tmp_path / "page.html", "--max-distance", "0")
    groups = page.all("section", "group")
    assert len(groups[0].all("li", "tile")) == 12
    assert "and 2 more pictures" in groups[0].text
    assert MAX_HITS - 1 <= len(page.all("li", "tile")) <= MAX_HITS
    left_out = len(document["groups"]) - len(groups)
    assert f"{left_out} more groups with " in page.one("main").text
    assert len(page.one("pre").text.splitlines()) == document["near_duplicates"]


def test_no_near_duplicates_is_a_page_as_well(place: Path, tmp_path: Path) -> None:
    page, document = made(place, tmp_path / "page.html", "--path", "cats/[1-5].png")
    assert document["groups"] == []
    assert page.one("p", "nothing").text == "There are no files to remove."


def test_open_shows_a_private_file(place: Path, tmp_path: Path, browser: Path) -> None:  # noqa: F811
    folder = tmp_path / "tmp"
    folder.mkdir()
    said = dedupe(place, "--open", "--paths-only", BROWSER=f"'{browser}' %s", TMPDIR=str(folder))
    (page,) = folder.glob("deeprank-dedupe-*.html")
    assert page.stat().st_mode & 0o777 == 0o600
    assert f"wrote {page}" in said.stderr
    assert (tmp_path / "seen").read_text().splitlines() == [page.as_uri()]
    assert said.stdout == dedupe(place, "--paths-only").stdout  # without what the browser prints
    assert parsed(page).all("section", "group")


def test_names_that_cannot_be_written(place: Path) -> None:
    assert "expected a name that ends in .html" in dedupe(place, "--html", "photo.jpg", status=2).stderr
    said = dedupe(place, "--html", "nowhere/page.html", status=1)
    assert "nowhere is not a folder; expected a name in an existing folder." in said.stderr
    assert said.stdout == ""
