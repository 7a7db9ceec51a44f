"""Ratings as a CSV: what is exported is read by eval, and by an index, without a loss."""

import csv
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import THOROUGH, run_command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_uploads import add, upload
from tiny_model import expected, square, write_model, write_picture, write_pictures

from deeprank.runtime.errors import DataError, IndexStateError
from deeprank.runtime.index.database.store import Store
from deeprank.runtime.index.ratings import (
    NewComparison,
    RatingStore,
    ResolvedRatings,
    add_comparisons,
    resolved,
    set_mark,
)
from deeprank.runtime.index.ratings.export import export_ratings
from deeprank.runtime.index.ratings.importer import import_ratings
from deeprank.runtime.index.ratings.records import Comparison
from deeprank.runtime.index.ratings.resolution import answers_of
from deeprank.runtime.index.ratings.writer import writing
from deeprank.runtime.index.sync.sync import sync

STRANGE = [
    "a/=1+1.png",
    "a/'x.png",
    "b/a,b.png",
    'b/"q".png',
    "b/ä🐈.png",
    "a/plain.png",
    "@x/+y.png",
    "b/line\nend.png",
]
EXAMPLES = 150 if THOROUGH else 12
HASHES = ("query_sha256", "positive_sha256", "negative_sha256")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of pictures, and an index of both; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("made")
    write_pictures(folder / "one", STRANGE)
    write_pictures(folder / "two", [f"{'ab'[i % 2]}/{i}.png" for i in range(4)], first_seed=50)
    sync(folder / "index", [folder / "one", folder / "two"], model=write_model(folder / "model.onnx"), device="cpu")
    return folder


@pytest.fixture
def index(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "index", tmp_path / "index")
    return tmp_path / "index"


def sha256(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def rate(index: Path, *paths: Path, rater: str | None = None) -> None:
    add_comparisons(index, [NewComparison(*map(sha256, paths))], rater=rater)


def answers(index: Path) -> list[Comparison]:
    with RatingStore.open(index) as ratings:
        return answers_of(*ratings.ratings())


def resolve(index: Path) -> ResolvedRatings:
    with RatingStore.open(index) as ratings, Store.open(index) as store:
        return resolved(ratings, store)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, *rows: tuple[object, ...], columns: str = "query,positive,negative") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns.split(","), *rows])
    return path


def rated_of(csv_path: Path, index: Path) -> list[tuple[object, ...]]:
    import_ratings(index, csv_path)
    return [(each.query, each.positive, each.negative, each.rater) for each in answers(index)]


# -- there and back --------------------------------------------------------------------------------------------------

RATERS = st.sampled_from([None, "Ann", "=cmd()", "ä, b", "'Bo'"])
PLACES = st.permutations(range(12)).map(lambda places: places[:3])


@settings(
    max_examples=150 if THOROUGH else 12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rated=st.lists(st.tuples(PLACES, RATERS, st.integers(0, 3)), min_size=1, max_size=8), hashes=st.booleans())
def test_a_round_trip_keeps_every_answer(index: Path, made: Path, tmp_path: Path, rated: list, hashes: bool) -> None:
    pictures = [sha256(path) for path in sorted((*made.glob("one/*/*"), *made.glob("two/*/*")))]
    other, table = tmp_path / "other", tmp_path / "rated.csv"
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(made / "index", other)
    (index / "ratings.sqlite").unlink(missing_ok=True)
    with writing(index) as target:
        rows = [
            Comparison(0, *(pictures[p] for p in places), rater, time, "0" * 64, "import")
            for places, rater, time in rated
        ]
        target.ratings.add_comparisons(rows)
        target.ratings.commit()
    report = export_ratings(index, table)
    assert (report.ratings, report.folder) == (len(rated), str(made))
    if not hashes:
        written = rows_of(table)
        write_rows(table, *[list(row.values())[:5] for row in written], columns="query,positive,negative,rater,time")
    assert import_ratings(other, table).added == len(rated)
    assert [each[1:6] for each in answers(other)] == [each[1:6] for each in answers(index)]
    assert resolve(other).triplets == resolve(index).triplets
    for each in (index, other):
        again = import_ratings(each, table)
        assert (again.added, again.known) == (0, len(rated))


