"""Unusual pictures that common writers do not write: read as viewers show them, or refused by name."""

import errno
import io
import json
import os
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError
from rare_pictures import bitmap, chunk, gif_of, international_text, masked_bitmap, png, tiff
from tiny_model import write_model

from deeprank.runtime.errors import PictureError
from deeprank.runtime.images import PictureRule, load_picture, load_thumbnail

H, W = 24, 32
Y, X = np.mgrid[0:H, 0:W]
# Without a symmetry.
RGB = np.stack([X * 255 // (W - 1), Y * 255 // (H - 1), np.where((X > W // 2) & (Y < H // 3), 255, 40)], -1)
RGB = RGB.astype(np.uint8)
GRAY = (X * 255 // (W - 1)).astype(np.uint8)
GRAY[: H // 3, : W // 4] = 255 - GRAY[: H // 3, : W // 4]
ROWS = [row.tobytes() for row in RGB]

TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: np.rot90(p),
}


def whole(content: bytes) -> np.ndarray:
    """All pixels of a picture as it is shown."""
    return load_thumbnail(io.BytesIO(content), 10_000)


def saved(image_format: str, pixels: np.ndarray = RGB, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format, **options)
    return file.getvalue()


def shows(content: bytes, expected: np.ndarray, levels: int = 0) -> None:
    found = whole(content)
    if expected.ndim == 2:
        expected = expected[..., None].repeat(3, axis=-1)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= levels


def refused(content: bytes, kind: str, says: str) -> None:
    with pytest.raises(PictureError, match=says) as caught:
        whole(content)
    assert caught.value.kind == kind
    assert caught.value.short
    assert "the picture" not in caught.value.short


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_turned_tiffs(orientation: int, endian: str, big: bool) -> None:
    content = tiff([RGB.tobytes()], (H, W), 8, 2, 3, orientation=orientation, endian=endian, big=big)
    shows(content, TURNED[orientation](RGB))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_turned_tiffs_of_each_compression(orientation: int, compression: str) -> None:
    pixels = RGB.repeat(4, 0).repeat(4, 1)
    options = {"quality": 95} if compression == "jpeg" else {}
    content = saved("TIFF", pixels, compression=compression, tiffinfo={274: orientation}, **options)
    found, expected = whole(content).astype(int), TURNED[orientation](pixels).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < (4 if compression == "jpeg" else 0.01)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_tiffs_are_turned_once_in_crops_too(orientation: int) -> None:
    content = tiff([RGB.tobytes()], (H, W), 8, 2, 3, orientation=orientation)
    upright = saved("PNG", np.ascontiguousarray(TURNED[orientation](RGB)))
    for mode in ("stretch", "crop"):
        rule = PictureRule(16, mode)
        found, expected = load_picture(io.BytesIO(content), rule), load_picture(io.BytesIO(upright), rule)
        assert np.abs(found.astype(int) - expected).max() <= 1


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation_in_xmp_alone_does_not_count(image_format: str) -> None:
    options = {"lossless": True} if image_format == "WEBP" else {"quality": 100}
    if image_format == "PNG":
        content = png(ROWS, 8, 2, W, H, before=international_text(b"XML:com.adobe.xmp", XMP))
    elif image_format == "TIFF":
        content = saved("TIFF", tiffinfo={700: XMP})
    else:
        content = saved(image_format, xmp=XMP, **options)
    assert whole(content).shape == RGB.shape
    assert np.abs(whole(content).astype(int) - RGB).mean() < 8


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_exif_counts_whatever_xmp_says(image_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    content = (
        saved(image_format, exif=exif, quality=95)
        if image_format == "PNG"
        else saved(image_format, exif=exif, xmp=XMP, quality=95)
    )
    found, expected = whole(content).astype(int), TURNED[8](RGB)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 8


def test_exif_after_the_pixels_and_as_text_in_a_png() -> None:
    block = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + bytes(4)
    shows(png(ROWS, 8, 2, W, H, after=chunk(b"eXIf", block)), TURNED[6](RGB))
    shows(png(ROWS, 8, 2, W, H, before=chunk(b"eXIf", block, broken=True)), RGB)
    hexadecimal = f"\nexif\n{len(block) + 6:8}\n{(b'Exif' + bytes(2) + block).hex()}".encode()
    text = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(hexadecimal))
    shows(png(ROWS, 8, 2, W, H, before=text), TURNED[6](RGB))


# Damage


def noisy() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("colours", ["RGB", "RGBA", "L", "P", "1", "I;16"])
def test_a_png_with_damaged_data_is_refused(share: float, colours: str) -> None:
    image = Image.fromarray(noisy()).convert("L" if colours == "I;16" else colours)
    if colours == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    file = io.BytesIO()
    image.save(file, "PNG")
    content = bytearray(file.getvalue())
    place = 8 + 25 + int((len(content) - 60) * share)
    content[place : place + 16] = bytes(value ^ 255 for value in content[place : place + 16])
    refused(bytes(content), "damaged", "is a damaged PNG file")


@pytest.mark.parametrize("interlaced", [False, True])
def test_a_png_whose_data_end_before_its_pixels_do_is_refused(interlaced: bool) -> None:
    """Wherever they end; Pillow takes those for whole that end with a row."""
    gray = GRAY[:11, :13]
    parts = [gray[y::down, x::across] for x, y, across, down in ADAM7] if interlaced else [gray]
    data = b"".join(b"\0" + row.tobytes() for part in parts for row in part)
    shows(png([], 8, 0, 13, 11, data=zlib.compress(data), interlaced=interlaced), gray)
    for end in range(len(data)):
        content = png([], 8, 0, 13, 11, data=zlib.compress(data[:end]), interlaced=interlaced)
        refused(content, "damaged", "end before the last row|image file is truncated")


def test_rows_that_look_as_if_nobody_had_written_them_are_read() -> None:
    for kind, pixel in ((2, (1, 254, 3)), (6, (1, 254, 3, 77)), (0, (1,)), (4, (1, 254))):
        row = bytes(pixel) * W
        content = png([row] * H, 8, kind, W, H)
        assert whole(content).shape == (H, W, 3)
    for bits, row in ((1, b"\xff" * 4), (2, b"\x55" * 8), (16, b"\0\1" * W)):
        assert whole(png([row] * H, bits, 0, W, H)).shape == (H, W, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 5), (8, 8), (33, 17)])
@pytest.mark.parametrize("bits", [1, 8])
def test_small_pngs_are_whole_with_and_without_interlacing(size: tuple[int, int], bits: int) -> None:
    height, width = size
    pixels = np.ones((height, width), np.uint8)
    passes = [pixels[y::down, x::across] for x, y, across, down in ADAM7]
    data = b"".join(b"\0" + packed(row, bits) for part in passes if part.size for row in part)
    for content in (
        png([packed(row, bits) for row in pixels], bits, 0, width, height),
        png([], bits, 0, width, height, data=zlib.compress(data), interlaced=True),
    ):
        assert whole(content).shape == (height, width, 3)
    if data[:-1].strip(b"\0"):
        refused(png([], bits, 0, width, height, data=zlib.compress(data[:-2]), interlaced=True), "damaged", "damaged")


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def packed(row: np.ndarray, bits: int) -> bytes:
    return np.packbits(row).tobytes() if bits == 1 else row.tobytes()


def test_xcodes_png_is_refused_by_name() -> None:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    pixels = np.dstack([RGB[..., ::-1], np.full((H, W, 1), 255, np.uint8)])
    data = compressor.compress(b"".join(b"\0" + row.tobytes() for row in pixels)) + compressor.flush()
    content = png([], 8, 6, W, H, data=data)
    content = content[:8] + chunk(b"CgBI", b"P\0 \2") + content[8:]
    refused(content, "unsupported", r"PNG file with Xcode's own coding of pixels \(CgBI\), which is not supported")


@pytest.mark.parametrize("image_format", ["WEBP", "GIF", "TIFF", "AVIF", "BMP"])
def test_cut_files_of_other_formats_are_refused(image_format: str) -> None:
    options = {"compression": "tiff_lzw"} if image_format == "TIFF" else {}
    content = saved(image_format, noisy(), **options)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(PictureError) as caught:
            whole(content[: int(len(content) * share)])
        assert caught.value.kind == "damaged"


def test_sync_names_damaged_pictures_and_is_strict(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        Image.fromarray(np.roll(RGB, number * 7, 1)).save(photos / f"{number}.png")
    content = bytearray(saved("PNG", noisy()))
    content[2000:2016] = bytes(16)
    (photos / "damaged.png").write_bytes(content)
    model = write_model(tmp_path / "model.onnx")
    command = ["deeprank-index", "sync", str(photos), "--index", str(tmp_path / "i"), "--model", str(model), "--strict"]
    program = f"import sys; sys.argv = {command!r}; from deeprank.runtime.index.cli import main; main()"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 1
    assert "damaged.png" in run.stderr


# Size


def huge(width: int, height: int, **options: object) -> bytes:
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        file = io.BytesIO()
        Image.new("L", (width, height), 90).save(file, "JPEG", **options)
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return file.getvalue()


def test_a_jpeg_is_judged_by_what_its_reduced_decoding_takes() -> None:
    content = huge(16320, 12240, quality=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_picture(io.BytesIO(content), PictureRule(224)).shape == (224, 224, 3)
    with pytest.raises(PictureError, match=r"199,756,800 pixels, and decoding it takes as much memory as 3,121,200 do"):
        load_picture(io.BytesIO(content), PictureRule(224), max_pixels=3_000_000)
    with pytest.raises(PictureError, match=r"199,756,800 pixels; at most 100,000,000 of a JPEG are accepted"):
        load_picture(io.BytesIO(content), PictureRule(224), max_pixels=10_000_000)


def test_a_progressive_jpeg_is_judged_by_its_coefficients() -> None:
    pixels = RGB.repeat(40, 0).repeat(40, 1)
    content = saved("JPEG", pixels, progressive=True, subsampling=0)
    with pytest.raises(PictureError, match="takes as much memory as") as caught:
        load_picture(io.BytesIO(content), PictureRule(32), max_pixels=200_000)
    assert caught.value.kind == "too large"
    assert load_picture(io.BytesIO(saved("JPEG", pixels)), PictureRule(32), max_pixels=200_000).shape == (32, 32, 3)


@pytest.mark.parametrize("image_format", ["PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_the_limit_that_is_given_is_the_limit(image_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved(image_format)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # what another part of the program may have set
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_picture(io.BytesIO(content), PictureRule(8), max_pixels=W * H).shape == (8, 8, 3)
    with pytest.raises(PictureError, match=f"{W * H} pixels; at most {W * H - 1} are accepted") as caught:
        load_picture(io.BytesIO(content), PictureRule(8), max_pixels=W * H - 1)
    assert caught.value.kind == "too large"
    assert Image.MAX_IMAGE_PIXELS == 100


# Metadata of any size, and damage where no pixel is


def test_large_metadata_of_a_png() -> None:
    zeros = zlib.compress(bytes(2_000_000))
    large = {
        "profile": chunk(b"iCCP", b"scanner\0\0" + zeros),
        "xmp": international_text(b"XML:com.adobe.xmp", b"<rdf:li>ancestor</rdf:li>" * 80_000, compressed=True),
        "plain xmp": international_text(b"XML:com.adobe.xmp", b"<rdf:li>ancestor</rdf:li>" * 80_000),
        "text": b"".join(chunk(b"zTXt", b"k%d\0\0" % number + zlib.compress(b"a" * 999_999)) for number in range(70)),
        "private": chunk(b"prVt", bytes(3_000_000)),
    }
    for block in large.values():
        shows(png(ROWS, 8, 2, W, H, before=block), RGB)
        shows(png(ROWS, 8, 2, W, H, after=block), RGB)


def test_damage_in_what_no_pixel_depends_on() -> None:
    pieces = [
        chunk(b"tEXt", b"Comment\0hello", broken=True),
        chunk(b"cHRM", bytes(10)),
        chunk(b"gAMA", b"\0"),
        chunk(b"pHYs", b""),
        chunk(b"sRGB", b""),
        chunk(b"iCCP", b"name\0\x07nothing"),
        chunk(b"tIME", bytes(3), broken=True),
        chunk(b"acTL", b"\0"),
        chunk(b"fcTL", b"\0"),
    ]
    for piece in pieces:
        shows(png(ROWS, 8, 2, W, H, before=piece), RGB)
    for content in (
        png(ROWS, 8, 2, W, H, before=chunk(b"tRNS", bytes(3))),
        png(ROWS, 8, 2, W, H)[:-12],  # without its end
        png(ROWS, 8, 2, W, H)[:-16],  # and without the checksum of its pixels
        png(ROWS, 8, 2, W, H) + b"and more",
    ):
        shows(content, RGB)
    header = png(ROWS, 8, 2, W, H)
    refused(header[:8] + header[33:], "damaged", "no header")


def with_segment(marker: int, data: bytes) -> bytes:
    jpeg = saved("JPEG", quality=95)
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data + jpeg[2:]


@pytest.mark.parametrize(
    "content",
    [
        with_segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x07\xdb"),
        with_segment(0xED, b"Photoshop 3.0\0" + b"8BIM"),
        with_segment(0xE1, b"Exif\0\0II"),
        with_segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"),
        with_segment(0xE2, b"ICC_PROFILE\0"),
        with_segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"),
        with_segment(0xE0, b"JFXX\0"),
        saved("JPEG", quality=95) + b"garbage after the end",
        b"\xff\xd8\xff" + saved("JPEG", quality=95)[2:],
    ],
    ids=range(9),
)
def test_odd_segments_do_not_cost_a_jpeg(content: bytes) -> None:
    assert np.array_equal(whole(content), whole(saved("JPEG", quality=95)))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0, "quality": 97}, {"restart_marker_rows": 1}])
def test_a_jpeg_without_its_end_is_read_if_no_pixel_is_missing(progressive: bool, options: dict[str, int]) -> None:
    content = saved("JPEG", noisy()[:70], progressive=progressive, **options)
    expected = whole(content)
    for missing in (1, 2):
        assert np.array_equal(whole(content[:-missing]), expected)
    for missing in (3, 4, 6, 10, 100, len(content) // 3, len(content) * 2 // 3):
        refused(content[:-missing], "damaged", "the file ends before its pixels do")


def test_a_progressive_jpeg_cut_between_scans_is_refused() -> None:
    content = saved("JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    tables = content.rindex(b"\xff\xc4", 0, last)
    for end in (last, tables):
        refused(content[:end], "damaged", "ends before its pixels do")


def test_a_jpeg_without_its_end_is_not_decoded_whole_if_it_is_too_large() -> None:
    content = saved("JPEG", RGB.repeat(20, 0).repeat(20, 1))
    pixels = 20 * H * 20 * W
    assert load_picture(io.BytesIO(content[:-2]), PictureRule(16), max_pixels=2 * pixels).shape == (16, 16, 3)
    with pytest.raises(PictureError, match="ends without the mark of its end"):
        load_picture(io.BytesIO(content[:-2]), PictureRule(16), max_pixels=2 * pixels - 1)
    assert load_picture(io.BytesIO(content), PictureRule(16), max_pixels=pixels - 1).shape == (16, 16, 3)


# Transparency


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_one_transparent_gray(bits: int) -> None:
    most = 2**bits - 1
    levels = np.random.default_rng(bits).integers(0, most + 1, (H, W))
    shifts = 8 - bits - bits * (np.arange(W) % (8 // bits))
    rows = [np.add.reduceat(row << shifts, np.arange(0, W, 8 // bits)).astype(np.uint8).tobytes() for row in levels]
    for level in {0, most // 2, most}:
        content = png(rows, bits, 0, W, H, transparent=struct.pack(">H", level))
        shows(content, np.where(levels == level, 255, levels * 255 // most))


@pytest.mark.parametrize("level", [0, 1, 257, 30_000, 65_535])
def test_one_transparent_gray_of_16_bits(level: int) -> None:
    levels = np.random.default_rng(1).integers(0, 65_536, (H, W))
    levels[::2, ::3] = level
    levels[1::2, ::3] = level ^ 1
    content = png([row.astype(">u2").tobytes() for row in levels], 16, 0, W, H, transparent=struct.pack(">H", level))
    shows(content, np.where(levels == level, 255, (levels + 128) // 257))


def test_one_transparent_colour_of_16_bits() -> None:
    pixels = np.random.default_rng(2).integers(0, 65_536, (H, W, 3))
    colour = (1000, 2000, 3000)
    pixels[::2, ::3] = colour
    pixels[1::2, ::3] = (1000, 2000, 3001)  # the same but for the low byte
    rows = [row.astype(">u2").tobytes() for row in pixels]
    expected = np.where((pixels == colour).all(-1, keepdims=True), 255, pixels >> 8)
    shows(png(rows, 16, 2, W, H, transparent=struct.pack(">3H", *colour)), expected)


def test_alpha_of_a_bitmap() -> None:
    shows(bitmap(RGB, 0), RGB)  # nothing would be seen: it was written without alpha
    shows(bitmap(RGB, 255), RGB)
    half = np.where(X < W // 2, 255, 0)
    shows(bitmap(RGB, half), np.where(half[..., None] == 255, RGB, 255))


def test_a_gif_whose_first_frame_is_part_of_the_screen() -> None:
    expected = np.full((40, 40, 3), 255)
    expected[10:30, 20:36] = 0, 255, 0
    shows(gif_of((40, 40), (20, 10, 16, 20)), expected)
    shows(gif_of((40, 40), (20, 10, 16, 20), transparent=True), expected)
    shows(gif_of((8, 8), (0, 0, 16, 20)), np.broadcast_to(np.array([0, 255, 0]), (20, 16, 3)))
    beyond = np.full((20, 26, 3), 255)
    beyond[:, 10:] = 0, 255, 0
    shows(gif_of((8, 8), (10, 0, 16, 20)), beyond)


# Samples of TIFF


def levels_of(bits: int) -> np.ndarray:
    return GRAY.astype(np.int64) * (2**bits - 1) // 255


def packed_samples(levels: np.ndarray, bits: int) -> bytes:
    text = "".join(
        "".join(format(value, f"0{bits}b") for value in row).ljust(-(-W * bits // 8) * 8, "0") for row in levels
    )
    return int(text, 2).to_bytes(len(text) // 8, "big")


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_gray_tiffs(bits: int, photometric: int, endian: str) -> None:
    levels = levels_of(bits)
    stored = levels if photometric else 2**bits - 1 - levels
    data = stored.astype(endian + "u2").tobytes() if bits == 16 else packed_samples(stored, bits)
    shows(tiff([data], (H, W), bits, photometric, endian=endian), np.rint(levels * 255 / (2**bits - 1)))


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("samples", [3, 4])
@pytest.mark.parametrize("bits", [8, 16])
def test_tiffs_in_planes(bits: int, samples: int, endian: str) -> None:
    alpha = np.where(X < W // 2, 255, 0)
    pixels = np.dstack([RGB, alpha])[..., :samples].astype(np.int64)
    kind = f"{endian}u{bits // 8}"
    planes = [(pixels[..., channel] * (257 if bits == 16 else 1)).astype(kind).tobytes() for channel in range(samples)]
    extra = 2 if samples == 4 else None
    content = tiff(planes, (H, W), bits, 2, samples, planar=2, endian=endian, extra=extra)
    shows(content, np.where(alpha[..., None] == 0, 255, RGB) if samples == 4 else RGB)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (tiff([packed_samples(levels_of(10), 10)], (H, W), 10, 1), "gray in 1 sample of 10 bits"),
        (tiff([packed_samples(levels_of(14), 14)], (H, W), 14, 1), "gray in 1 sample of 14 bits"),
        (tiff([bytes(2 * H * W)], (H, W), 8, 1, sample_format=2), "signed samples"),
        (tiff([bytes(2 * H * W)], (H, W), 16, 1, sample_format=2), "signed samples"),
        (tiff([bytes(4 * H * W)], (H, W), 32, 1), "32 bits a sample"),
        (tiff([bytes(4 * H * W)], (H, W), 32, 1, sample_format=3), "floating-point samples"),
        (tiff([bytes(12 * H * W)], (H, W), 32, 2, 3, sample_format=3), "floating-point samples"),
        (tiff([bytes(4 * H * W)], (H, W), 16, 1, 2, extra=2), "gray and alpha in 2 samples of 16 bits"),
        (tiff([bytes(5 * H * W)], (H, W), 8, 5, 5, extra=2), "CMYK and alpha in 5 samples of 8 bits"),
        (tiff([bytes(6 * H * W)], (H, W), 16, 8, 3), "Lab in 3 samples of 16 bits"),
        (tiff([bytes(2 * H * W)], (H, W), 16, 3), "palette in 1 sample of 16 bits"),
        (tiff([bytes(60)], (H, W), 8, 2, 3, compression=50001), "webp compression"),
        (tiff([bytes(60)], (H, W), 8, 2, 3, compression=34712), "compression 34712"),
    ],
)
def test_kinds_of_tiff_that_are_refused_by_name(content: bytes, says: str) -> None:
    refused(content, "unsupported", f"is a TIFF file with {says}, which is not supported; save it as JPEG or PNG")


def test_libtiff_says_nothing_of_its_own(tmp_path: Path) -> None:
    """Its lines go to the file descriptor of stderr, past Python."""
    lzw = bytearray(saved("TIFF", noisy(), compression="tiff_lzw"))
    lzw[3000:3040] = bytes(40)
    (tmp_path / "lzw.tif").write_bytes(lzw)
    (tmp_path / "webp.tif").write_bytes(tiff([b"RIFF" + bytes(60)], (H, W), 8, 2, 3, compression=50001))
    program = (
        "import sys\nfrom deeprank.runtime.images import PictureError, load_thumbnail\n"
        "for path in sys.argv[1:]:\n    try: load_thumbnail(path, 99)\n    except PictureError as error: print(error)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "lzw.tif"), str(tmp_path / "webp.tif")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.stderr == ""
    assert run.stdout.count(".tif is a ") == 2


# BMP


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize(
    ("bits", "masks"),
    [
        (16, (0xF00, 0xF0, 0xF)),
        (16, (0xF000, 0xF00, 0xF0, 0xF)),
        (16, (0xF800, 0x7E0, 0x1F)),
        (16, (0x7C00, 0x3E0, 0x1F, 0x8000)),
        (32, (0x3FF00000, 0xFFC00, 0x3FF)),
        (32, (0x3FF, 0xFFC00, 0x3FF00000)),
        (32, (0xFF, 0xFF00, 0xFF0000)),
        (32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000)),
        (32, (0xFFE00000, 0x1FFC00, 0x3FF)),
    ],
)
def test_bitmaps_with_masks(bits: int, masks: tuple[int, ...], top_down: bool) -> None:
    alpha = np.where(X[:, :-1] < W // 2, 255, 0)
    pixels = np.dstack([RGB[:, :-1], alpha]).astype(np.int64)  # an odd width: rows are padded
    words, expected = np.zeros((H, W - 1), np.int64), np.zeros((H, W - 1, 3))
    for channel, mask in enumerate(masks):
        low = mask & -mask
        most = mask // low
        stored = pixels[..., channel] * most // 255
        words |= stored * low
        if channel < 3:
            expected[..., channel] = np.rint(stored * 255 / most)
    if len(masks) == 4:
        expected[alpha == 0] = 255
    shows(masked_bitmap(words, bits, masks, top_down=top_down), expected, levels=8 if bits == 16 else 1)


@pytest.mark.parametrize(
    ("coding", "bits", "says"), [(4, 0, "compression 4"), (5, 0, "compression 5"), (0, 64, "64 bits")]
)
def test_kinds_of_bitmap_that_are_refused_by_name(coding: int, bits: int, says: str) -> None:
    header = struct.pack("<IiiHHIIiiII", 40, W, H, 1, bits or 24, coding, 0, 0, 0, 0, 0)
    content = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header + bytes(8 * W * H)
    refused(content, "not a picture" if bits == 64 else "unsupported", "not a picture" if bits == 64 else says)


def test_a_bitmap_that_is_cut_off_is_refused() -> None:
    words = np.zeros((H, W), np.int64)
    refused(masked_bitmap(words, 16, (0xF00, 0xF0, 0xF))[:-9], "damaged", "ends before its pixels do")


# Other formats


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\xff\x0a" + bytes(30), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(30), "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(30), "JPEG 2000"),
        (b"8BPS\0\1" + bytes(30), "Photoshop"),
    ],
)
def test_formats_that_are_not_read_are_named(head: bytes, name: str) -> None:
    refused(head, "unsupported", f"is a {name} file, which is not supported; save it as JPEG or PNG")


def test_every_refusal_has_a_kind_and_a_short_form(tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("these are my notes")
    (tmp_path / "folder.jpg").mkdir()
    cases = {"gone.jpg": ("missing", "does not exist"), "notes.jpg": ("not a picture", "not a picture")}
    cases["folder.jpg"] = ("not a picture", "a folder")
    for name, (kind, short) in cases.items():
        with pytest.raises(PictureError) as caught:
            load_thumbnail(tmp_path / name, 9)
        assert (caught.value.kind, caught.value.short) == (kind, short)
        assert name in str(caught.value)


def test_readers_of_rare_formats_are_imported_when_they_are_needed(tmp_path: Path) -> None:
    saved_as = tmp_path / "a.jpg"
    saved_as.write_bytes(saved("JPEG"))
    program = (
        "import json, sys\nfrom deeprank.runtime.images import load_thumbnail\nload_thumbnail(sys.argv[1], 9)\n"
        "print(json.dumps([name for name in sys.modules if 'Plugin' in name or 'heif' in name.lower()]))"
    )
    run = subprocess.run([sys.executable, "-c", program, str(saved_as)], capture_output=True, text=True, check=True)
    assert set(json.loads(run.stdout)) == {"PIL.JpegImagePlugin"}


def test_a_png_of_very_many_chunks_is_refused_by_name() -> None:
    text = chunk(b"tEXt", b"")
    shows(png(ROWS, 8, 2, W, H, before=text * 1_000), RGB)
    refused(png(ROWS, 8, 2, W, H, before=text * 60_000), "damaged", "more than .* 50,000 of other kinds")
    rows = zlib.compress(b"".join(b"\0" + row for row in ROWS))
    parts = [rows[at : at + 1] for at in range(len(rows))]
    empty = chunk(b"IDAT", b"") * 60_000
    content = png(ROWS, 8, 2, W, H, before=empty, data=parts[0], after=b"".join(chunk(b"IDAT", p) for p in parts[1:]))
    shows(content, RGB)


def test_a_jpeg_whose_tables_are_large_is_refused_by_name() -> None:
    plain = saved("JPEG")
    table = b"\xff\xdb\xff\xff" + bytes(65_533)
    refused(plain[:2] + table * 300 + plain[2:], "damaged", "more than 16,777,216 bytes of tables before the pixels")
    # Metadata of any size are passed over.
    shows(plain[:2] + (b"\xff\xed" + table[2:]) * 300 + plain[2:], whole(plain))


# Faults of the machine


class FailingFile(io.BytesIO):
    """A file of which only the beginning can be read, as where a disk or the network fails."""

    def __init__(self, content: bytes, error: Exception, readable: int) -> None:
        super().__init__(content)
        self.error, self.left = error, readable

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.left -= len(data)
        if self.left < 0:
            raise self.error
        return data


NOISE = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
ERRORS = [
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF"])
@pytest.mark.parametrize("readable", [0, 600, 40_000])
def test_faults_of_the_machine_are_no_damage(image_format: str, error: Exception, readable: int) -> None:
    with pytest.raises(PictureError, match=r"^the picture cannot be read \(") as caught:
        load_thumbnail(FailingFile(saved(image_format, NOISE), error, readable), 400)
    assert caught.value.kind == "unreadable"
    assert caught.value.short.startswith("cannot be read (")


@pytest.mark.parametrize(
    "error", [UnidentifiedImageError("odd"), FileNotFoundError(errno.ENOENT, "gone"), PermissionError(errno.EACCES, "")]
)
def test_only_picture_errors_come_from_decoding(error: Exception) -> None:
    with pytest.raises(PictureError):
        load_thumbnail(FailingFile(saved("PNG", NOISE), error, 40_000), 400)


def test_a_place_that_no_file_reaches_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "far.tif"
    path.write_bytes(b"II+\0\x08\0\0\0" + struct.pack("<Q", (1 << 63) - 2) + bytes(50))
    with pytest.raises(PictureError) as caught:
        load_thumbnail(path, 9)
    assert caught.value.kind == "damaged"


class OnABadDisk(io.RawIOBase):
    """A file whose tags can be read, and whose descriptor, which libtiff reads, gives nothing but errors."""

    def __init__(self, content: bytes, descriptor: int) -> None:
        self.content, self.descriptor, self.at = content, descriptor, 0

    def fileno(self) -> int:
        return self.descriptor

    def read(self, size: int = -1) -> bytes:
        if size >= 1 << 20:
            raise OSError(errno.EIO, "Input/output error")
        data = self.content[self.at :][:size]
        self.at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (0, self.at, len(self.content))[whence]
        return self.at

    def tell(self) -> int:
        return self.at


def test_a_fault_of_the_disk_shows_where_libtiff_reads_it(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(PictureError) as caught:
            load_thumbnail(OnABadDisk(saved("TIFF", NOISE, compression="tiff_lzw"), folder), 9)
    finally:
        os.close(folder)
    assert caught.value.kind == "unreadable"
