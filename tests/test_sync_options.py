"""Options of a sync: filters by patterns, moved roots, missing files that stay, and dry runs."""

import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import BIN, run_command
from PIL import Image
from tiny_model import (
    DIM,
    as_another_user,
    distances,
    open_the_way,
    write_model,
    write_picture,
    write_pictures,
)

from deeprank.runtime.errors import IndexDamagedError, IndexStateError, QueryError
from deeprank.runtime.index import Index
from deeprank.runtime.index.database.store import Store
from deeprank.runtime.index.info import index_info
from deeprank.runtime.index.maintenance.reembed import reembed
from deeprank.runtime.index.maintenance.verify import verify
from deeprank.runtime.index.patterns import Globs, RootFilters
from deeprank.runtime.index.root_labels import RootLabels
from deeprank.runtime.index.sync.dry_run import DryRun, dry_run
from deeprank.runtime.index.sync.options import SyncOptions
from deeprank.runtime.index.sync.presentation import dry_run_lines, sync_line
from deeprank.runtime.index.sync.sync import SyncReport, sync
from deeprank.runtime.index.walk import stable_mtime

GOLDEN = Path(__file__).parent / "golden"
NAMES = [f"{folder}/{i}.png" for folder in ("cats", "dogs", "raw", "cats/raw", "dogs/tmp") for i in range(6)]
AN_HOUR_AGO = time.time_ns() - 3_600_000_000_000


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.onnx")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for path in write_pictures(folder, NAMES):
        os.utime(path, ns=(AN_HOUR_AGO, AN_HOUR_AGO))
    return folder


@pytest.fixture
def index(tmp_path: Path, photos: Path, model: Path) -> Path:
    sync(tmp_path / "i", [photos], model=model)
    return tmp_path / "i"


def counts(report: SyncReport) -> tuple[int, int, int, int, int]:
    return report.added, report.updated, report.moved, report.removed, report.unchanged


def held(index: Path) -> dict[str, bytes]:
    """Return the content hash of each whole path."""
    with Store.open(index) as store:
        roots = store.roots()
        return {os.fsdecode(roots[item.root] + b"/" + item.path): item.sha256 for item in store.all_items()}


