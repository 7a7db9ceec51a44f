"""The whole loop through the commands: ratings of a known taste, a taught model, its index, and back."""

import csv
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_command
from exchange_faults import Case, run_cases, words
from PIL import Image
from tiny_model import write_model

from deeprank.export.teach.job import teach
from deeprank.runtime.errors import IndexStateError
from deeprank.runtime.files import file_sha256
from deeprank.runtime.index import Index
from deeprank.runtime.index.database.store import Store
from deeprank.runtime.index.maintenance.reembed import reembed
from deeprank.runtime.index.maintenance.verify import verify
from deeprank.runtime.index.sync.options import SyncOptions
from deeprank.runtime.index.sync.sync import sync
from deeprank.runtime.progress import Advance, no_progress
from deeprank.train.ratings.rated import folds_of

COLOURS = ((200, 60, 60), (60, 180, 60), (70, 70, 200), (190, 190, 50))
SHAPES = 6
EACH = 8
SIDE = 8


def write_gallery(folder: Path) -> list[Path]:
    """Write pictures of a shape in a colour: the shape is loud, and the colour of the ground is soft."""
    random = np.random.default_rng(7)
    shapes = random.integers(0, 2, (SHAPES, SIDE, SIDE, 1)) * 110
    paths = []
    for number in range(len(COLOURS) * SHAPES * EACH):
        colour, shape = number % len(COLOURS), number // len(COLOURS) % SHAPES
        tint = 0.3 * (np.array(COLOURS[colour]) - 128)
        pixels = 70 + shapes[shape] + tint + random.normal(0, 12, (SIDE, SIDE, 3))
        path = folder / f"{number:03d}-{colour}-{shape}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        paths.append(path)
    return paths


def colour_of(path: Path | str) -> str:
    return Path(path).stem.split("-")[1]


