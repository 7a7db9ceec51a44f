"""The embedder against the same projection computed in numpy."""

import io
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image
from tiny_model import DIM, SIZE, expected, write_model

from deeprank.runtime import Embedder
from deeprank.runtime.embedder import BoundNetwork
from deeprank.runtime.errors import ModelFileError, PictureError
from deeprank.runtime.modelfile import OpenModel, open_model
from deeprank.runtime.pipeline import embed_in_workers, embed_stream

RNG = np.random.default_rng(0)


@pytest.fixture
def embedder(tmp_path: Path) -> Embedder:
    return Embedder(write_model(tmp_path / "tiny.onnx"), device="cpu", batch_size=4)


def pictures(folder: Path, count: int) -> tuple[list[Path], np.ndarray]:
    pixels = RNG.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    paths = [folder / f"{number}.png" for number in range(count)]
    for path, picture in zip(paths, pixels, strict=True):
        Image.fromarray(picture).save(path)
    return paths, pixels


@pytest.mark.parametrize("count", [1, 3, 4, 9, 30])
def test_vectors_in_order(embedder: Embedder, tmp_path: Path, count: int) -> None:
    paths, pixels = pictures(tmp_path, count)
    vectors = embedder.embed(paths)
    assert vectors.shape == (count, DIM)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected(pixels), atol=1e-5)


def test_no_pictures(embedder: Embedder) -> None:
    assert embedder.embed([]).shape == (0, DIM)


def test_files_and_names(embedder: Embedder, tmp_path: Path) -> None:
    paths, pixels = pictures(tmp_path, 2)
    vectors = embedder.embed([str(paths[0]), io.BytesIO(paths[1].read_bytes())])
    np.testing.assert_allclose(vectors, expected(pixels), atol=1e-5)


def test_a_bad_picture_stops_embed_and_is_reported_by_stream(embedder: Embedder, tmp_path: Path) -> None:
    paths, pixels = pictures(tmp_path, 11)
    for number in (0, 5, 10):
        paths[number].write_text("no picture")
    with pytest.raises(PictureError, match=r"0\.png is not a picture"):
        embedder.embed(paths)
    results = list(embedder.stream(paths, embedder.load))
    assert [path for path, _ in results] == paths
    for number, (path, result) in enumerate(results):
        if number in (0, 5, 10):
            assert isinstance(result, PictureError)
            assert path.name in str(result)
        else:
            np.testing.assert_allclose(result, expected(pixels[number : number + 1])[0], atol=1e-5)


def test_nothing_but_bad_pictures(embedder: Embedder, tmp_path: Path) -> None:
    bad = [tmp_path / f"{number}.jpg" for number in range(100)]
    assert all(isinstance(result, PictureError) for _, result in embedder.stream(bad, embedder.load))


def test_errors_that_are_kept_keep_no_pictures(embedder: Embedder, tmp_path: Path) -> None:
    paths, _ = pictures(tmp_path, 9)
    for path in paths[3:6]:
        path.write_bytes(path.read_bytes()[:-40])
    errors = [found for _, found in embedder.stream(paths, embedder.load) if isinstance(found, PictureError)]
    assert [error.kind for error in errors] == ["damaged"] * 3
    assert all(error.__traceback__ is error.__cause__ is error.__context__ is None for error in errors)


def test_an_unexpected_error_is_not_swallowed(embedder: Embedder) -> None:
    def read(_: int) -> np.ndarray:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(embedder.stream([1, 2], read))


def test_memory_stays_bounded_and_work_overlaps() -> None:
    """Items are taken as they are needed, and decoding goes on while the network works."""
    taken, read_while_working, working = 0, 0, threading.Event()

    def items():
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield number

    def read(_: int) -> np.ndarray:
        nonlocal read_while_working
        time.sleep(0.001)
        read_while_working += working.is_set()
        return np.zeros((SIZE, SIZE, 3), np.uint8)

    def embed(batch: np.ndarray) -> np.ndarray:
        working.set()
        time.sleep(0.01)
        working.clear()
        return np.zeros((len(batch), DIM), np.float32)

    for done, _ in enumerate(embed_stream(items(), read, embed, batch_size=8, threads=2), 1):
        assert taken - done <= 4 * 8
    assert done == 1000
    assert read_while_working > 100