def test_marks_become_rows_once(index: Path, made: Path, tmp_path: Path) -> None:
    query, *others = sorted(made.glob("two/*/*"))
    for path, more in zip(others, (True, False, False), strict=True):
        set_mark(index, sha256(query), sha256(path), more, rater="Ann")
    assert export_ratings(index, tmp_path / "rated.csv").ratings == 2
    names = [path.relative_to(made).as_posix() for path in others]
    assert [(row["positive"], row["negative"], row["rater"]) for row in rows_of(tmp_path / "rated.csv")] == [
        (names[0], names[1], "Ann"),
        (names[0], names[2], "Ann"),
    ]
    assert import_ratings(index, tmp_path / "rated.csv").added == 0


def test_ratings_of_other_pictures_are_left_out(index: Path, made: Path, tmp_path: Path) -> None:
    (tmp_path / "three").mkdir()
    for number in range(3):
        write_picture(tmp_path / "three" / f"{number}.png", 90 + number)
    bad = tmp_path / os.fsdecode(b"three/\xff.png")
    (tmp_path / "three/2.png").rename(bad)
    sync(index, [tmp_path / "three"])
    one = sorted(made.glob("one/*/*"))
    rate(index, *one[:3])
    rate(index, one[0], one[1], tmp_path / "three/0.png")
    rate(index, one[0], one[1], bad)
    (tmp_path / "three/0.png").unlink()
    sync(index, [tmp_path / "three"], allow_mass_removal=True)
    result = run_command("deeprank-index", "ratings", "export", tmp_path / "rated.csv", "--index", index)
    assert result.stderr.splitlines()[:2] == [
        "left out: 1 rating of pictures that are not in the index",
        "left out: 1 rating of pictures whose path a CSV cannot hold; rename the files",
    ]
    assert len(rows_of(tmp_path / "rated.csv")) == 1


@pytest.mark.skipif(os.name != "posix", reason="needs names that Windows does not allow")
@pytest.mark.parametrize("name", [" 1.png", "a\\b.png", "c:d.png"])
def test_names_that_a_csv_would_change_are_not_written(made: Path, tmp_path: Path, name: str) -> None:
    write_pictures(tmp_path / "three", [name, "2.png", "3.png"])
    sync(tmp_path / "index", [tmp_path / "three"], model=made / "model.onnx", device="cpu")
    rate(tmp_path / "index", *(tmp_path / "three" / each for each in (name, "2.png", "3.png")))
    with pytest.raises(IndexStateError, match="has a path that a CSV can hold; rename the files"):
        export_ratings(tmp_path / "index", tmp_path / "rated.csv")
    assert not (tmp_path / "rated.csv").exists()


def test_paths_begin_at_the_folder_that_was_synced(made: Path, tmp_path: Path) -> None:
    index, one = tmp_path / "index", sorted(made.glob("one/*/*"))
    sync(index, [made / "one"], model=made / "model.onnx", device="cpu")
    rate(index, *one[:3])
    assert export_ratings(index, tmp_path / "rated.csv").folder == str(made / "one")
    assert rows_of(tmp_path / "rated.csv")[0]["negative"] == one[2].relative_to(made / "one").as_posix()
    (added,) = add(index, upload(1000))
    rate(index, one[0], one[1], index / "uploads" / added.relative)
    report = export_ratings(index, tmp_path / "rated.csv")
    assert report.folder == os.path.commonpath([made, tmp_path])
    base = Path(report.folder)
    assert all((base / name).is_file() for row in rows_of(tmp_path / "rated.csv") for name in list(row.values())[2:3])
    assert import_ratings(index, tmp_path / "rated.csv").known == 2


def test_a_synced_file_is_named_before_its_upload(made: Path, tmp_path: Path) -> None:
    index, two = tmp_path / "index", sorted(made.glob("two/*/*"))
    sync(index, [made / "one"], model=made / "model.onnx", device="cpu")
    (added,) = add(index, upload(50))
    sync(index, [made / "two"])
    assert sha256(index / "uploads" / added.relative) == sha256(two[0])
    rate(index, *two[:3])
    assert export_ratings(index, tmp_path / "rated.csv").folder == str(made)
    assert rows_of(tmp_path / "rated.csv")[0]["query"] == "two/a/0.png"


