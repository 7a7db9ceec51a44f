"""``deeprank-eval --models``, and measured speeds, against plain loops over vectors made without our code."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import MainLine, run_command
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import expected, square, write_model, write_pictures

from deeprank.runtime import pretrained_model
from deeprank.runtime.evaluate.comparison import distinct_names
from deeprank.runtime.evaluate.speed import Speed, measure_speeds
from deeprank.runtime.modelfile import METADATA_KEY
from deeprank.runtime.text import display_width, markdown_table, printable

LABELS = ("cats", "dogs", "owls")
K = 4


# -- the oracle ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """A data set on disk, and where its pictures are."""

    folder: Path
    queries: list[Path]
    gallery: list[Path]

    def run(self, *words: object, status: int = 0):
        return run_command("deeprank-eval", *words, "--data", "data", "--k", K, cwd=self.folder, status=status)

    def rows(self, *words: object) -> list[dict]:
        return json.loads(self.run("--models", *words, "--json").stdout)["models"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    names = [f"{label}/{number}.png" for label in LABELS for number in range(8)]
    gallery = write_pictures(folder / "data" / "train", names)
    queries = write_pictures(folder / "data" / "val", names[::2], first_seed=100)
    write_model(folder / "a.onnx", seed=1)
    write_model(folder / "b.onnx", seed=2)
    write_model(folder / "wide.onnx", seed=1, size=12, dim=40)
    return World(folder, queries, gallery)


@dataclass(frozen=True)
class Ranked:
    """What a model makes of the pictures; ``order``: the gallery pictures of each query, nearest first."""

    vectors: np.ndarray
    order: list[list[int]]


def ranked(world: World, vectors: Callable[[list[Path]], np.ndarray]) -> Ranked:
    queries, gallery = vectors(world.queries), vectors(world.gallery)
    far = [[float(((q - g) ** 2).sum()) for g in gallery] for q in queries]
    order = [sorted(range(len(gallery)), key=row.__getitem__) for row in far]
    return Ranked(np.concatenate([queries, gallery]), order)


def by_tiny(seed: int, size: int = 8, dim: int = 16) -> Callable[[list[Path]], np.ndarray]:
    return lambda paths: expected(np.stack([square(path, size) for path in paths]), seed, dim)


def figures(world: World, model: Ranked, k: int = K) -> dict[str, float]:
    precisions, firsts, averages = [], [], []
    for query, order in zip(world.queries, model.order, strict=True):
        right = [world.gallery[place].parent.name == query.parent.name for place in order]
        precisions.append(sum(right[:k]) / k)
        firsts.append(right[0])
        relevant = sum(right)
        averages.append(sum(sum(right[: i + 1]) / (i + 1) for i in range(relevant) if right[i]) / relevant)
    return {"precision": np.mean(precisions), "recall_at_1": np.mean(firsts), "map_at_r": np.mean(averages)}


def overlap(found: Ranked, first: Ranked, k: int = K) -> float:
    return float(np.mean([len({*a[:k]} & {*b[:k]}) / k for a, b in zip(found.order, first.order, strict=True)]))


def check_row(row: dict, world: World, model: Ranked) -> None:
    wanted = figures(world, model)
    # On a gallery of this size the graph finds what a scan finds.
    assert row["precision_at_k"] == pytest.approx({"exact": wanted["precision"], "hnsw": wanted["precision"]})
    assert row["recall_at_1"] == pytest.approx(wanted["recall_at_1"])
    assert row["map_at_r"] == pytest.approx(wanted["map_at_r"])


# -- the command -----------------------------------------------------------------------------------------------------


def test_figures_against_plain_loops(world: World) -> None:
    document = json.loads(world.run("--models", "a.onnx", "b.onnx", "wide.onnx", "--json").stdout)
    assert {key: document[key] for key in ("schema", "k", "queries", "gallery")} == {
        "schema": 1, "k": K, "queries": 12, "gallery": 24,
    }  # fmt: skip
    models = [ranked(world, by_tiny(1)), ranked(world, by_tiny(2)), ranked(world, by_tiny(1, 12, 40))]
    names = ["a.onnx", "b.onnx", "wide.onnx"]
    for row, model, name in zip(document["models"], models, names, strict=True):
        check_row(row, world, model)
        assert (row["name"], row["file"], row["bytes"]) == (name, name, (world.folder / name).stat().st_size)
        assert row["precision"] == "fp32"
    first, second, third = document["models"]
    assert [(row["model"], row["dim"], row["picture_size"]) for row in document["models"]] == [
        ("tiny-1", 16, 8), ("tiny-2", 16, 8), ("tiny-1", 40, 12),
    ]  # fmt: skip
    assert first["from_first"] is None
    for row, model in ((second, models[1]), (third, models[2])):
        change = figures(world, model)["precision"] - figures(world, models[0])["precision"]
        assert row["from_first"] == {
            "precision_at_k": pytest.approx(change),
            "neighbour_overlap": pytest.approx(overlap(model, models[0])),
            "mean_cosine": None,  # another network, and another length of vectors
            "min_cosine": None,
        }
    assert 0 < overlap(models[1], models[0]) < 1
    for row in document["models"]:
        assert row["speed"]["latency_ms"] > 0
        ratio = row["speed"]["pictures_per_second"] / first["speed"]["pictures_per_second"]
        assert row["speed"]["ratio"] == pytest.approx(ratio)


def test_cosines_of_one_network_in_two_files(world: World, tmp_path: Path) -> None:
    """The second file says that it is the same network, and its weights are a little off."""
    rounded = rewrite(world.folder / "a.onnx", tmp_path / "rounded.onnx", weights=lambda w: np.round(w, 1))
    row = world.rows("a.onnx", rounded)[1]

    def by_rounded(paths: list[Path]) -> np.ndarray:
        flat = np.stack([square(path) for path in paths]).reshape(len(paths), -1) / 255 - 0.5
        model = onnx.load(rounded)
        weights = next(onnx.numpy_helper.to_array(i) for i in model.graph.initializer if i.name == "weights")
        vectors = flat @ weights.astype(np.float64)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    first, second = ranked(world, by_tiny(1)), ranked(world, by_rounded)
    cosines = [float(a @ b) for a, b in zip(first.vectors, second.vectors, strict=True)]
    assert min(cosines) < 0.9999
    assert row["from_first"]["mean_cosine"] == pytest.approx(np.mean(cosines), abs=1e-6)
    assert row["from_first"]["min_cosine"] == pytest.approx(min(cosines), abs=1e-6)
    assert row["from_first"]["neighbour_overlap"] == pytest.approx(overlap(second, first))


def rewrite(model: Path, to: Path, weights=lambda w: w, **metadata: object) -> Path:
    """Write a model anew with other weights and metadata."""
    loaded = onnx.load(model)
    for initializer in loaded.graph.initializer:
        if initializer.name == "weights":
            initializer.CopyFrom(
                onnx.numpy_helper.from_array(weights(onnx.numpy_helper.to_array(initializer)), "weights")
            )
    info = json.loads(next(entry.value for entry in loaded.metadata_props if entry.key == METADATA_KEY))
    onnx.helper.set_model_props(loaded, {METADATA_KEY: json.dumps(info | metadata)})
    onnx.save(loaded, to)
    return to


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.replace(r"\|", "\0").strip("|").split("|")]


def test_the_table_says_what_the_json_says(world: World) -> None:
    rows = world.rows("a.onnx", "wide.onnx")
    lines = world.run("--models", "a.onnx", "wide.onnx").stdout.splitlines()
    assert lines[0].startswith("12 queries, 24 gallery pictures.")
    assert lines[1] == ""
    table = lines[2:]
    assert len(table) == 4
    assert len({len(line) for line in table}) == 1
    header = cells(table[0])
    for line, row in zip(table[2:], rows, strict=True):
        shown = dict(zip(header, cells(line), strict=True))
        assert shown["model"] == row["name"]
        assert shown[f"precision@{K}"] == f"{row['precision_at_k']['exact']:.4f}"
        assert shown["MAP@R"] == f"{row['map_at_r']:.4f}"
        assert (shown["dim"], shown["picture"]) == (str(row["dim"]), str(row["picture_size"]))
    assert shown["change"] == f"{rows[1]['from_first']['precision_at_k']:+.4f}"
    assert shown[f"overlap@{K}"] == f"{rows[1]['from_first']['neighbour_overlap']:.4f}"
    assert shown["mean cosine"] == shown["min cosine"] == "–"
    assert dict(zip(header, cells(table[2]), strict=True))["change"] == "–"


def test_a_sample_of_the_reference_is_the_first_row(world: World, tmp_path: Path) -> None:
    """PyTorch's vectors are those of a.onnx here; the sample has fewer pictures than the data set."""
    some = World(world.folder, world.queries[::2], world.gallery[:20])
    reference = ranked(some, by_tiny(1))
    np.savez(
        tmp_path / "a.npz",
        hashes=np.stack(
            [np.frombuffer(hashlib.sha256(p.read_bytes()).digest(), np.uint8) for p in [*some.queries, *some.gallery]]
        ),
        labels=np.array([path.parent.name for path in [*some.queries, *some.gallery]]),
        splits=np.repeat(np.array([0, 1], np.uint8), [len(some.queries), len(some.gallery)]),
        vectors=reference.vectors.astype(np.float32),
    )
    first, *others = some.rows("wide.onnx", "a.onnx", "--reference", tmp_path / "a.npz")
    assert first["name"] == "PyTorch reference"
    assert first["speed"] is first["from_first"] is first["file"] is None
    check_row(first, some, reference)
    wide = ranked(some, by_tiny(1, 12, 40))
    check_row(others[0], some, wide)
    assert others[0]["from_first"]["neighbour_overlap"] == pytest.approx(overlap(wide, reference))
    assert others[0]["from_first"]["min_cosine"] is None
    assert others[0]["speed"]["ratio"] == 1
    assert others[1]["from_first"] == {
        "precision_at_k": 0, "neighbour_overlap": 1,
        "mean_cosine": pytest.approx(1, abs=1e-6), "min_cosine": pytest.approx(1, abs=1e-6),
    }  # fmt: skip


