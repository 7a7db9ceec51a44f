"""``deeprank-embed`` from and into object storage: a server that speaks S3, in a process of its own."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import BIN, Run, run_command
from tiny_model import expected, square, write_model, write_picture

pytest.importorskip("pyarrow")
pytest.importorskip("moto")

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import S3FileSystem

from deeprank.runtime.embed.job import embed
from deeprank.runtime.embed.options import EmbedOptions
from deeprank.runtime.errors import DataError, EmbeddedFolderError, StorageError
from deeprank.runtime.parts import EmbeddedFolder

SERVER = "from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


def started(log: Path) -> tuple[subprocess.Popen, str]:
    """Start a server, and return its process and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-c", SERVER.format(port=port)], stdout=file, stderr=file)
    deadline = time.monotonic() + 300
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process, f"http://127.0.0.1:{port}"
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process, address = started(tmp_path_factory.mktemp("moto") / "log")
    yield address
    process.kill()
    process.wait()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """An empty bucket; pyarrow and our commands find its server by the environment."""
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:40].strip("-") + f"-{os.getpid()}"
    store().create_dir(name)
    return name


def store() -> S3FileSystem:
    return S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"], allow_bucket_creation=True)


def put(key: str, content: bytes) -> None:
    with store().open_output_stream(key) as file:
        file.write(content)


@pytest.fixture
def stored(bucket: str, tmp_path: Path) -> tuple[str, Path]:
    """Eighteen pictures in a bucket, and the same in a folder."""
    photos = tmp_path / "photos"
    for number in range(18):
        write_picture(photos / f"label{number % 2}" / f"{number:02d}.png", number)
    for path in sorted(photos.rglob("*.png")):
        put(f"{bucket}/photos/{path.relative_to(photos)}", path.read_bytes())
    put(f"{bucket}/photos/label0/torn.jpg", b"\xff\xd8\xff torn")
    put(f"{bucket}/photos/label0/without", (photos / "label0/00.png").read_bytes())
    put(f"{bucket}/photos/label0/readme.txt", b"no picture")
    put(f"{bucket}/photos/label1/empty.png", b"")
    put(f"{bucket}/photos/.hidden/no.png", b"")
    put(f"{bucket}/photos/@eaDir/no.png", b"no")
    write_model(tmp_path / "model.onnx")
    return f"s3://{bucket}/photos", photos


def keys(bucket: str, folder: str = "parts") -> set[str]:
    selector = pa.fs.FileSelector(f"{bucket}/{folder}", recursive=True)
    return {info.path.removeprefix(f"{bucket}/{folder}/") for info in store().get_file_info(selector) if info.is_file}


def rows_of(out: str) -> dict[str, tuple]:
    folder = EmbeddedFolder.open(out)
    folder.check_complete()
    rows = {}
    for _, part in folder.rows():
        for path, *row in zip(part.paths, part.ids, part.labels, part.sha256, part.sizes, part.vectors, strict=True):
            assert path not in rows
            rows[path] = tuple(row)
    return rows


def options(tmp_path: Path, **more) -> EmbedOptions:
    return EmbedOptions(**{"model": str(tmp_path / "model.onnx"), "part_size": 4, "threads": 1, **more})


@pytest.mark.thorough
def test_from_a_bucket_into_a_bucket(stored: tuple[str, Path], bucket: str, tmp_path: Path, run: Run) -> None:
    source, photos = stored
    out = f"s3://{bucket}/parts"
    words = ("deeprank-embed", source, "--out", out, "--part-size", 4)
    report = json.loads(run(*words, "--json", cwd=tmp_path).stdout)
    assert (report["embedded"], report["complete"], report["items"]) == (19, True, 19)
    assert [row["path"] for row in report["skipped"]] == ["label0/torn.jpg", "label1/empty.png"]
    rows = rows_of(out)
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    assert sorted(rows) == sorted([*names, "label0/without"])
    vectors = np.stack([rows[name][-1] for name in names])
    assert np.abs(vectors - expected(np.stack([square(photos / name) for name in names]))).max() < 1e-5
    embed(photos, tmp_path / "here", options(tmp_path))
    here = rows_of(str(tmp_path / "here"))
    assert {name: here[name][1:4] for name in names} == {name: rows[name][1:4] for name in names}
    assert max(np.abs(here[name][-1] - rows[name][-1]).max() for name in names) <= 1e-6
    assert json.loads(run(*words, "--json", cwd=tmp_path).stdout)["parts"]["written"] == 0