def test_eval_reads_what_is_exported(made: Path, tmp_path: Path) -> None:
    """The real command measures the exported file: similarity precision by the model's own formula."""
    photos = tmp_path / "photos"
    write_pictures(photos, [f"{split}/{'ab'[i % 2]}/{i}.png" for i, split in enumerate(["train", "val", "test"] * 8)])
    index, paths = tmp_path / "index", sorted(photos.glob("*/*/*"))
    sync(index, [photos], model=made / "model.onnx", device="cpu")
    vectors = expected(np.stack([square(path) for path in paths]))
    right, triplets = 0, [(i, (i + 5) % 24, (i + 11) % 24) for i in range(20)]
    for query, positive, negative in triplets:
        rate(index, *(paths[place] for place in (query, positive, negative)), rater="=Ann")
        near, far = (((vectors[query] - vectors[place]) ** 2).sum() for place in (positive, negative))
        right += near < far
    result = run_command("deeprank-index", "ratings", "export", "rated.csv", "--index", index, cwd=tmp_path)
    assert result.stdout == f"rated.csv holds 20 ratings of 24 pictures; paths begin at {photos}\n"
    words = result.stderr.removeprefix("Next: ").split()
    assert words == ["deeprank-eval", "--data", str(photos), "--triplets", "rated.csv"]
    said = run_command(*words, "--model", made / "model.onnx", "--json", "-k", 2, cwd=tmp_path).stdout
    measured = json.loads(said)["triplets"]
    assert (measured["count"], measured["left_out"]) == (20, 0)
    assert measured["similarity_precision"] == pytest.approx(right / 20)


# -- what an import accepts ------------------------------------------------------------------------------------------


def test_paths_from_several_places(index: Path, made: Path, tmp_path: Path) -> None:
    one = ["a/plain.png", "b/a,b.png", "b/ä🐈.png"]
    pictures = tuple(sha256(made / "one" / name) for name in one)
    forms = [
        write_rows(tmp_path / "root.csv", one),
        write_rows(tmp_path / "above.csv", [f"one/{name}" for name in one]),
        write_rows(tmp_path / "whole.csv", [made / "one" / name for name in one]),
        write_rows(tmp_path / "upwards.csv", [f"two/../one/./{name}" for name in one]),
    ]
    (made / "one/b/csv").mkdir(exist_ok=True)
    forms.append(write_rows(made / "one/b/csv/beside.csv", [f"../../{name}" for name in one]))
    for number, form in enumerate(forms, 1):
        shutil.copytree(made / "index", tmp_path / f"index{number}")
        assert rated_of(form, tmp_path / f"index{number}") == [(*pictures, None)]
    tabs = tmp_path / "tabs.csv"
    tabs.write_text("\ufeffQuery\tPositive\tNegative\tRater\n" + "\t".join(one) + "\t Ann \n", "utf-8")
    assert rated_of(tabs, index) == [(*pictures, "Ann")]


def test_pictures_are_known_by_content_wherever_they_are(index: Path, made: Path, tmp_path: Path) -> None:
    one = sorted(made.glob("one/*/*"))[:3]
    hashes = [sha256(path).hex() for path in one]
    columns = ",".join(("query", "positive", "negative", *HASHES))
    moved = write_rows(tmp_path / "moved.csv", ("x.png", "y.png", "", *hashes), columns=columns)
    report = import_ratings(index, moved)
    assert (report.added, report.moved) == (1, 3)
    changed = write_rows(
        tmp_path / "c.csv", ("one/a/plain.png", "y.png", "z.png", "0" * 64, *hashes[1:]), columns=columns
    )
    with pytest.raises(DataError, match=r"line 2: query 'one/a/plain\.png', which has another content now"):
        import_ratings(index, changed)


def test_equal_rows_are_repeated_answers(index: Path, made: Path, tmp_path: Path) -> None:
    names = [path.relative_to(made).as_posix() for path in sorted(made.glob("two/*/*"))]
    table = write_rows(tmp_path / "rated.csv", names[:3], names[:3], (names[0], names[2], names[1]))
    assert import_ratings(index, table).added == 3
    assert import_ratings(index, table).added == 0
    write_rows(tmp_path / "more.csv", *[names[:3]] * 3)
    report = import_ratings(index, tmp_path / "more.csv")
    assert (report.added, report.known) == (1, 2)
    assert resolve(index).agreement.own.count == 3
    rate(index, *(made / name for name in (names[3], *names[:2])))
    assert (
        import_ratings(index, write_rows(tmp_path / "new.csv", (names[3], *names[:2]))).added == 1
    )  # it was not imported


