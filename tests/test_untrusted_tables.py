"""Untrusted arrays and tables: none takes more memory than it fills, and none makes a spreadsheet compute."""

import csv
import io
import os
import re
import resource
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import PEAK

from deeprank.runtime.data.csv_file import csv_text, plain_text, written_rows
from deeprank.runtime.data.label_table import read_label_table
from deeprank.runtime.data.sources import FolderSource
from deeprank.runtime.datasets import DataSet, Sample
from deeprank.runtime.errors import DataError, EvaluationError
from deeprank.runtime.evaluate.reference import load_reference
from deeprank.runtime.evaluate.triplets import load_triplets
from deeprank.runtime.npz import read_arrays

MB = 2**20
COUNT, DIM = 40, 8


def sample_arrays() -> dict[str, np.ndarray]:
    vectors = np.random.default_rng(0).normal(size=(COUNT, DIM)).astype(np.float32)
    return {
        "hashes": np.random.default_rng(1).integers(0, 256, (COUNT, 32), dtype=np.uint8),
        "labels": np.array([f"label {n % 3}" for n in range(COUNT)]),
        "splits": np.arange(COUNT, dtype=np.uint8) % 2,
        "vectors": vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
    }


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()


def header(shape: tuple[int, ...], kind: str, version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    write = np.lib.format.write_array_header_1_0 if version == (1, 0) else np.lib.format.write_array_header_2_0
    write(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue()


def packed(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> None:
    """Write members; those that are not given are an honest sample's."""
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in ({name: npy(array) for name, array in sample_arrays().items()} | members).items():
            file.writestr(f"{name}.npy", content)


def zeros(path: Path, count: int) -> None:
    """Vectors that are all zero: a thousand times smaller in the file."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, array in sample_arrays().items():
            if name != "vectors":
                file.writestr(f"{name}.npy", npy(array))
        with file.open("vectors.npy", "w", force_zip64=True) as member:
            member.write(header((count // DIM, DIM), "<f4"))
            for _ in range(count // MB):
                member.write(bytes(4 * MB))


def declared_smaller(path: Path) -> None:
    """The directory says a thousand bytes of what inflates to 400 MB."""
    zeros(path, 100 * MB)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02")
    content[place + 24 : place + 28] = (1000).to_bytes(4, "little")
    path.write_bytes(content)


def one_array_many_times(path: Path) -> None:
    """Each is allowed, and all together are not."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(60):
            file.writestr(f"a{number}.npy", header((40 * MB,), "|u1") + bytes(40 * MB))


HOSTILE: dict[str, Callable[[Path], object]] = {
    "zeros of 800 MB": lambda path: zeros(path, 200 * MB),
    "a smaller size declared": declared_smaller,
    "an array many times": one_array_many_times,
    "a header of 400 GB": lambda path: packed(path, {"vectors": header((10**11,), "<f4") + bytes(100)}),
    "a header whose size overflows": lambda path: packed(path, {"vectors": header((2**33, 2**33), "<f4")}),
    "a negative extent": lambda path: packed(path, {"vectors": header((-1, -40), "<f4") + bytes(160)}),
    "texts of 4 GB each": lambda path: packed(path, {"labels": header((COUNT,), "<U1000000000")}),
    "objects": lambda path: packed(path, {"labels": header((COUNT,), "|O") + b"cos\nsystem\n(S'true'\ntR."}),
    "one that is compressed by other means": lambda path: packed(path, {}, zipfile.ZIP_LZMA),
    "a header that opens a bracket": lambda path: packed(
        path, {"vectors": b"\x93NUMPY\x01\x00\x40\x00{'descr': '<f4', 'shape': (4L," + b" " * 64}
    ),
    "no zip": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(1000)),
    "no arrays": lambda path: zipfile.ZipFile(path, "w").close(),
    "a header that never ends": lambda path: packed(
        path, {"vectors": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b" " * 10**6}
    ),
}


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="the limit is that of POSIX")
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_reference_sample(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.reference.npz"
    HOSTILE[kind](path)
    code = (
        f"{PEAK}import sys\n"
        "from pathlib import Path\n"
        "from deeprank.runtime.errors import EvaluationError\n"
        "from deeprank.runtime.evaluate.reference import load_reference\n"
        "before = peak()\n"
        "try: load_reference(Path(sys.argv[1]), 8)\n"
        "except EvaluationError as error: print(error)\n"
        "print((peak() - before) >> 10)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30,) * 2),
    )
    assert ran.returncode == 0, ran.stderr
    said, grown = ran.stdout.splitlines()
    assert said.isprintable()
    assert re.search(r"model\.reference\.npz (is not a reference sample that can be read|holds vectors)", said), said
    assert int(grown) < 150, (said, grown)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_honest_one_is_read(tmp_path: Path, save: Callable[..., object]) -> None:
    """Compressed as well: the files that others write with numpy are."""
    arrays = sample_arrays()
    save(tmp_path / "r.npz", **arrays)
    sample = load_reference(tmp_path / "r.npz", DIM)
    assert np.array_equal(sample.vectors, arrays["vectors"])
    assert sample.labels.tolist() == arrays["labels"].tolist()
    fortran = np.asfortranarray(arrays["vectors"])
    save(tmp_path / "f.npz", vectors=fortran, more=np.zeros(3))
    assert np.array_equal(read_arrays(tmp_path / "f.npz", ["vectors"])["vectors"], arrays["vectors"])


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", vectors=np.zeros(3))
    with pytest.raises(EvaluationError, match=r"hashes\.npy"):
        load_reference(tmp_path / "r.npz", DIM)


# Names that a spreadsheet computes.

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "＝1", "＋1", "－1", "＠a", "'=1", "''-1"]
PLAIN = ["cat", "", "'quoted'", "a=b", "1-2", "it's", "''", "'", " cat", "ähre", "x,y", 'say "x"', "line\nend"]


@pytest.mark.parametrize("name", FORMULAS + PLAIN)
def test_a_name_comes_back_as_it_was(name: str) -> None:
    written = csv_text(name)
    assert plain_text(written) == name
    assert (written == name) == (name in PLAIN)
    (read,) = csv.reader(io.StringIO(written_rows([[name, 3]]).decode(), newline=""))
    assert [plain_text(read[0]), read[1]] == [name, "3"]
    assert read[0].lstrip()[:1] not in {"=", "+", "-", "@", "＝", "＋", "－", "＠"}


def test_triplets_of_such_paths_are_found_again(tmp_path: Path) -> None:
    """Those that training writes, and those of people who have files whose names begin with an apostrophe."""
    names = ["=a/1.png", "-b.png", "@c.png", "'-d.png", "'e.png", "f.png"]
    source = FolderSource(tmp_path, listed=())
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    samples = tuple(source.sample(name, "l") for name in names)
    table = tmp_path / "held.csv"
    table.write_bytes(written_rows([("query", "positive", "negative"), names[:3], names[3:]]))
    found = load_triplets(table, _data_of(samples))
    assert [found.pictures[row].path for row in found.rows.ravel()] == names
    table.write_text("query,positive,negative\n'-d.png,'e.png,=a/1.png\n")
    assert [sample.path for sample in load_triplets(table).pictures] == ["'-d.png", "'e.png", "=a/1.png"]


def _data_of(samples: tuple[Sample, ...]) -> DataSet:
    return DataSet("d", samples, samples[:1])


HOSTILE_TABLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "line": (lambda path: path.write_bytes(b"path,label\n" + b"a" * 3_000_000), "a line without an end"),
    "first line": (lambda path: path.write_bytes(b"a" * 3_000_000), "a line without an end"),
    "empty lines": (lambda path: path.write_bytes(b"path,label\n" + b"\n" * 3_000_000), "100,000 empty lines"),
    "size": (lambda path: (path.write_bytes(b"path,label\n"), os.truncate(path, 10**10)), "10,000,000,000 bytes"),
    "endless": (lambda path: path.symlink_to("/proc/self/mem"), "starts with the columns nothing"),
}


@pytest.mark.parametrize("kind", HOSTILE_TABLES)
def test_a_table_of_labels_that_does_not_end_is_refused(tmp_path: Path, kind: str) -> None:
    """A row of an index from elsewhere may name any file as the table of a folder."""
    make, message = HOSTILE_TABLES[kind]
    if kind == "endless" and not Path("/proc/self/mem").exists():
        pytest.skip("there is no /proc")
    make(tmp_path / "labels.csv")
    begun = time.process_time()
    with pytest.raises(DataError, match=message):
        read_label_table(tmp_path / "labels.csv")
    assert time.process_time() - begun < 2
