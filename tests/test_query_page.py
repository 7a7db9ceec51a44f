"""The page of results: the hits of --json under hostile names, where it is written, and the browser that shows it."""

import base64
import hashlib
import io
import json
import os
import re
import stat
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np
import pytest
from conftest import BIN, run_command
from PIL import Image
from tiny_model import distances, write_model, write_pictures

from deeprank.runtime.contact_sheet import MAX_HITS
from deeprank.runtime.index.sync.sync import sync
from deeprank.runtime.text import display_path, printable

HOSTILE = [
    "<script>alert(1)<img src=x onerror=alert(2)>.png",
    "\"quoted\" 'names' &amp; &#60;b&#62;.png",
    "two\nlines\x1b[31m\x00".rstrip("\x00") + ".png",
    "evil\u202egnp.exe.png",
    "]]> --> {{7*7}} %3Cb%3E \u2028.png",
    "  two  spaces .png",
    "\ufffe\ufeffמזל טוב.png",
]
# What browsers take for an element that has no end.
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


@dataclass
class Node:
    """An element of a page as a browser would see it."""

    tag: str
    attributes: dict[str, str]
    children: "list[Node | str]" = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, tag: str, name: str = "") -> "list[Node]":
        found = [self] if self.tag == tag and (not name or name in self.attributes.get("class", "").split()) else []
        for child in self.children:
            if isinstance(child, Node):
                found += child.all(tag, name)
        return found

    def one(self, tag: str, name: str = "") -> "Node":
        (found,) = self.all(tag, name)
        return found


