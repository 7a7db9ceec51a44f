"""An index with another model and computed vectors: the same rows, in one step, or nothing is changed."""

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image
from server_process import serving
from tiny_model import write_model, write_picture, write_pictures

from deeprank.runtime.embedder import Embedder
from deeprank.runtime.errors import DeepRankError, IndexLockedError, IndexReplacedError, IndexStateError
from deeprank.runtime.files import file_sha256
from deeprank.runtime.index import Index
from deeprank.runtime.index.database.store import Store
from deeprank.runtime.index.database.writer import writing
from deeprank.runtime.index.maintenance.copy import copy
from deeprank.runtime.index.maintenance.model_exchange import replace_model
from deeprank.runtime.index.maintenance.reembed import reembed
from deeprank.runtime.index.maintenance.verify import verify
from deeprank.runtime.index.patterns import RootFilters
from deeprank.runtime.index.ratings import NewComparison, RatingStore, add_comparisons
from deeprank.runtime.index.sync.options import SyncOptions
from deeprank.runtime.index.sync.sync import sync
from deeprank.runtime.index.uploads import Upload, add_uploads
from deeprank.runtime.model.metadata import ModelInfo
from deeprank.runtime.modelfile import METADATA_KEY

Vectors = npt.NDArray[np.float32]

PICTURES = 12


def turned(vectors: Vectors) -> Vectors:
    """The vectors of the other model: twice the numbers, the second half with other signs."""
    both = np.concatenate([vectors, vectors * np.resize([1, -1], vectors.shape[1])], axis=1)
    return (both / np.sqrt(2)).astype(np.float32)


