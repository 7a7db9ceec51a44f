"""Hostile pictures that cost far more than their bytes: refused by name, or decoded within bounds."""

import io
import json
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from deeprank.runtime import images
from deeprank.runtime.errors import PictureError
from deeprank.runtime.images import PictureRule, load_picture, load_thumbnail
from deeprank.runtime.pictures.bmp import open_bitmap
from deeprank.runtime.pictures.containers import coded_pixels

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "attack"))

import picture_mutators
import pictures
from containers import coded_picture, grid, heif

HEIC = Path(__file__).parent / "heic"


def load(content: bytes, **options: int) -> np.ndarray:
    return load_picture(io.BytesIO(content), PictureRule(32), **options)


def refused(content: bytes, words: str, **options: int) -> None:
    with pytest.raises(PictureError, match=words):
        load(content, **options)


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


# -- JPEG ------------------------------------------------------------------------------------------------------------


def progressive(scans: int, side: int = 64) -> bytes:
    """A gray picture of as many scans: after the first, each refines nothing."""
    one = pictures._scan((1,), 1, 5) + b"\0" * (side // 8) ** 2
    start = b"\xff\xd8" + pictures._QUANTISATION + pictures._frame(0xC2, side, side, 1) + pictures._NOTHING
    return start + pictures._scan((1,), 0, 0) + bytes(side) + one * (scans - 1) + b"\xff\xd9"


def test_a_hundred_scans_are_read_and_one_more_is_refused() -> None:
    content = progressive(100)
    assert (load_thumbnail(io.BytesIO(content), 100) == pixels(content)).all()
    refused(progressive(101), "JPEG file with more than 100 scans")


def test_scans_of_other_pictures_after_the_first_do_not_count() -> None:
    """As in an MPO; comments that look like an end, or like scans, are no such."""
    first = progressive(50)
    comment = pictures.segment(0xFE, b"\xff\xd9" + b"\xff\xda" * 200)
    at = first.rindex(b"\xff\xda")
    content = first[:at] + comment + first[at:] + progressive(90) * 3
    assert (load_thumbnail(io.BytesIO(content), 100) == pixels(first)).all()
    hidden = (
        first[:at] + pictures.segment(0xFE, b"\xff\xd9") + first[at:-2] + progressive(90)[first.index(b"\xff\xda") :]
    )
    refused(hidden, "more than 100 scans")


@pytest.mark.parametrize("kind", ["jpeg_scans", "jpeg_arithmetic_scans", "jpeg_refinements", "jpeg_hidden_scans"])
def test_scans_are_counted_before_anything_is_decoded(kind: str) -> None:
    refused(pictures.KINDS[kind](Random(0)), "more than 100 scans")


def test_the_time_of_scans_over_a_large_picture_is_bounded() -> None:
    content = pictures.jpeg_scans(Random(0), scans=60, side=1000)
    assert load(content).shape == (32, 32, 3)
    refused(content, r"takes \d+ passes over them", max_pixels=1_500_000)


def test_coefficients_count_where_the_header_is_damaged() -> None:
    """Pillow passes over bytes between segments."""
    plain = progressive(2, side=1000)
    tables = plain.index(b"\xff\xc2")
    refused(plain[:tables] + b"junk" + plain[tables:], "takes as much memory", max_pixels=200_000)


def test_progressive_pictures_are_read_as_before() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    for options in ({"progressive": True}, {"progressive": True, "restart_marker_blocks": 1}, {"quality": 100}):
        file = io.BytesIO()
        noise.save(file, "JPEG", **options)
        assert (load_thumbnail(io.BytesIO(file.getvalue()), 400) == pixels(file.getvalue())).all()


def test_a_large_picture_without_an_end_is_not_decoded_again_and_again() -> None:
    content = pictures.encoded("JPEG", 1000, 800)[:-2]
    assert load(content).shape == (32, 32, 3)
    refused(content, "ends without the mark of its end", max_pixels=1_000_000)


# -- BMP -------------------------------------------------------------------------------------------------------------


def runs(random: Random) -> bytes:
    """A small bitmap of arbitrary runs, of which many are damaged."""
    bits, coding = random.choice(((8, 1), (4, 2)))
    data = b""
    for _ in range(random.randint(1, 60)):
        match random.randrange(6):
            case 0 | 1:
                data += bytes([random.randint(0, 25), random.randint(0, 255)])
            case 2:
                data += random.choice((b"\0\0", b"\0\0", b"\0\0", b"\0\1"))
            case 3:
                data += b"\0\2" + bytes([random.randint(0, 6), random.randint(0, 3)])
            case 4:
                count = random.randint(3, 20)
                size = (count + 1) // 2 if bits == 4 else count
                data += bytes([0, count]) + random.randbytes(size + size % 2)
            case _:
                data += random.randbytes(2)
    content = bytearray(pictures.bmp(data, random.randint(1, 20), random.randint(1, 12), bits, coding))
    if random.random() < 0.7:
        content[54 : 54 + (4 << bits)] = random.randbytes(4 << bits)
    return bytes(content)


def outcome(opened: Callable[[io.BytesIO], Image.Image], content: bytes) -> object:
    try:
        image = opened(io.BytesIO(content))
        image.load()
        return image.mode, image.tobytes(), image.convert("RGB").tobytes()
    except (OSError, ValueError):
        return None


def test_run_lengths_are_decoded_as_pillow_decodes_them() -> None:
    random, read = Random(0), 0
    for _ in range(2000):
        content = runs(random)
        expected = outcome(Image.open, content)
        assert outcome(open_bitmap, content) == expected
        read += expected is not None
    assert read > 500


def test_a_bitmap_of_ended_lines_takes_no_time_for_each_pixel() -> None:
    result = measured([pictures.bmp(b"\1\0\0\0" * 10_000 + b"\0\1", 10_000, 10_000, 8, 1)])[0]
    assert result["said"] == "read"
    assert result["seconds"] < 5  # Pillow takes 10 and more


# -- TIFF ------------------------------------------------------------------------------------------------------------


def test_all_tiles_count() -> None:
    data = pictures.deflated(1000)
    tiles = [(324, 4, [8] * 500), (325, 4, [len(data)] * 500)]
    content = pictures.tiff(data, 1, 500, [(259, 3, [8]), (322, 4, [1000]), (323, 4, [1]), *tiles])
    refused(content, "takes as much memory as 500,000 do", max_pixels=400_000)


def test_strips_without_number_are_refused() -> None:
    for kind in ("tiff_many_strips", "tiff_many_tiles"):
        refused(pictures.KINDS[kind](Random(0)), "more than 100,000 strips or tiles")


def test_strips_in_the_same_bytes_are_refused_if_they_are_long() -> None:
    refused(pictures.tiff_overlapping_strips(Random(0)), "lie over each other")
    row = bytes(range(100))
    same = pictures.tiff(row, 100, 50, [(273, 4, [8] * 50), (278, 4, [1]), (279, 4, [100] * 50)])
    assert (load_thumbnail(io.BytesIO(same), 100) == np.tile(np.arange(100)[None, :, None], (50, 1, 3))).all()


# -- AVIF and HEIF ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [(8, 8), (101, 77), (640, 480)])
def test_the_size_of_a_frame_is_that_of_its_stream(mode: str, size: tuple[int, int]) -> None:
    for options in ({}, {"quality": 100, "subsampling": "4:4:4"}, {"speed": 10, "range": "limited"}):
        assert coded_pixels(pictures.encoded("AVIF", *size, mode, **options)) == size[0] * size[1]


def test_the_size_of_a_film_is_that_of_its_stream() -> None:
    file = io.BytesIO()
    frames = [Image.new("RGB", (300, 200), colour) for colour in ("red", "blue")]
    frames[0].save(file, "AVIF", save_all=True, append_images=frames[1:])
    assert coded_pixels(file.getvalue()) == 60_000
    assert load(file.getvalue()).shape == (32, 32, 3)


@pytest.mark.parametrize("path", sorted(HEIC.glob("*.heic")), ids=lambda path: path.stem)
def test_the_size_of_a_heic_is_that_of_its_frames(path: Path) -> None:
    assert coded_pixels(path.read_bytes()) == (4 * 64 * 64 if path.stem == "grid" else 96 * 64)


def test_a_large_frame_in_a_small_container_is_refused() -> None:
    content = pictures.avif_frame(Random(0), side=600)
    refused(content, "takes as much memory as 360,000 do", max_pixels=300_000)
    for kind, side in ((b"hvc1", 8192), (b"av01", 1024)):
        lying = heif(kind, [coded_picture(kind, side, said=(8, 8))])
        refused(lying, f"takes as much memory as {side * side:,} do", max_pixels=1_000_000)
    refused(heif(b"hvc1", [coded_picture(b"hvc1", 12_000, said=(8, 8))]), "takes as much memory as 144,000,000 do")


def test_what_a_grid_is_made_of_counts_as_often_as_it_is_named() -> None:
    tiles = [coded_picture(b"hvc1", 64)] * 16
    content = heif(b"hvc1", [grid(4, 4, (256, 256)), *tiles], [(b"dimg", 1, tuple(range(2, 18)))])
    assert coded_pixels(content) == 256 * 256
    assert load(content).shape == (32, 32, 3)
    large = heif(b"hvc1", [grid(4, 4, (64, 64)), *tiles], [(b"dimg", 1, tuple(range(2, 18)))])
    refused(large, "as much memory as 65,536 do", max_pixels=50_000)


def test_a_large_alpha_plane_counts() -> None:
    items = [coded_picture(b"hvc1", 64), coded_picture(b"hvc1", 8192, alpha=True)]
    refused(heif(b"hvc1", items, [(b"auxl", 2, (1,))]), "as much memory as 67,108,864 do", max_pixels=1_000_000)


def test_frames_behind_frames_are_refused() -> None:
    item = coded_picture(b"hvc1", 64)
    item.data *= 20
    refused(heif(b"hvc1", [item]), "more frames than a picture has")


@pytest.mark.parametrize("kind", ["container_chain", "container_overlays"])
def test_pictures_of_pictures_end(kind: str) -> None:
    for seed in range(12):
        with pytest.raises(PictureError):
            load(pictures.KINDS[kind](Random(seed)), max_pixels=50_000_000)


# -- all kinds, under limits -----------------------------------------------------------------------------------------

MEASURE = """
import io, json, os, resource, sys
from pathlib import Path
from deeprank.runtime.errors import PictureError
from deeprank.runtime.images import PictureRule, load_picture
from deeprank.runtime.pictures import bmp, gif, heif, jpeg, png, tiff, webp
from PIL import AvifImagePlugin, _avif, _webp
import pi_heif
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
def measure(path):
    resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30,) * 2)
    before = peak()
    try:
        load_picture(path, PictureRule(160))
        said = "read"
    except PictureError as error:
        said = error.kind
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"said": said, "seconds": used.ru_utime + used.ru_stime, "bytes": peak() - before}
for path in sorted(Path(sys.argv[1]).iterdir()):
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.write(writing, json.dumps(measure(path)).encode())
        os._exit(0)
    os.close(writing)
    said = os.read(reading, 10_000).decode()
    os.wait()
    print(said or json.dumps({"said": "killed", "seconds": 99, "bytes": 0}), flush=True)
"""


def measured(contents: list[bytes]) -> list[dict]:
    """Decode each file in a process of its own; its seconds on a processor, and the bytes that it took at its peak."""
    with tempfile.TemporaryDirectory() as place:
        for number, content in enumerate(contents):
            (Path(place) / f"{number:04}").write_bytes(content)
        command = [sys.executable, "-c", MEASURE, place]
        result = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.thorough
@pytest.mark.parametrize("kind", pictures.KINDS)
def test_every_kind_stays_within_time_and_memory(kind: str) -> None:
    """Twice and four times as much as on a machine that does nothing else.

    ``python benchmarks/attack --only pictures`` tries more of each.
    """
    most = 2 * images._MAX_DECODING_BYTES
    if kind == "webp_canvas":
        # libwebp holds a canvas of 100 megapixels twice, Pillow once. The server refuses that.
        most = 14 * images.DEFAULT_MAX_PIXELS
    result = measured([pictures.KINDS[kind](Random(0))])[0]
    assert result["said"] != "killed"
    assert result["seconds"] < 12
    assert result["bytes"] < most


@pytest.mark.parametrize("kind", picture_mutators.KINDS)
def test_mutations_are_read_or_refused(kind: str) -> None:
    random = Random(kind)
    for result in measured([picture_mutators.KINDS[kind](random) for _ in range(60)]):
        assert result["said"] in ("read", "damaged", "unsupported", "too large", "not a picture")
        assert result["seconds"] < 8
        assert result["bytes"] < images._MAX_DECODING_BYTES


def test_chunks_of_pixels_of_a_byte_are_refused() -> None:
    refused(pictures.png([b"\0"] * 150_000, 1000, 1000), "chunks of pixels")
    rows = zlib.compress(bytes(101 * 100))
    split = pictures.png([rows[at : at + 1] for at in range(len(rows))], 100, 100)
    assert (load_thumbnail(io.BytesIO(split), 100) == 0).all()