def names(index: Path, root: Path) -> list[str]:
    return sorted(os.path.relpath(path, root) for path in held(index))


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return everything that writing to a folder, or into it, changes."""
    return {
        str(p): (p.read_bytes() if p.is_file() else b"", p.stat().st_mtime_ns) for p in [folder, *folder.rglob("*")]
    }


def of_command(folder: Path, *words: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    return run_command("deeprank-index", *words, cwd=folder, status=status)


# --- patterns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("raw", ["raw", "raw/a.png", "x/raw/y/a.png"], ["raws/a.png", "a/draw.png", "Raw/a.png"]),
        ("*.png", ["a.png", "x/y/a.png", ".png", "a.png/b.jpg"], ["a.PNG", "a.png2", "png"]),
        ("x/*.png", ["x/a.png"], ["x/y/a.png", "y/x/a.png", "x/a.jpg"]),
        ("x/*", ["x/a.png", "x/y/a.png"], ["x", "y/x/a.png"]),
        ("/raw", ["raw/a.png"], ["x/raw/a.png"]),
        ("raw/", ["raw/a.png", "x/raw/a.png"], ["raw", "x/raw"]),
        ("x/**/a.png", ["x/a.png", "x/y/a.png", "x/y/z/a.png"], ["a.png", "y/x/a.png", "xa.png"]),
        ("**/x/*.png", ["x/a.png", "y/x/a.png"], ["x/y/a.png"]),
        ("x/**", ["x/a", "x/y/z"], ["x", "y/x/a"]),
        ("**", ["a", "a/b"], []),
        ("./x//a", ["x/a"], ["y/x/a"]),
        ("IMG_????.jpg", ["IMG_0001.jpg", "x/IMG_é漢é漢.jpg"], ["IMG_001.jpg", "IMG_/001.jpg"]),
        ("[ab-d]*", ["a1", "x/c", "d"], ["e", "-"]),
        ("[!ab]x", ["cx", "-x"], ["ax", "/x", "x"]),
        ("[]a]", ["]", "a"], ["b"]),
        ("a[", ["a["], ["a"]),
        ("[z-a]", [], ["z", "a", "m"]),
        ("x[+-9]y", ["x0y", "x+y"], ["x/y"]),
        ("[*]", ["*"], ["a"]),
        ("a.b+(c)", ["a.b+(c)"], ["aab+(c)"]),
        ("caf\udce9/?.png", ["caf\udce9/\udcff.png"], ["café/x.png"]),
        ("new\nline*", ["new\nline\n"], ["new"]),
    ],
)
def test_what_a_pattern_matches(pattern: str, matching: list[str], others: list[str]) -> None:
    globs = Globs([pattern])
    assert [path for path in matching if not globs.matches(os.fsencode(path))] == []
    assert [path for path in others if globs.matches(os.fsencode(path))] == []
    assert Globs(["nothing", pattern]).matches(os.fsencode(matching[0])) if matching else True


@pytest.mark.parametrize("pattern", ["", "/", ".", "./", "..", "../x", "x/../y", "a\0"])
def test_a_pattern_that_can_match_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(QueryError, match=r"matches no path; expected one"):
        Globs(["fine", pattern])


def name_matches(pattern: str, name: str) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(name_matches(pattern[1:], name[i:]) for i in range(len(name) + 1))
    return bool(name) and pattern[0] in ("?", name[0]) and name_matches(pattern[1:], name[1:])


def names_match(patterns: list[str], path: list[str]) -> bool:
    """Try everything: each ``**`` with any number of folders, each ``*`` with any part of a name."""
    if not patterns:
        return not path
    if patterns[0] == "**":
        if len(patterns) == 1:
            return bool(path)
        return any(names_match(patterns[1:], path[i:]) for i in range(len(path) + 1))
    return bool(path) and name_matches(patterns[0], path[0]) and names_match(patterns[1:], path[1:])


def plainly_matches(pattern: str, path: str, folder: bool = False) -> bool:
    """Tell by trial whether a path, or a folder that it lies in, matches a pattern of letters, ``*``, ``?``, ``**``."""
    parts = path.split("/")
    wanted = [part for part in pattern.split("/") if part]
    if "/" not in pattern.rstrip("/"):
        wanted = ["**", *wanted]
    ends = range(1, len(parts) + (1 if folder or not pattern.endswith("/") else 0))
    return any(names_match(wanted, parts[:end]) for end in ends)


def test_patterns_against_trying_everything() -> None:
    chance = random.Random(5)
    found = 0
    for _ in range(1500):
        parts = ["".join(chance.choices("ab*?", k=chance.randint(1, 5))) for _ in range(chance.randint(1, 4))]
        parts = ["**" if chance.random() < 0.2 else part for part in parts]
        pattern = chance.choice(["", "", "/"]) + "/".join(parts) + chance.choice(["", "", "/"])
        globs = Globs([pattern])
        for _ in range(12):
            path = "/".join("".join(chance.choices("ab", k=chance.randint(1, 5))) for _ in range(chance.randint(1, 4)))
            matches = globs.matches(path.encode())
            assert matches == plainly_matches(pattern, path), (pattern, path)
            assert globs.matches_folder(path.encode()) == plainly_matches(pattern, path, folder=True), (pattern, path)
            found += matches
    assert 1500 < found < 16500


def test_no_pattern_makes_matching_last() -> None:
    """Trying everything would take longer than the universe is old."""
    for pattern in ("*a" * 60 + "b", "**/" + "a*/**/" * 40 + "b", "*?" * 60 + "[!a]", "/".join(["*a*a*a"] * 12) + "/b"):
        globs = Globs([pattern])
        for path in ("a" * 250, "/".join(["a" * 120] * 30), "a/" * 2000 + "a"):
            assert not globs.matches(path.encode())


# --- filters ----------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_filters_are_remembered_replaced_and_forgotten(tmp_path: Path, photos: Path, model: Path) -> None:
    first = of_command(tmp_path, "sync", "photos", "--index", "i", "--exclude", "raw", "--exclude", "/dogs/tmp")
    assert first.stdout == (
        "12 added, 0 updated, 0 moved, 0 removed, 0 unchanged, 3 folders left out, 0 skipped: i holds 12 pictures\n"
    )
    assert "Filters of earlier syncs" not in first.stderr
    kept = [f"{folder}/{i}.png" for folder in ("cats", "dogs") for i in range(6)]
    assert names(tmp_path / "i", photos) == kept

    again = of_command(tmp_path, "sync", "photos", "--index", "i")
    assert "12 unchanged" in again.stdout
    assert again.stderr.splitlines()[1] + "\n" == (
        f"Filters of earlier syncs are used: --exclude raw --exclude /dogs/tmp ({photos}); --no-filters forgets them.\n"
    )

    replaced = json.loads(
        of_command(tmp_path, "sync", "photos", "--index", "i", "--include", "[0-2]*", "--json").stdout
    )
    assert (replaced["added"], replaced["removed"], replaced["unchanged"]) == (9, 6, 6)
    assert replaced["left_out"] == {"pictures": 15, "folders": 0}
    assert replaced["remarks"] == []
    assert names(tmp_path / "i", photos) == sorted(name for name in NAMES if name[-5] in "012")
    info = json.loads(of_command(tmp_path, "info", "--index", "i", "--json").stdout)
    assert info["filters"] == [{"path": str(photos), "include": ["[0-2]*"], "exclude": []}]
    assert info["database_schema"] == 3
    assert f"{photos}: 15 (--include '[0-2]*')" in of_command(tmp_path, "info", "--index", "i").stdout

    assert "15 added" in of_command(tmp_path, "sync", "photos", "--index", "i", "--no-filters").stdout
    plain = of_command(tmp_path, "sync", "photos", "--index", "i")
    assert ("30 unchanged" in plain.stdout, "Filters" in plain.stderr) == (True, False)
    assert json.loads(of_command(tmp_path, "info", "--index", "i", "--json").stdout)["filters"] == []
    assert verify(tmp_path / "i").problems == ()


def test_exclude_wins_and_include_is_for_files(tmp_path: Path, photos: Path, model: Path) -> None:
    (photos / "cats" / "0.png").rename(photos / "cats" / "0.PNG")
    filters = RootFilters(include=("cats", "tmp/", "dogs/5.png"), exclude=("*.PNG", "raw/[3-5].png", "cats/raw/0*"))
    sync(tmp_path / "i", [photos], model=model, filters=filters)
    expected_names = [f"cats/{i}.png" for i in range(1, 6)] + [f"cats/raw/{i}.png" for i in range(1, 6)]
    assert names(tmp_path / "i", photos) == sorted(
        [*expected_names, "dogs/5.png", *(f"dogs/tmp/{i}.png" for i in range(6))]
    )


def test_filters_are_those_of_one_root(tmp_path: Path, photos: Path, index: Path) -> None:
    other = tmp_path / "other"
    write_pictures(other, ["raw/x.png", "y.png"], 500)
    assert counts(sync(index, [other], filters=RootFilters(exclude=("raw",)))) == (1, 0, 0, 0, 0)
    assert counts(sync(index, [photos, other])) == (0, 0, 0, 0, 31)
    with Store.open(index) as store:
        assert store.filters() == {2: RootFilters(exclude=("raw",))}
    with_names = RootFilters(("caf\udce9", "a'b\n"), ("*.png",))
    write_picture(os.fsencode(other) + b"/caf\xe9/1.jpg", 77)
    sync(index, [other], filters=with_names, allow_mass_removal=True)
    with Store.open(index) as store:
        assert store.filters() == {2: with_names}
    assert names(index, other)[-1] != "y.png"
    assert "\\xe9" in of_command(tmp_path, "info", "--index", "i").stdout


def test_what_filters_leave_out_is_removed_without_a_guard(photos: Path, index: Path) -> None:
    report = sync(index, [photos], filters=RootFilters(exclude=("raw", "dogs")))
    assert (report.removed, report.unchanged, report.items) == (24, 6, 6)
    assert verify(index).problems == ()
    for path in sorted((photos / "cats").glob("*.png")):
        path.unlink()
    with pytest.raises(IndexStateError, match=r"leaves no picture|holds no pictures"):
        sync(index, [photos])


def test_filters_that_leave_nothing_are_refused(tmp_path: Path, photos: Path, index: Path, model: Path) -> None:
    before = held(index)
    for filters in (RootFilters(("*.jpeg",)), RootFilters((), ("*",)), RootFilters(("raw",), ("raw",))):
        with pytest.raises(IndexStateError, match=r"leaves no picture of .*, though 30 of the index come from there"):
            sync(index, [photos], filters=filters)
        with pytest.raises(IndexStateError, match=r"leaves no picture of [^,]*\. Nothing"):
            sync(tmp_path / "new", [photos], filters=filters, model=model)
    assert held(index) == before
    assert not (tmp_path / "new").exists()
    with Store.open(index) as store:
        assert store.filters() == {}
    assert sync(index, [photos], filters=RootFilters(("*.jpeg",)), allow_mass_removal=True).removed == 30


def test_an_unmounted_drive_is_noticed_with_filters_too(photos: Path, index: Path) -> None:
    sync(index, [photos], filters=RootFilters(exclude=("raw",)))
    for path in sorted(photos.rglob("*.png")):
        path.unlink()
    shutil.rmtree(photos / "cats" / "raw")
    shutil.rmtree(photos / "raw")
    with pytest.raises(IndexStateError, match="is a drive not mounted"):
        sync(index, [photos])


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["photos", "--exclude", ""], 1, "The pattern '' matches no path"),
        (["photos", "--include", "../*"], 1, "The pattern '../*' matches no path"),
        (["photos", "--no-filters", "--include", "x"], 2, "--no-filters excludes --include"),
        (["--reembed", "--exclude", "x"], 2, "--reembed goes with --model alone"),
        (["--reembed", "--dry-run"], 2, "--reembed goes with --model alone"),
        ([], 2, "name at least one folder"),
        (["--root", "photos=photos"], 1, "expected OLD=NEW, where OLD is one, but the index has none"),
    ],
)
def test_wrong_usage(tmp_path: Path, photos: Path, words: list[str], status: int, message: str) -> None:
    result = of_command(tmp_path, "sync", *words, status=status)
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "deeprank.index").exists()


def test_reembedding_keeps_the_filters(tmp_path: Path, photos: Path, index: Path) -> None:
    filters = RootFilters(exclude=("raw",))
    sync(index, [photos], filters=filters)
    report = reembed(index, SyncOptions(model=write_model(tmp_path / "other.onnx", seed=1)))
    assert report.added == 18
    with Store.open(index) as store:
        assert store.filters() == {1: filters}


def damage(index: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(index / "items.sqlite") as database:
        database.execute(statement, values)
    database.close()


@pytest.mark.parametrize(
    "statement",
    [
        """UPDATE filters SET exclude = '["law"]'""",
        "UPDATE filters SET checksum = checksum + 1",
        "UPDATE filters SET root = 7",
        "UPDATE filters SET include = x'00'",
    ],
)
def test_damaged_filters_are_found_and_dropped(index: Path, photos: Path, statement: str) -> None:
    sync(index, [photos], filters=RootFilters(exclude=("raw",)))
    damage(index, statement)
    with pytest.raises(IndexDamagedError, match="filters"):
        sync(index, [photos])
    (problem,) = verify(index).problems
    assert problem.part == "filters"
    assert "filters of folder" in problem.fault
    with Index.open(index) as opened:  # a search needs no filters
        assert len(opened.search(photos / "cats" / "0.png", 30)) == 18
    report = verify(index, repair=True)
    assert any("give --include and --exclude again" in done for done in report.repaired)
    assert report.remaining == ()
    assert verify(index).problems == ()
    assert len(held(index)) == 18
    assert counts(sync(index, [photos])) == (12, 0, 0, 0, 18)


def test_a_repair_keeps_sound_filters(index: Path, photos: Path) -> None:
    filters = RootFilters(("*.png",), ("raw",))
    sync(index, [photos], filters=filters)
    damage(index, "UPDATE items SET size = size + 1 WHERE id = 3")
    verify(index, repair=True)
    with Store.open(index) as store:
        assert store.filters() == {1: filters}
    assert counts(sync(index, [photos])) == (1, 0, 0, 0, 17)


def test_a_root_that_is_taken_out_takes_its_filters_along(tmp_path: Path, index: Path, photos: Path) -> None:
    sync(index, [photos], filters=RootFilters(exclude=("raw",)))
    of_command(tmp_path, "remove", "--root", "photos", "--yes", "--index", "i")
    assert sync(index, [photos]).added == 30


def test_links_to_folders_with_filters(tmp_path: Path, photos: Path, index: Path) -> None:
    (photos / "link").symlink_to(photos / "raw")
    (photos / "loop").symlink_to(photos)
    assert counts(sync(index, [photos], filters=RootFilters(exclude=("/raw", "loop")))) == (6, 0, 0, 6, 24)
    assert names(index, photos) == sorted(name.replace("raw/", "link/") if name[0] == "r" else name for name in NAMES)
    assert counts(sync(index, [photos], filters=RootFilters())) == (0, 0, 6, 0, 24)


# --- schemas ----------------------------------------------------------------------------------------------------------


def golden(folder: Path, schema: int) -> Path:
    shutil.copytree(GOLDEN / f"index-schema-{schema}", folder)
    (folder / "model.bin").rename(folder / "model.onnx")
    return folder


@pytest.mark.parametrize("schema", [2, 3])
def test_an_index_of_each_schema_still_opens(tmp_path: Path, schema: int) -> None:
    folder = golden(tmp_path / "i", schema)
    assert verify(folder).problems == ()
    query = np.random.default_rng(0).normal(size=DIM).astype(np.float32)
    with Index.open(folder) as opened:
        for method in ("exact", "hnsw"):
            hits = opened.search(query / np.linalg.norm(query), 3, method=method)  # type: ignore[arg-type]
            assert [(hit.id, hit.relative, hit.label) for hit in hits] == [
                (4, "a/3.png", "a"), (7, "b/2.png", "b"), (9, "b/4.png", "b"),
            ]  # fmt: skip
            np.testing.assert_allclose(
                [hit.distance for hit in hits], [1.221515155406162, 1.4460980449796654, 1.4843791221395908], atol=1e-6
            )
        assert opened.remarks == []
    with Store.open(folder) as store:
        assert store.roots() == {1: b"/nowhere/one=\xff", 2: b"/nowhere/two"}
        assert store.filters() == {1: RootFilters(("*.png", "caf\udce9/"), ("raw", "a/[45]*"))}
        assert store.labelling() == ({1: RootLabels("path")} if schema == 3 else {})
        assert {item.decoding for item in store.all_items()} == {schema - 1}
        assert [each.short for each in store.unread(1).values()] == (["not a picture"] if schema == 3 else [])


def test_schema_1_is_read_as_it_is_and_migrated_by_a_writer(tmp_path: Path) -> None:
    folder = golden(tmp_path / "i", 1)
    before = state(folder)
    info = index_info(folder)
    assert (info.schema, info.items, info.filters) == (1, 14, {})
    assert verify(folder).problems == ()
    found = dry_run(folder, ["/tmp/golden-photos"], SyncOptions(keep_missing=True))
    assert len(found.kept) == 14
    assert state(folder) == before

    old, new = os.fsdecode(next(iter(index_info(folder).roots))), tmp_path / "here"
    write_pictures(new, ["new.png"])
    report = sync(folder, [], moved_roots=[f"{old}={new}"], keep_missing=True, filters=RootFilters(exclude=("raw",)))
    assert (report.kept, report.added) == (14, 1)
    info = index_info(folder)
    assert (info.schema, info.items, info.roots) == (3, 15, {str(new): 15})
    assert verify(folder).problems == ()
    with Store.open(folder) as store:
        assert store.filters() == {1: RootFilters(exclude=("raw",))}


def test_a_schema_1_index_may_be_read_only(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    folder = golden(tmp_path / "i", 1)
    open_the_way(tmp_path)
    write_pictures(tmp_path / "p", ["a.png"])
    result = as_another_user(
        f"print(len(Index.open({str(folder)!r}).search({str(tmp_path / 'p' / 'a.png')!r}, 30)))\n"
        f"print(len(dry_run({str(folder)!r}, [{str(tmp_path / 'p')!r}]).added))"
    )
    assert result.stdout.split() == ["14", "1"], result.stderr


# --- missing files ----------------------------------------------------------------------------------------------------


def test_missing_files_may_stay(tmp_path: Path, photos: Path, index: Path) -> None:
    ids = {path: number for number, path in rows(index, "id, path")}
    shutil.rmtree(photos / "cats")
    shutil.rmtree(photos / "raw")
    (photos / "dogs" / "0.png").rename(photos / "moved.png")
    said = of_command(tmp_path, "sync", "photos", "--index", "i", "--keep-missing").stdout
    assert said == ("0 added, 0 updated, 1 moved, 0 removed, 18 kept, 11 unchanged, 0 skipped: i holds 30 pictures\n")
    after = {path: number for number, path in rows(index, "id, path")}
    assert after.pop(b"moved.png") == ids.pop(b"dogs/0.png")
    assert after == ids
    write_picture(photos / "cats" / "0.png", 0)  # it comes back
    assert counts(sync(index, [photos], keep_missing=True))[2:] == (0, 0, 13)
    photos.rename(tmp_path / "away")
    report = sync(index, [photos], keep_missing=True)
    assert (report.kept, report.items) == (30, 30)
    (tmp_path / "away").rename(photos)
    assert sync(index, [photos], allow_mass_removal=True).removed == 17
    assert verify(index).problems == ()


def test_an_empty_new_folder_is_refused_all_the_same(tmp_path: Path, index: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(IndexStateError, match="no pictures"):
        sync(index, [tmp_path / "empty"], keep_missing=True)
    with pytest.raises(IndexStateError, match=r"does not exist; expected a folder of pictures\.$"):
        sync(index, [tmp_path / "nowhere"], keep_missing=True, allow_mass_removal=True)


def rows(index: Path, columns: str) -> list[tuple]:
    with sqlite3.connect(index / "items.sqlite") as database:
        found = database.execute(f"SELECT {columns} FROM items ORDER BY id").fetchall()
    database.close()
    return found


# --- moved folders ----------------------------------------------------------------------------------------------------


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pictures in each batch that the network is given."""
    from deeprank.runtime.embedder import Embedder

    batches: list[int] = []
    embed_batch = Embedder.embed_batch

    def counting(self: Embedder, pictures: np.ndarray) -> np.ndarray:
        batches.append(len(pictures))
        return embed_batch(self, pictures)

    monkeypatch.setattr(Embedder, "embed_batch", counting)
    return batches