class Tree(HTMLParser):
    """Reads a page with another parser than the one that wrote it has."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Node("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len({name for name, _ in attrs})
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)


def parsed(file: Path) -> Node:
    content = file.read_bytes().decode("utf-8")
    assert content.startswith("<!doctype html>\n<html")
    tree = Tree()
    tree.feed(content)
    tree.close()
    assert len(tree.open) == 1
    return tree.open[0]


def tiles(section: Node) -> list[Node]:
    """Return the tiles of all hits."""
    return [tile for part in section.all("ol", "hits") for tile in part.all("li", "tile")]


def hits(section: Node) -> list[tuple[str, str, str, str | None, str]]:
    """Return rank, distance, similarity, label and path of each hit, as a reader sees them."""
    found = []
    for item in tiles(section):
        label = item.one("p", "label")
        found.append(
            (
                item.one("span", "rank").text,
                item.one("span", "distance").text,
                item.one("span", "similarity").text,
                None if "none" in label.attributes["class"].split() else label.one("bdi").text,
                item.one("bdi", "path").text,
            )
        )
    return found


def expected_hits(result: dict) -> list[tuple[str, str, str, str | None, str]]:
    return [
        (
            str(hit["rank"]),
            f"{hit['distance']:.4f}",
            f"similarity {hit['similarity']:.4f}",
            None if hit["label"] is None else printable(hit["label"]),
            display_path(hit["path"]),
        )
        for hit in result["hits"]
    ]


def decoded(uri: str) -> np.ndarray:
    kind, _, content = uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(content, validate=True))) as image:
        assert image.format == "JPEG"
        assert not image.getexif()
        return np.asarray(image.convert("RGB")).astype(float)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an index of pictures of which some have hostile names and labels, and some are gone or damaged."""
    folder = tmp_path_factory.mktemp("place")
    photos = folder / "photos"
    write_pictures(photos, [f"cats/{i}.png" for i in range(6)])
    write_pictures(photos, ["<b>dogs & 'wolves'</b>".replace("/", "") + f"/{i}.png" for i in range(2)], 10)
    write_pictures(photos, ["0.png", "cats/gone.png", "cats/damaged.png", "cats/pipe.png"], 20)
    write_pictures(photos / "names", HOSTILE, 30)
    (photos / "names" / os.fsdecode(b"caf\xe9 \xff.png")).write_bytes((photos / "0.png").read_bytes() + b"-")
    tall = np.linspace(0, 255, 900, dtype=np.uint8)[:, None, None].repeat(300, 1).repeat(3, 2)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    Image.fromarray(tall).save(photos / "cats" / "turned.jpg", exif=exif, quality=95)
    sync(folder / "deeprank.index", [photos], model=write_model(folder / "model.onnx"))
    (photos / "cats" / "gone.png").unlink()
    (photos / "cats" / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    (photos / "cats" / "pipe.png").unlink()
    os.mkfifo(photos / "cats" / "pipe.png")
    write_pictures(folder, ["query.png", "other.png", "<i>.png"], 78)
    return folder


def query(place: Path, *arguments: object, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_command("deeprank-query", *arguments, cwd=place, status=status, **environment)


def asked(place: Path, page: Path, *arguments: object, status: int = 0) -> tuple[Node, list[dict]]:
    """Ask once, and return the page and the JSON results."""
    answer = query(place, *arguments, "--html", page, "--json", status=status)
    assert f"wrote {page}" in answer.stderr
    return parsed(page), json.loads(answer.stdout)["results"]


def test_the_page_shows_what_json_says(place: Path, tmp_path: Path) -> None:
    page, (result,) = asked(place, tmp_path / "page.html", "query.png", "--k", "100")
    assert len(result["hits"]) == 6 + 2 + 4 + len(HOSTILE) + 1 + 1
    assert hits(page) == expected_hits(result)
    html = page.one("html")
    assert html.attributes["lang"] == "en"
    assert html.one("title").text == html.one("h1").text == "Nearest to query.png"
    assert [item.text for item in page.one("ul", "facts").all("li")] == ["index deeprank.index", "k 100"]
    assert page.one("div", "query").one("bdi", "path").text == "query.png"
    assert "100 pictures were requested" in page.one("header").text


def test_the_page_has_the_line_of_the_model(place: Path, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "photos", [f"{i}.png" for i in range(8)])
    ordered = np.sort(distances(place / "query.png", pictures))
    limit = round(float(ordered[2:4].mean()), 4)
    assert ordered[2] < limit < ordered[3]
    index = tmp_path / "my.index"
    sync(index, [tmp_path / "photos"], model=write_model(tmp_path / "model.onnx", unrelated_distance=limit))
    page, (result,) = asked(place, tmp_path / "page.html", "query.png", "--index", index)
    assert hits(page) == expected_hits(result)
    line = page.one("p", "line")
    similar, others = page.all("ol", "hits")
    assert [len(part.all("li", "tile")) for part in (similar, others)] == [3, 5]
    assert others.attributes["start"] == "4"
    between = page.one("div", "results").children
    assert between.index(similar) < between.index(line) < between.index(others)
    assert line.text == f"Not similar any more: farther than {limit:g}"
    for words in (("--farthest",), ("--k", "3")):
        other, _ = asked(place, tmp_path / "other.html", "query.png", "--index", index, *words)
        assert not other.all("p", "line")


def test_names_come_out_as_text_and_nothing_else(place: Path, tmp_path: Path) -> None:
    page, (result,) = asked(place, tmp_path / "page.html", "<i>.png", "--k", "100")
    shown = [path for *_, path in hits(page)]
    assert {display_path(str(place / "photos" / "names" / name)) for name in HOSTILE} < set(shown)
    assert any(path.endswith("caf\\xe9 \\xff.png") for path in shown)
    assert "<b>dogs & 'wolves'<b>" in {hit["label"] for hit in result["hits"]}
    assert page.one("h1").text == "Nearest to <i>.png"
    tags = {node.tag for node in every(page)}
    assert not tags & {"script", "b>", "i", "iframe", "object", "form", "base", "link"}
    text = (tmp_path / "page.html").read_text("utf-8")
    assert all(printable(line) == line for line in text.splitlines())


def every(node: Node) -> list[Node]:
    return [node] + [each for child in node.children if isinstance(child, Node) for each in every(child)]


def test_nothing_is_fetched_from_anywhere(place: Path, tmp_path: Path) -> None:
    page, _ = asked(place, tmp_path / "page.html", "query.png", "<i>.png", "--k", "100")
    links = []
    for node in every(page):
        assert not [name for name in node.attributes if name.startswith("on") or name in ("style", "srcset")]
        for name in ("src", "href", "action", "data", "poster", "background"):
            links += [node.attributes[name]] if name in node.attributes else []
    assert {urlsplit(link).scheme for link in links} == {"data", "file", ""}
    assert all(not urlsplit(link).netloc for link in links)
    assert all(link.startswith("#query-") for link in links if not urlsplit(link).scheme)
    style = page.one("style").text
    assert not re.search(r"url\(|@import|//", style)
    (policy,) = [m.attributes["content"] for m in page.all("meta") if "http-equiv" in m.attributes]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_pictures_are_those_of_the_files(place: Path, tmp_path: Path) -> None:
    page, (result,) = asked(place, tmp_path / "page.html", "query.png", "--k", "100")
    readable = 0
    for item, hit in zip(tiles(page), result["hits"], strict=True):
        name = Path(hit["path"]).name
        if name in ("gone.png", "damaged.png", "pipe.png"):
            assert not item.all("img")
            said = item.one("div", "unreadable").text
            reason = {
                "gone": "No such file",
                "damaged": "it has changed since it was indexed",
                "pipe": "not a regular file",
            }
            assert said.startswith("cannot be read")
            assert reason[name.removesuffix(".png")] in said
            continue
        readable += 1
        image = item.one("img")
        assert unquote_to_bytes(urlsplit(item.one("a", "picture").attributes["href"]).path) == os.fsencode(hit["path"])
        assert image.attributes["alt"] == f"Hit {hit['rank']}, {display_path(name)}"
        pixels = decoded(image.attributes["src"])
        assert pixels.shape[:2] == (int(image.attributes["height"]), int(image.attributes["width"]))
        if name == "turned.jpg":
            assert pixels.shape == (213, 640, 3)
            assert abs(pixels.mean((0, 2)) - np.linspace(255, 0, 640)).max() < 8
            continue
        with Image.open(os.fsencode(hit["path"])) as original:
            whole = np.asarray(original.convert("RGB")).astype(float)
        assert pixels.shape == whole.shape
        assert abs(pixels - whole).mean() < 16  # noise is the worst that JPEG can be given; another's is 85 away
    assert readable == len(result["hits"]) - 3


def test_what_was_asked_is_said(place: Path, tmp_path: Path) -> None:
    filters = ("--label", "cats", "--label", "names", "--path", "*.png", "--unique", "0.01", "--farthest")
    others = ("--leave-out-query", "--exact", "--query-label", "cats")
    page, (result,) = asked(place, tmp_path / "page.html", "query.png", "--k", "7", *filters, *others)
    assert page.one("h1").text == "Farthest from query.png"
    assert [item.text for item in page.one("ul", "facts").all("li")] == [
        "index deeprank.index",
        "k 7",
        "order farthest first",
        "label cats or names",
        "path *.png",
        "near-duplicates at most 0.01 apart are hidden",
        "the query itself left out",
        "search exact",
        "the query’s label cats",
    ]
    right = [hit["label"] == "cats" for hit in result["hits"]]
    assert 0 < sum(right) < len(right)
    assert ["right" in tile.attributes["class"].split() for tile in tiles(page)] == right
    assert [tile.one("span", "sign").text for tile in tiles(page)] == ["✓" if same else "✗" for same in right]
    assert f"{sum(right)} of 7 have the query’s label." in page.one("main").text


def test_hidden_near_duplicates_are_counted(place: Path, tmp_path: Path) -> None:
    page, (result,) = asked(place, tmp_path / "page.html", "query.png", "--k", "5", "--unique", "0.5")
    counts = [hit["near_duplicates"] for hit in result["hits"]]
    assert max(counts) > 0
    for item, count in zip(tiles(page), counts, strict=True):
        said = [node.text for node in item.all("p", "duplicates")]
        assert said == ([f"and {count} near-duplicate{'' if count == 1 else 's'}, hidden"] if count else [])


def test_several_queries_and_those_that_failed(place: Path, tmp_path: Path) -> None:
    page, results = asked(
        place, tmp_path / "page.html", "query.png", "no<b>.png", "other.png", "--item", "1", "--k", "3", status=1
    )
    sections = page.all("section")
    assert len(sections) == len(results) == 4
    for section, result in zip(sections, results, strict=True):
        if "error" in result:
            assert section.one("p", "failure").text == printable(result["error"])
            assert not section.all("ol")
        else:
            assert hits(section) == expected_hits(result)
    assert [section.one("h2").text for section in sections] == ["query.png", "no<b>.png", "other.png", "0.png"]
    anchors = [link.attributes["href"] for link in page.one("nav").all("a")]
    assert anchors == [f"#{section.attributes['id']}" for section in sections]
    assert "1 query could not be read." in page.one("header").text
    page, (only,) = asked(place, tmp_path / "page.html", "gone.png", status=1)
    assert page.one("p", "failure").text == only["error"]


def test_a_mean_shows_its_pictures(place: Path, tmp_path: Path) -> None:
    pictures = [f"photos/cats/{i}.png" for i in range(6)] + ["query.png", "other.png", "<i>.png", "photos/0.png"]
    page, (result,) = asked(place, tmp_path / "page.html", *pictures, "--mean", "--k", "4")
    assert page.one("h1").text == "Nearest to the mean of 10 pictures"
    together = page.one("div", "query")
    assert [path.text for path in together.all("bdi", "path")] == pictures[:9]
    assert len(together.all("img")) == len(together.all("li", "tile")) == 9
    assert "and 1 more picture" in together.text
    assert hits(page) == expected_hits(result)


def test_nothing_near_enough_says_what_to_do(place: Path, tmp_path: Path) -> None:
    page, (result,) = asked(place, tmp_path / "page.html", "query.png", "--max-distance", "0")
    assert result["hits"] == []
    assert "--max-distance" in page.one("p", "nothing").text
    assert "distance at most 0" in [item.text for item in page.one("ul", "facts").all("li")]
    (one,) = write_pictures(tmp_path / "emptied", ["0.png"])
    sync(tmp_path / "i", [one.parent], model=write_model(tmp_path / "model.onnx"))
    one.unlink()
    sync(tmp_path / "i", [one.parent], allow_mass_removal=True)
    page, (result,) = asked(place, tmp_path / "page.html", "query.png", "--index", tmp_path / "i")
    assert result["hits"] == []
    assert page.one("p", "nothing").text


def test_the_page_is_bounded(tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", [f"{i}.png" for i in range(MAX_HITS - 50)])
    sync(tmp_path / "deeprank.index", [tmp_path / "photos"], model=write_model(tmp_path / "model.onnx"))
    page, results = asked(tmp_path, tmp_path / "page.html", *[f"photos/{i}.png" for i in range(4)], "--k", "1000")
    first, second = page.all("section")
    assert hits(first) == expected_hits(results[0])
    assert hits(second) == expected_hits(results[1])[:50]
    assert f"{MAX_HITS - 100} more hits: not shown here." in second.text
    assert "2 more queries: not shown here." in page.one("footer").text


@pytest.fixture
def browser(tmp_path: Path) -> Path:
    """A program that stands for a browser: it notes what it is given, and speaks on its stdout."""
    program = tmp_path / "my browser"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >> "$(dirname "$0")/seen"\necho chatter\n')
    program.chmod(0o755)
    return program


def test_open_shows_a_private_file(place: Path, tmp_path: Path, browser: Path) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    answer = query(place, "query.png", "--open", "--json", "--k", "5", BROWSER=f"'{browser}' %s", TMPDIR=str(folder))
    result = json.loads(answer.stdout)["results"][0]  # what the browser says is not among it
    (page,) = folder.glob("*.html")
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert page.name.startswith("deeprank-query-")
    assert page.suffix == ".html"
    assert f"wrote {page}" in answer.stderr
    assert (tmp_path / "seen").read_text().splitlines() == [page.as_uri()]
    assert hits(parsed(page)) == expected_hits(result)


def test_open_with_a_name_opens_that_file(place: Path, tmp_path: Path, browser: Path) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    page = tmp_path / "my page #1.html"
    page.write_text("an old one")
    answer = query(
        place,
        "query.png",
        "--paths-only",
        "--print0",
        "--html",
        page,
        "--open",
        BROWSER=f"'{browser}' %s",
        TMPDIR=str(folder),
    )
    assert answer.stdout.count("\0") == 10
    assert (tmp_path / "seen").read_text().splitlines() == [page.as_uri()]
    assert parsed(page).all("section")
    assert list(folder.glob("*deeprank*")) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my browser", "my page #1.html", "seen", "tmp"]


def test_without_a_browser_it_says_where_the_page_is(place: Path, tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path), "DISPLAY": "", "WAYLAND_DISPLAY": "", "BROWSER": "", "TMPDIR": str(tmp_path)}
    answer = query(place, "query.png", "--open", **environment)
    (page,) = tmp_path.glob("*.html")
    assert f"wrote {page}\nNo browser could be started here; open the file in a browser." in answer.stderr
    assert answer.stdout.startswith("rank")
    assert parsed(page).all("section")
    answer = query(place, "query.png", "--open", **environment | {"BROWSER": "/nonexistent/browser %s"})
    assert "No browser could be started here" in answer.stderr


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("page", 2, "expected a name that ends in .html"),
        ("photo.jpg", 2, "'photo.jpg' is given; expected a name that ends in .html"),
        ("folder.html", 1, "folder.html is a folder; expected the name of a file to write."),
        ("nowhere/page.html", 1, "nowhere is not a folder; expected a name in an existing folder."),
        ("query.png/page.html", 1, "query.png is not a folder; expected a name in an existing folder."),
        ("no\x1bwhere/page.html", 1, "no\\x1bwhere is not a folder"),
    ],
)
def test_names_that_cannot_be_written(place: Path, name: str, status: int, message: str) -> None:
    (place / "folder.html").mkdir(exist_ok=True)
    answer = query(place, "query.png", "--html", name, status=status)
    assert message in answer.stderr
    assert answer.stdout == ""


def test_no_room_is_a_sentence(place: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("an old one")
    for command in (f"--html '{page}'", "--open"):
        words = f"ulimit -f 1; exec deeprank-query query.png --k 20 {command}"
        answer = subprocess.run(
            ["bash", "-c", words],
            cwd=place,
            env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert answer.returncode == 1
        assert re.fullmatch(r"error: \S+\.html cannot be written \(File too large\)\.", answer.stderr.splitlines()[-1])
    assert page.read_text() == "an old one"
    assert [path.name for path in tmp_path.iterdir() if "html" in path.name or "deeprank" in path.name] == ["page.html"]


def test_a_plain_query_does_not_wait_for_it(place: Path) -> None:
    words = ["python", "-X", "importtime", "-c"]
    code = "import sys; sys.argv[1:] = ['query.png']; from deeprank.runtime.query.cli import main; main()"
    said = run_command(*words, code, cwd=place, as_typed=True).stderr
    assert "deeprank.runtime.query.run" in said
    for module in ("deeprank.runtime.query.page", "deeprank.runtime.webpage", "xml.etree", "webbrowser"):
        assert not re.search(rf"\| +{re.escape(module)}\b", said), module
