"""The contact sheet: a query and its hits as one PNG with captions."""

from __future__ import annotations

import contextlib
import functools
import io
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image, ImageDraw, ImageFont

from .errors import PictureError, QueryError
from .files import SourceError, write_result
from .images import PictureRule, load_picture
from .text import display_path, printable

__all__ = ["MAX_HITS", "SheetBlock", "SheetPicture", "draw_sheets"]

# More are not drawn: a sheet is for viewing, and its size in memory is bounded.
MAX_HITS = 200

_TILE = 176
_FRAME = 5
_GAP = 12
_LINE = 18
_FONT_SIZE = 14
_TITLE_SIZE = 18
_MIN_COLUMNS = 5
_CELL = _TILE + 2 * _FRAME + _GAP

_WHITE = (255, 255, 255)
_INK = (33, 37, 41)
_GREY = (222, 226, 230)
_RIGHT = (30, 142, 62)
_WRONG = (217, 48, 37)

# Pillow's own font knows the Latin script; for others, one that systems have is looked for.
_OTHER_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "DroidSansFallbackFull.ttf",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "DejaVuSans.ttf",
)
_LAST_LATIN = "\u024f"

# Pictures that are drawn where several are one query.
_MAX_TOGETHER = 9

Source = str | Path | Callable[[], AbstractContextManager[IO[bytes]]]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class SheetPicture:
    """One picture of a sheet.

    Attributes:
        source: a path, or a function that opens a binary file; of several, the first nine share the square.
        caption: lines of untrusted text; each is cut to the width of the picture.
        correct: draws a green frame (True), a red one (False), or none (None: not known).

    """

    source: Source | Sequence[Source]
    caption: tuple[str, ...]
    correct: bool | None = None


@dataclass(frozen=True)
class SheetBlock:
    """A query, its hits, and a title line above them."""

    query: SheetPicture
    hits: Sequence[SheetPicture]
    title: str = ""


def draw_sheets(blocks: Sequence[SheetBlock], out: Path) -> None:
    """Draw queries and their hits, one block below the other, and write the PNG atomically.

    The query stands at the left, the hits in rows beside it, in their order. Every picture is shown as its centred
    square, upright; one that cannot be read as a grey square that says so. Beyond ``MAX_HITS`` hits in all, the rest
    is left out, which the last title says.

    Args:
        blocks: at least one.
        out: the file to write; its name must end in ``.png``.

    Raises:
        QueryError: the name is not a PNG's, or the file cannot be written.

    """
    if out.suffix.lower() != ".png":
        raise QueryError(f"{display_path(out)}: the contact sheet is a PNG; expected a name that ends in .png.")
    drawn = _bounded(blocks)
    columns = max(1, *(_columns(len(block.hits)) for block in drawn))
    width = _GAP + (1 + columns) * _CELL
    sheet = Image.new("RGB", (width, _GAP + sum(_height(block, columns) for block in drawn)), _WHITE)
    top = _GAP
    for block in drawn:
        _draw_block(sheet, block, columns, top)
        top += _height(block, columns)
    _save(sheet, out)


def _bounded(blocks: Sequence[SheetBlock]) -> list[SheetBlock]:
    """Return the first blocks, with no more hits in all than are drawn."""
    drawn: list[SheetBlock] = []
    left = MAX_HITS
    for number, block in enumerate(blocks):
        kept = block.hits[: max(left, 0)]
        left -= max(1, len(block.hits))
        omitted = len(block.hits) - len(kept)
        others = len(blocks) - number - 1 if left <= 0 else 0
        notes = [f"{omitted:,} more hits"] * (omitted > 0) + [f"{others:,} more queries"] * (others > 0)
        title = f"{block.title} (not drawn: {', '.join(notes)})".strip() if notes else block.title
        drawn.append(SheetBlock(block.query, kept, title))
        if left <= 0:
            break
    return drawn


