"""Ratings in an index: what they say of its pictures, and that none is lost once it is acknowledged."""

import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import THOROUGH, run_command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_model import write_model, write_pictures

from deeprank.runtime.doctor.index import contents_finding, ratings_finding
from deeprank.runtime.errors import DeepRankError, IndexDamagedError, IndexLockedError, IndexStateError, QueryError
from deeprank.runtime.index import Index
from deeprank.runtime.index.database.store import Store
from deeprank.runtime.index.database.writer import locked
from deeprank.runtime.index.maintenance.compact import compact
from deeprank.runtime.index.maintenance.copy import copy
from deeprank.runtime.index.maintenance.reembed import reembed
from deeprank.runtime.index.maintenance.verify import verify
from deeprank.runtime.index.ratings import (
    NewComparison,
    RatingStore,
    ResolvedRatings,
    add_comparisons,
    remove_comparison,
    resolved,
    set_mark,
)
from deeprank.runtime.index.ratings.records import MAX_MARKS, Comparison, Mark, RatedPicture
from deeprank.runtime.index.ratings.resolution import answers_of
from deeprank.runtime.index.ratings.writer import create_ratings
from deeprank.runtime.index.sync.options import SyncOptions
from deeprank.runtime.index.sync.sync import sync

EXAMPLES = 300 if THOROUGH else 20
MODEL = "0" * 64
GONE, CHANGED = b"g" * 32, b"c" * 32


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, one of them twice, and an index of them; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("made")
    write_pictures(folder / "photos", [f"{'ab'[i % 2]}/{i}.png" for i in range(8)])
    shutil.copy(folder / "photos/a/0.png", folder / "photos/b/copy.png")
    sync(folder / "index", [folder / "photos"], model=write_model(folder / "model.onnx"), device="cpu")
    return folder


@pytest.fixture
def index(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "index", tmp_path / "index")
    return tmp_path / "index"


def contents_of(index: Path) -> list[bytes]:
    """The contents of the pictures by their paths; the last path has that of the first."""
    with Store.open(index) as store:
        items = sorted(store.all_items(), key=lambda item: item.path)
    return list(dict.fromkeys(item.sha256 for item in items))


def rate(index: Path, *triplets: tuple[int, int, int], rater: str | None = None) -> list[int]:
    contents = contents_of(index)
    new = [NewComparison(*(contents[place] for place in triplet)) for triplet in triplets]
    return add_comparisons(index, new, rater=rater)


def resolve(index: Path) -> ResolvedRatings:
    with RatingStore.open(index) as ratings, Store.open(index) as store:
        return resolved(ratings, store)


def stored(index: Path) -> tuple[list[Comparison], list[Mark]]:
    with RatingStore.open(index) as ratings:
        return ratings.ratings()


# -- what ratings say ------------------------------------------------------------------------------------------------

RATERS = (None, "Ann", "Bo")
# Pictures by number: four of the index, one that is gone, one whose file has changed.
NUMBERS = st.integers(0, 5)
TIMES = st.integers(1, 3)
# Mostly the same few questions: what counts is what becomes of several answers to one.
TRIPLETS = st.one_of(*[st.permutations(range(3))] * 3, st.permutations(range(6)).map(lambda numbers: numbers[:3]))
COMPARISONS = st.tuples(TRIPLETS, st.sampled_from(RATERS), TIMES)
MARKS = st.tuples(NUMBERS, NUMBERS, st.booleans(), st.sampled_from(RATERS), TIMES).filter(
    lambda given: given[0] != given[1]
)