def test_generations_in_a_bucket(stored: tuple[str, Path], bucket: str, tmp_path: Path) -> None:
    source, _ = stored
    out = f"s3://{bucket}/parts"
    embed(source, out, options(tmp_path))
    before = rows_of(out)
    write_picture(tmp_path / "new.png", 99)
    put(f"{bucket}/photos/label1/new.png", (tmp_path / "new.png").read_bytes())
    store().delete_file(f"{bucket}/photos/label0/00.png")
    report = embed(source, out, options(tmp_path))
    assert (report.generation, report.embedded, report.removed) == (2, 1, 1)
    assert set(rows_of(out)) == set(before) - {"label0/00.png"} | {"label1/new.png"}
    assert keys(bucket) >= {"listing-0002.parquet", "removed-0002.parquet"}


@pytest.mark.thorough
def test_killed_and_run_again(stored: tuple[str, Path], bucket: str, tmp_path: Path) -> None:
    source, _ = stored
    out = f"s3://{bucket}/parts"
    words = [BIN / "deeprank-embed", source, "--out", out, "--part-size", "1", "--threads", "1"]
    for parts in (1, 6):
        with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and sum(key.startswith("vectors/") for key in keys_or_none(bucket)) < parts:
                time.sleep(0.02)
            process.kill()
    run_command("deeprank-embed", source, "--out", out, cwd=tmp_path)
    assert len(rows_of(out)) == 19
    vectors = {key.split("/")[1] for key in keys(bucket) if key.startswith("vectors/")}
    skipped = {key.split("/")[1] for key in keys(bucket) if key.startswith("skipped/")}
    assert vectors == skipped
    assert len(vectors) == 21
    assert keys(bucket) - {f"{folder}/{name}" for folder in ("vectors", "skipped") for name in vectors} == {
        "embedded.json",
        "model.onnx",
        "listing-0001.parquet",
    }


def keys_or_none(bucket: str) -> set[str]:
    try:
        return keys(bucket)
    except FileNotFoundError:
        return set()


def test_a_torn_upload_is_no_part(stored: tuple[str, Path], bucket: str, tmp_path: Path) -> None:
    source, _ = stored
    out = f"s3://{bucket}/parts"
    embed(source, out, options(tmp_path))
    before = rows_of(out)
    put(f"{bucket}/parts/vectors/0001-000002.parquet", b"")
    with pytest.raises(EmbeddedFolderError, match="unfinished: 1 part is missing"):
        rows_of(out)
    embed(source, out, options(tmp_path))
    assert {path: row[:4] for path, row in rows_of(out).items()} == {path: row[:4] for path, row in before.items()}


