"""The report of a run: its page against other computations, hostile names and full disks."""

import base64
import csv
import dataclasses
import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import MainLine, some_digits
from PIL import Image
from sklearn.manifold import trustworthiness
from sklearn.neighbors import NearestNeighbors
from test_query_page import Node, parsed

from deeprank.runtime.datasets import DataSet, Sample
from deeprank.runtime.metrics import Ranking
from deeprank.runtime.progress import SilentMonitor
from deeprank.runtime.text import printable
from deeprank.train.data.splits import TrainingData, prepare
from deeprank.train.loop.job import Surroundings
from deeprank.train.loop.run import start_run
from deeprank.train.metrics import Figures, rank_and_evaluate
from deeprank.train.options.recipes import load_config
from deeprank.train.report import write_report
from deeprank.train.report.analysis import class_figures, confusions, evaluated, worst_queries
from deeprank.train.report.effect import ADVICE, Effect, Group, Ranked, compared_pictures, measure_effect
from deeprank.train.report.plots import MAX_POINTS, PANELS, _colours, draw_curves, draw_map, in_the_plane, map_sample
from deeprank.train.run.folder import RunFolder

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=http://evil.example/x onerror=alert(1)>',
    "{{ 7 * 7 }} {% raw %}",
    "$\\frac{$ & &amp;",
    "a\nb\x1b[31m\u202e",
    "\udce9\udcff",
    "猫" * 30,
    "' style='background:url(//evil.example)",
)
VOID = {"meta", "img", "br", "wbr", "source"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails where tags are not closed in their order."""

    def __init__(self, content: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(content)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str):
        assert self._open.pop() == tag

    def handle_data(self, data: str):
        self.text.append(data)

    def pictures(self) -> list[Image.Image]:
        return [decoded(attributes["src"]) for tag, attributes in self.tags if tag == "img"]


def decoded(address: str) -> Image.Image:
    kind, content = re.fullmatch(r"data:image/(png|jpeg);base64,(.*)", address).groups()
    picture = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
    picture.load()
    assert picture.format.lower() == kind
    return picture


def read(path: Path) -> Page:
    """Parse a page and check that nothing on it is fetched or run."""
    page = Page(path.read_text("utf-8"))
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("href", "action", "style") for name in attributes)
        assert ("src" in attributes) == (tag == "img")
        assert ("srcset" in attributes) == (tag == "source")
        if tag == "source":
            decoded(attributes["srcset"])
    style = parsed(path).one("style").text
    assert not re.search(r"url\(|@import|//", style)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policies = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert policies == [
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    ]
    return page


@dataclasses.dataclass(frozen=True)
class World:
    """A finished run over pictures of one colour each, with vectors that are known."""

    run: RunFolder
    data: TrainingData
    dataset: DataSet
    queries: np.ndarray
    gallery: np.ndarray
    ranking: Ranking
    figures: Figures
    before: tuple[np.ndarray, np.ndarray]

    def report(self, monitor: SilentMonitor | None = None) -> Path | None:
        searches = measure_effect(self.data, *compared_pictures(self.data), self.before, (self.queries, self.gallery))[
            1
        ]
        made = self.data, self.dataset, self.queries, self.ranking, searches
        return write_report(self.run, *made, monitor or SilentMonitor())


def picture(colour: tuple[int, ...], size: int = 24) -> Callable[[], io.BytesIO]:
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG")
    return lambda: io.BytesIO(file.getvalue())


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def epoch_row(epoch: int) -> dict[str, object]:
    keys = [key for panel in PANELS for key in panel.curves]
    return {"kind": "epoch", "epoch": epoch, "k": 5} | {key: (1 + n) / 10 for n, key in enumerate(keys)}


def make_world(folder: Path, labels: tuple[str, ...], *, names=None, each: int = 12, noise: float = 0.5) -> World:
    """Return a world in which the first class is spread most, and the last one has a single gallery picture."""
    random = np.random.default_rng(3)
    splits: dict[str, list[Sample]] = {"train": [], "val": []}
    for code, label in enumerate(labels):
        sizes = (("train", 1 if code == len(labels) - 1 else each), ("val", max(2, each // 3)))
        for split, size in sizes:
            colour = tuple(random.integers(0, 256, 3).tolist())
            splits[split] += [
                Sample(f"{split}/{code}/{number}.png", label, 1, picture(colour)) for number in range(size)
            ]
    dataset = DataSet("<b>shapes</b>", tuple(splits["train"]), tuple(splits["val"]), names or {})
    data = prepare(dataset)
    centres = random.normal(size=(len(labels), 8))

    def vectors(of: np.ndarray) -> np.ndarray:
        spread = np.where(of == 0, 3 * noise, noise)[:, None]
        return unit(centres[of] + spread * random.normal(size=(len(of), 8)))

    query_labels, gallery_labels = data.val_labels[data.queries], data.train_labels[data.gallery]
    queries, gallery = vectors(query_labels), vectors(gallery_labels)
    figures, ranking = rank_and_evaluate(queries, query_labels, gallery, gallery_labels, 5, with_map=True)
    run = RunFolder(folder / "run")
    run.path.mkdir()
    description = {"path": "/secret/place", "name": dataset.name, "fingerprint": dataset.fingerprint}
    counts = {"train": len(dataset.train), "val": len(dataset.val)}
    run.write_config(
        {
            "config": load_config("default", {"epochs": 7, "hidden": (), "weights": "none"}).to_dict(),
            "recipe": "mine-that-is-gone.toml",
            "data": description | counts,
            "val": None,
            "weights": {"source": "none <i>(random)</i>", "sha256": ""},
            "versions": {"python": "3", "torch": "<2>"},
        }
    )
    run.write_metrics(
        [*map(epoch_row, (1, 2)), {"kind": "final", "epoch": 2, "cached": True, **dataclasses.asdict(figures)}]
    )
    before = tuple(unit(random.normal(size=rows.shape)) for rows in (queries, gallery))
    return World(run, data, dataset, queries, gallery, ranking, figures, before)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path, tuple("abcdef"))


class Listener(SilentMonitor):
    def __init__(self, *, stop: bool = False):
        self.remarks: list[str] = []
        self.stop = stop

    def remark(self, text: str) -> None:
        self.remarks.append(text)

    def stopping(self) -> bool:
        return self.stop


def brute_force(world: World) -> tuple[list[str], list[list[str]]]:
    """Return the labels of the queries, and of their five nearest by scikit-learn."""
    finder = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(world.gallery.astype(np.float64))
    rows = finder.kneighbors(world.queries.astype(np.float64), return_distance=False)
    train = [sample.label for sample in world.dataset.train]
    return [sample.label for sample in world.dataset.val], [[train[row] for row in found] for found in rows]


# -- the figures are true ---------------------------------------------------------------------------------------------


def test_figures_of_the_classes_are_those_of_a_plain_loop(world: World):
    labels, neighbours = brute_force(world)
    rows = class_figures(evaluated(world.data, world.dataset, world.ranking))
    sizes = Counter(sample.label for sample in world.dataset.train)
    assert len(rows) == 6
    for row in rows:
        own = [found for label, found in zip(labels, neighbours, strict=True) if label == row.label]
        assert row.queries == len(own)
        assert row.gallery == sizes[row.label]
        assert row.precision == pytest.approx(np.mean([label == row.label for found in own for label in found]))
        assert row.possible == min(5, row.gallery) / 5
        others = Counter(label for found in own for label in found if label != row.label)
        if row.confused_with is not None:
            assert others[row.confused_with] == max(others.values())
            assert row.confused_share == pytest.approx(max(others.values()) / (5 * len(own)))
        else:
            assert not others
    shares = [row.precision / row.possible for row in rows]
    assert shares == sorted(shares)
    mean = np.average([row.precision for row in rows], weights=[row.queries for row in rows])
    assert mean == pytest.approx(world.figures.precision_at_k)


def test_confusions_are_counted(world: World):
    labels, neighbours = brute_force(world)
    expected = Counter((a, b) for a, found in zip(labels, neighbours, strict=True) for b in found if a != b)
    rows = confusions(evaluated(world.data, world.dataset, world.ranking), 1000)
    assert {(row.query, row.found): row.count for row in rows} == expected
    assert [row.count for row in rows] == sorted(expected.values(), reverse=True)
    assert rows[0].share == pytest.approx(rows[0].count / (5 * labels.count(rows[0].query)))


def test_the_worst_queries_are_the_worst(world: World):
    labels, neighbours = brute_force(world)
    sizes = Counter(sample.label for sample in world.dataset.train)
    shares = [found.count(label) / min(5, sizes[label]) for label, found in zip(labels, neighbours, strict=True)]
    found = evaluated(world.data, world.dataset, world.ranking)
    everything = worst_queries(found, 1000).tolist()
    assert sorted(everything) == [row for row, share in enumerate(shares) if share < 1]
    assert [shares[row] for row in everything] == sorted(share for share in shares if share < 1)
    assert worst_queries(found, 3).tolist() == everything[:3]
    assert len(set(shares)) > 2


def test_classes_that_the_gallery_lacks_are_last_and_not_called_worst(tmp_path: Path):
    world = make_world(tmp_path, tuple("abc"))
    extra = [Sample(f"x{n}.png", "unknown", 1, picture((1, 2, 3))) for n in range(3)]
    dataset = dataclasses.replace(world.dataset, val=(*world.dataset.val, *extra))
    data = prepare(dataset)
    queries = np.concatenate([world.queries, world.queries[:3]])
    labels = data.val_labels, data.train_labels
    _, ranking = rank_and_evaluate(queries, labels[0], world.gallery, labels[1], 5, with_map=True)
    found = evaluated(data, dataset, ranking)
    last = class_figures(found)[-1]
    assert (last.label, last.precision, last.possible, last.gallery) == ("unknown", 0.0, 0.0, 0)
    assert max(worst_queries(found, 1000)) < len(world.queries)


def test_names_that_two_classes_share_are_told_apart(tmp_path: Path):
    world = make_world(tmp_path, tuple("abc"), names={"a": "crane", "b": "crane", "c": "gull"})
    found = evaluated(world.data, world.dataset, world.ranking)
    assert sorted(found.names.values()) == ["crane (a)", "crane (b)", "gull"]


# -- the map ----------------------------------------------------------------------------------------------------------


def test_neighbours_stay_neighbours_on_the_map():
    random = np.random.default_rng(0)
    wide = np.repeat(random.normal(size=(6, 32)), 30, axis=0) + 0.4 * random.normal(size=(180, 32))
    vectors = (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32)
    points = in_the_plane(vectors, 0)
    assert points.shape == (180, 2)
    assert trustworthiness(vectors, points, n_neighbors=10) > 0.9
    assert np.array_equal(points, in_the_plane(vectors, 0))


@pytest.mark.parametrize(("classes", "each"), [(3, 5000), (200, 50), (3000, 2), (7, 3)])
def test_the_map_has_a_bounded_and_balanced_sample(classes: int, each: int):
    labels = np.repeat(np.arange(classes), each)
    rows = map_sample(labels, 0)
    assert len(set(rows.tolist())) == len(rows) <= MAX_POINTS
    assert len(rows) >= min(len(labels), MAX_POINTS - classes)
    counts = np.bincount(labels[rows], minlength=classes)
    assert counts.max() - counts.min() <= 1
    assert np.array_equal(rows, map_sample(labels, 0))


@pytest.mark.parametrize("count", [2, 10, 20, 300])
def test_every_class_has_a_colour_of_its_own(count: int):
    assert len({tuple(colour) for colour in _colours(count).round(3).tolist()}) == count


@pytest.mark.thorough
def test_points_are_drawn_in_the_colours_of_their_classes():
    file = io.BytesIO()
    points = np.array([[0, 0], [0, 1], [5, 0], [5, 1]], np.float32)
    draw_map(points, np.array([0, 0, 1, 1]), {0: "$$", 1: "\\q"}, file)
    pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
    left, right = pixels[:, : pixels.shape[1] // 2], pixels[:, pixels.shape[1] // 2 :]
    assert (left[..., 2] - left[..., 0]).max() > 60  # blue
    assert (left[..., 0] - left[..., 2]).max() < 10
    assert (right[..., 0] - right[..., 2]).max() > 60  # orange


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_shows_the_run(world: World):
    assert world.report() == world.run.report_path
    page = read(world.run.report_path)
    text = " ".join(" ".join(page.text).split())
    for value in (world.figures.precision_at_k, world.figures.recall_at_1, world.figures.map_at_r):
        assert f"{value:.4f}" in text
    assert "from cached features" in text
    assert "not from cached features" not in text
    assert "epochs 7 30" in text  # here, and in the recipe it is compared with
    assert "hidden none 2048" in text
    assert "<b>shapes</b>" in text
    assert "/secret/place" not in text
    assert "Before → after" not in text  # a row of an earlier version has no such figures
    tree = parsed(world.run.report_path)
    (table,) = [region for region in tree.all("div", "wide") if region.attributes["aria-label"] == "All classes"]
    rows = table.one("tbody").all("tr")
    assert [row.all("td")[0].text for row in rows] == [
        row.name for row in class_figures(evaluated(world.data, world.dataset, world.ranking))
    ]


def test_curves_name_their_axes_and_show_the_epochs(world: World):
    world.report()
    charts = parsed(world.run.report_path).all("figure", "chart")
    assert len(charts) == len(PANELS)
    for chart, panel in zip(charts, PANELS, strict=True):
        drawing = chart.one("svg", "plot")
        texts = [text.text for text in drawing.all("text")]
        assert {"epoch", panel.unit, "1", "2"} <= set(texts)
        assert [item.text for item in chart.one("ul", "legend").all("li")] == list(panel.names([epoch_row(1)]).values())
        lines = [line.attributes["d"] for line in drawing.all("path", "line")]
        ticks = [(float(text.text), float(text.attributes["y"])) for text in drawing.all("text", "y")]
        (low, bottom), (high, top) = ticks[0], ticks[-1]
        for line, key in zip(lines, panel.curves, strict=True):
            heights = [float(place.split()[1]) for place in line[1:].split("L")]
            value = epoch_row(1)[key]
            assert heights == pytest.approx([bottom + (top - bottom) * (value - low) / (high - low)] * 2, abs=0.2)


def colours(strip: Node) -> list[tuple[int, ...]]:
    return [decoded(image.attributes["src"]).getpixel((5, 5)) for image in strip.all("img")]


def near(shown: list[tuple[int, ...]], sample: list[Sample]) -> bool:
    """Tell whether pictures have the colours of these, but for what JPEG changes."""
    own = [Image.open(each.open()).getpixel((0, 0)) for each in sample]
    return np.abs(np.subtract(shown, own)).max() <= 6


def test_examples_are_the_neighbours_of_their_queries(world: World):
    world.report()
    labels, neighbours = brute_force(world)
    found = evaluated(world.data, world.dataset, world.ranking)
    sizes = Counter(sample.label for sample in world.dataset.train)
    share = [found.count(label) / min(5, sizes[label]) for label, found in zip(labels, neighbours, strict=True)]
    paths = [sample.path for sample in world.dataset.val]
    shown: dict[str, list[int]] = {"best": [], "typical": [], "worst": []}
    for kind, rows in shown.items():
        for example in parsed(world.run.report_path).all("article", kind):
            row = paths.index(example.one("bdi", "path").text)
            rows.append(row)
            strip = example.one("div", "strip")
            assert [item.attributes["class"] == "right" for item in strip.all("li")] == [
                label == labels[row] for label in neighbours[row]
            ]
            assert strip.one("b").text == f"{neighbours[row].count(labels[row])} of 5"
            nearest = [world.dataset.train[place] for place in world.ranking.neighbours[row]]
            assert near(colours(strip), nearest)
            assert near(colours(example.one("figure", "query")), [world.dataset.val[row]])
    assert [share[row] for row in shown["best"]] == sorted(share, reverse=True)[:3]
    assert len({labels[row] for row in shown["best"]}) == 3
    assert shown["worst"] == worst_queries(found, 6).tolist()
    mean = np.mean(share)
    others = [abs(share[row] - mean) for row in range(len(share)) if row not in shown["best"] + shown["worst"]]
    assert abs(share[shown["typical"][0]] - mean) == min(others)
    assert len({*shown["best"], *shown["typical"], *shown["worst"]}) == sum(map(len, shown.values())) > 9


def test_the_same_queries_are_shown_before_and_after(world: World):
    effect, searches = measure_effect(
        world.data, *compared_pictures(world.data), world.before, (world.queries, world.gallery)
    )
    *epochs, final = world.run.read_metrics()
    world.run.write_metrics([*epochs, {**final, "effect": dataclasses.asdict(effect)}])
    world.report()
    tree = parsed(world.run.report_path)
    assert tree.one("main").all("h2")[0].text == "Before → after training"
    own = [sample.label for sample in world.dataset.val]
    train = [sample.label for sample in world.dataset.train]
    right = [
        [[train[place] for place in found].count(own[row]) for row, found in enumerate(side.tolist())]
        for side in (searches.before, searches.after)
    ]
    change = np.subtract(right[1], right[0])
    paths = [sample.path for sample in world.dataset.val]
    gained = [paths.index(example.one("bdi", "path").text) for example in tree.all("article", "gained")]
    assert change[gained[0]] == change.max()
    assert len({own[row] for row in gained}) == len(gained) == 3
    for row, example in zip(gained, tree.all("article", "gained"), strict=True):
        before, after = example.all("div", "strip")
        assert before.one("p", "count").text == f"before {right[0][row]} of {effect.k} right"
        assert after.one("p", "count").text == f"after {right[1][row]} of {effect.k} right"
        for strip, side in ((before, searches.before), (after, searches.after)):
            assert near(colours(strip), [world.dataset.train[place] for place in side[row]])


def test_the_files_beside_it(world: World):
    world.report()
    names = {path.name for path in world.run.path.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "report.html", "per_class.csv", "tsne.png"}
    rows = list(csv.DictReader(world.run.classes_path.open(encoding="utf-8", newline="")))
    weighted = sum(float(row["precision_at_k"]) * int(row["queries"]) for row in rows)
    assert weighted / len(world.queries) == pytest.approx(world.figures.precision_at_k, abs=1e-5)


def test_hostile_names_are_shown_as_text(tmp_path: Path):
    world = make_world(tmp_path, HOSTILE, noise=1.5)
    listener = Listener()
    assert world.report(listener) is not None
    assert listener.remarks == []
    page = read(world.run.report_path)
    assert len(page.pictures()) > 3
    text = "".join(page.text)
    for name in HOSTILE:
        assert printable(name) in text
    assert "49" not in [part.strip() for part in page.text]
    content = world.run.report_path.read_text("utf-8")
    assert not any(character in content for character in "\x1b\u202e")
    with world.run.classes_path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert {row["label"] for row in csv.DictReader(file)} == set(HOSTILE)


@pytest.mark.thorough
def test_many_classes_stay_a_page_that_can_be_looked_at(tmp_path: Path):
    world = make_world(tmp_path, tuple(f"{number:04d}" for number in range(1200)), each=2)
    world.report()
    page = read(world.run.report_path)
    assert sum(tag == "tr" for tag, _ in page.tags) < 1100
    assert len(parsed(world.run.report_path).one("svg", "bars-plot").all("rect")) <= 1000
    assert len(world.run.classes_path.read_text().splitlines()) == 1201
    assert world.run.report_path.stat().st_size < 10_000_000


def test_a_perfect_ranking_has_no_worst_queries(tmp_path: Path):
    world = make_world(tmp_path, ("a", "b"), noise=0.01)
    gallery = np.where(world.data.train_labels[:, None] == 0, 1, -1) * np.eye(8, dtype=np.float32)[:1]
    queries = np.where(world.data.val_labels[:, None] == 0, 1, -1) * np.eye(8, dtype=np.float32)[:1]
    labels = world.data.val_labels, world.data.train_labels
    rank = rank_and_evaluate(queries, labels[0], gallery, labels[1], 1, with_map=True)[1]
    world = dataclasses.replace(world, queries=queries, ranking=rank)
    assert world.report() is not None
    assert "Every neighbour of every query has its class." in "".join(read(world.run.report_path).text)
    assert not parsed(world.run.report_path).all("article", "worst")


def test_options_in_the_advice_do_not_break_at_their_hyphens(world: World):
    better, worse = Ranked(0.7, 0.8, 0.6), Ranked(0.5, 0.7, 0.4)
    effect = Effect(5, 61, 61, 4, 2, Group(20, 0.9, worse, better, 0.01), Group(20, 0.9, better, worse, 0.01))
    final = {"kind": "final", "epoch": 3, "cached": True, **dataclasses.asdict(world.figures)}
    world.run.write_metrics([{**final, "effect": dataclasses.asdict(effect)}])
    world.report()
    page = read(world.run.report_path)
    text = " ".join("".join(page.text).split())
    assert f"Training made the model worse for other pictures. {ADVICE}" in text
    assert "of the 5 nearest pictures, 2.5 (of at most 4.5) show the same class; before training 3.5." in text
    assert [tag for tag, _ in page.tags].count("code") == ADVICE.count("--")
    classes = [attributes.get("class", "") for _, attributes in page.tags]
    assert [name for name in classes if name.startswith("finding ")] == ["finding better", "finding worse"]


# -- what goes wrong --------------------------------------------------------------------------------------------------


def block(path: Path) -> None:
    """Let nothing be written at this path."""
    path.mkdir()
    (path / "in the way").touch()


@pytest.mark.parametrize(
    ("spoil", "lost", "left"),
    [
        (lambda run: block(run.map_path), "no map of the embedding: .*tsne.png cannot be written", 60),
        (lambda run: block(run.classes_path), "no figures of the classes: .*per_class.csv cannot be written", 60),
    ],
)
def test_a_part_that_fails_is_missed_and_nothing_else(world: World, spoil, lost: str, left: int):
    spoil(world.run)
    listener = Listener()
    assert world.report(listener) == world.run.report_path
    assert re.search(f"The run is complete, but .*{lost}", listener.remarks[0])
    assert len(listener.remarks) == 1
    page = read(world.run.report_path)
    assert re.search(lost, " ".join(page.text), re.IGNORECASE)
    assert len(page.pictures()) >= left


def test_a_page_that_cannot_be_written_leaves_the_run_as_it_is(world: World):
    block(world.run.report_path)
    before = world.run.metrics_path.read_bytes()
    listener = Listener()
    assert world.report(listener) is None
    assert re.search(r"but there is no report.html: .*report.html cannot be written", listener.remarks[0])
    assert world.run.metrics_path.read_bytes() == before
    assert not list(world.run.path.glob(".*"))


def test_a_damaged_description_leaves_no_report_and_a_remark(world: World):
    world.run.config_path.write_text("{")
    listener = Listener()
    assert world.report(listener) is None
    assert "there is no report: " in listener.remarks[0]


def test_a_picture_that_is_gone_is_told_in_its_place(world: World):
    def gone() -> io.BytesIO:
        raise OSError(2, "gone")

    val = tuple(dataclasses.replace(sample, opener=gone) for sample in world.data.val)
    world = dataclasses.replace(world, data=dataclasses.replace(world.data, val=val))
    assert world.report() is not None
    queries = parsed(world.run.report_path).all("figure", "query")
    assert len(queries) > 9
    assert all(figure.one("div", "unreadable").text.startswith("cannot be read") for figure in queries)


def test_asked_to_stop_it_writes_what_it_has(world: World):
    listener = Listener(stop=True)
    assert world.report(listener) is not None
    page = read(world.run.report_path)
    assert f"{world.figures.precision_at_k:.4f}" in "".join(page.text)
    assert page.pictures() == []
    assert sum("stopped on request" in remark for remark in listener.remarks) == 5


# -- from a real run --------------------------------------------------------------------------------------------------


def test_a_run_leaves_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    some_digits(tmp_path / "data", classes=3, each=40)
    options = {"backbone": "timm:resnet10t", "embedding_dim": 8, "epochs": 1, "steps_per_epoch": 3}
    config = load_config("digits", {"classes_per_batch": 3, "pictures_per_class": 3, **options})
    where = Surroundings("cpu", 1, tmp_path / "cache")
    run = RunFolder(start_run("data", config, "digits", where, SilentMonitor(), out=Path("run")).run)
    final = run.read_metrics()[-1]
    page = read(run.report_path)
    assert len(page.pictures()) >= 2
    assert "http:" not in run.report_path.read_text("utf-8")
    assert f"precision@{final['k']}{final['precision_at_k']:.4f}" in "".join(page.text)
    rows = list(csv.DictReader(run.classes_path.open(encoding="utf-8", newline="")))
    weighted = sum(float(row["precision_at_k"]) * int(row["queries"]) for row in rows)
    assert weighted / final["queries"] == pytest.approx(final["precision_at_k"], abs=1e-5)


def test_the_command_leaves_a_report_that_agrees_with_it(line: MainLine):
    page = read(line.run / "report.html")
    printed = re.search(r"precision@30 +([0-9.]+)", line.output["train"]).group(1)
    assert f"precision@30{printed}" in "".join(page.text)


def test_curves_are_a_png():
    file = io.BytesIO()
    draw_curves([epoch_row(1), epoch_row(2)], file)
    assert file.getvalue().startswith(b"\x89PNG")