def brute_force(comparisons: list[Comparison], marks: list[Mark], held: set[bytes]) -> dict[str, object]:
    """What ratings say, from the definitions, question by question."""
    answers = [(each.time, each.id, each.rater, each.query, each.positive, each.negative) for each in comparisons]
    for more, less in itertools.product(marks, marks):
        same = (more.query, more.rater) == (less.query, less.rater) and more.picture != less.picture
        if more.more and not less.more and same:
            later = max((more.time, more.id), (less.time, less.id))
            answers.append((*later, more.rater, more.query, more.picture, less.picture))
    usable = [each for each in answers if set(each[3:]) <= held]
    missing = [set(each[3:]) - held for each in answers if not set(each[3:]) <= held]
    said: dict[str, object] = {"changed": sum(CHANGED in each for each in missing)}
    said["gone"] = len(missing) - sum(CHANGED in each for each in missing)
    triplets, disagreeing, undecided, own, between = set(), 0, 0, [0, 0], [0, 0]
    pictures = sorted(held)
    for query, (one, other) in itertools.product(pictures, itertools.combinations(pictures, 2)):
        newest = {}
        for rater in RATERS:
            given = sorted(a for a in usable if a[2] == rater and a[3] == query and {a[4], a[5]} == {one, other})
            if given:
                newest[rater] = given[-1][4]
                own[0] += sum(each[4] == given[-1][4] for each in given[:-1])
                own[1] += len(given) - 1
        for a, b in itertools.combinations(newest.values(), 2):
            between[0] += a == b
            between[1] += 1
        votes = {each: [rater for rater in newest if newest[rater] == each] for each in (one, other)}
        disagreeing += all(votes.values())
        undecided += bool(newest) and len(votes[one]) == len(votes[other])
        for better, worse in ((one, other), (other, one)):
            if len(votes[better]) > len(votes[worse]):
                triplets.add((query, better, worse, frozenset(votes[better]), len(votes[better]), len(votes[worse])))
    said |= {"answers": len(answers), "triplets": triplets, "disagreeing": disagreeing, "undecided": undecided}
    return said | {"own": tuple(own), "between": tuple(between)}