def test_stopping_early_stops_the_threads(embedder: Embedder, tmp_path: Path) -> None:
    paths, _ = pictures(tmp_path, 30)
    before = threading.active_count()
    stream = embedder.stream(paths, embedder.load)
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_many_are_embedded_by_a_thread_for_each_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with the network to itself; a few go through the session that is open anyway."""
    embedder = Embedder(write_model(tmp_path / "tiny.onnx"), device="cpu", threads=3, batch_size=4)
    paths, pixels = pictures(tmp_path, 40)
    names: dict[str, set[str]] = {"load": set(), "_run": set()}
    sessions: set[int] = set()

    def noted(name: str):
        method = getattr(embedder, name)

        def call(*arguments):
            names[name].add(threading.current_thread().name)
            sessions.update(argument.threads for argument in arguments if isinstance(argument, OpenModel))
            time.sleep(0.002)
            return method(*arguments)

        return call

    for name in names:
        monkeypatch.setattr(embedder, name, noted(name))
    few = [vector for _, vector in embedder.stream(paths[:4], embedder.load)]
    assert embedder._on_one_core is None
    assert sessions == {3}
    assert len(names["_run"]) == 1
    sessions.clear(), names["load"].clear(), names["_run"].clear()
    many = [vector for _, vector in embedder.stream(paths, embedder.load)]
    assert sessions == {1}
    assert len(names["_run"]) == len(names["load"]) == 3
    assert not names["_run"] & names["load"]
    np.testing.assert_allclose(np.stack(few), expected(pixels[:4]), atol=1e-5)
    np.testing.assert_allclose(np.stack(many), expected(pixels), atol=1e-5)


def test_workers_keep_the_order_and_take_items_as_they_are_needed() -> None:
    taken = 0

    def items():
        nonlocal taken
        for number in range(500):
            taken += 1
            yield number

    def read(number: int) -> np.ndarray:
        time.sleep(0.001 * (number % 5 == 0))
        if number % 7 == 0:
            raise PictureError(str(number))
        return np.full((1, 1, 3), number % 256, np.uint8)

    def embed(batch: np.ndarray) -> np.ndarray:
        return batch[:, 0, 0].astype(np.float32)

    stream = embed_in_workers(items(), read, embed, batch_size=4, workers=3)
    for number, (item, result) in enumerate(stream):
        assert item == number
        assert taken - number <= 4 * (3 * 3 + 2)
        if number % 7 == 0:
            assert str(result) == str(number)
        else:
            assert result[0] == number % 256
    assert number == 499


def test_a_model_that_is_replaced_while_it_is_open_is_noticed(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny.onnx")
    embedder = Embedder(path, device="cpu", threads=2, batch_size=4)
    paths, _ = pictures(tmp_path, 10)
    write_model(path, seed=1)
    with pytest.raises(ModelFileError, match="has changed since it was opened"):
        list(embedder.stream(paths, embedder.load))


def test_bound_buffers_give_what_the_session_gives(tmp_path: Path) -> None:
    """The way a GPU is fed; on the CPU it is the same calls."""
    session = open_model(write_model(tmp_path / "tiny.onnx"), device="cpu").session
    network = BoundNetwork(session, 4, device="cpu")
    kept = []
    for count in (4, 4, 1, 7, 4):
        pixels = RNG.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
        vectors = network.run(pixels, ort.RunOptions())
        np.testing.assert_allclose(vectors, expected(pixels), atol=1e-5)
        kept.append((pixels, vectors))
    for pixels, vectors in kept:  # no result is a view of a buffer that was written to again
        np.testing.assert_allclose(vectors, expected(pixels), atol=1e-5)