@pytest.mark.parametrize("times", ["kept", "lost"])
def test_a_root_that_has_moved(tmp_path: Path, photos: Path, index: Path, embedded: list[int], times: str) -> None:
    before = rows(index, "id, path, sha256, vector")
    filters = RootFilters(exclude=("none.*",))
    sync(index, [photos], filters=filters)
    new = tmp_path / "new=place\udcff"
    photos.rename(new)
    if times == "lost":
        for path in new.rglob("*.png"):
            os.utime(path, ns=(AN_HOUR_AGO + 5, AN_HOUR_AGO + 5))
    report = sync(index, [], moved_roots=[f"{photos}={new}"])
    assert counts(report) == (0, 0, 0, 0, 30)
    assert embedded == []
    assert rows(index, "id, path, sha256, vector") == before
    assert verify(index).problems == ()
    with Store.open(index) as store:
        assert store.roots() == {1: os.fsencode(new)}
        assert store.filters() == {1: filters}
    with Index.open(index) as opened:
        (hit,) = opened.search(new / "cats" / "0.png", 1)
        assert (hit.path, hit.distance) == (str(new / "cats" / "0.png"), 0)
    write_picture(new / "more.png", 900)
    write_pictures(tmp_path / "others", ["a.png"], 800)
    new.rename(photos)
    assert counts(sync(index, [tmp_path / "others"], moved_roots=[f"{new}={photos}"])) == (2, 0, 0, 0, 30)
    assert index_info(index).roots == {str(photos): 31, str(tmp_path / "others"): 1}