@pytest.mark.thorough
def test_a_run_is_the_first_row(line: MainLine) -> None:
    result = run_command(
        "deeprank-eval", "--models", line.model, "--reference", line.run, "--data", line.digits, "--json"
    )
    torch, exported = json.loads(result.stdout)["models"]
    assert torch["name"] == "PyTorch reference"
    assert torch["file"] is None
    assert torch["speed"]["ratio"] == 1
    assert torch["model"] == exported["model"]
    assert exported["from_first"]["min_cosine"] > 1 - 1e-5
    assert exported["from_first"]["neighbour_overlap"] > 0.99
    assert abs(exported["from_first"]["precision_at_k"]) < 1e-3


def test_an_unreadable_picture_is_said_once(world: World, tmp_path: Path) -> None:
    names = [f"{label}/{number}.png" for label in LABELS for number in range(4)]
    write_pictures(tmp_path / "data" / "train", names)
    write_pictures(tmp_path / "data" / "val", names[:5], first_seed=50)
    (tmp_path / "data" / "val" / "owls").mkdir()
    (tmp_path / "data" / "val" / "owls" / "bad.png").write_bytes(b"no picture")
    models = [world.folder / name for name in ("a.onnx", "b.onnx", "wide.onnx")]
    result = run_command("deeprank-eval", "--models", *models, "--data", "data", "--k", 2, "--json", cwd=tmp_path)
    assert result.stderr.count("bad.png") == 1
    document = json.loads(result.stdout)
    assert (document["queries"], document["gallery"], len(document["models"])) == (5, 12, 3)


