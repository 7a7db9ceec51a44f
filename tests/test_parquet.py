"""Export to Parquet and import: lossless as npz, readable by others, and safe to read from anyone."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_command
from tiny_model import DIM, write_model

from deeprank.runtime.errors import DataError, DeepRankError, IndexDamagedError, IndexStateError, QueryError
from deeprank.runtime.files import file_sha256
from deeprank.runtime.index import Index
from deeprank.runtime.index.database.records import Item
from deeprank.runtime.index.database.writer import Writer, locked, open_writer
from deeprank.runtime.index.exchange import parquet_file
from deeprank.runtime.index.exchange.export import export_index
from deeprank.runtime.index.exchange.importer import import_index
from deeprank.runtime.index.folder import install_model
from deeprank.runtime.index.graph_update import update_graph
from deeprank.runtime.index.maintenance.verify import verify
from deeprank.runtime.index.patterns import RootFilters
from deeprank.runtime.index.root_labels import RootLabels

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ITEMS = 1500
STRANGE = {
    1: (b"caf\xe9.png", "caf\udce9"),  # not UTF-8
    2: ("日本 'x' \"y\"\n.png".encode(), "a,b;\t\u202e"),
    3: (b"\\xe9.png", "\\xe9"),  # what the escape of another name looks like
    4: (b"a/" + b"x" * 255, None),
}


def vectors_of(count: int, seed: int = 3) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def fill(writer: Writer) -> None:
    writer.add_root(b"/photos")
    writer.add_root(b"/gone/\xff")
    writer.set_filters(1, RootFilters(("*.png", "caf\udce9/*"), ("raw",)))
    writer.set_labelling(2, RootLabels("leaf"))
    for number, vector in enumerate(vectors_of(ITEMS), 1):
        path, label = STRANGE.get(
            number, (f"{number % 5}/{number}.png".encode(), f"{number % 5}" if number % 6 else None)
        )
        item = Item(0, 1 + number % 2, path, label, number, -number, number.to_bytes(32, "big"), 1 + number % 2)
        writer.add(item, vector.tobytes())
    writer.remove([7, 8, ITEMS])
    writer.commit()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an index, its model, and its export."""
    folder = tmp_path_factory.mktemp("made")
    model, index = write_model(folder / "model.onnx"), folder / "index"
    index.mkdir()
    with locked(index):
        install_model(index, model, file_sha256(model), DIM)
        with open_writer(index) as writer:
            fill(writer)
            assert update_graph(writer) is None
    export_index(index, folder / "e.parquet")
    return folder


@pytest.fixture
def index(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "index", tmp_path / "index")
    return tmp_path / "index"


def tables(index: Path) -> dict[str, list[Any]]:
    """Return all that an index holds, without its graph."""
    with sqlite3.connect(index / "items.sqlite") as connection:
        connection.text_factory = os.fsdecode
        names = ("meta", "items", "roots", "filters", "labelling")
        return {name: connection.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall() for name in names}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.thorough
def test_a_round_trip_equals_that_of_npz(index: Path, made: Path, tmp_path: Path) -> None:
    run_command("deeprank-index", "export", "e.parquet", "--index", index, cwd=tmp_path)
    command = ("deeprank-index", "import", "e.parquet", "--index", "new")
    said = run_command(*command, "--model", made / "model.onnx", cwd=tmp_path)
    assert f"new holds {ITEMS - 3:,} pictures" in said.stdout
    export_index(index, tmp_path / "e.npz")
    import_index(tmp_path / "e.npz", tmp_path / "from_npz", model=made / "model.onnx")
    assert tables(tmp_path / "new") == tables(tmp_path / "from_npz")
    assert tables(tmp_path / "new") == tables(index)
    assert verify(tmp_path / "new").problems == ()
    answers = []
    for folder in (index, tmp_path / "new"):
        with Index.open(folder) as opened:
            answers.append([opened.search(vectors_of(5)[0], 20, method=method) for method in ("exact", "hnsw")])
    assert answers[0] == answers[1]
    again = tmp_path / "again.parquet"
    export_index(tmp_path / "new", again)
    assert again.read_bytes() == (tmp_path / "e.parquet").read_bytes()


