"""From pictures in object storage by deeprank-embed and deeprank-index load into a store."""

from pathlib import Path

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("pymilvus")
pytest.importorskip("moto")

import numpy as np
from milvus_server import LiteServer, lite, stored  # noqa: F401 - a fixture
from test_embed_s3 import bucket, endpoint, put, store  # noqa: F401 - fixtures
from tiny_model import expected, square, write_model, write_pictures

from deeprank.runtime.embed.job import embed
from deeprank.runtime.embed.options import EmbedOptions
from deeprank.runtime.errors import EmbeddedFolderError, StorageError
from deeprank.runtime.index.milvus import loader


@pytest.mark.thorough
def test_from_a_bucket_into_a_store(lite: LiteServer, bucket: str, tmp_path: Path) -> None:  # noqa: F811
    photos, out, target = tmp_path / "photos", f"s3://{bucket}/parts", lite.address("from_s3")
    names = [f"label{number % 2}/{number}.png" for number in range(18)]
    write_pictures(photos, names)
    for name in names:
        put(f"{bucket}/photos/{name}", (photos / name).read_bytes())
    options = EmbedOptions(model=str(write_model(tmp_path / "model.onnx")), part_size=4, threads=1)
    embed(f"s3://{bucket}/photos", out, options)
    assert loader.load(out, target).written == 18
    rows = {row["path"]: row for row in stored(lite.client(), "from_s3").values()}
    assert sorted(rows) == sorted(names)
    assert {row["label"] for row in rows.values()} == {"label0", "label1"}
    vectors = np.array([rows[name]["vector"] for name in names])
    assert np.abs(vectors - expected(np.stack([square(photos / name) for name in names]))).max() < 1e-5

    # A new generation: one picture is gone, one is new.
    store().delete_file(f"{bucket}/photos/{names[3]}")
    write_pictures(photos, ["label1/new.png"], 50)
    put(f"{bucket}/photos/label1/new.png", (photos / "label1/new.png").read_bytes())
    embed(f"s3://{bucket}/photos", out, options)
    report = loader.load(out, target)
    assert (report.rows, report.written, report.removed) == (18, 1, 1)
    paths = {row["path"] for row in stored(lite.client(), "from_s3").values()}
    assert paths == {*names, "label1/new.png"} - {names[3]}

    # A part vanishes: the folder counts as unfinished, and nothing changes.
    store().delete_file(f"{bucket}/parts/vectors/0001-000001.parquet")
    with pytest.raises((EmbeddedFolderError, StorageError)):
        loader.load(out, target)
    assert len(stored(lite.client(), "from_s3")) == 18
