"""What the report and the command tell about before and after training, against plain loops."""

import dataclasses
import json
import math
import os
import re
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_command, some_digits
from test_splits import a_dataset

from deeprank.models.weights import find_weights
from deeprank.runtime.datasets import Sample, open_dataset
from deeprank.runtime.images import load_picture
from deeprank.train.data.splits import TrainingData, prepare
from deeprank.train.loop.setup import make_network
from deeprank.train.options.config import config_from_dict
from deeprank.train.reference import Reference
from deeprank.train.report.effect import ADVICE, Effect, Group, Ranked, compared_pictures, measure_effect

NUMBERS = ("precision_at_k", "recall_at_1", "map_at_r")


def by_loops(queries, query_labels, gallery, gallery_labels, k: int) -> tuple[Ranked, list[float]]:
    """Return the figures, and the precision of each query."""
    precision, first, average = [], [], []
    for query, label in zip(queries, query_labels, strict=True):
        distances = [float(np.sum((query.astype(float) - row.astype(float)) ** 2)) for row in gallery]
        order = sorted(range(len(gallery)), key=lambda row: (distances[row], row))
        right = [gallery_labels[row] == label for row in order]
        precision.append(sum(right[:k]) / k)
        first.append(float(right[0]))
        relevant = sum(right)
        if relevant:
            hits = [sum(right[: place + 1]) / (place + 1) for place in range(relevant) if right[place]]
            average.append(sum(hits) / relevant)
    return Ranked(statistics.mean(precision), statistics.mean(first), statistics.mean(average)), precision


def close(found: Ranked, expected: Ranked, tolerance: float = 1e-9) -> None:
    for name in NUMBERS:
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=tolerance), name


def agrees(effect: Effect, data: TrainingData, before, after, tolerance: float = 1e-9) -> None:
    """Check every figure against loops over all pictures; ``before`` and ``after`` are (queries, gallery)."""
    asked = [sample.label for sample in data.val]
    found = [sample.label for sample in data.train]
    others = set(found) - set(data.classes)
    for group, labels in ((effect.learned, set(data.classes)), (effect.held_out, others)):
        rows = [row for row, label in enumerate(asked) if label in labels]
        own = [asked[row] for row in rows]
        assert group is not None
        assert group.queries == len(rows)
        sides = [by_loops(queries[rows], own, gallery, found, effect.k) for queries, gallery in (before, after)]
        close(group.before, sides[0][0], tolerance)
        close(group.after, sides[1][0], tolerance)
        assert group.possible == pytest.approx(statistics.mean(min(effect.k, found.count(x)) / effect.k for x in own))
        changes = [b - a for a, b in zip(sides[0][1], sides[1][1], strict=True)]
        expected = statistics.stdev(changes) / math.sqrt(len(changes))
        assert group.standard_error == pytest.approx(expected, abs=max(tolerance, 1e-9))
    assert (effect.learned_classes, effect.held_out_classes) == (len(data.classes), len(others))


def unit(random, count: int, dim: int) -> np.ndarray:
    rows = random.normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# -- the figures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_figures_by_loops(seed: int):
    sizes = {"a": 12, "b": 4, "c": 15, "d": 9, "e": 11}
    data = prepare(
        a_dataset(sizes), a_dataset(dict.fromkeys(sizes, 6), {"neither learned nor held out": 3}), holdout_classes=2
    )
    random = np.random.default_rng(seed)
    before, after = ((unit(random, len(data.val), dim), unit(random, len(data.train), dim)) for dim in (7, 4))
    effect, searches = measure_effect(data, *compared_pictures(data), before, after)
    assert (effect.k, effect.gallery, effect.train) == (10, 51, 51)
    assert effect.learned.queries + effect.held_out.queries == 30
    agrees(effect, data, before, after)
    assert len(searches.queries) == 30  # without those of a class that was neither learned nor held out
    for neighbours, (queries, gallery) in ((searches.before, before), (searches.after, after)):
        for query, found in zip(searches.queries.tolist(), neighbours.tolist(), strict=True):
            assert found == np.argsort(((gallery - queries[query]) ** 2).sum(axis=1))[:10].tolist()