def _columns(hits: int) -> int:
    return min(hits, max(_MIN_COLUMNS, math.isqrt(2 * hits)))


def _title_height(block: SheetBlock) -> int:
    return _TITLE_SIZE + _GAP if block.title else 0


def _row_height(block: SheetBlock) -> int:
    return _CELL + _LINE * max(len(picture.caption) for picture in [block.query, *block.hits])


def _height(block: SheetBlock, columns: int) -> int:
    rows = max(1, math.ceil(len(block.hits) / columns))
    return _title_height(block) + rows * _row_height(block)


def _draw_block(sheet: Image.Image, block: SheetBlock, columns: int, top: int) -> None:
    _write(sheet, block.title, (_GAP, top), sheet.width - 2 * _GAP, _TITLE_SIZE)
    top += _title_height(block)
    _place(sheet, block.query, (_GAP, top))
    for place, hit in enumerate(block.hits):
        row, column = divmod(place, columns)
        _place(sheet, hit, (_GAP + (1 + column) * _CELL, top + row * _row_height(block)))


def _place(sheet: Image.Image, picture: SheetPicture, corner: tuple[int, int]) -> None:
    """Draw one picture with its frame and caption; ``corner`` is its upper left."""
    left, top = corner
    if picture.correct is not None:
        side = _TILE + 2 * _FRAME - 1
        colour = _RIGHT if picture.correct else _WRONG
        ImageDraw.Draw(sheet).rectangle((left, top, left + side, top + side), fill=colour)
    sheet.paste(_tile(picture), (left + _FRAME, top + _FRAME))
    for number, line in enumerate(picture.caption):
        at = (left + _FRAME, top + _TILE + 2 * _FRAME + 2 + number * _LINE)
        _write(sheet, line, at, _TILE, _FONT_SIZE)


def _tile(picture: SheetPicture) -> Image.Image:
    if isinstance(picture.source, str | Path) or callable(picture.source):
        return _square(picture.source, _TILE)
    sources = picture.source[:_MAX_TOGETHER]
    across = math.ceil(math.sqrt(len(sources)))
    side = _TILE // across
    tile = Image.new("RGB", (_TILE, _TILE), _WHITE)
    for place, source in enumerate(sources):
        row, column = divmod(place, across)
        tile.paste(_square(source, side), (column * side, row * side))
    return tile


def _square(source: Source, side: int) -> Image.Image:
    rule = PictureRule(side, "crop")
    try:
        if not callable(source):
            return Image.fromarray(load_picture(source, rule))
        with source() as file:
            return Image.fromarray(load_picture(file, rule))
    except (PictureError, SourceError, OSError):
        blank = Image.new("RGB", (side, side), _GREY)
        gap = _GAP * side // _TILE
        _write(blank, "cannot be read", (gap, side // 2 - _FONT_SIZE), side - 2 * gap, _FONT_SIZE)
        return blank


def _write(sheet: Image.Image, text: str, at: tuple[int, int], width: int, size: int) -> None:
    """Write one line of untrusted text, cut to ``width`` pixels."""
    text = printable(text)
    font = _font(size, latin=all(character <= _LAST_LATIN or character in "…–—" for character in text))
    ImageDraw.Draw(sheet).text(at, _cut(text, font, width), fill=_INK, font=font)


def _cut(text: str, font: Font, width: int) -> str:
    """Return as much of the text as fits; an ellipsis marks the cut."""
    if font.getlength(text) <= width:
        return text
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if font.getlength(text[:middle].rstrip() + "…") <= width:
            fits = middle
        else:
            too_long = middle
    return text[:fits].rstrip() + "…"


@functools.cache
def _font(size: int, *, latin: bool) -> Font:
    for name in () if latin else _OTHER_FONTS:
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)


def _save(sheet: Image.Image, out: Path) -> None:
    content = io.BytesIO()
    sheet.save(content, format="PNG")
    write_result(content.getvalue(), out, QueryError)