def test_roots_that_change_places(tmp_path: Path, index: Path, photos: Path) -> None:
    other = tmp_path / "other"
    write_pictures(other, ["x.png", "y.png"], 600)
    sync(index, [other])
    photos.rename(tmp_path / "between")
    other.rename(photos)
    (tmp_path / "between").rename(other)
    report = sync(index, [], moved_roots=[f"{photos}={other}", f"{other}={photos}"])
    assert counts(report) == (0, 0, 0, 0, 32)
    with Store.open(index) as store:
        assert store.roots() == {1: os.fsencode(other), 2: os.fsencode(photos)}
    assert verify(index).problems == ()


def test_what_a_moved_root_may_not_be(tmp_path: Path, index: Path, photos: Path) -> None:
    other, few = tmp_path / "other", tmp_path / "few"
    write_pictures(other, ["x.png", "in/y.png"], 600)
    write_pictures(few, ["cats/0.png", "cats/1.png"])
    sync(index, [other])
    before = held(index)
    for moved, message in (
        ([f"{few}={other}"], rf"begins with no folder of the index; expected .* where OLD is {photos} or {other}"),
        (["nonsense"], "begins with no folder of the index"),
        ([f"{photos}={tmp_path / 'nowhere'}"], "nowhere is not a folder; expected the new place of"),
        ([f"{photos}="], r"\(no name\) is not a folder"),
        ([f"{photos}={tmp_path / 'model.onnx'}"], "model.onnx is not a folder"),
        ([f"{photos}={other}"], "is already a folder of the index"),
        ([f"{photos}={other / 'in'}"], "lies inside"),
        ([f"{photos}={tmp_path}"], "synced separately"),
        ([f"{photos}={few}", f"{photos}={few}"], "names a folder that another --root names"),
        ([f"{photos}={few}"], r"has lost 28 of its 30 pictures"),
        ([f"{other}={few}"], r"holds none of the 2 pictures of .*other.*right folder"),
    ):
        with pytest.raises(IndexStateError, match=message):
            sync(index, [], moved_roots=moved)
    assert held(index) == before
    assert sync(index, [], moved_roots=[f"{photos}={few}"], allow_mass_removal=True).removed == 28
    assert names(index, few) == ["../other/in/y.png", "../other/x.png", "cats/0.png", "cats/1.png"]


