"""The one way from a picture file to the network's input (Contract 1).

Evaluation, export and the runtime call :func:`load_picture`; augmented training pictures start from it too. So what a
network was trained on and what it is served cannot drift apart:

1. open with the formats we trust, never with every plugin of Pillow;
2. width x height against a cap, before anything is decoded;
3. JPEG: decode at a reduced scale, at least twice the target size;
4. first frame, to 8-bit RGB: 16-bit divided by 257, alpha over white, colour profiles ignored;
5. one antialiased bilinear resize to the square;
6. EXIF orientation, on the small picture.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from .errors import PictureError
from .filenames import folder_sentence, missing_sentence
from .text import display_path

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "RULE_VERSION",
    "ByteBudget",
    "Picture",
    "PictureRule",
    "PictureSource",
    "load_picture",
    "load_thumbnail",
    "opened_picture",
]

Picture = npt.NDArray[np.uint8]
PictureSource = Path | str | IO[bytes]
# Makes a decoded picture small; told the extent of its content, width and height, which need not be whole.
Shrink = Callable[[Image.Image, tuple[float, float]], Image.Image]

RULE_VERSION = 1
DEFAULT_MAX_PIXELS = 100_000_000

# Those that Pillow knows from the start, in the order in which they are tried. JPEG's reader opens MPO as well.
_COMMON_FORMATS = ["JPEG", "PNG", "GIF", "BMP", "DIB"]

# Beyond this many bytes in flight over all threads, a picture waits; one that needs more decodes alone.
_MOST_DECODING_BYTES = 512_000_000
# What a pixel takes while it is decoded and converted: twice what Pillow takes for it, 4 bytes even for RGB. Some
# decoders hold more (tests/test_memory.py measures it).
_BYTES_PER_PIXEL = 8
_DECODER_BYTES = {"AVIF": 11, "HEIF": 12, "WEBP": 21}
_COEFFICIENT_BYTES = 6
# Pixels that are converted at a time where a conversion takes several steps.
_BAND_PIXELS = 1_000_000

_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class PictureRule:
    """How a picture becomes a square of ``size`` x ``size`` pixels; part of every model's metadata.

    ``mode``: ``stretch`` takes the whole picture, ``crop`` the centred square.
    """

    size: int
    mode: Literal["stretch", "crop"] = "stretch"
    filter: Literal["bilinear"] = "bilinear"
    version: int = RULE_VERSION

    def resized(self, size: int) -> PictureRule:
        """Return the same rule at another size (augmentation starts from a larger square)."""
        return PictureRule(size, self.mode, self.filter, self.version)


def load_picture(source: PictureSource, rule: PictureRule, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Picture:
    """Decode one picture by ``rule``.

    Args:
        source: a path, or a binary file object at its start.
        rule: size and mode of the result.
        max_pixels: pictures of more than this many pixels are refused before they are decoded.

    Returns:
        uint8 ``[size, size, 3]``, RGB.

    Raises:
        PictureError: the file is missing, no picture of a supported format, damaged, or too large.

    """

    def shrink(image: Image.Image, extent: tuple[float, float]) -> Image.Image:
        box = _box(rule.mode, *extent)
        return image.resize((rule.size, rule.size), Image.Resampling.BILINEAR, box=box)

    return _load(source, rule.size, shrink, max_pixels)


def load_thumbnail(source: PictureSource, most: int, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Picture:
    """Decode a picture to be looked at: whole, upright, in its own proportions.

    Args:
        source: a path, or a binary file object at its start.
        most: pixels of the longer side; a smaller picture is not enlarged.
        max_pixels: as for :func:`load_picture`.

    Returns:
        uint8 ``[height, width, 3]``, RGB.

    Raises:
        PictureError: as for :func:`load_picture`.

    """

    def shrink(image: Image.Image, extent: tuple[float, float]) -> Image.Image:
        scale = min(1.0, most / max(extent))
        size = max(1, round(extent[0] * scale)), max(1, round(extent[1] * scale))
        return image.resize(size, Image.Resampling.BILINEAR, box=(0.0, 0.0, *extent))

    return _load(source, most, shrink, max_pixels)


def _load(source: PictureSource, needed: int, shrink: Shrink, max_pixels: int) -> Picture:
    """Open, check and decode a picture, of which ``needed`` pixels a side are wanted, and make it small."""
    name = _name_of(source)
    with opened_picture(source, name) as image:
        pixels = image.width * image.height
        if pixels > max_pixels:
            raise PictureError(
                f"{name} has {image.width} x {image.height} = {pixels:,} pixels; at most {max_pixels:,} are accepted. "
                "Make it smaller, or raise the limit (--max-pixels)."
            )
        try:
            extent = _drafted(image, needed)
        except Exception as error:  # as below
            raise PictureError(_damaged(name, image.format, error)) from error
        with _DECODING.reserve(_decoding_bytes(image, pixels)):
            try:
                return _decode(image, shrink, extent)
            except PictureError as error:
                raise PictureError(f"{name} {error}") from None
            # Damaged files make Pillow's decoders raise nearly anything (OSError, SyntaxError, struct.error,
            # IndexError, ...): whatever it was, this picture cannot be read and the next one can.
            except Exception as error:
                raise PictureError(_damaged(name, image.format, error)) from error


def _name_of(source: PictureSource) -> str:
    if isinstance(source, str | Path):
        return display_path(source)
    name = getattr(source, "name", None)
    return display_path(name) if isinstance(name, str | bytes) else "the picture"


@contextlib.contextmanager
def opened_picture(source: PictureSource, name: str) -> Iterator[Image.Image]:
    """Open the file and read its header; nothing is decoded yet."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(Path(source).open("rb")) if isinstance(source, str | Path) else source
            image = stack.enter_context(_identify(file))
        except FileNotFoundError:
            raise PictureError(missing_sentence(name), kind="missing", short="does not exist") from None
        except IsADirectoryError:
            raise PictureError(folder_sentence(name), kind="not a picture", short="a folder") from None
        except PermissionError:
            raise PictureError(f"{name} may not be read; check its permissions.") from None
        except UnidentifiedImageError:
            raise PictureError(
                f"{name} is not a picture that can be read; expected JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"
                f"{' or HEIF' if 'HEIF' in _other_formats() else ''}, whole and undamaged."
            ) from None
        except Image.DecompressionBombError:
            raise PictureError(
                f"{name} has more pixels than Pillow's own limit of {2 * (Image.MAX_IMAGE_PIXELS or 0):,}; at most "
                f"{DEFAULT_MAX_PIXELS:,} are accepted unless --max-pixels says otherwise. Make it smaller."
            ) from None
        except Exception as error:  # as above: the header parsers raise nearly anything on damaged files
            raise PictureError(_damaged(name, None, error)) from error
        yield image