@settings(
    max_examples=300 if THOROUGH else 20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(compared=st.lists(COMPARISONS, max_size=14), marked=st.lists(MARKS, max_size=6))
def test_resolution_is_that_of_the_definitions(index: Path, compared: list, marked: list) -> None:
    held = contents_of(index)[:4]
    pictures = [*held, GONE, CHANGED]
    comparisons = [
        Comparison(number, *(pictures[place] for place in places), rater, time, MODEL, "question")
        for number, (places, rater, time) in enumerate(compared, 1)
    ]
    last = {(q, p, rater): (q, p, more, rater, time) for q, p, more, rater, time in marked}  # a mark replaces another
    marks = [
        Mark(number, pictures[q], pictures[p], more, rater, time, MODEL)
        for number, (q, p, more, rater, time) in enumerate(last.values(), len(comparisons) + 1)
    ]
    with Store.open(index) as store:
        root, path = next(iter(store.synced_roots().values())), store.item_with(1).path
    places = [RatedPicture(CHANGED, root, path), RatedPicture(GONE, root, b"a/never.png")]
    create_ratings(index, lambda writer: (writer.restore([*comparisons, *marks]), writer.put_pictures(places)))
    said, expected = resolve(index), brute_force(comparisons, marks, set(held))
    assert {
        (each.query, each.positive, each.negative, frozenset(each.raters), each.votes, each.against)
        for each in said.triplets
    } == expected.pop("triplets")
    assert (said.agreement.own.agreeing, said.agreement.own.count) == expected.pop("own")
    assert (said.agreement.between.agreeing, said.agreement.between.count) == expected.pop("between")
    assert {name: getattr(said, name) for name in expected} == expected
    assert (said.repeated, said.repeated + said.contradicting) == (
        said.agreement.own.agreeing,
        said.agreement.own.count,
    )


def test_the_newest_marks_make_pairs() -> None:
    """One rater's marks of one query are bounded, so that few marks cannot make millions of pairs."""
    query, pictures = b"q" * 32, [bytes([number]) * 32 for number in range(240)]
    marks = [Mark(number + 1, query, each, number % 2 == 0, None, 1, MODEL) for number, each in enumerate(pictures)]
    answers = answers_of([], marks)
    assert len(answers) == (MAX_MARKS // 2) ** 2
    newest = set(pictures[-MAX_MARKS:])
    assert {each.positive for each in answers} | {each.negative for each in answers} == newest


def test_a_picture_that_changed_moved_or_went(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    index, photos = tmp_path / "index", tmp_path / "photos"
    sync(index, [photos], moved_roots=(f"{made / 'photos'}={photos}",))
    rate(index, (0, 1, 2), (3, 1, 2), (4, 5, 6))
    (photos / "a/2.png").rename(photos / "a/moved.png")  # content 1
    shutil.copy(made / "photos/a/4.png", photos / "a/0.png")  # content 0 stays in its copy
    sync(index, [photos])
    said = resolve(index)
    assert (len(said.triplets), said.gone, said.changed) == (3, 0, 0)
    (photos / "b/copy.png").unlink()  # now content 0 is gone, and its first path has another one
    (photos / "b/1.png").unlink()  # content 4
    sync(index, [photos], allow_mass_removal=True)
    said = resolve(index)
    assert (len(said.triplets), said.gone, said.changed) == (1, 1, 1)


def test_a_triplet_names_the_items_of_its_contents(index: Path) -> None:
    rate(index, (0, 1, 2), rater=" Ann ")
    (triplet,) = resolve(index).triplets
    with Store.open(index) as store:
        ids = [tuple(store.ids_of_content(content)) for content in contents_of(index)]
    assert (triplet.query_ids, triplet.positive_ids, triplet.negative_ids) == (ids[0], ids[1], ids[2])
    assert len(triplet.query_ids) == 2
    assert triplet.raters == ("Ann",)


# -- adding and taking back ------------------------------------------------------------------------------------------


def test_ids_are_never_used_twice(index: Path) -> None:
    assert rate(index, (0, 1, 2), (0, 2, 3)) == [1, 2]
    contents = contents_of(index)
    assert not remove_comparison(index, 2, (contents[0], contents[1], contents[2]))  # the id means another one
    assert remove_comparison(index, 2, (contents[0], contents[2], contents[3]))
    assert not any(remove_comparison(index, number) for number in (2, 7, -1, 2**70))
    assert rate(index, (0, 1, 3)) == [3]
    assert [each.id for each in stored(index)[0]] == [1, 3]
    assert rate(index, (0, 1, 2)) == [4]


def test_a_mark_is_replaced_and_taken_back(index: Path) -> None:
    query, *others = contents_of(index)
    for rater in (None, "Ann"):
        for more in (True, False):
            set_mark(index, query, others[0], more, rater=rater)
    set_mark(index, query, others[1], True, rater="Ann")
    with RatingStore.open(index) as ratings:
        assert [(each.rater, each.more) for each in ratings.marks(query)] == [
            (None, False),
            ("Ann", False),
            ("Ann", True),
        ]
        assert [each.more for each in ratings.marks(query, None)] == [False]
        assert ratings.marks(others[0]) == []
        assert ratings.count == 3
    assert [(each.positive, each.raters) for each in resolve(index).triplets] == [(others[1], ("Ann",))]
    set_mark(index, query, others[0], None, rater="Ann")
    assert resolve(index).triplets == ()
    assert len(stored(index)[1]) == 2


def test_what_cannot_be_rated(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = contents_of(index)
    one, other, third = contents[:3]
    wrong = [(one, one, other), (one, other, other), (one, other, b"x" * 32), (one, other, b"x"), (b"", one, other)]
    for triplet in wrong:
        with pytest.raises(QueryError, match=r"expected .*\."):
            add_comparisons(index, [NewComparison(one, other, third), NewComparison(*triplet)])
    for rater in ("x" * 101, "a\nb", "\udcff", "\u202e"):
        with pytest.raises(QueryError, match="expected a name"):
            rate(index, (0, 1, 2), rater=rater)
    with pytest.raises(QueryError, match="two pictures"):
        set_mark(index, one, one, True)
    monkeypatch.setattr("deeprank.runtime.index.ratings.writer.MAX_MARKS", 2)
    set_mark(index, one, other, True)
    set_mark(index, one, third, False)
    set_mark(index, one, third, True)  # the same one again
    with pytest.raises(QueryError, match="take one back"):
        set_mark(index, one, contents[3], True)
    assert MAX_MARKS > 2
    assert len(stored(index)[0]) == 0
    with pytest.raises(IndexStateError, match="does not exist"):
        rate_nothing(index.with_name("none"))
    assert not index.with_name("none").exists()
    with locked(index), pytest.raises(IndexLockedError):
        rate(index, (0, 1, 2))


def rate_nothing(index: Path) -> None:
    add_comparisons(index, [NewComparison(b"a" * 32, b"b" * 32, b"c" * 32)])


def test_a_reader_learns_of_new_ratings(index: Path) -> None:
    with RatingStore.open(index) as ratings:
        assert (ratings.version(), ratings.count) == (0, 0)
        rate(index, (0, 1, 2))
        first = ratings.version()
        assert first > 0
        assert ratings.version() == first
        assert ratings.count == 1
        rate(index, (0, 1, 2))
        assert ratings.version() > first


# -- crashes, full disks, others that write --------------------------------------------------------------------------

RATING = """
import sys
from deeprank.runtime.errors import IndexLockedError
from deeprank.runtime.index.ratings import NewComparison, add_comparisons
index, count, rater, *contents = sys.argv[1:]
comparison = NewComparison(*map(bytes.fromhex, contents))
for _ in range(int(count)):
    while True:
        try:
            print(*add_comparisons(index, [comparison], rater=rater), flush=True)
            break
        except IndexLockedError:
            pass
"""


def rating(index: Path, count: int, rater: str) -> subprocess.Popen[str]:
    """A process that rates, and prints each id once it is acknowledged."""
    contents = [content.hex() for content in contents_of(index)[:3]]
    words = [sys.executable, "-c", RATING, index, count, rater, *contents]
    return subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("after", [1, pytest.param(9, marks=pytest.mark.thorough)])
def test_killed_after_an_acknowledged_rating(index: Path, after: int) -> None:
    process = rating(index, 10_000, "Ann")
    acknowledged = [int(process.stdout.readline()) for _ in range(after)]
    process.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in process.stdout.read().splitlines()]
    process.wait()
    ids = [each.id for each in stored(index)[0]]
    assert ids[: len(acknowledged)] == acknowledged
    assert len(ids) - len(acknowledged) in (0, 1)  # the last one may have been written, but not acknowledged
    assert verify(index).problems == ()
    assert rate(index, (0, 1, 2)) == [len(ids) + 1]


@pytest.mark.skipif(os.name != "posix", reason="needs rollback journals as POSIX has them")
def test_a_transaction_that_was_cut_off_is_rolled_back(index: Path) -> None:
    """The files as a kill leaves them in the middle of a commit: pages half written, and their journal."""
    rate(index, *[(0, 1, 2)] * 300)
    before = stored(index)
    program = (
        "import os, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('PRAGMA cache_size = 1'); c.execute('BEGIN')\n"
        "c.execute('UPDATE comparisons SET time = time + 1')\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", program, index / "ratings.sqlite"], check=True)
    assert (index / "ratings.sqlite-journal").stat().st_size > 0
    assert stored(index) == before
    assert verify(index).problems == ()


def test_two_processes_rate_at_once(index: Path) -> None:
    processes = [rating(index, 12, rater) for rater in ("Ann", "Bo")]
    acknowledged = [[int(word) for word in process.communicate()[0].split()] for process in processes]
    assert sorted(itertools.chain(*acknowledged)) == list(range(1, 25))
    assert {(each.id, each.rater) for each in stored(index)[0]} == {
        (number, rater) for rater, ids in zip(("Ann", "Bo"), acknowledged, strict=True) for number in ids
    }


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files")
@pytest.mark.parametrize("first", [True, False])
def test_a_full_disk(index: Path, first: bool) -> None:
    if not first:
        rate(index, (0, 1, 2))
    before, rated = stored(index), contents_of(index)[:3]
    size = (index / "ratings.sqlite").stat().st_size if not first else 4096
    program = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size},) * 2)\n"
        "from deeprank.runtime.errors import IndexStateError\n"
        "from deeprank.runtime.index.ratings import NewComparison, add_comparisons\n"
        "one = NewComparison(*map(bytes.fromhex, sys.argv[2:]))\n"
        "try: add_comparisons(sys.argv[1], [one] * 5000)\n"
        "except IndexStateError as error: print(error)\n"
    )
    words = [sys.executable, "-c", program, index, *(content.hex() for content in rated)]
    said = subprocess.run([*map(str, words)], capture_output=True, text=True, check=True).stdout
    assert "space left on" in said or "disk is full" in said
    assert stored(index) == before
    assert verify(index).problems == ()
    assert sorted(path.name for path in index.iterdir() if "tmp" in path.name or "journal" in path.name) == []