def test_pictures_that_cannot_be_read_do_not_count():
    data = prepare(a_dataset(dict.fromkeys("abcde", 8), dict.fromkeys("abcde", 3)), holdout_classes=2).without(
        [0, 9, 30], [1, 14]
    )
    queries, gallery = compared_pictures(data)
    assert sorted(set(range(40)) - set(gallery.tolist())) == [0, 9, 30]
    assert sorted(set(range(15)) - set(queries.tolist())) == [1, 14]


@pytest.mark.parametrize(
    ("sizes", "k"), [({"a": 2, "b": 2, "c": 2}, 2), ({"a": 30, "b": 30}, 10), ({"a": 3, "b": 2}, 2), ({"a": 9}, 4)]
)
def test_no_more_neighbours_than_a_class_or_half_the_gallery_has(sizes: dict[str, int], k: int):
    data = prepare(a_dataset(sizes, {"a": 2}))
    random = np.random.default_rng(0)
    rows = unit(random, 2, 3), unit(random, len(data.train), 3)
    effect, searches = measure_effect(data, *compared_pictures(data), rows, rows)
    assert np.array_equal(searches.before, searches.after)
    assert effect.k == k
    assert effect.held_out is None
    assert effect.learned.before == effect.learned.after
    assert effect.findings()[0].verdict == "same"


def test_of_many_pictures_a_balanced_sample_is_compared():
    sizes = {"a": 11_000, "b": 3_000, "c": 20}
    data = prepare(a_dataset(sizes, {"a": 4_000, "b": 2_000, "c": 5}))
    queries, gallery = compared_pictures(data)
    assert np.bincount(data.train_labels[gallery]).tolist() == [3_333, 3_000, 20]
    assert np.bincount(data.val_labels[queries]).tolist() == [1_666, 1_666, 5]
    again = compared_pictures(data)
    assert np.array_equal(again[0], queries)
    assert np.array_equal(again[1], gallery)


# -- the sentences -----------------------------------------------------------------------------------------------------


def group(
    before: float, after: float, *, error: float | None = 0.01, queries: int = 40, possible: float = 1.0
) -> Group:
    return Group(queries, possible, Ranked(before, 0.5, 0.3), Ranked(after, 0.6, 0.4), error)


def effect_of(learned: Group | None, held_out: Group | None, *, k: int = 10, classes=(8, 2)) -> Effect:
    return Effect(k, 700, 700, *classes, learned, held_out)


LEARNED = group(0.67, 0.85)


@pytest.mark.parametrize(
    ("effect", "sentence"),
    [
        (
            effect_of(LEARNED, None, classes=(10, 0)),
            "Classes it learned: of the 10 nearest pictures, 8.5 show the same class; before training 6.7.",
        ),
        (
            effect_of(LEARNED, None),
            "Classes it learned (8 of 10): of the 10 nearest pictures, 8.5 show the same class; before training 6.7.",
        ),
        (
            effect_of(group(0.67, 0.851, possible=0.96), None, classes=(10, 0)),
            "Classes it learned: of the 10 nearest pictures, 8.5 (of at most 9.6) show the same class; "
            "before training 6.7.",
        ),
        (
            effect_of(group(0.671, 0.672), None, classes=(10, 0)),
            "Classes it learned: of the 10 nearest pictures, 6.7 show the same class; before training 6.7, too.",
        ),
        (
            effect_of(group(0.67, 0.69, error=0.02), None, classes=(10, 0)),
            "Classes it learned: of the 10 nearest pictures, 6.9 show the same class; before training 6.7. "
            "With 40 searches, that is no clear difference.",
        ),
        (
            effect_of(group(0.0, 1.0, error=None, queries=1), None, classes=(10, 0)),
            "Classes it learned: of the 10 nearest pictures, 10.0 show the same class; before training 0.0. "
            "With 1 search, that is no clear difference.",
        ),
        (
            effect_of(group(0.5, 0.63), None, k=1, classes=(10, 0)),
            "Classes it learned: in 63 of 100 searches, the nearest picture shows the same class; before training "
            "in 50.",
        ),
        (
            effect_of(None, None, classes=(10, 0)),
            "Classes it learned: not measured, because no val picture is of such a class.",
        ),
    ],
)
def test_the_sentence_about_learned_classes(effect: Effect, sentence: str):
    finding = effect.findings()[0]
    assert f"{finding.title}: {finding.text}" == sentence
    assert finding.advice == ""