FAULTS = [
    ("a/plain.png,b/none.png,b/2.png", "positive 'b/none.png', which is not in the index; expected a picture of it"),
    ("a/plain.png,a/plain.png,a/0.png", "are not of three different contents; expected three different pictures"),
    ("a/plain.png,,a/0.png", "no positive; expected the path of a picture"),
    ("a/plain.png,a/0.png,/etc/passwd", "negative '/etc/passwd', which is not in the index"),
    ("a/plain.png,a/0.png,../../x", "negative '../../x', which is not in the index"),
    ("a/plain.png,a/0.png,b/1.png," + "x" * 101, "of at most 100 characters"),
    ("a/plain.png,a/0.png,b/1.png,Ann,yesterday", "time 'yesterday'; expected whole seconds since 1970"),
    ("a/plain.png,a/0.png,b/1.png,Ann,4102444800", "which is to come; expected the time of"),
    ("a/plain.png," + "a/" * 60_000 + ",b/1.png", "… of 120,000 characters; expected a path of at most 4,096"),
    ("a/plain.png,a/0.png,b/1.png,Ann,99999999999999", "expected whole seconds since 1970"),
    ("a/plain.png,a/0.png,b/1.png,Ann,1,xyz", "query_sha256 'xyz'; expected 64 hexadecimal digits"),
    ("a/plain.png,a/0.png,b/1.png,Ann,1,,extra", "more fields than the first line has"),
    ("a/plain.png,a/\0.png,b/1.png", "which is not in the index"),
]


@pytest.mark.parametrize(("row", "said"), FAULTS)
def test_a_faulty_row_is_named_and_none_is_added(index: Path, tmp_path: Path, row: str, said: str) -> None:
    table = tmp_path / "rated.csv"
    table.write_text(f"query,positive,negative,rater,time,query_sha256\na/plain.png,a/0.png,b/1.png\n{row}\n", "utf-8")
    with pytest.raises(DataError, match=r"line 3: ") as caught:
        import_ratings(index, table)
    assert said in str(caught.value)
    assert answers(index) == []


def test_a_name_in_two_folders_is_ambiguous(index: Path, made: Path, tmp_path: Path) -> None:
    write_picture(tmp_path / "three/a/plain.png", 70)
    sync(index, [tmp_path / "three"])
    table = write_rows(tmp_path / "rated.csv", ("a/plain.png", "a/0.png", "b/1.png"))
    with pytest.raises(DataError, match="which names 2 different pictures of the index; expected a whole path"):
        import_ratings(index, table)


def test_nothing_to_export(index: Path, made: Path, tmp_path: Path) -> None:
    with pytest.raises(IndexStateError, match="has no ratings yet"):
        export_ratings(index, tmp_path / "rated.csv")
    rate(index, *sorted(made.glob("two/*/*"))[:3])
    with pytest.raises(IndexStateError, match="cannot be written"):
        export_ratings(index, tmp_path / "none" / "rated.csv")
    assert not (tmp_path / "rated.csv").exists()


# -- info ------------------------------------------------------------------------------------------------------------


def test_info_says_what_counts(index: Path, made: Path) -> None:
    one, two, three, four = sorted(made.glob("two/*/*"))
    rate(index, one, two, three, rater="Ann")
    rate(index, one, two, three, rater="Ann")
    rate(index, one, three, two, rater="Ann")
    rate(index, one, two, three, rater="Bo")
    rate(index, two, three, four)
    set_mark(index, sha256(three), sha256(one), True)
    set_mark(index, sha256(three), sha256(two), False)
    lines = run_command("deeprank-index", "ratings", "info", "--index", index).stdout.splitlines()
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "ratings 5 comparisons and 2 marks; the marks make 1 more comparison",
        "rater without a name: 1 comparison and 2 marks",
        "rater Ann: 3 comparisons; 0 of 2 (0%) repeated answers agree",
        "rater Bo: 1 comparison",
        "repeated 0 of 2 (0%) answers were the same when their rater was asked again",
        "agreement 0 of 1 (0%) pairs of raters gave the same answer to a question",
        "contradicting raters changed their mind 2 times; the newer answer counts",
        "disagreeing raters disagree in 1 question; the majority counts, even votes (1) do not",
        "triplets 2 to learn from",
    ]
    document = json.loads(run_command("deeprank-index", "ratings", "info", "--index", index, "--json").stdout)
    assert document["agreement"] == {"own": {"agreeing": 0, "count": 2}, "between": {"agreeing": 0, "count": 1}}
    assert (document["triplets"], document["undecided"], document["answers"]) == (2, 1, 6)
    assert [each["rater"] for each in document["raters"]] == [None, "Ann", "Bo"]