@pytest.mark.thorough
def test_copies_while_others_rate(index: Path, tmp_path: Path) -> None:
    rate(index, (0, 1, 2))
    process = rating(index, 10_000, "Ann")
    try:
        process.stdout.readline()
        counts = [copy(index, tmp_path / f"copy{number}").ratings for number in range(3)]
    finally:
        process.kill()
        process.communicate()
    assert counts == sorted(counts)
    assert counts[-1] > 1
    for number, count in enumerate(counts):
        comparisons, _ = stored(tmp_path / f"copy{number}")
        assert comparisons == stored(index)[0][:count]
        assert verify(tmp_path / f"copy{number}").problems == ()


# -- what an index goes through ---------------------------------------------------------------------------------------


@pytest.fixture
def rated(made: Path, tmp_path: Path) -> Path:
    """An index with ratings, in a folder with its pictures and models."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    index = tmp_path / "index"
    sync(index, [tmp_path / "photos"], moved_roots=(f"{made / 'photos'}={tmp_path / 'photos'}",))
    rate(index, (0, 1, 2), (0, 3, 4), rater="Ann")
    set_mark(index, *contents_of(index)[:2], True)
    return index


def test_ratings_stay_through_maintenance(rated: Path) -> None:
    before = stored(rated)
    sync(rated, [rated.parent / "photos"])
    compact(rated)
    copy(rated, rated.with_name("other"))
    assert stored(rated) == stored(rated.with_name("other")) == before
    copy(rated, rated.with_name("other"), replace=True)
    reembed(rated, SyncOptions(model=write_model(rated.with_name("new.onnx"), seed=1), device="cpu"))
    assert stored(rated) == before
    assert (rated / "ratings.sqlite").stat().st_mode == (rated / "items.sqlite").stat().st_mode
    said = resolve(rated)
    assert (len(said.triplets), said.of_other_models) == (2, 2)
    assert verify(rated).problems == ()
    (rated / "ratings.sqlite").unlink()
    copy(rated, rated.with_name("other"), replace=True)
    assert not (rated.with_name("other") / "ratings.sqlite").exists()


def test_damaged_ratings_stop_re_embedding_before_the_work(rated: Path) -> None:
    damage(rated, "DELETE FROM comparisons")
    before = (rated / "items.sqlite").read_bytes()
    with pytest.raises(IndexDamagedError, match="no rating is read from it"):
        reembed(rated, SyncOptions(model=write_model(rated.with_name("new.onnx"), seed=1), device="cpu"))
    assert (rated / "items.sqlite").read_bytes() == before


@pytest.mark.parametrize("part", ["header", "rating"])
def test_a_repair_keeps_the_damaged_file(rated: Path, part: str) -> None:
    """Who flips the bit back has every rating again."""
    for number in ("", ".2", ".3"):
        database = rated / "ratings.sqlite"
        whole = database.read_bytes()
        place = 3 if part == "header" else whole.index(stored(rated)[0][0].negative)
        database.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
        damaged = database.read_bytes()
        assert verify(rated, repair=True).remaining == ()
        assert (rated / f"ratings.sqlite.damaged{number}").read_bytes() == damaged
        database.write_bytes(whole)


def test_a_clock_that_goes_back(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The later of two answers counts, whatever the clock says."""
    query, one, other, *_ = contents_of(index)
    for ahead, places in ((400 * 86_400, (0, 1, 2)), (0, (0, 2, 1))):
        monkeypatch.setattr("deeprank.runtime.index.ratings.writer.time.time", lambda by=ahead: 1_790_000_000.0 + by)
        rate(index, places)
    (triplet,) = resolve(index).triplets
    assert (triplet.positive, triplet.negative) == (other, one)
    for more in (True, False):
        set_mark(index, query, one, more)
        monkeypatch.setattr("deeprank.runtime.index.ratings.writer.time.time", lambda: 1_700_000_000.0)
    assert [mark.more for mark in stored(index)[1]] == [False]
    times = [each.time for ratings in stored(index) for each in ratings]
    assert times == sorted(times)