def write_turned(start: Path, path: Path) -> Path:
    """Write a model that gives :func:`turned` of what ``start`` gives, and names it as the one before."""
    model = onnx.load(start)
    info = ModelInfo.from_json(model.metadata_props[0].value)
    for node in model.graph.node:
        node.output[:] = ["start" if name == "embedding" else name for name in node.output]
    share = np.float32(1 / np.sqrt(2))
    signs = np.resize(np.array([share, -share], np.float32), info.embedding_dim)
    model.graph.initializer.extend([numpy_helper.from_array(share, "share"), numpy_helper.from_array(signs, "signs")])
    model.graph.node.extend(
        [
            helper.make_node("Mul", ["start", "share"], ["first"]),
            helper.make_node("Mul", ["start", "signs"], ["second"]),
            helper.make_node("Concat", ["first", "second"], ["embedding"], axis=1),
        ]
    )
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2 * info.embedding_dim
    values = json.loads(info.to_json()) | {"embedding_dim": 2 * info.embedding_dim}
    values["training"] = {"taught": {"previous": file_sha256(start)}}
    helper.set_model_props(model, {METADATA_KEY: json.dumps(values)})
    path.write_bytes(model.SerializeToString())
    return path


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, an index with a filter, an upload and a removed picture, and the two models."""
    folder = tmp_path_factory.mktemp("exchange")
    write_pictures(folder / "photos", [f"{label}/{i}.png" for label in "ab" for i in range(PICTURES // 2)])
    (folder / "photos" / "a" / "no.jpg").write_bytes(b"no picture")
    model = write_model(folder / "model.onnx")
    filters = RootFilters(exclude=("*.gif",))
    sync(folder / "index", [folder / "photos"], model=model, filters=filters)
    upload = Embedder(model).embed([io.BytesIO(png(99))])[0]
    add_uploads(folder / "index", [Upload(png(99), upload, "up")], model_sha256=file_sha256(model))
    with Store.open(folder / "index") as store:
        contents = [item.sha256 for item in store.all_items()]
    add_comparisons(folder / "index", [NewComparison(*contents[:3])], rater="ann")
    (folder / "photos" / "b" / "0.png").unlink()
    sync(folder / "index", [folder / "photos"])
    write_turned(model, folder / "turned.onnx")
    return folder


@pytest.fixture
def index(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "index", tmp_path / "index")
    return tmp_path / "index"


def rows(index: Path) -> list[object]:
    """Return everything in an index but its vectors and model."""
    with Store.open(index) as store:
        unread = {root: store.unread(root) for root in store.synced_roots()}
        with RatingStore.open(index) as ratings:
            rated = ratings.ratings()
        known = [rated, store.synced_roots(), store.uploads_root(), store.filters(), store.labelling(), unread]
        return [*known, list(store.all_items()), store.meta().last_id]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def exchanged(index: Path, made: Path, **options: object) -> None:
    replace_model(index, made / "turned.onnx", turned, of=file_sha256(made / "model.onnx"), **options)  # type: ignore[arg-type]


def test_every_row_stays_and_every_vector_is_computed(index: Path, made: Path) -> None:
    before = rows(index)
    with Store.open(index) as store:
        ids, vectors = store.vectors()
    result = replace_model(index, made / "turned.onnx", turned, of=file_sha256(made / "model.onnx"))
    assert (result.items, result.compared, result.remarks) == (PICTURES, PICTURES, ())
    assert rows(index) == before
    with Store.open(index) as store:
        assert store.meta().model_sha256 == result.model_sha256 == file_sha256(index / "model.onnx")
        np.testing.assert_array_equal(store.vectors()[0], ids)
        np.testing.assert_array_equal(store.vectors()[1], turned(vectors))
    assert (index / "previous.onnx").read_bytes() == (made / "model.onnx").read_bytes()
    assert verify(index).problems == ()
    with Index.open(index) as opened:  # a picture of its own, by the new model
        (hit,) = opened.search(made / "photos" / "a" / "1.png", 1)
        assert (hit.path, round(hit.distance, 6)) == (str(made / "photos" / "a" / "1.png"), 0)
    report = sync(index, [made / "photos"])
    assert (report.added, report.unchanged) == (0, PICTURES - 1)
    assert [path.name for path in index.parent.glob(".*")] == []


def test_vectors_may_become_much_shorter(tmp_path: Path) -> None:
    # Until its exchange, the database is larger than the one that takes its name.
    names = [f"{number}.png" for number in range(9)]
    write_pictures(tmp_path / "photos", names)
    long, short = write_model(tmp_path / "long.onnx", dim=5000), write_model(tmp_path / "short.onnx", dim=8)
    sync(tmp_path / "index", [tmp_path / "photos"], model=long)
    files = [tmp_path / "photos" / name for name in names]
    known, vectors = Embedder(long).embed(files), Embedder(short).embed(files)
    result = replace_model(
        tmp_path / "index",
        short,
        lambda rows: vectors[(rows @ known.T).argmax(axis=1)],
        of=file_sha256(long),
        keep=False,
    )
    assert (result.items, result.compared) == (9, 9)


def test_what_must_not_happen_changes_nothing(index: Path, made: Path) -> None:
    before = content(index)
    of = file_sha256(made / "model.onnx")

    def refused(match: str, mapped=turned, of: str = of, **options) -> None:
        with pytest.raises(DeepRankError, match=match):
            replace_model(index, made / "turned.onnx", mapped, of=of, **options)
        assert content(index) == before
        assert [path.name for path in index.parent.glob(".*")] == []

    def not_better(fresh: Path) -> None:
        assert verify(fresh).problems == ()
        raise IndexStateError("not better")

    refused("got another model meanwhile", of="0" * 64)
    refused("unit vectors of 32 numbers", mapped=lambda vectors: vectors)
    refused("unit vectors of 32 numbers", mapped=lambda vectors: 2 * turned(vectors))
    refused("gives other vectors than those computed", mapped=lambda vectors: turned(vectors[:, ::-1]))
    refused("not better", accept=not_better)
    with writing(index), pytest.raises(IndexLockedError):
        exchanged(index, made)


def test_without_any_readable_picture_there_is_a_remark(index: Path, made: Path, tmp_path: Path) -> None:
    with Store.open(index) as store:
        paths = [Path(os.fsdecode(root)) for root in store.synced_roots().values()]
    shutil.rmtree(index / "uploads")
    paths[0].rename(tmp_path / "away")
    try:
        result = replace_model(index, made / "turned.onnx", turned, of=file_sha256(made / "model.onnx"))
    finally:
        (tmp_path / "away").rename(paths[0])
    assert result.compared == 0
    assert "No picture could be read" in result.remarks[0]
    assert [problem.part for problem in verify(index).problems] == ["upload"]


def test_pictures_added_since_are_mapped_too(index: Path, made: Path, tmp_path: Path) -> None:
    write_picture(tmp_path / "more" / "new.png", 500)
    sync(index, [tmp_path / "more"])
    exchanged(index, made)
    with Index.open(index) as opened:
        assert opened.search(tmp_path / "more" / "new.png", 1)[0].distance < 1e-6


def test_the_former_model_is_a_part_of_the_index(index: Path, made: Path, tmp_path: Path) -> None:
    exchanged(index, made)
    copy(index, tmp_path / "copy")
    assert (tmp_path / "copy" / "previous.onnx").read_bytes() == (made / "model.onnx").read_bytes()
    with (index / "previous.onnx").open("r+b") as file:
        file.seek(200)
        file.write(b"\xff\xff")
    (problem,) = verify(index).problems
    assert problem.part == "previous"
    copy(index, tmp_path / "copy", replace=True)
    assert verify(index, repair=True).remaining == ()
    assert not (index / "previous.onnx").exists()
    exchanged_again = tmp_path / "copy"
    reembed(exchanged_again, SyncOptions(model=made / "model.onnx"))
    assert not (exchanged_again / "previous.onnx").exists()
    assert verify(exchanged_again).problems == ()


# Forks a process for each step, and kills it there: at each call that opens, renames or deletes a file.
KILLS = """
import os, shutil, signal, sys
from pathlib import Path
import onnxruntime
from deeprank.runtime.index.database.store import Store
from deeprank.runtime.index.folder import clear_leftovers
from deeprank.runtime.index.maintenance.model_exchange import replace_model
from deeprank.runtime.index.maintenance.verify import verify
sys.path.insert(0, sys.argv[3])
from test_model_exchange import turned, file_sha256, rows