def test_equals_signs_in_names(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, first in (("a", 0), ("a=b", 10)):
        write_pictures(tmp_path / name, ["x.png"], first)
    sync("i", ["a", "a=b"], model=model)
    (tmp_path / "a=b").rename(tmp_path / "c")
    assert counts(sync("i", [], moved_roots=["a=b=c"])) == (0, 0, 0, 0, 1)  # there is no folder called "b=c"
    (tmp_path / "c").rename(tmp_path / "a=b")
    assert counts(sync("i", [], moved_roots=["c=a=b"])) == (0, 0, 0, 0, 1)
    shutil.copytree("a", "b=c")
    shutil.copytree("a=b", "c")
    with pytest.raises(IndexStateError, match="can be read in 2 ways"):
        sync("i", [], moved_roots=["a=b=c"])


# --- dry runs ---------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_a_sync_then_does(tmp_path: Path, photos: Path, index: Path) -> None:
    write_picture(photos / "cats" / "0.png", 900, (40, 30))
    write_picture(photos / "new\n.png", 901)
    (photos / "cats" / "1.png").rename(photos / "renamed.png")
    (photos / "cats" / "2.png").unlink()
    os.utime(photos / "cats" / "3.png")
    (photos / "empty.txt").touch()
    before = state(index)
    words = ("sync", "photos", "--index", "i", "--exclude", "tmp")
    told = of_command(tmp_path, *words, "--dry-run")
    assert told.stdout.splitlines() == [
        f"would add {photos}/new\\n.png",
        f"would update {photos}/cats/0.png",
        f"would move {photos}/cats/1.png to {photos}/renamed.png",
        f"would remove {photos}/cats/2.png",
        *(f"would remove {photos}/dogs/tmp/{i}.png" for i in range(6)),
        "1 would be added, 1 updated, 1 moved, 7 removed, 21 unchanged, 1 folder left out, 0 skipped: "
        "i would hold 24 pictures",
    ]
    assert told.stderr == ("photos: 3 labels from its top folders (cats … raw)\nleft alone, by extension: 1 .txt\n")
    document = json.loads(of_command(tmp_path, *words, "--dry-run", "--json").stdout)
    assert document["dry_run"] is True
    assert document["moved"] == [{"from": f"{photos}/cats/1.png", "to": f"{photos}/renamed.png"}]
    assert (document["added"], document["items"]) == ([f"{photos}/new\n.png"], 24)
    assert state(index) == before

    done = json.loads(of_command(tmp_path, *words, "--json").stdout)
    assert done["dry_run"] is False
    for key in ("added", "updated", "moved", "removed", "kept"):
        assert done[key] == len(document[key])
    for key in ("items", "unchanged", "left_out", "skipped", "unknown_extensions"):
        assert done[key] == document[key]


def test_a_dry_run_of_a_new_index_makes_nothing(tmp_path: Path, photos: Path, model: Path) -> None:
    told = of_command(tmp_path, "sync", "photos", "--index", "deep/er.index", "--dry-run")
    assert told.stdout.splitlines()[19:] == [
        "would add " + str(photos / sorted(NAMES)[19]),
        "would add 10 others (--json lists them all)",
        "30 would be added, 0 updated, 0 moved, 0 removed, 0 unchanged, 0 skipped: "
        "deep/er.index would hold 30 pictures",
    ]
    assert told.stderr.splitlines() == [
        "photos: 3 labels from its top folders (cats … raw); --labels leaf: 4",
        "The new index deep/er.index would use the model model.onnx.",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "photos"]
    failed = of_command(tmp_path, "sync", "photos", "--dry-run", "--model", "nowhere.onnx", status=1)
    assert "nowhere.onnx" in failed.stderr
    in_use = of_command(tmp_path, "sync", "photos", "--index", "photos", "--dry-run", status=1)
    assert "photos holds other files" in in_use.stderr


def test_a_dry_run_refuses_what_a_sync_refuses(tmp_path: Path, photos: Path, index: Path) -> None:
    other = write_model(tmp_path / "other.onnx", seed=3)
    for path in sorted(photos.rglob("*.png"))[:20]:
        path.unlink()
    before = state(index)
    for options in ({}, {"model": other}, {"filters": RootFilters((), ("*",))}, {"moved_roots": ["x=y"]}):
        with pytest.raises(IndexStateError) as refused:
            sync(index, [photos], **options)  # type: ignore[arg-type]
        before = state(index)
        with pytest.raises(IndexStateError) as also:
            dry_run(index, [photos], SyncOptions(**options))  # type: ignore[arg-type]
        assert str(also.value) == str(refused.value)
        assert state(index) == before
    assert len(dry_run(index, [photos], SyncOptions(allow_mass_removal=True)).removed) == 20
    assert len(dry_run(index, [photos], SyncOptions(keep_missing=True)).kept) == 20
    assert state(index) == before


# --- skipped files ----------------------------------------------------------------------------------------------------


def test_the_summary_says_why_files_were_skipped(tmp_path: Path, model: Path) -> None:
    photos = tmp_path / "p is damaged"
    paths = write_pictures(photos, ["a.png", "b.png", "c.png"])
    for path in paths[1:]:
        path.write_bytes(path.read_bytes()[:200])
    (photos / "text.jpg").write_text("no picture")
    (photos / "gone.png").symlink_to(photos / "nowhere.png")
    Image.new("1", (400, 400)).save(photos / "large.png")
    np_float = Image.fromarray(np.ones((4, 4), dtype=np.float32))
    np_float.save(photos / "float.tiff")
    report = sync(tmp_path / "i", [photos], model=model, max_pixels=100_000)
    line = sync_line(str(tmp_path / "i"), report)
    assert "6 skipped (2 damaged, " in line
    found = set(line.split("(")[1].split(")")[0].split(", "))
    assert found == {"2 damaged", "1 no pictures", "1 too large", "1 unreadable", "1 unsupported"}


# --- times of change --------------------------------------------------------------------------------------------------


def test_times_that_may_hide_a_change() -> None:
    second = 1_000_000_000
    now = 1_700_000_000 * second
    for mtime, hides in (
        (now, True), (now - second, True), (now - 2 * second, False), (now + second, True), (now + 60 * second, False),
        (now - 5_000_001, True), (now - 10_000_001, False), (now - 999_999_999, False), (now + 30_000_001, False),
    ):  # fmt: skip
        assert stable_mtime(mtime, now) == mtime - hides


def test_a_change_within_one_tick_of_a_coarse_clock(
    tmp_path: Path, photos: Path, index: Path, embedded: list[int]
) -> None:
    """The same size and the same time, as a file system may give them that counts in seconds."""
    path = photos / "cats" / "0.png"
    contents = [Path(path).read_bytes()]
    for seed in range(900, 1000):
        write_picture(path, seed)
        if path.stat().st_size == len(contents[0]):
            contents.append(path.read_bytes())
    tick = (time.time_ns() // 1_000_000_000 + 1) * 1_000_000_000
    for content in contents[1:3]:
        path.write_bytes(content)
        os.utime(path, ns=(tick, tick))
        assert counts(sync(index, [photos])) == (0, 1, 0, 0, 29)
    assert held(index)[str(path)] == hashlib.sha256(contents[2]).digest()
    embedded.clear()
    assert counts(sync(index, [photos])) == (0, 0, 0, 0, 30)
    assert embedded == []


# --- ends -------------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_terminated_sync_keeps_what_is_done(tmp_path: Path, model: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (1500, 1500)).save(tmp_path / "large.png")
    content = (tmp_path / "large.png").read_bytes()
    for i in range(700):
        (photos / f"{i:03}.png").write_bytes(content + b"%d" % i)
    process = subprocess.Popen(
        [BIN / "deeprank-index", "sync", "photos", "--index", "i"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "i" / "items.sqlite-wal"
    while not (log.exists() and log.stat().st_size) and process.poll() is None:  # until the first commit
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert "interrupted; finished embeddings are kept" in process.communicate()[1]
    assert process.returncode == 143
    assert verify(tmp_path / "i").problems == ()
    done = len(held(tmp_path / "i"))
    assert 0 < done < 700
    for path in sorted(photos.iterdir())[done + 3 :]:
        path.unlink()
    assert counts(sync(tmp_path / "i", [photos])) == (3, 0, 0, 0, done)


# --- everything together ----------------------------------------------------------------------------------------------


class Walk:
    """Random changes to two folders, and what an index of them must hold, by plain means."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.roots = [folder / "one", folder / "two"]
        self.filters = [RootFilters(), RootFilters()]
        self.seeds = iter(range(10_000 * seed, 10_000 * (seed + 1)))
        self.folder = folder
        for root in self.roots:
            for _ in range(12):
                self.add(root)

    def pictures(self, root: Path) -> list[Path]:
        return sorted(path for path in root.rglob("*.png") if not path.is_symlink())

    def a_name(self, root: Path) -> Path:
        folders = self.chance.choice(["", "a", "b", "raw", "a/raw", "b/tmp", "caf\udce9"])
        return root / folders / f"{self.chance.choice('xyz')}{self.chance.randrange(10_000)}.png"

    def add(self, root: Path) -> None:
        write_picture(os.fsencode(self.a_name(root)), next(self.seeds))

    def change(self) -> None:
        root = self.chance.choice(self.roots)
        files = self.pictures(root)
        action = self.chance.choice(["add", "edit", "move", "move", "across", "delete", "touch", "copy", "swap"])
        if action == "add" or len(files) < 8:
            return self.add(root)
        path = self.chance.choice(files)
        target = self.a_name(root if action != "across" else self.chance.choice(self.roots))
        target.parent.mkdir(parents=True, exist_ok=True)
        if action == "edit":
            write_picture(path, next(self.seeds))
        elif action in ("move", "across"):
            path.rename(target)
        elif action == "delete":
            path.unlink()
        elif action == "touch":
            os.utime(path, ns=(AN_HOUR_AGO, AN_HOUR_AGO + self.chance.randrange(10**6)))
        elif action == "copy":
            shutil.copy(path, target)
        else:
            other = self.chance.choice(files)
            contents = path.read_bytes(), other.read_bytes()
            path.write_bytes(contents[1])
            other.write_bytes(contents[0])
        return None

    def options(self) -> dict:
        """Choose how the next sync is done: filters now and then, or a folder that has moved."""
        choice = self.chance.random()
        if choice < 0.4:
            patterns = ["raw", "/raw", "b/*", "**/x*", "[yz]*.png", "a/**/z*", "tmp/", "*[0-4].png"]
            exclude = tuple(self.chance.sample(patterns, self.chance.randrange(3)))
            filters = RootFilters(("*.png", "raw") if self.chance.random() < 0.3 else (), exclude)
            self.filters = [filters, filters]
            return {"filters": filters}
        if choice < 0.55:
            place = self.chance.randrange(2)
            old, new = self.roots[place], self.folder / f"at={next(self.seeds)}"
            old.rename(new)
            self.roots[place] = new
            return {"moved_roots": [f"{old}={new}"]}
        return {}

    def expected(self) -> dict[str, bytes]:
        found = {}
        for root, filters in zip(self.roots, self.filters, strict=True):
            for path in self.pictures(root):
                relative = str(path.relative_to(root))
                included = not filters.include or any(plainly(p, relative) for p in filters.include)
                if included and not any(plainly(p, relative) for p in filters.exclude):
                    found[str(path)] = hashlib.sha256(path.read_bytes()).digest()
        return found


CLASSES = {"[yz]*.png": ("y*.png", "z*.png"), "*[0-4].png": tuple(f"*{i}.png" for i in range(5))}


def plainly(pattern: str, path: str) -> bool:
    return any(plainly_matches(one, path) for one in CLASSES.get(pattern, (pattern,)))


def same_counts(found: DryRun, report: SyncReport) -> bool:
    told = (len(found.added), len(found.updated), len(found.moved), len(found.removed), found.unchanged)
    return told == counts(report) and found.items == report.items and found.left_out == report.left_out


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_changes_against_a_plain_account_and_a_new_index(tmp_path: Path, model: Path, seed: int) -> None:
    walk = Walk(tmp_path, seed)
    index = tmp_path / "i"
    sync(index, walk.roots, model=model)
    for round_ in range(10):
        for _ in range(walk.chance.randrange(1, 12)):
            walk.change()
        options = {**walk.options(), "allow_mass_removal": True}
        before = state(index)
        told = dry_run(index, walk.roots, SyncOptions(**options))
        assert state(index) == before
        report = sync(index, walk.roots, **options)
        assert same_counts(told, report), (told, report)
        assert list(dry_run_lines(index, told))[-1].endswith(f"would hold {report.items} pictures")
        assert held(index) == walk.expected()
        assert counts(sync(index, walk.roots, allow_mass_removal=True)) == (0, 0, 0, 0, report.items)
        if round_ % 5 == 4 and report.items:
            compared_with_a_new_one(index, walk, tmp_path / f"new{round_}", model)


def compared_with_a_new_one(index: Path, walk: Walk, fresh: Path, model: Path) -> None:
    for root, filters in zip(walk.roots, walk.filters, strict=True):
        sync(fresh, [root], model=model, filters=filters, allow_mass_removal=True)
    assert verify(index).problems == verify(fresh).problems == ()
    of_both = [
        {(path, size, bytes(sha), vector) for path, size, sha, vector in rows(folder, "path, size, sha256, vector")}
        for folder in (index, fresh)
    ]
    assert of_both[0] == of_both[1]
    paths = sorted(held(index))
    hits = {}
    with Index.open(index) as opened:
        for hit in opened.search(paths[0], len(paths), method="exact"):
            hits[hit.path] = hit.distance
    np.testing.assert_allclose([hits[path] for path in paths], distances(paths[0], paths), atol=1e-5)