def rated(pictures: Sequence[Path], count: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """Return ratings of somebody to whom the same colour is more similar, whatever the shape."""
    random = np.random.default_rng(seed)
    ratings = []
    while len(ratings) < count:
        query, one, other = (pictures[place].name for place in random.choice(len(pictures), 3, replace=False))
        if colour_of(one) == colour_of(query) != colour_of(other):
            ratings.append((query, one, other))
    return ratings


def write_ratings(path: Path, ratings: Sequence[Sequence[str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["query", "positive", "negative"])
        writer.writerows(ratings)
    return path


def same_colour(index: Path, pictures: Sequence[Path]) -> float:
    """Return the share of the 24 nearest pictures that have the query's colour."""
    with Index.open(index) as opened:
        answers = {query: opened.search(query, 25)[1:] for query in pictures[:: len(pictures) // 24]}
    return float(np.mean([colour_of(query) == colour_of(hit.path) for query, hits in answers.items() for hit in hits]))


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and an index of them, without ratings; to be copied."""
    folder = tmp_path_factory.mktemp("gallery")
    write_gallery(folder / "photos")
    model = write_model(folder / "model.onnx", dim=48, unrelated_distance=0.05)
    run_command("deeprank-index", "sync", folder / "photos", "--index", folder / "index", "--model", model)
    return folder


@pytest.fixture
def index(gallery: Path, tmp_path: Path) -> Path:
    shutil.copytree(gallery / "index", tmp_path / "my.index")
    return tmp_path / "my.index"


def rate(index: Path, gallery: Path, ratings: Sequence[Sequence[str]]) -> None:
    table = write_ratings(index.with_name("rated.csv"), ratings)
    run_command("deeprank-index", "ratings", "import", table, "--index", index)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.thorough
def test_the_whole_loop(index: Path, gallery: Path, tmp_path: Path) -> None:
    pictures = sorted((gallery / "photos").iterdir())
    rate(index, gallery, rated(pictures, 600))
    with Store.open(index) as store:
        ids, vectors = store.vectors()
    before, page = same_colour(index, pictures), tmp_path / "page.html"
    done = json.loads(run_command("deeprank-teach", "--index", index, "--html", page, "--json").stdout)
    assert (done["exchanged"], done["refusal"], done["items"]) == (True, None, len(pictures))
    assert done["verdict"] == done["cross_validated"]["verdict"] == "better"
    assert done["cross_validated"]["ratings"] == 600
    assert done["before"]["similarity_precision"] + 0.1 < done["after"]["similarity_precision"]
    assert done["before"]["score_at_top_k"]["score"] < done["after"]["score_at_top_k"]["score"]
    assert 550 < done["learned_from"] + done["before"]["count"] <= done["ratings"] == 600
    assert done["compared"] == 32
    assert done["max_abs_difference"] < 1e-5
    assert verify(index).problems == ()
    assert same_colour(index, pictures) > before + 0.05
    # The paper's figures of the held-out part, by the command that measures any model on any ratings.
    assert done["model"]["sha256"] == file_sha256(index / "model.onnx")
    held_out_figures(index, gallery, done)
    check_page(page, pictures)
    # A picture that came since is there after the way back, as if nothing had been.
    shutil.copytree(gallery / "photos", tmp_path / "more")
    for path in sorted((tmp_path / "more").iterdir())[1:]:
        path.unlink()
    Image.fromarray(np.full((9, 9, 3), (9, 99, 200), np.uint8)).save(tmp_path / "more" / "new.png")
    run_command("deeprank-index", "sync", tmp_path / "more", "--index", index)
    result = run_command("deeprank-teach", "--undo", "--index", index)
    assert "has its former model again (tiny-0); its vectors were computed." in result.stdout
    assert file_sha256(index / "model.onnx") == file_sha256(gallery / "model.onnx")
    assert verify(index).problems == ()
    with Store.open(index) as store:
        now = store.vectors()
    assert now[0][: len(ids)].tolist() == ids.tolist()
    np.testing.assert_allclose(now[1][: len(ids)], vectors, atol=3e-7)
    with Index.open(index) as opened:
        assert opened.search(tmp_path / "more" / "new.png", 1)[0].distance < 1e-6
    failed = run_command("deeprank-teach", "--undo", "--index", index, status=1)
    assert "was not taught, so there is nothing to undo" in failed.stderr


def held_out_figures(index: Path, gallery: Path, done: dict[str, Any]) -> None:
    """Compare with ``deeprank-eval --triplets`` on the exported ratings: the same measures, by the taught file."""
    table = gallery / "held_out.csv"
    run_command("deeprank-index", "ratings", "export", table, "--index", index)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    held = folds_of([bytes.fromhex(row["query_sha256"]) for row in rows]) == 0
    kept = [[f"photos/{row[key]}" for key in ("query", "positive", "negative")] for row in np.array(rows)[held]]
    write_ratings(table, kept)
    for model, figures in ((gallery / "model.onnx", done["before"]), (index / "model.onnx", done["after"])):
        result = run_command("deeprank-eval", "--model", model, "--triplets", table, "--json")
        measured = json.loads(result.stdout)["triplets"]
        assert measured["count"] == figures["count"]
        assert measured["similarity_precision"] == pytest.approx(figures["similarity_precision"], abs=0.006)


def check_page(page: Path, pictures: Sequence[Path]) -> None:
    text = page.read_text()
    assert "<script" not in text
    assert "default-src 'none'" in text
    shown = text.count('class="change"')
    assert 5 <= shown <= 12
    assert "Gained most" in text
    assert text.count('class="strip before"') == text.count('class="strip after"') == shown
    assert text.count("agrees with") == 2 * shown
    assert sum(path.name in text for path in pictures) > 12


@pytest.mark.thorough
def test_a_run_on_ratings_is_exported_like_any_other(index: Path, gallery: Path, tmp_path: Path) -> None:
    rate(index, gallery, rated(sorted((gallery / "photos").iterdir()), 300))
    run_command("deeprank-train", "--index", index, "--out", tmp_path / "run")
    words = ("--out", tmp_path / "taught.onnx", "--json")
    report = json.loads(run_command("deeprank-export", tmp_path / "run", *words).stdout)
    assert (report["data"], report["failures"], report["queries"]) == ("my.index", [], 38)
    assert report["max_abs_difference"] < 1e-5
    run_command("deeprank-index", "sync", "--reembed", "--model", tmp_path / "taught.onnx", "--index", index)
    with Store.open(index) as store:
        embedded = store.vectors()[1]
    # The command does the same without embedding any picture.
    run_command("deeprank-index", "sync", "--reembed", "--model", gallery / "model.onnx", "--index", index)
    run_command("deeprank-teach", "--index", index, "--force")
    with Store.open(index) as store:
        np.testing.assert_allclose(store.vectors()[1], embedded, atol=1e-6)
    assert not (tmp_path / "run" / "best.pt").exists()


@pytest.mark.thorough
def test_a_sync_between_the_learning_and_the_exchange(index: Path, gallery: Path, tmp_path: Path) -> None:
    """Pictures that came and went meanwhile are those of the new index; another model meanwhile is left alone."""
    photos = Path(shutil.copytree(gallery / "photos", tmp_path / "photos"))
    pictures = sorted(photos.iterdir())
    run_command("deeprank-index", "sync", "--root", f"{gallery / 'photos'}={photos}", "--index", index)
    rate(index, gallery, rated(pictures, 300))
    meanwhile: list[Callable[[], object]] = []

    def start(what: str, total: int, unit: str = "pictures", done: int = 0, /) -> Advance:
        if what.startswith("parity") and meanwhile:
            meanwhile.pop()()
        return no_progress

    def change() -> None:
        Image.fromarray(np.full((9, 9, 3), (9, 99, 200), np.uint8)).save(photos / "new.png")
        for path in pictures[:5]:
            path.unlink()
        sync(index, [photos])

    meanwhile.append(change)
    taught = teach(index, force=True, shown=True, progress=start)
    assert taught.exchange is not None
    assert taught.exchange.items == len(pictures) - 4
    assert verify(index).problems == ()
    assert sync(index, [photos]).unchanged == len(pictures) - 4
    with Index.open(index) as opened:
        assert opened.search(photos / "new.png", 1)[0].distance < 1e-6
    meanwhile.append(lambda: reembed(index, SyncOptions(model=gallery / "model.onnx")))
    with pytest.raises(IndexStateError, match="got another model meanwhile"):
        teach(index, force=True, progress=start)
    assert file_sha256(index / "model.onnx") == file_sha256(gallery / "model.onnx")


def refused(index: Path, says: str) -> None:
    """Check that a refusal prints the figures and one sentence, and leaves every byte of the index."""
    before = content(index)
    result = run_command("deeprank-teach", "--index", index, status=1)
    assert content(index) == before
    assert [path.name for path in index.parent.glob(".*")] == []
    assert "similarity precision" in result.stdout
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert says in error
    assert error.endswith("is unchanged; --force exchanges its model all the same.")


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_what_follows_the_exchange_hides_it_from_nobody(index: Path, gallery: Path, tmp_path: Path) -> None:
    """An interrupt while the former index is deleted, and a page that cannot be written any more."""
    rate(index, gallery, rated(sorted((gallery / "photos").iterdir()), 45))
    other = Path(shutil.copytree(index, tmp_path / "other.index"))
    before = file_sha256(index / "model.onnx")
    page = tmp_path / "pages" / "page.html"
    page.parent.mkdir()
    for place, options, case, status in (
        (index, [], ("tidy", "interrupt"), 130),
        (other, ["--html", page], ("tidy", f"delete {page.parent}"), 1),
        (other, ["--html", page, "--json"], ("tidy", f"delete {page.parent}"), 1),
    ):
        command = words("deeprank-teach", "--force", "--index", place, *options)
        page.parent.mkdir(exist_ok=True)
        (ended,) = run_cases([Case(command, str(place), *case)])  # type: ignore[arg-type]
        assert ended.status == status, ended
        assert file_sha256(place / "model.onnx") != before
        assert verify(place).problems == ()
        if not options:
            assert "interrupted; the index has the taught model." in ended.said
        elif "--json" in options:
            document, error = ended.said[ended.said.index("{") :].split("\nerror: ")
            assert (json.loads(document)["exchanged"], json.loads(document)["page"]) == (True, None)
            assert "cannot be written" in error
        else:
            assert "other.index has the taught model now" in ended.said
            assert "cannot be written" in ended.said


def test_too_few_ratings_are_refused(index: Path, gallery: Path) -> None:
    rate(index, gallery, rated(sorted((gallery / "photos").iterdir()), 45))
    refused(index, "The evidence is too thin: ")


@pytest.mark.thorough
def test_answers_by_chance_are_refused_unless_forced(index: Path, gallery: Path) -> None:
    pictures = sorted((gallery / "photos").iterdir())
    random = np.random.default_rng(6)  # of ten draws, one is at the limit
    rate(index, gallery, [(query, *random.permutation(pair)) for query, *pair in rated(pictures, 250)])
    refused(index, "The head is not better: ")
    failed = json.loads(run_command("deeprank-teach", "--index", index, "--json", status=1).stdout)
    assert (failed["refusal"], failed["exchanged"], failed["model"]) == ("not better", False, None)
    run_command("deeprank-teach", "--index", index, "--force")
    assert verify(index).problems == ()
    assert (index / "previous.onnx").exists()


def test_without_ratings_there_is_a_sentence(index: Path) -> None:
    before = content(index)
    result = run_command("deeprank-teach", "--index", index, status=1)
    assert "holds no ratings of pictures that it still has" in result.stderr
    assert content(index) == before


def test_answers_that_do_not_count_are_told(index: Path, gallery: Path) -> None:
    pictures = sorted((gallery / "photos").iterdir())
    (query, one, other), *others = rated(pictures, 46)
    said = [*((query, one, other, name) for name in ("Ann", "Bob")), (query, other, one, "Cem")]
    said += [(*others[0], "Ann"), (others[0][0], others[0][2], others[0][1], "Bob")]
    table = index.with_name("rated.csv")
    with table.open("w", newline="") as file:
        rows = [*said, *((*each, "Ann") for each in others[1:])]
        csv.writer(file).writerows([("query", "positive", "negative", "rater"), *rows])
    run_command("deeprank-index", "ratings", "import", table, "--index", index)
    result = run_command("deeprank-teach", "--index", index, "--json", status=1)
    assert json.loads(result.stdout)["left_out"] == {"outvoted": 1, "undecided": 2}
    assert "Answers that do not count: 1 outvoted, 2 with even votes." in result.stderr