@pytest.mark.thorough
def test_an_int8_file_that_is_slower_is_remarked_on(world: World, tmp_path: Path) -> None:
    small = write_model(tmp_path / "small.onnx", seed=1)
    large = write_model(tmp_path / "large.onnx", seed=1, dim=8192)
    slow = world.run("--models", small, rewrite(large, tmp_path / "slow.onnx", precision="int8"))
    remark = slow.stderr.strip().splitlines()[-1]
    assert remark.startswith("int8 is slower than fp32 on this processor (x0.")
    assert remark.endswith("use small.onnx here, not slow.onnx.")
    assert cells(slow.stdout.splitlines()[-1])[1] == "int8"
    for others in (
        [large, rewrite(small, tmp_path / "fast.onnx", precision="int8")],
        [small, rewrite(large, tmp_path / "other.onnx", precision="int8", backbone="another")],
    ):
        assert "int8" not in world.run("--models", *others).stderr


# -- names -----------------------------------------------------------------------------------------------------------


def test_hostile_names(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "a|b[" / "x]"
    folder.mkdir(parents=True)
    names = ["a|b[red].onnx", "\x1b[31mred\n| x |.onnx", "日本語.onnx"]
    models = [write_model(folder / name, seed=seed) for seed, name in enumerate(names)]
    result = world.run("--models", *models)
    assert "\x1b" not in result.stdout + result.stderr
    table = result.stdout.splitlines()[2:]
    assert len(table) == 2 + len(names)
    assert {len(cells(line)) for line in table} == {16}
    assert [cells(line)[0] for line in table[2:]] == ["a\0b[red].onnx", "\\x1b[31mred\\n\0 x \0.onnx", "日本語.onnx"]
    assert [row["file"] for row in world.rows(*models)] == [str(model) for model in models]


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["x/a.onnx", "b.onnx"], ["a.onnx", "b.onnx"]),
        (["x/a.onnx", "y/a.onnx", "b.onnx"], ["x/a.onnx", "y/a.onnx", "b.onnx"]),
        (["x/a.onnx", "x/a.onnx", "x/a.onnx"], ["a.onnx", "a.onnx (2)", "a.onnx (3)"]),
        (["a", "a (2)", "a"], ["a", "a (2)", "a (3)"]),
        (["a", "a", "a (2)"], ["a", "a (2)", "a (2) (2)"]),
        (["PyTorch reference"], ["PyTorch reference (2)"]),
        (["pretrained", "."], ["pretrained", "."]),
        (["a\n", r"a\n"], ["a\n", r"a\n (2)"]),
    ],
)
def test_names_tell_files_apart(files: list[str], names: list[str]) -> None:
    assert distinct_names([Path(file) for file in files]) == names