def _identify(file: IO[bytes]) -> Image.Image:
    try:
        return Image.open(file, formats=_COMMON_FORMATS)
    except UnidentifiedImageError:
        file.seek(0)
        return Image.open(file, formats=_other_formats())


def _damaged(name: str, image_format: str | None, error: Exception) -> str:
    kind = f"a damaged {image_format} file" if image_format else "damaged"
    return f"{name} is {kind} ({str(error) or type(error).__name__}); replace it or leave it out."


def _drafted(image: Image.Image, needed: int) -> tuple[float, float]:
    """Ask for a reduced JPEG, and return the extent of the content: width and height in pixels, not always whole."""
    if image.format in ("JPEG", "MPO"):
        drafted = image.draft(None, (2 * needed, 2 * needed))
        if drafted is not None:
            # A reduced JPEG is rounded up to whole pixels; its content ends at the exact, fractional extent.
            return drafted[1][2], drafted[1][3]
    return image.size


def _decoding_bytes(image: Image.Image, pixels: int) -> int:
    """Return about the most memory that decoding takes: that of the format's decoder, and of one or two pictures."""
    drafted = image.width * image.height
    if image.format in ("JPEG", "MPO"):
        # A progressive one is held as coefficients, whole, before any of it is decoded.
        coefficients = _COEFFICIENT_BYTES * pixels if image.info.get("progressive") else 0
        return coefficients + _BYTES_PER_PIXEL * drafted
    return _DECODER_BYTES.get(image.format or "", _BYTES_PER_PIXEL) * drafted


