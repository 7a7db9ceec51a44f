"""Reference samples that carry their pictures: what they prove offline, what damages them, and how large they are."""

import dataclasses
import hashlib
import io
import json
import re
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import PEAK, Run, some_digits
from PIL import Image
from tiny_model import DIM, expected, square, write_model, write_pictures

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from parity_pictures import CLASSES, GALLERY, QUERIES, make_picture, write_zip

from deeprank.runtime.datasets import Sample, open_dataset
from deeprank.runtime.doctor import checks
from deeprank.runtime.doctor.finding import Finding
from deeprank.runtime.embedder import Embedder
from deeprank.runtime.errors import EvaluationError
from deeprank.runtime.evaluate import reference
from deeprank.runtime.evaluate.embeddings import EmbeddedSplit, embed_split
from deeprank.runtime.evaluate.evaluation import rank_split
from deeprank.runtime.evaluate.reference import load_reference, save_pictures, save_reference
from deeprank.runtime.formats import format_of
from deeprank.runtime.images import PictureRule, load_picture
from deeprank.runtime.model.pretrained import pretrained_model, pretrained_reference

COUNT = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its pictures, and a sample that carries them, with vectors computed without ONNX Runtime."""
    folder = tmp_path_factory.mktemp("made")
    write_model(folder / "tiny.onnx")
    write_pictures(folder / "photos", [f"{label}/{number}.png" for label in "abc" for number in range(COUNT // 3)])
    save_pictures(folder / "tiny.reference.npz", *splits_of(folder / "photos"))
    return folder


def splits_of(photos: Path) -> tuple[EmbeddedSplit, EmbeddedSplit]:
    data = open_dataset(photos)
    val, train = (
        EmbeddedSplit(
            samples,
            expected(np.stack([square(io.BytesIO(sample.read())) for sample in samples])).astype(np.float32),
            tuple(hashlib.sha256(sample.read()).digest() for sample in samples),
        )
        for samples in (data.val, data.train)
    )
    return val, train


def parity(model: Path, **asked) -> dict[str, Finding]:
    """Check a model and its parity, in this process."""
    options = checks.DoctorOptions(index=Path("none"), model=model, **asked)
    examination = checks._Examination(options, lambda *_: lambda *_: None, lambda _: None)
    examination._runs = examination._graphs = True
    examination.tried("model", examination.model)
    examination.tried("parity", examination.parity)
    return {finding.check: finding for finding in examination.findings}


# What the file holds


def nearest_rows(val: EmbeddedSplit, train: EmbeddedSplit) -> np.ndarray:
    """The nearest gallery rows of each query, by all distances in float64."""
    distances = ((val.vectors[:, None].astype(float) - train.vectors[None].astype(float)) ** 2).sum(axis=2)
    return np.argsort(distances, axis=1, kind="stable")[:, :30]


def test_it_holds_the_pictures_the_queries_vectors_and_the_ranking(made: Path) -> None:
    sample = load_reference(made / "tiny.reference.npz", DIM)
    val, train = splits_of(made / "photos")
    assert sample.pictures == tuple(one.read() for one in (*val.samples, *train.samples))
    assert [row.tobytes() for row in sample.hashes] == [*val.hashes, *train.hashes]
    assert 0 < np.abs(sample.vectors - val.vectors).max() <= 2**-16
    assert np.array_equal(sample.neighbours, nearest_rows(val, train))
    data = sample.dataset()
    assert [one.label for one in data.val] == val.labels
    assert [one.read() for one in data.train] == [one.read() for one in train.samples]
    for k in (1, 3, len(train)):
        side = sample.reference(val, train, k)
        assert np.array_equal(side.queries, sample.vectors)
        assert side.gallery is None
        found = rank_split(val, train, k)
        assert np.array_equal(side.ranking.neighbours, found.neighbours)
        right = np.array(train.labels)[sample.neighbours[:, :k]] == np.array(val.labels)[:, None]
        assert np.array_equal(side.ranking.precisions, right.mean(axis=1))
        assert side.ranking.precision_at_k == pytest.approx(found.precision_at_k)
        assert side.ranking.recall_at_1 == found.recall_at_1
        same = side.change(val.vectors, train.vectors, found)
        assert (same.precision, same.overlap) == (0, 1)
        assert same.farther == pytest.approx(0, abs=1e-12)
    with pytest.raises(EvaluationError, match=f"k = {len(train) + 1}, but the reference sample holds PyTorch's"):
        sample.reference(val, train, len(train) + 1)


def test_a_component_of_one_fits(made: Path, tmp_path: Path) -> None:
    val, _ = splits_of(made / "photos")
    axes = np.eye(DIM, dtype=np.float32)[np.arange(len(val)) % DIM]
    for queries in (axes, -axes):
        save_pictures(tmp_path / "r.npz", dataclasses.replace(val, vectors=queries), val)
        np.testing.assert_allclose(load_reference(tmp_path / "r.npz", DIM).vectors, queries, atol=2**-15)


def test_a_picture_that_changed_meanwhile(made: Path, tmp_path: Path) -> None:
    val, train = splits_of(made / "photos")
    changed = dataclasses.replace(val, hashes=(bytes(32), *val.hashes[1:]))
    with pytest.raises(EvaluationError, match="have changed"):
        save_pictures(tmp_path / "r.npz", changed, train)


@pytest.mark.parametrize(("limit", "most"), [("_MAX_PICTURES", COUNT - 1), ("_MAX_BYTES", 5_000)])
def test_too_many_or_too_large_pictures(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    monkeypatch.setattr(reference, limit, most)
    with pytest.raises(EvaluationError, match="too much for a reference sample; expected at most"):
        save_pictures(tmp_path / "r.npz", *splits_of(made / "photos"))
    assert not (tmp_path / "r.npz").exists()
    with pytest.raises(EvaluationError, match="expected 1 to"):
        load_reference(made / "tiny.reference.npz", DIM)


# What it proves


def test_the_doctor_proves_it_without_data(run: Run, made: Path, tmp_path: Path) -> None:
    found = json.loads(run("deeprank-doctor", "--model", made / "tiny.onnx", "--json", cwd=tmp_path).stdout)
    by_name = {one["check"]: one for one in found["findings"]}
    val, train = splits_of(made / "photos")
    assert (
        f"{COUNT} pictures, PyTorch's {len(train)} nearest of {len(val)} queries, and their vectors, {DIM} numbers each"
        in by_name["reference sample"]["found"]
    )
    said = by_name["parity"]["found"]
    assert by_name["parity"]["status"] == "ok"
    assert said.startswith(f"{COUNT} of {COUNT} pictures, largest difference 1.")
    assert "100.00% of the" in said
    theirs, ours = re.search(r"precision@\d+ (\S+) with PyTorch, (\S+) here", said).groups()
    assert theirs == ours


@pytest.mark.parametrize("change", [3e-3, 1.0])
def test_a_changed_weight_is_found(made: Path, tmp_path: Path, change: float) -> None:
    model = onnx.load(made / "tiny.onnx")
    (weights,) = [tensor for tensor in model.graph.initializer if tensor.name == "weights"]
    values = onnx.numpy_helper.to_array(weights).copy()
    values[5, 3] += change * np.abs(values).max()
    weights.CopyFrom(onnx.numpy_helper.from_array(values, "weights"))
    onnx.save(model, tmp_path / "changed.onnx")
    one = parity(tmp_path / "changed.onnx", reference=made / "tiny.reference.npz")["parity"]
    assert one.status == "problem"
    assert "does not rank like its PyTorch reference here: the largest difference" in one.found


def test_eval_needs_no_data(run: Run, made: Path, tmp_path: Path) -> None:
    words = ("--reference", made / "tiny.reference.npz")
    result = run("deeprank-eval", "--model", made / "tiny.onnx", *words, "--json", cwd=tmp_path)
    assert f"measuring on the {COUNT} pictures that the reference sample carries" in result.stderr
    found = json.loads(result.stdout)
    assert found["parity"]["max_abs_difference"] <= 2e-5
    assert found["queries"] + found["gallery"] == COUNT
    val, train = splits_of(made / "photos")
    assert found["precision_at_k"]["reference"] == pytest.approx(rank_split(val, train, len(train)).precision_at_k)
    table = run("deeprank-eval", "--models", made / "tiny.onnx", *words, "--json", cwd=tmp_path)
    first, second = json.loads(table.stdout)["models"]
    assert (first["name"], second["from_first"]["neighbour_overlap"]) == ("PyTorch reference", 1.0)
    assert second["from_first"]["min_cosine"] == pytest.approx(1, abs=1e-6)
    exact = found["precision_at_k"]["reference"]
    assert (first["precision_at_k"], first["map_at_r"]) == ({"exact": exact, "hnsw": None}, None)
    assert first["recall_at_1"] == second["recall_at_1"]
    lines = run("deeprank-eval", "--models", made / "tiny.onnx", *words, cwd=tmp_path).stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("| PyTorch reference")]
    assert re.search(r"\| +\d\.\d{4} \| +– \| +\d\.\d{4} \| +– \|", line)


@pytest.mark.parametrize(
    "option",
    [("--split", "test"), ("--labels", "leaf"), ("--data", "photos"), ("--queries", "photos", "--gallery", "photos")],
    ids=lambda option: option[0],
)
def test_eval_refuses_other_pictures(run: Run, made: Path, option: tuple[str, ...]) -> None:
    for model in ("--model", "--models"):
        words = (model, "tiny.onnx", "--reference", "tiny.reference.npz", *option)
        refused = run("deeprank-eval", *words, cwd=made, status=1)
        assert f"{option[0]} was given, but the reference sample carries its own pictures" in refused.stderr


def test_the_doctor_refuses_other_pictures(made: Path) -> None:
    one = parity(made / "tiny.onnx", data=str(made / "photos"))["parity"]
    assert one.status == "problem"
    assert "carries its pictures; leave the data set out" in one.found


def test_a_k_beyond_the_neighbours(run: Run, drawn: Path, tmp_path: Path) -> None:
    data, embedder = open_dataset(drawn / "sample.zip"), Embedder(write_model(tmp_path / "tiny.onnx"))
    save_pictures(tmp_path / "r.npz", embed_split(data.val, embedder), embed_split(data.train, embedder))
    words = ("deeprank-eval", "--model", "tiny.onnx", "--reference", "r.npz", "--json", "--k")
    refused = run(*words, 31, cwd=tmp_path, status=1)
    assert "k = 31, but the reference sample holds PyTorch's 30 nearest of each query" in refused.stderr
    assert json.loads(run(*words, 5, cwd=tmp_path).stdout)["parity"]["neighbour_overlap_at_k"] == 1


def test_the_plain_form_still_needs_data(made: Path, tmp_path: Path) -> None:
    save_reference(tmp_path / "plain.npz", *splits_of(made / "photos"))
    words = {"model": made / "tiny.onnx", "reference": tmp_path / "plain.npz"}
    assert load_reference(tmp_path / "plain.npz", DIM).pictures == ()
    assert parity(**words)["parity"].status == "skipped"
    one = parity(**words, data=str(made / "photos"))["parity"]
    assert one.status == "ok"
    assert f"{COUNT} of {COUNT} pictures" in one.found


# Decoding


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fifth of the bundled pictures as a data set."""
    folder = tmp_path_factory.mktemp("drawn")
    pictures = [
        make_picture("val" if number < QUERIES else "train", name, number)
        for name in CLASSES
        for number in range(QUERIES + GALLERY)
        if (number + CLASSES.index(name)) % 5 == 0
    ]
    write_zip(folder / "sample.zip", pictures)
    return folder