made, case, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[4])
EVENTS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "ctypes.dlsym", "sqlite3.connect")

def child(kill_at):
    calls = 0
    def hook(event, arguments):
        nonlocal calls
        if event in EVENTS and (str(case) in str(arguments) or "renameat2" in arguments):
            calls += 1
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    replace_model(case / "index", made / "turned.onnx", turned, of=file_sha256(made / "model.onnx"))
    if not kill_at:
        os.write(1, b"%d " % calls)

def run(kill_at):
    process = os.fork()
    if not process:
        try:
            child(kill_at)
        finally:
            os._exit(0)
    return os.waitpid(process, 0)[1]

def placed():
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(made / "index", case / "index")

placed()
reader, writer = os.pipe()
kept = os.dup(1)
os.dup2(writer, 1)
assert run(0) == 0
total = int(os.read(reader, 100))
before = rows(made / "index")
models = {file_sha256(made / "model.onnx"): "old", file_sha256(made / "turned.onnx"): "new"}
seen = {"old": 0, "new": 0}
for number in sorted({round(1 + place * (total - 1) / limit) for place in range(limit + 1)}):
    placed()
    assert run(number) == signal.SIGKILL, (number, total)
    report = verify(case / "index")
    assert report.problems == (), (number, report.problems)
    with Store.open(case / "index") as store:
        state = models[store.meta().model_sha256]
        assert store.meta().dim == {"old": 16, "new": 32}[state]
    assert rows(case / "index") == before
    assert (case / "index" / "previous.onnx").exists() == (state == "new")
    seen[state] += 1
    if state == "old":  # the next call does the work
        assert run(0) == 0
    clear_leftovers(case / "index")
    assert [path.name for path in case.glob(".*")] == [], number
os.dup2(kept, 1)
print(total, seen)
assert all(seen.values())
"""


def kill_at(made: Path, tmp_path: Path, limit: int) -> str:
    words = [sys.executable, "-c", KILLS, made, tmp_path / "case", Path(__file__).parent, str(limit)]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_kill_leaves_the_old_index_or_the_new_one(made: Path, tmp_path: Path) -> None:
    kill_at(made, tmp_path, 5)


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_kill_at_every_step(made: Path, tmp_path: Path) -> None:
    kill_at(made, tmp_path, 10_000)


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file grow beyond a size: a write fails then, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_a_sentence(index: Path, made: Path) -> None:
    before = content(index)
    for size in (100, 3_000, 20_000):
        with pytest.raises(DeepRankError), files_of_at_most(size):
            exchanged(index, made)
        assert content(index) == before
        assert [path.name for path in index.parent.glob(".*")] == []
    exchanged(index, made)


def test_readers_see_one_index_or_the_other(index: Path, made: Path) -> None:
    query = made / "photos" / "a" / "1.png"
    stop, seen, failures = threading.Event(), set(), []

    def read() -> None:
        while not stop.is_set():
            try:
                with Index.open(index) as opened:
                    assert opened.search(query, 1)[0].path == str(query)
                    seen.add(opened.dim)
            except IndexReplacedError:  # between its database and its model: a server opens it again
                continue
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        exchanged(index, made)
    finally:
        stop.set()
        thread.join()
    assert failures == []
    assert seen <= {16, 32}


def test_a_server_answers_throughout_and_takes_the_new_model(index: Path, made: Path) -> None:
    query = (made / "photos" / "a" / "1.png").read_bytes()
    stop, statuses, hits = threading.Event(), set(), set()
    with serving("--index", index) as server, server.client() as client:

        def ask() -> None:
            with server.client() as own:
                while not stop.is_set():
                    answer = own.post("/v1/search?k=1", files={"image": query})
                    statuses.add(answer.status_code)
                    hits.add(answer.json()["results"][0]["hits"][0]["path"])

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            exchanged(index, made)
            server.wait_for(lambda: client.get("/v1/info").json()["model"]["dim"] == 32, "the new model")
        finally:
            stop.set()
            thread.join()
    assert (statuses, len(hits)) == ({200}, 1)
