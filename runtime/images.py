"""The one way from a picture file to the network's input (Contract 1).

Evaluation, export and the runtime call :func:`load_picture`; augmented training pictures start from
it too. So training and serving cannot drift apart:

1. open with the reader of the format that the first bytes name (``pictures/``), never with all of
   Pillow's plugins;
2. check the cost of decoding against a cap, before decoding;
3. JPEG: decode at a reduced scale, at least twice the target size (rule 2: only large ones);
4. first frame, to 8-bit RGB: 16-bit divided by 257, alpha over white, colour profiles ignored;
5. one antialiased resize to the square, by the rule (``pictures/rule.py``);
6. orientation, on the small picture: by EXIF or TIFF's tag; by the container for HEIF and AVIF.

A picture is refused unless all its pixels can be decoded; it is never read in part.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from .devices import ByteBudget
from .errors import PictureError, PictureProblem
from .pictures.bands import bands
from .pictures.exif import orientation_in
from .pictures.faults import (
    MissingEnd,
    damaged,
    fault_of_machine,
    folder_sentence,
    is_memory_free,
    missing_sentence,
    unsupported,
)
from .pictures.readers import MAX_BYTES_HELD, bytes_held, open_image
from .pictures.resampling import placed
from .pictures.rule import PictureRule, stored_box
from .text import display_path

if TYPE_CHECKING:
    from .pictures.jpeg import JpegFile
    from .pictures.png import PngFile
    from .pictures.tiff import TiffFile

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "Box",
    "ByteBudget",
    "Picture",
    "PictureRule",
    "PictureSource",
    "Size",
    "decoding_budget",
    "load_picture",
    "load_rendition",
    "load_size",
    "load_thumbnail",
    "name_of",
    "naming",
    "opened_picture",
]

Picture = npt.NDArray[np.uint8]
# Width and height in pixels, and a part of a picture: left, top, right and bottom edge in fractions of its sides.
Size = tuple[int, int]
Box = tuple[float, float, float, float]
PictureSource = Path | str | IO[bytes]
# Shrinks a decoded picture and turns it upright; takes the extent of its content, width and height,
# maybe fractional, and its orientation.
Shrink = Callable[[Image.Image, tuple[float, float], int], Image.Image]

DEFAULT_MAX_PIXELS = 100_000_000

# Bytes in decoding, over all threads. Beyond this a picture waits; a larger one runs alone.
_MAX_DECODING_BYTES = 512_000_000
# Memory of a pixel while it is decoded and converted: twice Pillow's 4 bytes, which it takes even
# for RGB. Some decoders hold more (tests/test_memory.py measures it).
_BYTES_PER_PIXEL = 8
_DECODER_BYTES = {"AVIF": 11, "HEIF": 12, "WEBP": 21, "GIF": 11}
# For a transparent colour of 16 bits a sample: comparing it decodes both bytes of each sample.
_COMPARING_BYTES = 24
_PLANES_BYTES = 14
_COMPLETING_BYTES = 12
# Decoding a JPEG at a reduced scale takes little memory, but time for each pixel of each scan.
_MAX_REDUCTION = 10
_MAX_PASSES = 30
# Tiles and blocks at the edges are coded whole.
_PADDING = 1.25

# Rule 2 decodes a JPEG of up to this many pixels in full, as the libraries do; a larger one at no
# less than so many times the resized picture's side. Reduced decoding moves a neighbour in twenty.
_MAX_IN_FULL = 25_000_000
_REDUCED = 4

# A rendition of a JPEG is resized from one decoded at no less than so many times its longer side. It is 47 dB and
# more from one of the whole JPEG, less than what its own compression loses.
_SHARP = 1.5

_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_picture(
    source: PictureSource, rule: PictureRule, *, max_pixels: int = DEFAULT_MAX_PIXELS, box: Box | None = None
) -> Picture:
    """Decode one picture by ``rule``.

    Args:
        source: a path, or a binary file object at its start.
        rule: size and mode of the result.
        max_pixels: pictures with more pixels are refused before decoding.
        box: the part of the upright picture that counts, as if it were the whole; its edges are rounded to pixels.

    Returns:
        uint8 ``[size, size, 3]``, RGB.

    Raises:
        PictureError: the file is missing, no picture of a supported format, damaged, or too large;
            ``kind`` "unreadable" means that a disk, the network or memory failed just now. Or the
            box holds no pixel.

    """
    if rule.version == 1:
        needed, shrink, in_full = 2 * rule.size, _square(rule), 0
    else:
        needed, shrink, in_full = _REDUCED * (rule.resize or rule.size), _window(rule), _MAX_IN_FULL
    if box is not None:
        # A part saved as a file of its own would be decoded in full.
        needed = math.ceil(needed / min(box[2] - box[0], box[3] - box[1]))
        shrink, in_full = _part(box, shrink), _MAX_IN_FULL
    return _load(source, needed, shrink, max_pixels, in_full=in_full)[0]


def load_thumbnail(source: PictureSource, limit: int, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Picture:
    """Decode a picture for viewing: whole, upright, in its proportions.

    Args:
        source: a path, or a binary file object at its start.
        limit: longer side in pixels; smaller pictures are not enlarged.
        max_pixels: as for :func:`load_picture`.

    Returns:
        uint8 ``[height, width, 3]``, RGB.

    Raises:
        PictureError: as for :func:`load_picture`.

    """
    return load_rendition(source, limit, max_pixels=max_pixels)[0]


def load_rendition(source: PictureSource, limit: int, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[Picture, Size]:
    """Do what :func:`load_thumbnail` does, and return the size of the whole upright picture as well."""

    def shrink(image: Image.Image, extent: tuple[float, float], orientation: int) -> Image.Image:
        scale = min(1.0, limit / max(extent))
        size = max(1, round(extent[0] * scale)), max(1, round(extent[1] * scale))
        return _upright(image.resize(size, Image.Resampling.BILINEAR, box=(0.0, 0.0, *extent)), orientation)

    return _load(source, math.ceil(_SHARP * limit), shrink, max_pixels, is_longer=True)


def load_size(source: PictureSource) -> Size:
    """Return the width and height of a picture as it is shown, upright; its pixels are not decoded.

    Args:
        source: a path, or a binary file object at its start.

    Raises:
        PictureError: as for :func:`load_picture`, if that shows in the head of the file.

    """
    name = name_of(source)
    with opened_picture(source, name) as image, naming(name, image.format):
        return _upright_size(image.size, _orientation(image))


def _load(
    source: PictureSource,
    needed: int,
    shrink: Shrink,
    max_pixels: int,
    *,
    in_full: int = 0,
    is_longer: bool = False,
) -> tuple[Picture, Size]:
    """Open, check, decode and shrink a picture; return the size of the whole upright one as well.

    A JPEG of more than ``in_full`` pixels is decoded smaller, with at least ``needed`` on each side, or on the longer
    one (``is_longer``).
    """
    name = name_of(source)
    with opened_picture(source, name) as image, naming(name, image.format):
        full = image.size
        if is_longer:
            needed = math.ceil(needed * min(full) / max(full))
        extent = _drafted(image, needed) if full[0] * full[1] > in_full else full
        needs = _decoding_bytes(image)
        _check_size(image, full, needs, max_pixels)
        size = _upright_size(full, _orientation(image))
        with _decoding(needs), contextlib.suppress(MissingEnd):
            image.load()
            return _decode(image, shrink, extent), size
        pixels, passes = full[0] * full[1], cast("JpegFile", image).passes(completed=True)
        if pixels > max_pixels // 2 or pixels * passes > _MAX_PASSES * max_pixels:
            raise damaged(image.format, OSError("the file ends without the mark of its end"))
        # No end marker: only decoding at full size shows whether the pixels are complete.
        with _decoding(needs + _COMPLETING_BYTES * pixels):
            cast("JpegFile", image).complete()
        with _decoding(needs):
            image.load()
            return _decode(image, shrink, extent), size


@contextlib.contextmanager
def _decoding(needs: int) -> Iterator[None]:
    """Wait for memory to decode. Some decoders report missing memory as damage, so check it then.

    Raises:
        MemoryError: memory is short, even if the decoder reports damage.

    """
    with decoding_budget.reserve(needs):
        try:
            yield
        except (PictureError, MissingEnd):
            raise
        except Exception as error:
            if not is_memory_free(needs):
                raise MemoryError from error
            raise


@contextlib.contextmanager
def naming(name: str, image_format: str | None) -> Iterator[None]:
    """Turn every exception of reading a file into a PictureError that names the file.

    Args:
        name: the file's name, made printable.
        image_format: None if still unknown.

    On damaged files Pillow's decoders raise nearly anything (OSError, SyntaxError, struct.error,
    IndexError, ...). In all cases this picture cannot be read and the next one can.

    """
    try:
        yield
    except PictureError as error:
        raise PictureError(f"{name} {error}", kind=error.kind, short=error.short) from error.__cause__
    except FileNotFoundError as error:
        raise _refused(missing_sentence(name), "missing", "does not exist") from error
    except IsADirectoryError as error:
        raise _refused(folder_sentence(name), "not a picture", "a folder") from error
    except PermissionError as error:
        message = f"{name} may not be read; check its permissions."
        raise _refused(message, "unreadable", "may not be read") from error
    except Exception as error:
        fault = fault_of_machine(error)
        if fault is not None:
            raise _refused(f"{name} cannot be read ({fault}).", "unreadable", f"cannot be read ({fault})") from error
        if isinstance(error, UnidentifiedImageError) and image_format is None:
            raise _refused(
                f"{name} is not a picture that can be read; expected JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or "
                "HEIF (HEIC).",
                "not a picture",
                "not a picture",
            ) from error
        named = damaged(image_format, error)
        raise PictureError(f"{name} {named}", kind=named.kind, short=named.short) from error


def name_of(source: PictureSource) -> str:
    """Return a picture's name for messages: its printable path, or "the picture"."""
    if isinstance(source, str | Path):
        return display_path(source)
    name = getattr(source, "name", None)
    return display_path(name) if isinstance(name, str | bytes) else "the picture"