def expected_rows(index: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(index / "items.sqlite") as connection:
        connection.text_factory = os.fsdecode
        rows = connection.execute("SELECT path, label, sha256, vector FROM items ORDER BY id").fetchall()
    return [
        (
            path.decode(errors="backslashreplace"),
            None if label is None else os.fsencode(label).decode(errors="backslashreplace"),
            sha256.hex(),
            np.frombuffer(vector, "<f4").tolist(),
        )
        for path, label, sha256, vector in rows
    ]


def test_pandas_reads_it(made: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(made / "e.parquet")
    assert frame["id"].is_monotonic_increasing
    found = [
        (path, label if isinstance(label, str) else None, sha256, vector.tolist())
        for path, label, sha256, vector in frame[["path", "label", "sha256", "vector"]].itertuples(index=False)
    ]
    assert found == expected_rows(made / "index")
    assert set(frame["root"]) == {"/photos", "/gone/\\xff"}


def test_duckdb_reads_it(made: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    found = duckdb.sql(f"SELECT path, label, sha256, vector FROM '{made / 'e.parquet'}' ORDER BY id").fetchall()
    rounded = [(path, label, sha256, np.float32(vector).tolist()) for path, label, sha256, vector in found]
    assert rounded == expected_rows(made / "index")
    ((count,),) = duckdb.sql(f"SELECT count(*) FROM '{made / 'e.parquet'}' WHERE label = '3'").fetchall()
    assert count == sum(row[1] == "3" for row in expected_rows(made / "index"))


def test_datasets_reads_it(made: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    found = datasets.Dataset.from_parquet(str(made / "e.parquet"), cache_dir=str(tmp_path))
    assert [(row["path"], row["label"], row["sha256"], row["vector"]) for row in found] == expected_rows(made / "index")


def test_some_labels_and_none(index: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_file, "_GROUP_BYTES", 30_000)
    report = export_index(index, tmp_path / "e.parquet", labels=["1", "caf\udce9"])
    table = pq.read_table(tmp_path / "e.parquet")
    assert pq.ParquetFile(tmp_path / "e.parquet").num_row_groups > 1
    assert set(table["label"].to_pylist()) == {"1", "caf\\xe9"}
    assert len(table) == report.items
    assert import_index(tmp_path / "e.parquet", tmp_path / "new", model=made / "model.onnx").items == report.items
    assert verify(tmp_path / "new").problems == ()
    with pytest.raises(QueryError, match="No picture has the label 'q'"):
        export_index(index, tmp_path / "q.parquet", labels=["q"])
    with locked(index), open_writer(index) as writer:
        writer.remove(set(range(1, ITEMS)) - {7, 8})
        writer.commit()
    export_index(index, tmp_path / "empty.PARQUET")
    assert import_index(tmp_path / "empty.PARQUET", tmp_path / "empty", model=made / "model.onnx").items == 0
    assert names(tmp_path) == ["e.parquet", "empty", "empty.PARQUET", "index", "new"]


def test_an_export_that_fails_leaves_the_earlier_file(index: Path, tmp_path: Path) -> None:
    target = tmp_path / "e.parquet"
    target.write_bytes(b"earlier")
    with sqlite3.connect(index / "items.sqlite") as connection:
        connection.execute("UPDATE items SET size = 1 WHERE id = 1200")
    with pytest.raises(IndexDamagedError, match="item 1200"):
        export_index(index, target)
    assert target.read_bytes() == b"earlier"
    assert names(tmp_path) == ["e.parquet", "index"]
    with pytest.raises(DataError, match="No such file"):
        export_index(index, tmp_path / "missing" / "e.parquet")


def test_a_full_disk_leaves_no_export(index: Path, tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys\n"
        "from deeprank.runtime.errors import DataError\n"
        "from deeprank.runtime.index.exchange.export import export_index\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        "try:\n"
        f"    export_index({str(index)!r}, {str(tmp_path / 'e.parquet')!r})\n"
        "except DataError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "e.parquet cannot be written" in result.stdout, result.stderr
    assert result.stderr == ""
    assert names(tmp_path) == ["index"]


Change = Callable[[Any], Any]


def set_column(name: str, values: Any, kind: Any = None) -> Change:
    def change(table: Any) -> Any:
        place = table.schema.get_field_index(name)
        field = table.schema.field(name)
        column = pa.array(values(table[name].to_pylist()), kind or field.type)
        return table.set_column(place, pa.field(name, kind or field.type, field.nullable), column)

    return change


def set_value(name: str, value: Any, row: int = 9) -> Change:
    return set_column(name, lambda values: [*values[:row], value, *values[row + 1 :]])


def set_meta(**values: object) -> Change:
    def change(table: Any) -> Any:
        meta = {**json.loads(table.schema.metadata[b"deeprank"]), **values}
        return table.replace_schema_metadata({b"deeprank": json.dumps(meta)})

    return change


HOSTILE: dict[str, tuple[Change, str]] = {
    "no meta": (lambda table: table.replace_schema_metadata({}), "is not marked as an exported index"),
    "no JSON": (lambda t: t.replace_schema_metadata({b"deeprank": b"{" * 9000}), "is not marked as an exported index"),
    "newer": (set_meta(schema=9), "schema 9, newer than this version reads"),
    "sha256 of the model": (set_meta(model_sha256="../../x"), "does not name its model"),
    "dim": (set_meta(dim=17), "vectors of another length"),
    "last_id": (set_meta(last_id=2**63), "does not state its last id"),
    "filters": (set_meta(filters={"root": 1}), "filters that are not lists of patterns"),
    "no roots": (set_meta(roots=None), "does not list its roots"),
    "huge root": (set_meta(roots=[{"root": 2**70, "path": "/x"}]), "does not list its roots"),
    "one root": (set_meta(roots=[{"root": 1, "path": "/x"}]), "root_of that points outside its roots"),
    "root twice": (set_meta(roots=[{"root": 1, "path": "/x"}, {"root": 2, "path": "/x"}]), "a root twice"),
    "relative root": (set_meta(roots=[{"root": 1, "path": "/x"}, {"root": 2, "path": "y"}]), "not an absolute path"),
    "surrogate": (set_meta(roots=[{"root": 1, "path": "/\ud800"}]), "no name of a folder"),
    "no column": (lambda table: table.drop_columns(["size"]), "other columns or types"),
    "float64": (set_column("vector", lambda v: v, pa.list_(pa.float64(), DIM)), "other columns or types"),
    "any length": (set_column("vector", lambda v: v, pa.list_(pa.float32())), "vectors of another length"),
    "NaN": (set_value("vector", [float("nan")] * DIM), "not finite or not of unit length"),
    "long": (set_value("vector", [2.0] * DIM), "not finite or not of unit length"),
    "ids twice": (set_value("id", 1), "ids that are not all different"),
    "negative id": (set_value("id", -3), "ids that are not all different and above 0"),
    "late id": (set_value("id", 2**40), "beyond the last one"),
    "unknown root": (set_value("root_id", 5), "root_of that points outside its roots"),
    "negative size": (set_value("size", -1), "size below 0"),
    "decoding": (set_value("decoding", 0), "decoding rules below 1"),
    "sha256": (set_value("sha256", "../../../x" + "a" * 54), "not of 64 hex digits"),
    "short sha256": (set_value("sha256", "ab"), "not of 64 hex digits"),
    "absolute path": (set_value("path", "/etc/passwd"), "path '/etc/passwd', which is not below a root"),
    "path with dots": (set_value("path", "a/../../x"), "not below a root"),
    "empty path": (set_value("path", ""), "not below a root"),
    "raw path": (set_value("raw_path", b"/etc/\xff"), "not below a root"),
    "path twice": (set_value("path", "4/14.png"), "root and path twice"),
    "empty label": (set_value("label", ""), "an empty label"),
}


def rewrite(made: Path, bad: Path, change: Change, **options: Any) -> None:
    table = change(pq.read_table(made / "e.parquet"))
    pq.write_table(table, bad, **{"compression": "none", **options})


def refused(bad: Path, made: Path, expected: str) -> None:
    with pytest.raises(DataError, match=f"{expected}.*deeprank-index export") as error:
        import_index(bad, bad.parent / "new" / "index", model=made / "model.onnx")
    assert str(error.value).count("\n") == 0
    assert len(str(error.value)) < 600
    assert names(bad.parent) == ["bad.parquet"]


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_gets_a_sentence(case: str, made: Path, tmp_path: Path) -> None:
    change, expected = HOSTILE[case]
    rewrite(made, tmp_path / "bad.parquet", change)
    refused(tmp_path / "bad.parquet", made, expected)


def test_files_of_others(made: Path, tmp_path: Path) -> None:
    bad, whole = tmp_path / "bad.parquet", (made / "e.parquet").read_bytes()
    for content in (
        b"",
        b"PAR1",
        os.urandom(5000),
        whole[: len(whole) // 2],
        whole[:-30],
        b"PAR1" + bytes(40) + b"PAR1",
    ):
        bad.write_bytes(content)
        refused(bad, made, "")
    rewrite(made, bad, lambda table: table, compression="zstd")
    refused(bad, made, "is compressed")
    bad.unlink()
    bad.mkdir()
    with pytest.raises(DataError, match="not a regular file"):
        import_index(bad, tmp_path / "new")
    other = write_model(tmp_path / "other.onnx", seed=1)
    with pytest.raises(IndexStateError, match=r"other\.onnx is another model"):
        import_index(made / "e.parquet", tmp_path / "new", model=other)


@pytest.mark.thorough
def test_flipped_bits(made: Path, tmp_path: Path) -> None:
    """No bit is believed: the same index, or a sentence."""
    bad, whole = tmp_path / "bad.parquet", (made / "e.parquet").read_bytes()
    before = tables(made / "index")
    random = np.random.default_rng(1)
    places = [
        *random.integers(0, len(whole), 40).tolist(),
        *random.integers(len(whole) - 6000, len(whole), 60).tolist(),
    ]
    for place in places:
        bad.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << int(random.integers(8)))]) + whole[place + 1 :])
        try:
            import_index(bad, tmp_path / "new", model=made / "model.onnx")
        except DeepRankError:
            assert names(tmp_path) == ["bad.parquet"]
        else:
            after = tables(tmp_path / "new")
            assert after["items"] == before["items"], place
            shutil.rmtree(tmp_path / "new")


@pytest.mark.parametrize("rows", [1, 1200])
def test_a_file_that_would_fill_the_memory(made: Path, tmp_path: Path, rows: int) -> None:
    """Equal values are stored once: a file of a few kilobytes holds billions of them."""
    bad = tmp_path / "bad.parquet"
    meta = pq.read_schema(made / "e.parquet").metadata
    schema = parquet_file._schema(DIM).with_metadata(meta)
    lists = schema.set(schema.get_field_index("vector"), pa.field("vector", pa.list_(pa.float32()), False))
    each = 20_000_000 // rows
    columns = {name: [1] * rows for name in ("id", "size", "mtime_ns", "root_id", "decoding")}
    columns |= {name: ["x"] * rows for name in ("root", "path", "label")} | {"sha256": ["ab" * 32] * rows}
    columns |= {name: [None] * rows for name in ("raw_path", "raw_label")}
    vectors = pa.ListArray.from_arrays(np.arange(0, (rows + 1) * each, each), pa.array(np.zeros(rows * each, "f4")))
    table = pa.table({**columns, "vector": vectors}, schema=lists)
    pq.write_table(table, bad, compression="none", use_dictionary=True, store_schema=True)
    assert bad.stat().st_size < 1_000_000
    program = (
        "import sys, pyarrow\n"
        "from deeprank.runtime.errors import DataError\n"
        "from deeprank.runtime.index.exchange.importer import import_index\n"
        "try:\n"
        f"    import_index({str(bad)!r}, {str(tmp_path / 'new')!r})\n"
        "except DataError as error:\n"
        "    print(error)\n"
        "print(pyarrow.total_allocated_bytes(), pyarrow.default_memory_pool().max_memory())\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "deeprank-index export" in result.stdout, result.stderr
    assert int(result.stdout.split()[-1]) < 20_000_000


def test_without_pyarrow_the_extra_is_named(index: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules['pyarrow'] = None\n"
        "from deeprank.runtime.errors import MissingExtraError\n"
        "from deeprank.runtime.index.exchange.export import export_index\n"
        f"export_index({str(index)!r}, {str(tmp_path / 'e.npz')!r})\n"
        "try:\n"
        f"    export_index({str(index)!r}, {str(tmp_path / 'e.parquet')!r})\n"
        "except MissingExtraError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pyarrow" in result.stdout, result.stderr
    assert names(tmp_path) == ["e.npz", "index"]