def test_the_commands_tell_of_ratings(rated: Path) -> None:
    document = json.loads(run_command("deeprank-index", "info", "--index", rated, "--json").stdout)
    assert document["ratings"] == {"comparisons": 2, "marks": 1}
    assert document["bytes"]["ratings.sqlite"] == (rated / "ratings.sqlite").stat().st_size
    assert "ratings    2 comparisons and 1 mark\n" in run_command("deeprank-index", "info", "--index", rated).stdout
    finding = ratings_finding(rated)
    assert (finding.check, finding.status, finding.found) == ("index ratings", "ok", "2 comparisons and 1 mark")
    said = run_command("deeprank-index", "copy", rated.with_name("other"), "--index", rated).stdout
    assert " and 3 ratings, " in said
    damage(rated, "UPDATE comparisons SET rater = 'Bo' WHERE id = 1")
    assert ratings_finding(rated).status == "ok"  # --thorough reads every row
    assert contents_finding(rated).status == "problem"
    said = run_command("deeprank-index", "verify", "--index", rated, status=1).stdout
    assert "damaged: ratings.sqlite: comparison 1 is damaged\n" in said
    said = run_command("deeprank-index", "verify", "--repair", "--index", rated).stdout
    assert "repaired: the sound ratings were kept: 2; the damaged file is ratings.sqlite.damaged now\n" in said
    assert "9 pictures" in run_command("deeprank-index", "verify", "--index", rated).stdout
    assert [each.id for each in stored(rated)[0]] == [2]