def _decode(image: Image.Image, shrink: Shrink, extent: tuple[float, float]) -> Picture:
    orientation = _orientation(image)
    small = shrink(_eight_bit(image), extent)
    if orientation in _ORIENTATIONS:
        small = small.transpose(_ORIENTATIONS[orientation])
    return np.asarray(small if small.mode == "RGB" else small.convert("RGB"))


def _box(mode: str, width: float, height: float) -> tuple[float, float, float, float]:
    """Return the part of the picture that the square shows, in pixels (left, top, right, bottom)."""
    if mode == "stretch":
        return 0.0, 0.0, width, height
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels: they are shown as they are stored
        return 1


def _eight_bit(image: Image.Image) -> Image.Image:
    """Return the first frame in mode RGB, or L where it is gray: a third of the memory, and the same once resized."""
    image.load()
    if image.format == "WEBP":
        # Its decoder, and the file that its frame was handed over in, hold the picture three more times.
        vars(image).update(_decoder=None, fp=None)
    if image.mode.startswith("I;16") or image.mode == "I":
        return _sixteen_bit_to_gray(image)
    if image.mode == "F":
        raise PictureError("holds floating-point samples; expected 8 or 16 bits a sample. Save it as such.")
    if image.has_transparency_data:
        return _over_white(image)
    if image.mode in ("RGB", "L"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _sixteen_bit_to_gray(image: Image.Image) -> Image.Image:
    """Divide by 257 (65535 -> 255), rounded, in bands of rows so that a large picture is not held in 32 bits twice."""
    samples = np.asarray(image)
    if samples.size and (samples.min() < 0 or samples.max() > 65535):
        raise PictureError("holds 32-bit samples; expected 8 or 16 bits a sample. Save it as such.")
    gray = np.empty(samples.shape, dtype=np.uint8)
    for top, bottom in _bands(*image.size):
        gray[top:bottom] = (samples[top:bottom].astype(np.uint32) + 128) // 257
    return Image.fromarray(gray)


def _over_white(image: Image.Image) -> Image.Image:
    """Compose over white, in bands of rows: the whole picture is not held once more for each of the steps."""
    white = Image.new("RGB", image.size, (255, 255, 255))
    for top, bottom in _bands(*image.size):
        band = image.crop((0, top, image.width, bottom)).convert("RGBA")
        white.paste(band, (0, top), mask=band.getchannel("A"))
    return white


def _bands(width: int, height: int) -> Iterator[tuple[int, int]]:
    rows = max(1, _BAND_PIXELS // max(1, width))
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


class ByteBudget:
    """A semaphore counted in bytes: bounds the memory of what is being done at the same time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_use = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Wait until ``size`` bytes fit, or until nothing else is being done."""
        with self._changed:
            self._changed.wait_for(lambda: self._in_use == 0 or self._in_use + size <= self._limit)
            self._in_use += size
        try:
            yield
        finally:
            with self._changed:
                self._in_use -= size
                self._changed.notify_all()


_DECODING = ByteBudget(_MOST_DECODING_BYTES)


@functools.cache
def _other_formats() -> list[str]:
    """Return the formats that are looked for last; a query in a common one should not wait for their readers.

    They are imported by name, because Pillow itself would import all of its forty to find one.
    """
    from PIL import AvifImagePlugin, TiffImagePlugin, WebPImagePlugin, features

    formats = [WebPImagePlugin.WebPImageFile.format, TiffImagePlugin.TiffImageFile.format]
    if features.check("avif"):
        formats.append(AvifImagePlugin.AvifImageFile.format)
    try:
        import pillow_heif  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return formats
    pillow_heif.register_heif_opener()
    return [*formats, "HEIF"]