def test_the_drawn_pictures(drawn: Path) -> None:
    data = open_dataset(drawn / "sample.zip")
    assert (len(data.val), len(data.train)) == (80, 320)
    assert set(data.classes) == set(CLASSES)
    contents = [sample.read() for sample in (*data.val, *data.train)]
    assert len(set(contents)) == len(contents)
    kinds = [format_of(content) for content in contents]
    assert kinds.count("JPEG") == kinds.count("PNG") == len(kinds) // 2
    facts = set()
    for content in contents:
        assert load_picture(io.BytesIO(content), PictureRule(32)).shape == (32, 32, 3)
        with Image.open(io.BytesIO(content)) as image:
            facts |= {image.mode, *(key for key in ("progressive", "exif", "transparency") if key in image.info)}
            facts |= {"reduced"} if image.format == "JPEG" and max(image.size) > 2 * 224 else set()
    assert facts >= {"RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "progressive", "exif", "transparency", "reduced"}
    assert facts & {"I;16", "I"}
    assert make_picture("val", CLASSES[7], 3) == make_picture("val", CLASSES[7], 3)


def test_a_sample_of_them_fits_into_the_wheel(drawn: Path, tmp_path: Path) -> None:
    """With vectors of 1,280 numbers that nothing compresses: at most 3 MB for all, so a fifth of it for a fifth."""
    data, draw = open_dataset(drawn / "sample.zip"), np.random.default_rng(0)

    def split(samples: tuple[Sample, ...]) -> EmbeddedSplit:
        rows = draw.normal(size=(len(samples), 1280)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return EmbeddedSplit(samples, rows, tuple(hashlib.sha256(sample.read()).digest() for sample in samples))

    save_pictures(tmp_path / "r.npz", split(data.val), split(data.train))
    assert (tmp_path / "r.npz").stat().st_size <= 600_000


def test_a_reader_that_forgets_the_orientation_is_found(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "tiny.onnx")
    data, embedder = open_dataset(drawn / "sample.zip"), Embedder(model)
    save_pictures(tmp_path / "tiny.reference.npz", embed_split(data.val, embedder), embed_split(data.train, embedder))
    assert parity(model)["parity"].status == "ok"
    monkeypatch.setattr("deeprank.runtime.images._ORIENTATIONS", {})
    assert parity(model)["parity"].status == "problem"


def permuted(found: dict[str, np.ndarray]) -> None:
    """Exchange the gallery pictures of a class with each other, so that no precision changes."""
    ends, whole = found["ends"], found["pictures"].tobytes()
    pictures = [whole[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    for label in set(found["labels"]):
        rows = np.flatnonzero((found["labels"] == label) & (found["splits"] == 1))
        taken = [pictures[row] for row in np.roll(rows, 1)]
        for row, picture in zip(rows, taken, strict=True):
            pictures[row] = picture
    found["pictures"] = np.frombuffer(b"".join(pictures), np.uint8)
    found["ends"] = np.cumsum([len(picture) for picture in pictures])


def one_wrong_neighbour(found: dict[str, np.ndarray]) -> None:
    """Write the farthest picture with the right label as the last neighbour of the first query."""
    rows, labels = found["neighbours"], found["labels"][found["splits"] == 1]
    others = np.setdiff1d(np.flatnonzero(labels == labels[rows[0, -1]]), rows[0])
    rows[0, -1] = others[-1]


def one_turned_picture(found: dict[str, np.ndarray]) -> None:
    """Turn the gallery picture that is the nearest of the first query, as if it had been decoded differently."""
    row = int(np.flatnonzero(found["splits"] == 1)[found["neighbours"][0, 0]])
    start, end = (0, *found["ends"])[row : row + 2]
    picture = io.BytesIO()
    Image.open(io.BytesIO(found["pictures"][start:end].tobytes())).convert("RGB").rotate(180).save(picture, "PNG")
    parts = found["pictures"][:start], np.frombuffer(picture.getvalue(), np.uint8), found["pictures"][end:]
    found["pictures"] = np.concatenate(parts)
    found["ends"][row:] += len(picture.getvalue()) - (end - start)


@pytest.mark.parametrize("change", [permuted, one_wrong_neighbour, one_turned_picture], ids=lambda each: each.__name__)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_gallery_that_differs_is_found(
    drawn: Path, tmp_path: Path, precision: str, change: Callable[[dict[str, np.ndarray]], None]
) -> None:
    """Its vectors are not in the file: PyTorch's neighbours must be the nearest here, too."""
    model = write_model(tmp_path / "tiny.onnx", precision=precision)
    data, embedder = open_dataset(drawn / "sample.zip"), Embedder(model)
    path = tmp_path / "tiny.reference.npz"
    save_pictures(path, embed_split(data.val, embedder), embed_split(data.train, embedder))
    assert parity(model)["parity"].status == "ok"
    found = arrays_of(path)
    change(found)
    np.savez(path, **found)
    one = parity(model)["parity"]
    if precision == "int8":  # a single picture is within the limits of eight bits
        assert (one.status, "overlap of the 30 nearest" in one.found) == (
            ("problem", True) if change is permuted else ("ok", False)
        )
        return
    assert one.status == "problem"
    assert "of PyTorch's 30 nearest lies" in one.found


def test_a_ranking_that_differs_is_found(drawn: Path, tmp_path: Path) -> None:
    """Each vector is within the wide limits of int8, but the gallery of the reference is sorted by its labels."""
    model = write_model(tmp_path / "tiny.onnx", precision="int8")
    data, embedder = open_dataset(drawn / "sample.zip"), Embedder(model)
    val, train = embed_split(data.val, embedder), embed_split(data.train, embedder)
    toward = {label: val.vectors[val.labels.index(label)] for label in data.classes}
    pulled = train.vectors + 0.25 * np.stack([toward[label] for label in train.labels])
    pulled /= np.linalg.norm(pulled, axis=1, keepdims=True)
    assert (pulled * train.vectors).sum(axis=1).min() > 0.95
    save_pictures(tmp_path / "tiny.reference.npz", val, dataclasses.replace(train, vectors=pulled))
    one = parity(model)["parity"]
    assert one.status == "problem"
    assert "reference here: precision@30 changes by -0." in one.found


# Damaged and hostile files


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as packed:
        return dict(packed)


def changed(**arrays: Callable[[np.ndarray], np.ndarray] | None) -> Callable[[Path, Path], None]:
    """Return a maker of a file in which arrays are changed, or missing."""

    def make(honest: Path, path: Path) -> None:
        found = arrays_of(honest)
        for name, change in arrays.items():
            if change is None:
                del found[name]
            else:
                found[name] = change(found[name])
        np.savez(path, **found)

    return make


def with_value(at: int, value: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.reshape(-1)[at] = value
        return array

    return change


def cut(honest: Path, path: Path) -> None:
    content = honest.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flipped(honest: Path, path: Path) -> None:
    content = bytearray(honest.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)


def zeros(**shapes: tuple[tuple[int, ...], str]) -> Callable[[Path, Path], None]:
    """Return a maker of a file in which arrays are of zeros, a thousand times smaller when compressed."""

    def make(honest: Path, path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, array in arrays_of(honest).items():
                with packed.open(f"{name}.npy", "w", force_zip64=True) as member:
                    if name not in shapes:
                        np.lib.format.write_array(member, array)
                        continue
                    shape, kind = shapes[name]
                    header = {"descr": kind, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(member, header)
                    left = int(np.prod(shape)) * np.dtype(kind).itemsize
                    for start in range(0, left, 2**22):
                        member.write(bytes(min(2**22, left - start)))

    return make


HOSTILE: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "cut": (cut, "not a reference sample"),
    "a byte changed": (flipped, "not a reference sample"),
    "no ends": (changed(ends=None), "holds no ends"),
    "no fractions": (changed(fractions=None), "holds no fractions"),
    "no labels": (changed(labels=None), "holds no labels"),
    "no neighbours": (changed(neighbours=None), "holds no neighbours"),
    "neighbours of another type": (changed(neighbours=lambda n: n.astype(np.int64)), "expected uint16 [q, "),
    "neighbours in one row": (changed(neighbours=np.ravel), "expected uint16 [q, "),
    "a neighbour too few": (changed(neighbours=lambda n: n[:, 1:]), "expected uint16 [q, "),
    "neighbours of a query too few": (changed(neighbours=lambda n: n[1:]), "expected uint16 [q, "),
    "a neighbour beyond the gallery": (changed(neighbours=with_value(5, 60_000)), "not different rows of a gallery"),
    "a neighbour twice": (changed(neighbours=lambda n: n // 2), "not different rows of a gallery"),
    "no query": (changed(splits=np.ones_like, fractions=lambda f: f[:, :0]), "at least one of each"),
    "no gallery": (changed(splits=lambda s: np.where(s == 1, 2, s)), "at least one of each"),
    "splits that are text": (changed(splits=lambda s: s.astype(str)), "expected float32"),
    "splits in two columns": (changed(splits=lambda s: np.stack([s, s], 1)), "expected float32"),
    "an end beyond": (changed(ends=with_value(-1, 10**9)), "do not lie one behind the other"),
    "ends that overflow": (changed(ends=with_value(3, 2**63 - 1)), "do not lie one behind the other"),
    "an end that is negative": (changed(ends=with_value(0, -5)), "do not lie one behind the other"),
    "an empty picture": (changed(ends=lambda ends: np.concatenate([ends[:1], ends[:-2], ends[-1:]])), "do not lie"),
    "bytes that belong to none": (changed(pictures=lambda p: np.append(p, p[:5])), "do not lie one behind the other"),
    "one end too few": (changed(ends=lambda ends: ends[1:]), "expected float32"),
    "one vector too few": (changed(fractions=lambda f: f[:, 1:]), "expected float32"),
    "vectors of another length": (changed(fractions=lambda f: f[:, :, 1:]), "expected float32"),
    "one byte for a number": (changed(fractions=lambda f: f[:1]), "expected high and low bytes"),
    "vectors that are zero": (changed(fractions=lambda f: f * 0), "not of unit length"),
    "ends of another type": (changed(ends=lambda ends: ends.astype(float)), "expected uint8"),
    "pictures of another type": (changed(pictures=lambda p: p.astype(np.int16)), "expected uint8"),
    "a label too few": (changed(labels=lambda labels: labels[1:]), "with n hashes, labels and splits"),
    "labels that are no text": (
        changed(labels=lambda labels: with_value(3, 0x110000)(labels.view(np.uint32)).view(labels.dtype)),
        "holds text that is not Unicode",
    ),
    "labels that are numbers": (changed(labels=lambda labels: np.arange(len(labels))), "with n hashes, labels"),
    "no picture": (changed(ends=lambda ends: ends[:0], pictures=lambda p: p[:0]), "expected 1 to"),
    "a hundred megabytes of zeros": (zeros(pictures=((100 * 2**20,), "|u1")), "unpacks to more than"),
    "as many ends as fit": (zeros(ends=((7 * 2**20,), "<i8")), "expected 1 to 20,000"),
    "as many fractions as fit": (zeros(fractions=((2, 2**20, 31), "|u1")), "expected float32"),
    "as many neighbours as fit": (zeros(neighbours=((2**20, 28), "<u2")), "expected uint16 [q, "),
}
BIG = {kind for kind in HOSTILE if "fit" in kind or "hundred" in kind}


@pytest.mark.skipif(sys.platform == "win32", reason="the limit is that of POSIX")
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_sample(made: Path, tmp_path: Path, kind: str) -> None:
    make, message = HOSTILE[kind]
    make(made / "tiny.reference.npz", tmp_path / "r.npz")
    if kind not in BIG:
        with pytest.raises(EvaluationError, match=re.escape(message)) as raised:
            load_reference(tmp_path / "r.npz", DIM)
        assert str(raised.value).isprintable()
        return
    code = (
        f"{PEAK}import sys\n"
        "from pathlib import Path\n"
        "from deeprank.runtime.errors import EvaluationError\n"
        "from deeprank.runtime.evaluate.reference import load_reference\n"
        "before = peak()\n"
        f"try: load_reference(Path(sys.argv[1]), {DIM})\n"
        "except EvaluationError as error: print(error)\n"
        "print((peak() - before) >> 10)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "r.npz")],
        capture_output=True,
        text=True,
        timeout=250,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30,) * 2),
    )
    assert ran.returncode == 0, ran.stderr
    said, grown = ran.stdout.splitlines()
    assert message in said
    assert int(grown) < 400, grown


def bomb() -> bytes:
    """A PNG of 40,000 x 40,000 pixels in 200 bytes, of which the rows are missing."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(10_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("picture", "said"),
    [(bomb(), "1,600,000,000 pixels"), (b"text", "not a picture"), (b"\xff\xd8\xff\xe0", "damaged")],
)
def test_a_picture_that_cannot_be_read_proves_nothing(
    run: Run, made: Path, tmp_path: Path, picture: bytes, said: str
) -> None:
    """Not even where all others agree: the box does not decode what PyTorch's machine has decoded."""
    found = arrays_of(made / "tiny.reference.npz")
    first = int(found["ends"][0])
    found["pictures"] = np.concatenate([np.frombuffer(picture, np.uint8), found["pictures"][first:]])
    found["ends"] += len(picture) - first
    np.savez(tmp_path / "r.npz", **found)
    one = parity(made / "tiny.onnx", reference=tmp_path / "r.npz")["parity"]
    assert one.status == "problem"
    assert f"1 of the reference sample's {COUNT} pictures cannot be read here: picture 0" in one.found
    assert said in one.found
    if picture == b"text":
        words = ("--model", made / "tiny.onnx", "--reference", tmp_path / "r.npz")
        assert "cannot be read here" in run("deeprank-eval", *words, status=1).stderr
        assert "cannot be read here" in run("deeprank-eval", "--models", words[1], *words[2:], status=1).stderr


# Export


@pytest.mark.thorough
def test_an_export_with_its_pictures(run: Run, tmp_path: Path) -> None:
    """A torch module, exported by the command; a box proves it with the two files alone."""
    digits = some_digits(tmp_path / "digits", classes=3, each=12)
    (tmp_path / "nets.py").write_text(
        "import torch\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 8))\n"
    )
    words = ("--module", "nets:build", "--image-size", 16, "--data", digits, "--sample-pictures", "--out", "m.onnx")
    run("deeprank-export", *words, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    box = tmp_path / "box"
    box.mkdir()
    for name in ("m.onnx", "m.reference.npz"):
        (tmp_path / name).rename(box / name)
    one = parity(box / "m.onnx")["parity"]
    assert one.status == "ok"
    assert "36 of 36 pictures" in one.found


def test_an_export_with_too_many_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is embedded or written."""
    import torch

    from deeprank.export import export_onnx
    from deeprank.export.package import Checks
    from deeprank.runtime.modelfile import ModelInfo

    monkeypatch.setattr(reference, "_MAX_BYTES", 99)
    monkeypatch.setattr("deeprank.export.package.embed_reference", None)
    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 8))
    write_pictures(tmp_path / "photos", [f"{label}/{number}.png" for label in "ab" for number in range(4)])
    with pytest.raises(EvaluationError, match="too much for a reference sample; expected at most"):
        export_onnx(
            module,
            (torch.rand(2, 3, 16, 16) - 0.45) / 0.225,
            ModelInfo("few", 8, PictureRule(16), "few"),
            data=tmp_path / "photos",
            out=tmp_path / "w.onnx",
            checks=Checks(sample_pictures=True),
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


# The bundled one


def modes_of(samples: tuple[Sample, ...]) -> set[tuple[str | None, str]]:
    found = set()
    for sample in samples:
        with sample.open() as file, Image.open(file) as image:
            found.add((image.format, image.mode))
    return found


def bundled() -> bool:
    path = pretrained_reference()
    return path is not None and bool(load_reference(path, None).pictures)


@pytest.mark.skipif(not bundled(), reason="the bundled sample carries no pictures")
def test_the_bundled_sample() -> None:
    path = pretrained_reference()
    assert path.stat().st_size <= 3_000_000
    sample = load_reference(path, None)
    assert len(sample.pictures) >= 2_000
    assert np.bincount(sample.splits).tolist() == [len(CLASSES) * QUERIES, len(CLASSES) * GALLERY]
    assert {format_of(picture) for picture in sample.pictures} == {"JPEG", "PNG"}
    assert sample.neighbours.shape == (len(CLASSES) * QUERIES, 30)
    # Only queries have vectors, so they must be of every kind.
    data = sample.dataset()
    assert modes_of(data.val) == modes_of(data.train)


@pytest.mark.skipif(not bundled(), reason="the bundled sample carries no pictures")
@pytest.mark.parametrize("precision", ["int8", pytest.param("fp32", marks=pytest.mark.thorough)])
def test_the_bundled_model_is_proved_offline(precision: str) -> None:
    one = parity(pretrained_model(precision), device="cpu")["parity"]
    assert one.status == "ok"
    theirs = float(re.search(r"precision@30 (\S+) with PyTorch", one.found).group(1))
    assert 0.3 <= theirs <= 0.9