@pytest.mark.parametrize(
    ("effect", "sentence", "line"),
    [
        (
            effect_of(LEARNED, group(0.72, 0.79)),
            "Classes it never learned (2 of 10, held out for this figure): of the 10 nearest pictures, 7.9 show the "
            "same class; before training 7.2.",
            "of the 10 nearest pictures, 7.9 show the same class; before training 7.2",
        ),
        (
            effect_of(LEARNED, group(0.91, 0.79), classes=(9, 1)),
            "A class it never learned (1 of 10, held out for this figure): of the 10 nearest pictures, 7.9 show the "
            "same class; before training 9.1.",
            "of the 10 nearest pictures, 7.9 show the same class; before training 9.1: worse",
        ),
        (
            effect_of(LEARNED, group(0.91, 0.89, queries=9)),
            "Classes it never learned (2 of 10, held out for this figure): of the 10 nearest pictures, 8.9 show the "
            "same class; before training 9.1. With 9 searches, that is no clear difference.",
            "of the 10 nearest pictures, 8.9 show the same class; before training 9.1 (no clear difference)",
        ),
        (
            effect_of(LEARNED, None),
            "Classes it never learned (2 of 10, held out for this figure): not measured, because no val picture is of "
            "these classes.",
            "not measured, because no val picture is of these classes",
        ),
        (
            effect_of(LEARNED, None, classes=(10, 0)),
            "Classes it never learned: not measured, because all 10 classes were learned; a run with "
            "--holdout-classes 2 measures it.",
            "not measured; a run with --holdout-classes 2 measures it",
        ),
        (
            effect_of(LEARNED, None, classes=(3, 0)),
            "Classes it never learned: not measured, because all 3 classes were learned; a run with "
            "--holdout-classes 1 measures it.",
            "not measured; a run with --holdout-classes 1 measures it",
        ),
        (
            effect_of(LEARNED, None, classes=(2, 0)),
            "Classes it never learned: not measured; --holdout-classes needs at least three classes.",
            "not measured; --holdout-classes needs at least three classes",
        ),
    ],
)
def test_the_sentence_about_classes_that_were_not_learned(effect: Effect, sentence: str, line: str):
    finding = effect.findings()[1]
    assert f"{finding.title}: {finding.text}" == sentence
    assert finding.line == line


def test_worse_is_told_with_what_to_do():
    learned, held_out = effect_of(group(0.9, 0.8), group(0.91, 0.79)).findings()
    assert learned.advice == f"Training made the model worse for the classes it learned. {ADVICE}"
    assert held_out.advice == f"Training made the model worse for other pictures. {ADVICE}"
    assert {learned.verdict, held_out.verdict} == {"worse"}


@pytest.mark.parametrize("classes", [3, 4, 7, 10, 41, 200, 5_000])
def test_the_option_that_is_named_is_accepted(classes: int):
    text = effect_of(LEARNED, None, classes=(classes, 0)).findings()[1].text
    count = int(re.search(r"--holdout-classes (\d+)", text).group(1))
    data = prepare(
        a_dataset({f"c{n}": 2 for n in range(classes)}, {f"c{n}": 1 for n in range(classes)}), holdout_classes=count
    )
    assert len(data.classes) == classes - count >= 2


@pytest.mark.parametrize("held_out", [None, group(0.9, 0.8)])
def test_the_figures_come_back_from_the_file(held_out: Group | None):
    effect = effect_of(group(0.5, 0.6, error=None), held_out)
    row = json.loads(json.dumps({"kind": "final", "effect": dataclasses.asdict(effect)}, allow_nan=False))
    assert Effect.of(row) == effect
    assert Effect.of({"kind": "final", "precision_at_k": 0.5}) is None


