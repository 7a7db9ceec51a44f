"""Picture formats by their first bytes, and which files a correction of the decoding rules touches."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rare_pictures import bitmap, gif_of, international_text, png, tiff

from deeprank.runtime.formats import DECODING_VERSION, EXTENSIONS, HEAD_BYTES, decoders, format_of
from deeprank.runtime.pictures.changes import changed_since_1, decoding_changed

RGB = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
XMP = b'<rdf:Description tiff:Orientation="%d"/>'
HEIC = Path(__file__).parent / "heic"


def saved(image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, image_format, **options)
    return file.getvalue()


@pytest.mark.parametrize("name", ["JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF"])
def test_the_first_bytes_say_what_pillow_says(name: str) -> None:
    head = saved(name)[:HEAD_BYTES]
    assert format_of(head) == name
    assert format_of(head[:32]) == name


@pytest.mark.parametrize("path", sorted(HEIC.glob("*.heic")), ids=lambda path: path.stem)
def test_heic_by_its_first_bytes(path: Path) -> None:
    assert format_of(path.read_bytes()[:HEAD_BYTES]) == "HEIF"


def container(main: bytes, *others: bytes) -> bytes:
    brands = main + b"\0\0\0\0" + b"".join(others)
    return struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (container(b"mif1", b"mif1", b"heic"), "HEIF"),
        (container(b"mif1", b"mif1", b"avif", b"miaf"), "AVIF"),
        (container(b"avis", b"msf1", b"avif"), "AVIF"),
        (container(b"hevc", b"msf1", b"hevc"), "HEIF"),
        (container(b"heix", b"mif1"), "HEIF"),
        (container(b"mif1"), "HEIF"),
        (container(b"mp42", b"isom"), None),
        (container(b"qt  "), None),
        (container(b"M4A ", b"isom"), None),
        (b"MM\0+" + bytes(28), "TIFF"),
        (b"II+\0" + bytes(28), "TIFF"),
        (b"RIFF\0\0\0\0WAVEfmt " + bytes(16), None),
        (b"BM is how this text begins, and it goes on", None),
        (struct.pack("<I", 40) + b"twelve and more bytes of anything", None),
        (b"", None),
        (b"\xff\xd8", None),
        (b"%!PS-Adobe-3.0 EPSF-3.0", None),
        (b"PK\x03\x04" + bytes(28), None),
    ],
)
def test_heads(head: bytes, found: str | None) -> None:
    assert format_of(head[:HEAD_BYTES]) == found


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_are_a_format_or_none(head: bytes) -> None:
    assert format_of(head) in {None, "JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "HEIF"}


def test_extensions_are_those_that_people_have() -> None:
    from PIL import Image

    Image.init()
    ours = {"JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF"}
    known = {extension for extension, name in Image.registered_extensions().items() if name in ours}
    assert known <= EXTENSIONS
    assert {".jfif", ".pjpeg", ".pjp", ".hif", ".heic", ".heif", ".apng", ".avifs"} <= EXTENSIONS
    assert all(extension == extension.lower() and extension.startswith(".") for extension in EXTENSIONS)


def test_decoders_are_named_with_their_versions() -> None:
    import pi_heif
    import PIL

    assert PIL.__version__ in decoders()
    assert pi_heif.__version__ in decoders()
    assert str(DECODING_VERSION) in decoders()


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


GRAY = RGB[..., 0]
ROWS = zlib.compress(b"".join(b"\0" + row.tobytes() for row in RGB))
UNTOUCHED = {
    "plain.jpg": saved("JPEG"),
    "turned.jpg": saved("JPEG", exif=exif(6)),
    "xmp_beside_exif.jpg": saved("JPEG", exif=exif(6), xmp=XMP % 8),
    "xmp_upright.jpg": saved("JPEG", xmp=XMP % 1),
    "plain.png": saved("PNG"),
    "turned.png": saved("PNG", exif=exif(3)),
    "transparent.png": saved("PNG", transparency=(1, 2, 3)),
    "interlaced.png": png([], 8, 2, 16, 12, interlaced=True, data=zlib.compress(bytes(599))),
    "gray16.png": png([row.astype(">u2").tobytes() for row in GRAY], 16, 0, 16, 12),
    "plain.webp": saved("WEBP"),
    "turned.webp": saved("WEBP", exif=exif(6), xmp=XMP % 8),
    "plain.avif": saved("AVIF"),
    "plain.gif": saved("GIF"),
    "plain.bmp": saved("BMP"),
    "plain.tif": saved("TIFF"),
    "lzw.tif": saved("TIFF", compression="tiff_lzw"),
    "gray16.tif": tiff([GRAY.astype("<u2").tobytes()], (12, 16), 16, 1),
    "upright.tif": tiff([RGB.tobytes()], (12, 16), 8, 2, 3, orientation=1),
}
TOUCHED = {
    "xmp.jpg": saved("JPEG", xmp=XMP % 6),
    "xmp.webp": saved("WEBP", xmp=XMP % 6),
    "xmp.png": png(
        [row.tobytes() for row in RGB], 8, 2, 16, 12, before=international_text(b"XML:com.adobe.xmp", XMP % 6)
    ),
    "xmp_compressed.png": png(
        [row.tobytes() for row in RGB], 8, 2, 16, 12, before=international_text(b"XML:com.adobe.xmp", XMP % 6, True)
    ),
    "xmp.avif": saved("AVIF", xmp=XMP % 6),
    "turned.tif": tiff([RGB.tobytes()], (12, 16), 8, 2, 3, orientation=6),
    "turned_big_endian.tif": tiff([RGB.tobytes()], (12, 16), 8, 2, 3, orientation=3, endian=">"),
    "turned_bigtiff.tif": tiff([RGB.tobytes()], (12, 16), 8, 2, 3, orientation=8, big=True),
    "white_is_zero.tif": tiff([GRAY.astype("<u2").tobytes()], (12, 16), 16, 0),
    "planes16.tif": tiff([GRAY.astype("<u2").tobytes()] * 3, (12, 16), 16, 2, 3, planar=2),
    "signed.tif": tiff([GRAY.tobytes()], (12, 16), 8, 1, sample_format=2),
    "transparent4.png": png([bytes(8)] * 12, 4, 0, 16, 12, transparent=struct.pack(">H", 3)),
    "transparent16.png": png([bytes(32)] * 12, 16, 0, 16, 12, transparent=struct.pack(">H", 3)),
    "cut.png": saved("PNG")[:-60],
    "rows_missing.png": png([row.tobytes() for row in RGB[:7]], 8, 2, 16, 12),
    "wrong_adler.png": png([], 8, 2, 16, 12, data=ROWS[:-4] + b"none"),
    "interlaced_rows_missing.png": png([], 8, 2, 16, 12, interlaced=True, data=zlib.compress(bytes(300))),
    "damaged.png": saved("PNG")[:100] + b"\xff\xff" + saved("PNG")[102:],
    "alpha.bmp": bitmap(RGB, 0),
    "partial.gif": gif_of((40, 40), (20, 20, 20, 20)),
    "far.tif": b"II+\0\x08\0\0\0" + b"\xff" * 24,
    "text.png": b"\x89PNG\r\n\x1a\nno chunks",
    "notes.txt": b"no picture at all",
}


@pytest.mark.parametrize("name", [*UNTOUCHED, *TOUCHED])
def test_which_files_are_touched(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes({**UNTOUCHED, **TOUCHED}[name])
    assert decoding_changed(path, 1) is (name in TOUCHED)
    assert decoding_changed(os.fsencode(path), DECODING_VERSION) is False


def test_a_file_that_cannot_be_read_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        decoding_changed(tmp_path / "gone.png", 1)


@pytest.mark.parametrize("length", [0, 1])
def test_a_segment_without_a_length_ends_the_search(length: int) -> None:
    """The rest of the file, however large, is not read as one segment."""

    class Counted(io.BytesIO):
        most = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            self.most = max(self.most, len(data))
            return data

    file = Counted(b"\xff\xd8\xff\xe1" + struct.pack(">H", length) + bytes(1_000_000))
    assert changed_since_1(file)
    assert file.most <= HEAD_BYTES


def test_brands_far_behind_name_the_format() -> None:
    head = container(b"mif1", *[b"tst%d" % (number % 10) for number in range(50)], b"heic")
    assert len(head) < HEAD_BYTES
    assert format_of(head[:HEAD_BYTES]) == "HEIF"
    avif = container(b"mif1", *[b"tst%d" % (number % 10) for number in range(50)], b"avif")
    assert format_of(avif[:HEAD_BYTES]) == "AVIF"


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from([*UNTOUCHED, *TOUCHED]), data=st.data())
def test_damage_never_raises(name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    content = bytearray({**UNTOUCHED, **TOUCHED}[name])
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "mutant"
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    assert decoding_changed(path, 1) in (True, False)