@pytest.mark.thorough
def test_shares_beside_each_other(stored: tuple[str, Path], bucket: str, tmp_path: Path) -> None:
    source, _ = stored
    out = f"s3://{bucket}/parts"
    words = [BIN / "deeprank-embed", source, "--out", out, "--part-size", "2", "--threads", "1", "--json"]
    begun = [
        subprocess.Popen([*words, "--parts", f"{place}/3"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        for place in (1, 2, 3)
    ]
    reports = [json.loads(process.communicate()[0]) for process in begun]
    assert sum(report["embedded"] for report in reports) == 19
    assert len(rows_of(out)) == 19


@pytest.mark.usefixtures("stored")
def test_a_key_that_vanishes_is_a_skipped_row(bucket: str, tmp_path: Path) -> None:
    """Listed, and gone when it is read: a row with its reason; the other pictures are embedded."""
    names = ["label0/00.png", "label0/gone.png", "label1/01.png"]
    with pa.BufferOutputStream() as sink:
        pq.write_table(pa.table({"path": names}), sink)
        put(f"{bucket}/photos/list.parquet", sink.getvalue().to_pybytes())
    out = f"s3://{bucket}/parts"
    report = embed(f"s3://{bucket}/photos/list.parquet", out, options(tmp_path))
    assert [(picture.path, picture.kind, picture.reason) for picture in report.skipped] == [
        ("label0/gone.png", "missing", "does not exist")
    ]
    folder = EmbeddedFolder.open(out)
    assert folder.settings.source == f"s3://{bucket}/photos"
    (rows,) = [rows for _, rows in folder.rows()]
    assert rows.paths == ["label0/00.png", "label1/01.png"]
    assert (rows.mtimes_ns > 10**18).all()  # the listing tells none, so the store does
    assert (rows.sizes > 100).all()


def test_a_part_that_is_cut_and_a_listing_that_changed(stored: tuple[str, Path], bucket: str, tmp_path: Path) -> None:
    source, _ = stored
    out = f"s3://{bucket}/parts"
    embed(source, out, options(tmp_path))
    with store().open_input_file(f"{bucket}/parts/vectors/0001-000001.parquet") as file:
        content = file.read()
    put(f"{bucket}/parts/vectors/0001-000001.parquet", content[: len(content) // 2])
    with pytest.raises(EmbeddedFolderError, match=r"0001-000001\.parquet is damaged or not of this folder"):
        rows_of(out)
    put(f"{bucket}/parts/vectors/0001-000001.parquet", content)
    # Two writers at once, of which the later one saw another source: the parts of the first are refused.
    embed(source, f"s3://{bucket}/other", options(tmp_path, exclude=("*.jpg",)))
    with store().open_input_file(f"{bucket}/other/listing-0001.parquet") as file:
        put(f"{bucket}/parts/listing-0001.parquet", file.read())
    with pytest.raises(EmbeddedFolderError, match="is damaged or not of this folder"):
        rows_of(out)


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        ("s3://{bucket}/nothing", DataError, "does not exist"),
        ("s3://no-such-bucket-here/photos", (DataError, StorageError), "does not exist|cannot be read"),
        ("s3://KEY:SECRET@{bucket}/photos", StorageError, "URI holds a key"),
        ("http://example.com/photos", StorageError, "is no known storage"),
        ("s3://", StorageError, "names no bucket|is no URI of a folder"),
    ],
)
def test_locations_that_are_none_are_refused(
    bucket: str, tmp_path: Path, source: str, error: type[Exception], says: str
) -> None:
    write_model(tmp_path / "model.onnx")
    with pytest.raises(error, match=says) as caught:
        embed(source.format(bucket=bucket), tmp_path / "parts", options(tmp_path))
    assert "SECRET" not in str(caught.value)
    assert not (tmp_path / "parts").exists()


@pytest.mark.thorough
@pytest.mark.parametrize("fault", ["unreachable", "no credentials", "no bucket"])
def test_storage_that_cannot_be_used_is_one_sentence(
    stored: tuple[str, Path], bucket: str, tmp_path: Path, fault: str, run: Run
) -> None:
    _, photos = stored
    environment, where = {"AWS_EC2_METADATA_DISABLED": "true"}, bucket
    if fault == "unreachable":
        environment |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    elif fault == "no credentials":
        environment |= dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "")
        environment |= {"AWS_SHARED_CREDENTIALS_FILE": "/nowhere", "AWS_CONFIG_FILE": "/nowhere", "HOME": "/nowhere"}
    else:
        where = "no-such-bucket-here"
    started = time.monotonic()
    result = run("deeprank-embed", photos, "--out", f"s3://{where}/new", cwd=tmp_path, status=None, **environment)
    if fault == "no credentials" and result.returncode == 0:
        pytest.skip("this server asks for no credentials")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "s3://" in result.stderr.splitlines()[-1]
    assert time.monotonic() - started < 180


@pytest.mark.thorough
def test_a_store_that_goes_away_while_pictures_are_read(stored: tuple[str, Path], bucket: str, tmp_path: Path) -> None:
    """The pictures' store fails in the middle: a sentence, and no part that claims that they cannot be read."""
    source, _ = stored
    for number in range(100, 160):
        write_picture(tmp_path / "x.png", number)
        put(f"{bucket}/photos/label0/{number}.png", (tmp_path / "x.png").read_bytes())
    embed(source, tmp_path / "parts", options(tmp_path, part_size=40))
    (tmp_path / "parts" / "vectors" / "0001-000000.parquet").unlink()
    info = store().get_file_info(pa.fs.FileSelector(f"{bucket}/photos", recursive=True))
    for each in info:
        store().delete_file(each.path) if each.is_file else None
    with pytest.raises(EmbeddedFolderError, match="pictures of part 0001-000000 cannot be reached"):
        embed(source, tmp_path / "parts", options(tmp_path, part_size=40))
    assert not (tmp_path / "parts" / "vectors" / "0001-000000.parquet").exists()


@pytest.mark.thorough
def test_a_server_that_dies_is_one_sentence_and_no_skipped_row(
    stored: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even of a part of one picture, which is too small for a guard."""
    _, photos = stored
    process, address = started(tmp_path / "log")
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    store().create_dir("dying")
    for number in range(120):
        put(f"dying/photos/{number:03d}.png", (photos / "label0/00.png").read_bytes())
    out = tmp_path / "parts"
    words = [BIN / "deeprank-embed", "s3://dying/photos", "--out", out, "--part-size", "1", "--threads", "1"]
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as command:
        while command.poll() is None and len(list(out.glob("vectors/*"))) < 5:
            time.sleep(0.01)
        process.kill()
        process.wait()
        said = command.communicate()[1]
    assert command.returncode == 1, said
    assert said.splitlines()[-1].startswith("error: s3://dying/photos cannot be read")
    assert 5 <= len(list(out.glob("vectors/*"))) < 120
    assert sum(pq.read_metadata(path).num_rows for path in out.glob("skipped/*")) == 0
