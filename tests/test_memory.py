"""Memory of decoding: the peak of a process against what is reserved for it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rare_pictures import png, tiff
from tiny_model import write_model

from deeprank.runtime import images

WIDTH, HEIGHT = 6000, 4000

# The decoders' code and their tables, which are there once.
FIXED = 30_000_000

PEAK = """
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
"""
DECODE = (
    PEAK
    + """
import io, sys
from PIL import Image
from deeprank.runtime.images import PictureRule, load_picture
from deeprank.runtime.pictures import bmp, gif, jpeg, png, tiff, webp
from PIL import AvifImagePlugin, _avif, _webp
import pi_heif
before = peak()
load_picture(sys.argv[1], PictureRule(160))
print(peak() - before)
"""
)
STREAM = (
    PEAK
    + """
import sys
from pathlib import Path
from deeprank.runtime import Embedder
from deeprank.runtime.devices import return_large_blocks
return_large_blocks()
embedder = Embedder(sys.argv[1], device="cpu", threads=4, batch_size=4)
before = peak()
paths = sorted(Path(sys.argv[2]).iterdir()) * 8
assert all(hasattr(vector, "shape") for _, vector in embedder.stream(paths, embedder.load))
print(peak() - before)
"""
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def run(code: str, *arguments: Path) -> int:
    result = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return Image.fromarray(np.dstack([x % 251, y % 241, (x + y) % 256]).astype(np.uint8))


def with_alpha(picture: Image.Image) -> Image.Image:
    result = picture.copy()
    result.putalpha(Image.linear_gradient("L").resize(picture.size))
    return result


def sixteen_bit(gray: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(gray).astype(np.uint16) * 200)


KINDS = {
    "plain.jpg": (lambda p: p, {"quality": 90}),
    "progressive.jpg": (lambda p: p, {"quality": 90, "progressive": True, "subsampling": 0}),
    "rgb.png": (lambda p: p, {"compress_level": 1}),
    "alpha.png": (with_alpha, {"compress_level": 1}),
    "gray16.png": (
        lambda p: Image.fromarray(np.asarray(p.getchannel(0)).astype(np.uint16) * 200),
        {"compress_level": 1},
    ),
    "palette.png": (lambda p: p.quantize(16, method=Image.Quantize.FASTOCTREE), {"transparency": 3}),
    "turned.tif": (lambda p: p, {"compression": "packbits", "tiffinfo": {274: 6}}),
    "transparent.gif": (lambda p: p.quantize(16, method=Image.Quantize.FASTOCTREE), {"transparency": 3}),
    "lzw.tif": (with_alpha, {"compression": "tiff_lzw"}),
    "alpha.webp": (lambda p: with_alpha(p.reduce(100)).resize(p.size, Image.Resampling.NEAREST), {"method": 0}),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", KINDS)
def test_decoding_takes_no_more_than_is_reserved(name: str, picture: Image.Image, tmp_path: Path) -> None:
    change, options = KINDS[name]
    path = tmp_path / name
    change(picture).save(path, **options)
    with images.opened_picture(path, name) as image:
        images._drafted(image, 160)
        reserved = images._decoding_bytes(image)
    assert run(DECODE, path) <= reserved + FIXED


def written_by_hand(name: str, pixels: np.ndarray) -> bytes:
    samples = pixels.astype(np.uint16) * 257
    if name == "planes16.tif":
        return tiff(
            [samples[..., channel].astype("<u2").tobytes() for channel in range(3)], (HEIGHT, WIDTH), 16, 2, 3, planar=2
        )
    return png([row.astype(">u2").tobytes() for row in samples], 16, 2, WIDTH, HEIGHT, transparent=bytes(6))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["planes16.tif", "transparent16.png"])
def test_samples_of_16_bits_take_no_more_than_is_reserved(name: str, picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(written_by_hand(name, np.asarray(picture)))
    with images.opened_picture(path, name) as image:
        reserved = images._decoding_bytes(image)
    assert run(DECODE, path) <= reserved + FIXED


@pytest.mark.thorough
def test_many_threads_stay_within_what_may_be_decoded_at_a_time(picture: Image.Image, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("rgb.png", "alpha.png", "progressive.jpg"):
        change, options = KINDS[name]
        change(picture).save(folder / name, **options)
    model = write_model(tmp_path / "tiny.onnx")
    assert run(STREAM, model, folder) <= images._MAX_DECODING_BYTES + 2 * FIXED


LIMITED = """
import os, resource, sys
from deeprank.runtime.errors import PictureError
from deeprank.runtime.images import load_thumbnail
from deeprank.runtime.pictures import jpeg, webp
from PIL import AvifImagePlugin, _avif, _webp
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for megabytes in (2, 4, 6, 8, 12, 16):
    if os.fork() == 0:
        resource.setrlimit(resource.RLIMIT_AS, (in_use + megabytes * 1_000_000,) * 2)
        try:
            load_thumbnail(sys.argv[1], 1200)
        except PictureError as error:
            os._exit(error.kind == "unreadable")
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 1, megabytes
print(1)
"""


@pytest.mark.parametrize("name", ["progressive.jpg", "noise.webp", "noise.avif"])
def test_a_lack_of_memory_is_not_called_damage(name: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), dtype=np.uint8)
    options = {"progressive": True} if name.endswith("jpg") else {"speed": 10} if name.endswith("avif") else {}
    Image.fromarray(pixels).save(tmp_path / name, **options)
    assert run(LIMITED, tmp_path / name) == 1


FILES = (
    PEAK
    + """
import io, sys
from concurrent.futures import ThreadPoolExecutor
from deeprank.runtime.images import PictureRule, load_picture
from deeprank.runtime.pictures import webp
from PIL import AvifImagePlugin, _avif, _webp
before = peak()
with ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda _: load_picture(sys.argv[1], PictureRule(16)), range(16)))
print(peak() - before)
"""
)


@pytest.mark.thorough
@pytest.mark.parametrize("image_format", ["AVIF", "WEBP"])
def test_files_that_are_held_whole_are_bounded_together(image_format: str, tmp_path: Path) -> None:
    """Eight threads, and files with 100 MB after their pixels."""
    path = tmp_path / "large"
    Image.new("RGB", (64, 64)).save(path, image_format)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size + 100_000_000)
        if image_format == "WEBP":
            file.seek(4)
            file.write((size + 100_000_000 - 8).to_bytes(4, "little"))
            file.seek(size)
            file.write(b"JUNK" + (100_000_000 - 8).to_bytes(4, "little"))
        else:
            file.seek(size)
            file.write((100_000_000).to_bytes(4, "big") + b"free")
    assert run(FILES, path) <= images.MAX_BYTES_HELD + 2 * FIXED