@given(st.lists(st.text("ab ()2/", min_size=1), max_size=6))
def test_names_are_distinct(files: list[str]) -> None:
    names = distinct_names([Path(file) for file in files])
    assert len(set(names)) == len(files)


def test_one_file_twice(world: World) -> None:
    first, second = world.rows("a.onnx", "./a.onnx")
    assert (first["name"], second["name"]) == ("a.onnx", "a.onnx (2)")
    assert second["from_first"]["neighbour_overlap"] == 1
    assert second["from_first"]["min_cosine"] == pytest.approx(1, abs=1e-6)
    assert second["from_first"]["precision_at_k"] == 0


@pytest.mark.thorough
def test_the_word_pretrained(world: World, tmp_path: Path) -> None:
    row = world.rows("pretrained")[0]
    assert row["name"] == "pretrained"
    assert Path(row["file"]) == pretrained_model()
    assert row["bytes"] == Path(row["file"]).stat().st_size


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.onnx"], "a.onnx was given without --models"),
        (["--model", "a.onnx", "b\x1b.onnx"], r"b\x1b.onnx was given without --models"),
        (["--models"], "expected --models FILE..."),
        (["--models", "a.onnx", "--model", "b.onnx"], "--model is for one model"),
        (["--models", "a.onnx", "--triplets", "t.csv"], "--triplets is for one model"),
        (["--models", "a.onnx", "--demo", "3"], "--demo is for one model"),
        (["--models", "a.onnx", "--save-embeddings", "out"], "--save-embeddings is for one model"),
        (["--models", "a.onnx", "no.onnx"], "no.onnx does not exist"),
        (["--models", "a.onnx", "cut.onnx"], "cut.onnx is not an ONNX model that can be opened"),
        (["--models", "a.onnx", "data"], "data is a folder; expected an ONNX file"),
        (["--models", "script.pt", "a.onnx"], "files are compared by deeprank-export --format all."),
        (["--models", "a.onnx", "program.PT2"], "files are compared by deeprank-export --format all."),
        (
            ["--models", "a.onnx", "no.pt"],
            "no.pt does not exist; expected a model file. Make one with deeprank-export.",
        ),
        (["--models", "a.onnx", "--reference", "no.npz"], "no.npz does not exist"),
        (["--models", "a.onnx", "--reference", "cut.npz"], "is not a reference sample that can be read"),
        (["--models", "a.onnx", "b.onnx", "--k", "25"], "k = 25; expected 1 to 24"),
    ],
)
def test_one_sentence(world: World, words: list[str], message: str) -> None:
    (world.folder / "cut.onnx").write_bytes((world.folder / "a.onnx").read_bytes()[:999])
    for name in ("script.pt", "program.PT2", "cut.npz"):
        (world.folder / name).write_bytes(b"PK\x03\x04 and no more")
    before = sorted(world.folder.iterdir())
    result = run_command("deeprank-eval", "--data", "data", "--k", K, *words, cwd=world.folder, status=1)
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert result.stderr.splitlines()[-1] == errors[0]
    assert message in errors[0]
    assert "\x1b" not in result.stderr
    assert sorted(world.folder.iterdir()) == before