# -- databases that are not ours ---------------------------------------------------------------------------------------


def damage(index: Path, *statements: str) -> None:
    connection = sqlite3.connect(index / "ratings.sqlite", isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


STRANGE = {
    "view": ("CREATE VIEW mine AS SELECT 1",),
    "endless view": (
        "DROP TABLE marks",
        "CREATE VIEW marks AS WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) "
        "SELECT id, id query, id picture, 1 more, NULL rater, 1 time, '' model_sha256, 1 checksum FROM n",
    ),
    "trigger": ("CREATE TRIGGER mine AFTER INSERT ON marks BEGIN DELETE FROM comparisons; END",),
    "table": ("CREATE TABLE mine (a)",),
    "column": ("ALTER TABLE marks ADD COLUMN mine",),
    "no table": ("DROP TABLE pictures",),
    "index": ("CREATE INDEX mine ON comparisons (abs(time))",),
    "no number": ("PRAGMA user_version = 0",),
}
UNSOUND = {
    "rater": "UPDATE comparisons SET rater = 'Bo'",
    "text": "UPDATE comparisons SET query = 'text'",
    "huge": "UPDATE comparisons SET source = zeroblob(3000000)",
    "fewer": "DELETE FROM comparisons WHERE id = 1",
    "totals": "UPDATE totals SET comparisons = 99999999",
    "no totals": "DELETE FROM totals",
    "time": "UPDATE marks SET time = 9e18",
    "mark": "UPDATE marks SET more = 7",
    "path": "UPDATE pictures SET path = CAST('../../x' AS BLOB)",
}


@pytest.mark.parametrize("kind", [*STRANGE, *UNSOUND])
def test_a_hostile_database_is_refused_and_repaired(rated: Path, kind: str) -> None:
    damage(rated, *STRANGE.get(kind, ()), *([UNSOUND[kind]] if kind in UNSOUND else ()))
    before = (rated / "ratings.sqlite").read_bytes()
    with pytest.raises(IndexDamagedError, match="verify") as caught:
        read_all(rated)
    assert "\n" not in str(caught.value)
    with Index.open(rated) as opened:  # searches need no ratings
        assert len(opened) == 9
    if kind in STRANGE:
        assert (rated / "ratings.sqlite").read_bytes() == before
    assert {problem.part for problem in verify(rated).problems} == {"ratings"}
    assert verify(rated, repair=True).remaining == ()
    read_all(rated)
    assert rate(rated, (0, 1, 2)) == [4]  # whatever was lost, no id is used twice


def read_all(index: Path) -> None:
    resolve(index)
    with RatingStore.open(index) as ratings:
        ratings.pictures(contents_of(index))


def test_rows_with_right_checksums_must_be_possible(index: Path) -> None:
    one, other, third = contents_of(index)[:3]
    impossible = [
        Comparison(1, one, other, other, None, 1, MODEL, "question"),
        Comparison(1, one, other, third, None, -1, MODEL, "question"),
        Comparison(1, one, other, third, None, 1, "x", "question"),
        Comparison(1, one, other, third, "", 1, MODEL, "question"),
        Comparison(1, one, other, third, None, 1, MODEL, "other"),  # type: ignore[arg-type]
        Comparison(1, one, other, b"short", None, 1, MODEL, "question"),
        Mark(1, one, one, True, None, 1, MODEL),
        Mark(2**62, one, other, True, None, 1, MODEL),
    ]
    for rating_row in impossible:
        create_ratings(index, lambda writer, row=rating_row: writer.restore([row]))
        with pytest.raises(IndexDamagedError):
            stored(index)


def test_a_newer_schema_is_named(rated: Path) -> None:
    damage(rated, "PRAGMA user_version = 2")
    for call in (lambda: stored(rated), lambda: rate(rated, (0, 1, 2)), lambda: verify(rated, repair=True)):
        with pytest.raises(IndexStateError, match="has schema 2, newer than this version reads"):
            call()


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0" + bytes(8000), os.urandom(20_000)])
def test_a_file_that_is_no_database(rated: Path, content: bytes) -> None:
    (rated / "ratings.sqlite").write_bytes(content)
    for call in (lambda: stored(rated), lambda: rate(rated, (0, 1, 2))):
        with pytest.raises(IndexDamagedError, match="no rating is read from it"):
            call()
    assert verify(rated, repair=True).remaining == ()
    assert stored(rated) == ([], [])


@pytest.mark.thorough
def test_every_damaged_page_is_noticed(rated: Path) -> None:
    """Bytes of each page are overwritten: what is read then is what was written, or the damage is named."""
    rate(rated, *[(0, 1, 2), (3, 4, 5)] * 40, rater="Bo")
    whole, before = (rated / "ratings.sqlite").read_bytes(), stored(rated)
    noticed = 0
    for start in range(100, len(whole), 997):
        (rated / "ratings.sqlite").write_bytes(whole[:start] + b"\xa5" * 24 + whole[start + 24 :])
        try:
            assert stored(rated) == before
        except DeepRankError:
            noticed += 1
        assert verify(rated, repair=True).remaining == ()
        assert {each.id for each in stored(rated)[0]} <= {each.id for each in before[0]}
    assert noticed > len(whole) // 997 // 4


@pytest.mark.skipif(os.name != "posix", reason="needs links and pipes")
@pytest.mark.parametrize("name", ["ratings.sqlite", "ratings.sqlite-journal", "ratings.sqlite-wal"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_takes_the_place_of_ratings_is_refused(index: Path, tmp_path: Path, name: str, kind: str) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"kept")
    make = {"link": lambda path: path.symlink_to(victim), "pipe": os.mkfifo, "folder": Path.mkdir}[kind]
    make(index / name)
    for call in (lambda: stored(index), lambda: rate(index, (0, 1, 2)), lambda: Index.open(index)):
        with pytest.raises(IndexStateError, match=f"{name} is a {kind}; expected a file of the index itself"):
            call()
    assert victim.read_bytes() == b"kept"


def test_a_journal_that_names_another_file_is_refused(rated: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"kept")
    name, magic = os.fsencode(victim), bytes.fromhex("d9d505f920a163d7")
    tail = name + len(name).to_bytes(4) + sum(name).to_bytes(4) + magic
    (rated / "ratings.sqlite-journal").write_bytes(magic + bytes(504) + (2**31 - 1).to_bytes(4) + tail)
    with pytest.raises(IndexStateError, match="names another file, which SQLite would delete"):
        stored(rated)
    assert victim.read_bytes() == b"kept"


def test_a_log_from_elsewhere_does_no_harm(rated: Path) -> None:
    """Another program may have switched the database to a write-ahead log; the next rating ends that."""
    before = stored(rated)
    damage(rated, "PRAGMA journal_mode = WAL")
    assert stored(rated) == before
    rate(rated, (0, 1, 2))
    assert (rated / "ratings.sqlite").read_bytes()[18:20] == b"\1\1"  # the header's word for a rollback journal
    assert stored(rated)[0][:-1] == before[0]


def test_reading_while_another_thread_rates(index: Path) -> None:
    """A reader sees whole transactions alone."""
    rate(index, (0, 1, 2))
    ended = threading.Event()

    def read() -> Iterator[int]:
        while not ended.is_set():
            comparisons, _ = stored(index)
            yield len(comparisons)

    def write() -> None:
        for _ in range(8):
            rate(index, (0, 1, 2), (0, 2, 1), (1, 2, 3))
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    counts = list(read())
    writer.join()
    assert counts == sorted(counts)
    assert {count % 3 for count in counts} == {1}