@contextlib.contextmanager
def opened_picture(source: PictureSource, name: str) -> Iterator[Image.Image]:
    """Open the file and read its header; nothing is decoded yet.

    Raises:
        PictureError: as :func:`load_picture`, except for pictures that are too large.

    """
    with contextlib.ExitStack() as stack:
        with naming(name, None):
            file = stack.enter_context(Path(source).open("rb")) if isinstance(source, str | Path) else source
            stack.enter_context(_WHOLE_FILES.reserve(bytes_held(file)))
            image = stack.enter_context(open_image(file))
        yield image


def _refused(message: str, kind: PictureProblem, short: str) -> PictureError:
    return PictureError(message, kind=kind, short=short)


def _check_size(image: Image.Image, full: tuple[int, int], needs: int, max_pixels: int) -> None:
    """Refuse a picture that costs more than ``max_pixels`` pixels; a JPEG by its decoding."""
    pixels = full[0] * full[1]
    short = f"{full[0]} x {full[1]} = {pixels:,} pixels"
    counts, most, of_what = pixels, max_pixels, ""
    if image.format == "JPEG":
        counts = -(-needs // _BYTES_PER_PIXEL)
        passes = cast("JpegFile", image).passes()
        if counts <= max_pixels and passes * pixels > _MAX_PASSES * max_pixels:
            _refuse_passes(short, passes, max_pixels)
        if counts <= max_pixels:
            counts, most, of_what = pixels, _MAX_REDUCTION * max_pixels, " of a JPEG"
    elif pixels <= max_pixels and _coded_pixels(image) > _PADDING * pixels:
        counts = _coded_pixels(image)
    if counts > most:
        as_much = "" if counts == pixels else f", and decoding it takes as much memory as {counts:,} do"
        raise PictureError(
            f"has {short}{as_much}; at most {most:,}{of_what} are accepted. "
            "Make it smaller, or raise the limit (--max-pixels).",
            kind="too large",
            short=short,
        )


def _refuse_passes(short: str, passes: int, max_pixels: int) -> None:
    raise PictureError(
        f"has {short}, and decoding it takes {passes} passes over them; at most {_MAX_PASSES * max_pixels:,} pixels "
        "are accepted in all passes. Save it as a baseline JPEG, make it smaller, or raise the limit (--max-pixels).",
        kind="too large",
        short=f"{short}, {passes} times",
    )


def _coded_pixels(image: Image.Image) -> int:
    """Return the number of pixels that decoding produces, with tiles and a container's frames."""
    return max(image.width * image.height, getattr(image, "coded_pixels", 0))


def _drafted(image: Image.Image, needed: int) -> tuple[float, float]:
    """Request a reduced JPEG; return its content's width and height in pixels, maybe fractional."""
    if image.format == "JPEG":
        drafted = image.draft(None, (needed, needed))
        if drafted is not None:
            # Pillow rounds a reduced JPEG up to whole pixels; its content has a fractional extent.
            return drafted[1][2], drafted[1][3]
    return image.size


def _decoding_bytes(image: Image.Image) -> int:
    """Return the approximate peak memory of decoding: the decoder's, and one or two pictures."""
    pixels = _coded_pixels(image)
    if image.format == "JPEG":
        # A progressive JPEG is held as coefficients, whole, before decoding starts.
        return cast("JpegFile", image).coefficient_bytes() + _BYTES_PER_PIXEL * pixels
    if image.format == "TIFF":
        return (_PLANES_BYTES if cast("TiffFile", image).in_planes else _BYTES_PER_PIXEL) * pixels
    if getattr(image, "transparent", ()):
        return _COMPARING_BYTES * pixels
    return _DECODER_BYTES.get(image.format or "", _BYTES_PER_PIXEL) * pixels


def _decode(image: Image.Image, shrink: Shrink, extent: tuple[float, float]) -> Picture:
    small = shrink(_eight_bit(image), extent, _orientation(image))
    return np.asarray(small if small.mode == "RGB" else small.convert("RGB"))


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _ORIENTATIONS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _upright_size(size: Size, orientation: int) -> Size:
    return size[::-1] if orientation >= 5 else size


def _part(box: Box, shrink: Shrink) -> Shrink:
    """Return what shrinks the part of a picture that a box of the upright one holds."""

    def shrink_part(image: Image.Image, extent: tuple[float, float], orientation: int) -> Image.Image:
        edges = [round(edge * extent[place % 2]) for place, edge in enumerate(stored_box(box, orientation))]
        part = image.crop((edges[0], edges[1], min(edges[2], image.width), min(edges[3], image.height)))
        if 0 in part.size:
            size = _upright_size((round(extent[0]), round(extent[1])), orientation)
            raise PictureError(
                f"has {size[0]} x {size[1]} pixels, and the box holds none of them; choose a larger part.",
                kind="too large",
                short="the box holds no pixel",
            )
        return shrink(part, part.size, orientation)

    return shrink_part


def _square(rule: PictureRule) -> Shrink:
    """Return what rule 1 does: one resize of the whole picture, or of its largest square."""

    def shrink(image: Image.Image, extent: tuple[float, float], orientation: int) -> Image.Image:
        box = _box(rule.mode, *extent)
        return _upright(image.resize((rule.size, rule.size), Image.Resampling.BILINEAR, box=box), orientation)

    return shrink


def _window(rule: PictureRule) -> Shrink:
    """Return what rule 2 does: a resize to a grid of whole pixels, and its centred square."""

    def shrink(image: Image.Image, extent: tuple[float, float], orientation: int) -> Image.Image:
        place = rule.placement(extent, orientation)
        upright = _upright(placed(image, extent, place, rule), orientation)
        if upright.size == (rule.size, rule.size):
            return upright
        square = Image.new("RGB", (rule.size, rule.size), rule.fill)
        square.paste(upright, place.corner)
        return square

    return shrink


def _box(mode: str, width: float, height: float) -> tuple[float, float, float, float]:
    """Return the part of the picture in the square, in pixels (left, top, right, bottom)."""
    if mode == "stretch":
        return 0.0, 0.0, width, height
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _orientation(image: Image.Image) -> int:
    """Return the orientation, 1 to 8, by EXIF or TIFF's tag; XMP is ignored.

    For AVIF, Pillow has put the container's orientation into the EXIF block.
    """
    if image.format == "TIFF":
        return cast("TiffFile", image).orientation
    if image.format == "HEIF":  # turned by its decoder
        return 1
    return orientation_in(image.info.get("exif"))


def _eight_bit(image: Image.Image) -> Image.Image:
    """Return the first frame in mode RGB, or L if gray: a third of the memory, the same result."""
    if image.mode.startswith("I;16"):
        return _sixteen_bit_to_gray(image)
    if image.mode in ("I", "F"):
        raise unsupported(image.format or "picture", "samples of 32 bits", "save it with 8 or 16 bits a sample")
    if getattr(image, "transparent", ()):
        return _transparent_white(image)
    frame = getattr(image, "frame_box", (0, 0, *image.size))
    if frame != (0, 0, *image.size) or _has_alpha(image):
        return _over_white(image, frame)
    if image.mode in ("RGB", "L"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _has_alpha(image: Image.Image) -> bool:
    """Tell whether any pixel may be transparent. A BMP whose alpha is 0 throughout has no alpha."""
    if image.format == "BMP" and image.mode == "RGBA":
        return image.getchannel("A").getextrema() != (0, 0)
    return image.has_transparency_data


def _sixteen_bit_to_gray(image: Image.Image) -> Image.Image:
    """Divide by 257 (65535 -> 255), rounded, in bands of rows that bound the 32-bit copies."""
    samples = np.asarray(image)
    levels = getattr(image, "levels", 65535)
    gray = np.empty(samples.shape, dtype=np.uint8)
    for top, bottom in bands(*image.size):
        band = samples[top:bottom].astype(np.uint32)
        if getattr(image, "inverted", False):
            band = levels - band
        gray[top:bottom] = (band * 255 + levels // 2) // levels
        for transparent in getattr(image, "transparent", ()):
            gray[top:bottom][samples[top:bottom] == transparent] = 255
    return Image.fromarray(gray)


def _transparent_white(image: Image.Image) -> Image.Image:
    """Return a PNG of 16 bits a sample with its transparent colour made white."""
    pixels = np.array(image)
    pixels[cast("PngFile", image).is_transparent()] = 255
    return Image.fromarray(pixels)


def _over_white(image: Image.Image, frame: tuple[int, int, int, int]) -> Image.Image:
    """Compose over white in bands of rows, to avoid a copy of the whole picture in each step."""
    white = Image.new("RGB", image.size, (255, 255, 255))
    left, above, right, below = frame
    for top, bottom in bands(*image.size):
        top, bottom = max(top, above), min(bottom, below)
        if top < bottom and left < right:
            band = image.crop((left, top, right, bottom)).convert("RGBA")
            white.paste(band, (left, top), mask=band.getchannel("A"))
    return white


# A decoding process puts the budget of its parent here.
decoding_budget = ByteBudget(_MAX_DECODING_BYTES)
# A file held in memory waits for the decoding budget, never the other way round.
_WHOLE_FILES = ByteBudget(MAX_BYTES_HELD)