# -- speed -----------------------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """Instead of that of the machine, which others use, too."""

    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("deeprank.runtime.evaluate.speed.time", clock)
    return clock


def test_a_runner_that_takes_three_times_as_long(clock: Clock) -> None:
    calls: list[tuple[str, int, int]] = []

    def sleeper(name: str, seconds: float) -> Callable[[np.ndarray], None]:
        def run(pictures: np.ndarray) -> None:
            assert pictures.dtype == np.uint8
            assert pictures.shape[1] == pictures.shape[2]
            assert pictures.shape[3] == 3
            calls.append((name, len(pictures), pictures.shape[1]))
            clock.now += seconds

        return run

    told: list[int] = []
    runners = {"quick": sleeper("quick", 0.01), "slow": sleeper("slow", 0.03)}
    speeds = measure_speeds(
        runners, {"slow": 5, "quick": 4}, seconds=0.2, advance=lambda count=1, /: told.append(count)
    )
    assert list(speeds) == ["quick", "slow"]
    assert speeds["slow"] == Speed(pytest.approx(30), pytest.approx(32 / 0.03))
    assert speeds["quick"] == Speed(pytest.approx(10), pytest.approx(32 / 0.01))
    assert sum(told) == len(calls)
    assert {call for call in calls if call[0] == "quick"} == {("quick", 1, 4), ("quick", 32, 4)}
    assert {call for call in calls if call[0] == "slow"} == {("slow", 1, 5), ("slow", 32, 5)}
    for batch in (1, 32):  # each warms up, then they take turns
        order = [name for name, count, _ in calls if count == batch]
        warm_up, turns = order[:4], order[4:]
        assert warm_up == ["quick", "quick", "slow", "slow"]
        assert len(turns) in (2 * 10, 2 * 11)  # 0.2 seconds for each
        assert turns == ["quick", "slow"] * (len(turns) // 2)


def test_rounds_are_at_least_three_and_at_most_a_hundred() -> None:
    calls: list[int] = []
    measure_speeds({"a": lambda pictures: calls.append(len(pictures))}, 4, seconds=0)
    assert (calls.count(1), calls.count(32)) == (2 + 3, 2 + 3)
    calls.clear()
    measure_speeds({"a": lambda pictures: calls.append(len(pictures))}, 4, seconds=600)
    assert (calls.count(1), calls.count(32)) == (2 + 100, 2 + 100)


def test_one_moment_that_is_busy_changes_nothing(clock: Clock) -> None:
    """The median: four of a runner's turns take a hundred times as long."""
    turns = iter(range(10_000))

    def run(pictures: np.ndarray) -> None:
        clock.now += 0.2 if 10 <= next(turns) < 14 else 0.002

    assert measure_speeds({"a": run}, 4, seconds=1.5)["a"].latency_ms == pytest.approx(2)


def test_the_noise_is_the_same_each_time() -> None:
    seen: list[np.ndarray] = []
    for _ in range(2):
        measure_speeds({"a": seen.append, "b": seen.append}, 4, seconds=0)
    for count in (1, 32):
        pictures = [picture for picture in seen if len(picture) == count]
        assert all(np.array_equal(picture, pictures[0]) for picture in pictures)
        assert len(np.unique(pictures[0])) > 10


# -- the table -------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.text(max_size=8), min_size=3, max_size=3), max_size=5))
def test_columns_line_up_and_cells_stay_apart(rows: list[list[str]]) -> None:
    lines = markdown_table(["name", "a|b", ""], rows, right_aligned=[1])
    assert len(lines) == len(rows) + 2
    assert len({display_width(line) for line in lines}) == 1
    for row, line in zip(rows, lines[2:], strict=True):
        found = line.removeprefix("| ").removesuffix(" |").replace(r"\|", "\0").split(" | ")
        assert [cell.replace("\0", "|").strip(" ") for cell in found] == [printable(cell).strip(" ") for cell in row]


def test_a_table_by_hand() -> None:
    assert markdown_table(["model", "MB"], [["a|b", "12.5"], ["日本", "7"]], right_aligned=[1]) == [
        "| model |   MB |",
        "| ----- | ---: |",
        r"| a\|b  | 12.5 |",
        "| 日本  |    7 |",
    ]
    assert markdown_table(["a"], []) == ["| a   |", "| --- |"]