# -- the real command --------------------------------------------------------------------------------------------------

COMMAND = (
    "deeprank-train pictures --config digits --epochs 2 --steps-per-epoch 6 --backbone timm:resnet10t "
    "--embedding-dim 8 --classes-per-batch 3 --pictures-per-class 4 --threads 1 --device cpu --out run"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run with two of five classes held out, and what the command printed."""
    folder = tmp_path_factory.mktemp("effect")
    some_digits(folder / "pictures", classes=5, each=30)
    said = run_command(*COMMAND.split(), "--holdout-classes", "2", cwd=folder)
    return folder, said.stdout


def vectors(samples: tuple[Sample, ...], embed, rule) -> np.ndarray:
    pictures = np.stack([load_picture(sample.open(), rule) for sample in samples])
    rows = embed(pictures)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_run_states_what_its_networks_do(finished: tuple[Path, str]):
    folder, _ = finished
    final = json.loads((folder / "run/metrics.jsonl").read_text().splitlines()[-1])
    effect = Effect.of(final)
    data = prepare(open_dataset(folder / "pictures"), holdout_classes=2)
    reference = Reference(folder / "run")
    config = config_from_dict(json.loads((folder / "run/config.json").read_text())["config"], "config.json")
    start = make_network(config, find_weights(config.backbone, config.weights)).eval()

    def starting_features(pictures: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return start.features(torch.from_numpy(pictures)).numpy()

    before, after = (
        tuple(vectors(samples, embed, reference.rule) for samples in (data.val, data.train))
        for embed in (starting_features, reference.embed_batch)
    )
    agrees(effect, data, before, after, tolerance=0.01)  # another batch size rounds otherwise
    # The other figures are still those of the held-out classes alone.
    assert final["gallery"] == sum(sample.label not in data.classes for sample in data.train) < effect.gallery


def test_the_command_ends_with_both_figures_and_the_report_begins_with_them(finished: tuple[Path, str]):
    folder, said = finished
    effect = Effect.of(json.loads((folder / "run/metrics.jsonl").read_text().splitlines()[-1]))
    learned, held_out = effect.findings()
    assert said.splitlines()[-2:] == [f"learned       {learned.line}", f"never learned {held_out.line}"]
    page = (folder / "run/report.html").read_text("utf-8")
    text = " ".join(re.sub(r"<[^>]+>", " ", page.partition("<body>")[2]).split())
    for finding in (learned, held_out):
        assert f"{finding.title}: {finding.text}" in text
        assert text.index(finding.text) < text.index("MAP@R")
    for side in (effect.learned, effect.held_out):
        for name in NUMBERS:
            assert f"{getattr(side.before, name):.3f} → {getattr(side.after, name):.3f}" in text


@pytest.mark.thorough
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_the_page_is_accessible_and_asks_for_nothing(finished: tuple[Path, str], width: int, scheme: str):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    chromium = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # the sandbox does not start for root
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto((finished[0] / "run/report.html").as_uri())
        assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
        found = axe.Axe().run(page, options={"resultTypes": ["violations"]})
        assert found.violations_count == 0, found.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        if folder := os.environ.get("DEEPRANK_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=Path(folder) / f"report-{width}.png")
        browser.close()


def test_a_run_of_an_earlier_version_is_still_told(finished: tuple[Path, str], tmp_path: Path):
    shutil.copytree(finished[0] / "run", tmp_path / "run")
    metrics = tmp_path / "run/metrics.jsonl"
    *rows, final = metrics.read_text().splitlines()
    older = {key: value for key, value in json.loads(final).items() if key != "effect"}
    metrics.write_text("\n".join([*rows, json.dumps(older)]) + "\n")
    said = run_command("deeprank-train", "--resume", "run", cwd=tmp_path)
    assert said.stdout.splitlines()[-1].startswith("report ")
    assert "recall@1" in said.stdout
