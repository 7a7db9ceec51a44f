"""The picture rule (contract 1) against arrays that are made without it."""

import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import PEAK
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from deeprank.runtime.errors import PictureError
from deeprank.runtime.images import PictureRule, load_picture, load_rendition, load_size

RULE = PictureRule(16)
RNG = np.random.default_rng(0)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    """A picture that survives JPEG: slow gradients."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * x / width, 255 * y / height, 128 + 0 * x], axis=-1).astype(np.uint8)


def saved(image: Image.Image, image_format: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    file.seek(0)
    return file


def triangle_resize(pixels: np.ndarray, size: int, columns: tuple[int, int] | None = None) -> np.ndarray:
    """Antialiased bilinear resampling straight from its definition: a triangle filter as wide as the scale.

    ``columns``: the part that is shown; its border still sees the pixels beside it.
    """

    def weights(length: int, part: tuple[int, int] | None = None) -> np.ndarray:
        first, last = part or (0, length)
        scale = (last - first) / size
        support = max(scale, 1.0)
        centres = first + (np.arange(size) + 0.5) * scale
        distance = np.abs(np.arange(length) + 0.5 - centres[:, None]) / support
        w = np.clip(1 - distance, 0, None)
        return w / w.sum(axis=1, keepdims=True)

    rows = np.tensordot(weights(pixels.shape[0]), pixels.astype(float), axes=(1, 0))
    return np.rint(np.tensordot(weights(pixels.shape[1], columns), rows, axes=(1, 1)).transpose(1, 0, 2))


def close(found: np.ndarray, expected: np.ndarray, levels: float = 1) -> None:
    assert found.dtype == np.uint8
    assert np.abs(found.astype(float) - expected).max() <= levels


@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 30), (7, 200), (5, 5)])
def test_stretch_is_an_antialiased_triangle_filter(height: int, width: int) -> None:
    pixels = noise(height, width)
    found = load_picture(saved(Image.fromarray(pixels), "PNG"), RULE)
    assert found.shape == (16, 16, 3)
    close(found, triangle_resize(pixels, 16))


def test_crop_takes_the_centred_square() -> None:
    pixels = noise(64, 100)
    found = load_picture(saved(Image.fromarray(pixels), "PNG"), PictureRule(16, "crop"))
    close(found, triangle_resize(pixels, 16, columns=(18, 82)))


def test_a_picture_of_the_right_size_is_passed_through() -> None:
    pixels = noise(16, 16)
    np.testing.assert_array_equal(load_picture(saved(Image.fromarray(pixels), "PNG"), RULE), pixels)


def test_sixteen_bit_gray_is_divided_by_257() -> None:
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    values[0, 0], values[0, 1], values[0, 2] = 65535, 128, 129
    found = load_picture(saved(Image.fromarray(values), "PNG"), RULE)
    np.testing.assert_array_equal(found, np.rint(values / 257).astype(np.uint8)[..., None].repeat(3, axis=-1))
    tiff = load_picture(saved(Image.fromarray(values), "TIFF"), RULE)
    np.testing.assert_array_equal(tiff, found)


def test_palette_with_and_without_transparency() -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]], dtype=np.uint8)
    index = RNG.integers(0, 4, (16, 16), dtype=np.uint8)
    image = Image.fromarray(index, "P")
    image.putpalette(colours.tobytes())
    np.testing.assert_array_equal(load_picture(saved(image, "PNG"), RULE), colours[index])
    expected = colours[index].copy()
    expected[index == 2] = 255
    np.testing.assert_array_equal(load_picture(saved(image, "PNG", transparency=2), RULE), expected)


def test_alpha_goes_over_white() -> None:
    pixels = noise(16, 16, 4)
    alpha = pixels[..., 3:].astype(float) / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    close(load_picture(saved(Image.fromarray(pixels), "PNG"), RULE), expected)
    gray_alpha = Image.fromarray(pixels[..., :2], "LA")
    alpha = pixels[..., 1:2].astype(float) / 255
    close(load_picture(saved(gray_alpha, "PNG"), RULE), (pixels[..., :1] * alpha + 255 * (1 - alpha)).repeat(3, -1))


def test_gray_and_one_bit() -> None:
    gray = noise(16, 16, 1)[..., 0]
    np.testing.assert_array_equal(
        load_picture(saved(Image.fromarray(gray), "PNG"), RULE), gray[..., None].repeat(3, axis=-1)
    )
    bits = gray > 127
    expected = (bits * np.uint8(255))[..., None].repeat(3, axis=-1)
    np.testing.assert_array_equal(load_picture(saved(Image.fromarray(bits), "PNG"), RULE), expected)


def test_cmyk_jpeg() -> None:
    rgb = smooth(16, 16)
    inks = Image.fromarray(255 - np.concatenate([rgb, np.full((16, 16, 1), 255, np.uint8)], axis=-1), "CMYK")
    close(load_picture(saved(inks, "JPEG", quality=100), RULE), rgb, levels=4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    upright = smooth(16, 16)
    upright[2:6, 3:9] = 250, 10, 10  # without a symmetry, so that each orientation shows
    undone = {  # how a camera stores the upright scene
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p),
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: np.rot90(p, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(undone[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(load_picture(saved(stored, "PNG", exif=exif), RULE), upright)


@pytest.mark.parametrize("rule", [RULE, PictureRule(16, "crop", "bicubic", 2, 20)], ids=str)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_is_a_part_of_the_upright_picture(orientation: int, rule: PictureRule) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = saved(Image.fromarray(noise(61, 83)), "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(file))
    assert load_size(file) == upright.size
    assert load_rendition(file, 10)[1] == upright.size
    left, top, right, bottom = 5, 20, 41, 60
    box = (left / upright.width, top / upright.height, right / upright.width, bottom / upright.height)
    part = saved(upright.crop((left, top, right, bottom)), "PNG")
    # The first version of the rule turns the picture after the resize, which rounds to whole levels.
    close(load_picture(file, rule, box=box), load_picture(part, rule), levels=1 if rule.version == 1 else 0)


@pytest.mark.thorough
def test_a_box_in_a_large_jpeg() -> None:
    """One that is decoded smaller, but not as small as the whole."""
    file = saved(Image.fromarray(smooth(5000, 6000)), "JPEG", quality=95)
    part = saved(Image.open(file).crop((1500, 2000, 3000, 4000)), "PNG")
    close(load_picture(file, RULE, box=(0.25, 0.4, 0.5, 0.8)), load_picture(part, RULE), levels=2)
    with pytest.raises(PictureError, match="6000 x 5000 pixels, and the box holds none of them"):
        load_picture(file, RULE, box=(0.5, 0.5, 0.50001, 0.6))


def test_damaged_exif_does_not_cost_the_picture() -> None:
    pixels = smooth(16, 16)
    file = saved(Image.fromarray(pixels), "JPEG", quality=100, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow says so, too
        close(load_picture(file, RULE), pixels, levels=12)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    for image_format in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if image_format == "WEBP" else {}
        file = saved(frames[0], image_format, save_all=True, append_images=frames[1:], duration=50, **options)
        np.testing.assert_array_equal(load_picture(file, RULE), np.full((16, 16, 3), (255, 0, 0), np.uint8))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_promised_format(image_format: str, tmp_path: Path) -> None:
    pixels = smooth(48, 64)
    path = tmp_path / f"picture.{image_format.lower()}"
    Image.fromarray(pixels).save(path, image_format)
    close(load_picture(path, RULE), triangle_resize(pixels, 16), levels=40 if image_format == "GIF" else 12)


def test_a_large_jpeg_is_decoded_small_and_looks_the_same() -> None:
    pixels = smooth(1003, 1501)  # no multiples of 8: the reduced size is rounded
    file = saved(Image.fromarray(pixels), "JPEG", quality=95)
    close(load_picture(file, RULE), triangle_resize(pixels, 16), levels=2)


def test_extreme_shapes() -> None:
    one = load_picture(saved(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), RULE)
    np.testing.assert_array_equal(one, np.full((16, 16, 3), (1, 2, 3), np.uint8))
    ramp = np.linspace(0, 255, 30_000).astype(np.uint8)[None, :, None].repeat(3, axis=-1)
    for image_format in ("PNG", "JPEG"):
        found = load_picture(saved(Image.fromarray(ramp), image_format), RULE)
        close(found, triangle_resize(ramp, 16).astype(float), levels=3)
        crop = load_picture(saved(Image.fromarray(ramp), image_format), PictureRule(16, "crop"))
        assert crop.shape == (16, 16, 3)


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that announces ``side`` x ``side`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_001, 100_000])
def test_a_bomb_is_refused_before_decoding(side: int, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(side))
    program = (
        f"{PEAK}import sys; from deeprank.runtime.images import *; from deeprank.runtime.errors import *\n"
        "before = peak()\n"
        "try: load_picture(sys.argv[1], PictureRule(16))\n"
        "except PictureError as error: print(error)\n"
        "assert peak() - before < 20_000\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "pixels" in run.stdout
    assert "bomb.png" in run.stdout


def test_the_pixel_limit_is_an_option() -> None:
    file = saved(Image.new("RGB", (20, 10)), "PNG")
    with pytest.raises(PictureError, match="20 x 10 = 200 pixels; at most 199"):
        load_picture(file, RULE, max_pixels=199)
    file.seek(0)
    assert load_picture(file, RULE, max_pixels=200).shape == (16, 16, 3)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_say_so(image_format: str) -> None:
    data = saved(Image.fromarray(noise(200, 200)), image_format).getvalue()
    for keep in (len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(PictureError):
            load_picture(io.BytesIO(data[:keep]), RULE)


def test_what_is_no_picture(tmp_path: Path) -> None:
    text = tmp_path / "notes.jpg"
    text.write_text("these are my notes")
    with pytest.raises(PictureError, match=r"notes\.jpg is not a picture that can be read; expected JPEG"):
        load_picture(text, RULE)
    with pytest.raises(PictureError, match="does not exist"):
        load_picture(tmp_path / "gone.jpg", RULE)
    with pytest.raises(PictureError, match="is a folder"):
        load_picture(tmp_path, RULE)
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(PictureError, match="not a picture"):
        load_picture(empty, RULE)


def test_postscript_is_never_interpreted(tmp_path: Path) -> None:
    path = tmp_path / "page.jpg"
    Image.new("RGB", (8, 8)).save(path, "EPS")
    with pytest.raises(PictureError, match="not a picture"):
        load_picture(path, RULE)


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m\nb.jpg"
    with pytest.raises(PictureError) as caught:
        load_picture(path, RULE)
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert r"a\x1b[31m\nb.jpg" in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]), st.data())
def test_damage_gives_a_picture_or_a_picture_error(image_format: str, data: st.DataObject) -> None:
    content = bytearray(SEEDS[image_format])
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = load_picture(io.BytesIO(bytes(content)), RULE, max_pixels=1_000_000)
    except PictureError:
        return
    assert found.shape == (16, 16, 3)


SEEDS = {
    image_format: saved(Image.fromarray(smooth(40, 40)), image_format).getvalue()
    for image_format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
}


def test_threads_give_the_same_pictures(tmp_path: Path) -> None:
    paths = []
    for number in range(12):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(noise(300, 300)).save(paths[-1])
    expected = [load_picture(path, RULE) for path in paths]
    found: dict[int, np.ndarray] = {}

    def work(number: int) -> None:
        found[number] = load_picture(paths[number], RULE)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(paths))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, picture in enumerate(expected):
        np.testing.assert_array_equal(found[number], picture)


def test_bytes_in_flight_are_bounded() -> None:
    from deeprank.runtime.images import ByteBudget

    budget, in_flight, most = ByteBudget(100), 0, 0
    lock = threading.Lock()

    def work(size: int) -> None:
        nonlocal in_flight, most
        with budget.reserve(size):
            with lock:
                in_flight += size
                most = max(most, in_flight if size <= 100 else 0)
                alone = in_flight == size
            assert size <= 100 or alone
            threading.Event().wait(0.002)
            with lock:
                in_flight -= size

    threads = [threading.Thread(target=work, args=(size,)) for size in [30, 60, 250, 40, 90, 10] * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < most <= 100


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(path)
    path.chmod(0)
    with pytest.raises(PictureError, match="may not be read"):
        load_picture(path, RULE)
