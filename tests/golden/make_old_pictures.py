"""How ``index-schema-2-pictures`` was made, by the last version that wrote schema 2; no test runs it.

``PYTHONPATH=tests python tests/golden/make_old_pictures.py FOLDER`` makes an index with the pictures that it holds: a
folder with splits in it, whose labels are the names of the splits; turned pictures (EXIF orientation 6) as JPEG, PNG
and TIFF; a file that is no picture; uploads with a label and without one, one of them a turned TIFF. The rows have
vectors by version 1 of the decoding rules. ``mtime_ns`` of every picture is :data:`MTIME_NS`, which tests must set
again, since git does not keep it.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from tiny_model import write_model

from deeprank.runtime.embedder import Embedder
from deeprank.runtime.index.database.writer import writing
from deeprank.runtime.index.sync.sync import sync
from deeprank.runtime.index.uploads import Upload, add_uploads

MTIME_NS = 1_700_000_000_123_456_789
NAMES = [
    *("train/dress/0.png", "train/dress/1.jpg", "train/shirt/2.tif"),
    *("test/dress/3.png", "test/shirt/4.tif", "test/shirt/5.bmp"),
]


def picture(seed: int, kind: str) -> bytes:
    """Return a small picture of noise, 12 x 8 pixels, which is to be turned by 90 degrees when it is shown."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    image, file = Image.fromarray(pixels), io.BytesIO()
    if kind == "BMP":
        image.save(file, kind)
    elif kind == "TIFF":
        image.save(file, kind, tiffinfo={274: 6})
    else:
        exif = Image.Exif()
        exif[274] = 6
        image.save(file, kind, exif=exif)
    return file.getvalue()


def main() -> None:
    target = Path(sys.argv[1])
    photos, index = target / "photos", target / "i"
    kinds = {".png": "PNG", ".jpg": "JPEG", ".tif": "TIFF", ".bmp": "BMP"}
    for seed, name in enumerate(NAMES):
        path = photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(seed, kinds[path.suffix]))
    (photos / "test" / "broken.jpg").write_bytes(b"no picture")
    for path in photos.rglob("*.*"):
        os.utime(path, ns=(MTIME_NS, MTIME_NS))
    with tempfile.TemporaryDirectory() as scratch:
        sync(index, [photos], model=write_model(Path(scratch, "model.onnx")))
    embedder = Embedder(index / "model.onnx", device="cpu")
    contents = [picture(10, "JPEG"), picture(11, "TIFF")]
    vectors = [embedder.embed([io.BytesIO(content)])[0] for content in contents]
    uploads = [Upload(contents[0], vectors[0], "hat"), Upload(contents[1], vectors[1])]
    add_uploads(index, uploads, model_sha256=embedder.sha256)
    for path in (index / "uploads").iterdir():
        os.utime(path, ns=(MTIME_NS, MTIME_NS))
    with writing(index) as writer:
        writer.move_roots({1: b"/nowhere/photos"})
        for item in list(writer.all_items()):
            writer.move(item._replace(mtime_ns=MTIME_NS))
        writer.commit()
    (index / "model.onnx").rename(index / "model.bin")  # git leaves *.onnx out
    (index / "write.lock").unlink(missing_ok=True)
    shutil.rmtree(index / "__pycache__", ignore_errors=True)


if __name__ == "__main__":
    main()
