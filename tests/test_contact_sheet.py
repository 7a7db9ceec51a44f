"""The contact sheet: its layout, and pictures and text that cannot be trusted."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeprank.runtime.contact_sheet import MAX_HITS, SheetBlock, SheetPicture, draw_sheets
from deeprank.runtime.errors import QueryError

COLOURS = [(200, 10, 10), (10, 200, 10), (10, 10, 200), (200, 200, 10), (10, 200, 200), (200, 10, 200), (90, 90, 90)]


def draw_sheet(query: SheetPicture, hits: list[SheetPicture], out: Path, title: str = "") -> None:
    draw_sheets([SheetBlock(query, hits, title)], out)


def plain(folder: Path, number: int, size: tuple[int, int] = (40, 30)) -> Path:
    path = folder / f"{number}.png"
    Image.new("RGB", size, COLOURS[number]).save(path)
    return path


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def places(sheet: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return left, top and number of the pixels of exactly this colour."""
    rows, columns = np.nonzero((sheet == colour).all(axis=2))
    return int(columns.min()), int(rows.min()), len(rows)


def test_the_query_is_at_the_left_and_the_hits_follow_in_rows(tmp_path: Path) -> None:
    hits = [SheetPicture(plain(tmp_path, number), (f"{number}.",)) for number in range(1, 7)]
    draw_sheet(SheetPicture(plain(tmp_path, 0), ("query",)), hits, tmp_path / "s.png", title="six")
    sheet = pixels(tmp_path / "s.png")
    found = [places(sheet, COLOURS[number]) for number in range(7)]
    assert {area for _, _, area in found} == {176 * 176}
    left = [x for x, _, _ in found]
    top = [y for _, y, _ in found]
    assert left[:6] == sorted(left[:6])
    assert len(set(left[:6])) == 6
    assert len(set(top[:6])) == 1
    assert (left[6], top[6] > top[1] + 176) == (left[1], True)


def test_frames_say_right_and_wrong(tmp_path: Path) -> None:
    hits = [SheetPicture(plain(tmp_path, n), ("x",), correct) for n, correct in ((1, True), (2, False), (3, None))]
    draw_sheet(SheetPicture(plain(tmp_path, 0), ("query",)), hits, tmp_path / "s.png")
    sheet = pixels(tmp_path / "s.png")
    for number, frame in ((1, (30, 142, 62)), (2, (217, 48, 37)), (3, (255, 255, 255)), (0, (255, 255, 255))):
        left, top, _ = places(sheet, COLOURS[number])
        for x, y in ((left - 3, top + 80), (left + 178, top + 80), (left + 80, top - 3), (left + 80, top + 178)):
            assert tuple(sheet[y, x]) == frame


def test_pictures_are_upright_and_from_files_or_openers(tmp_path: Path) -> None:
    two = np.zeros((60, 60, 3), np.uint8)
    two[:30] = (250, 0, 0)
    two[30:] = (0, 0, 250)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: the top of the file is the right of the picture
    Image.fromarray(two).save(tmp_path / "turned.jpg", exif=exif, quality=95, subsampling=0)
    content = (tmp_path / "turned.jpg").read_bytes()
    hits = [SheetPicture(tmp_path / "turned.jpg", ("",)), SheetPicture(lambda: io.BytesIO(content), ("",))]
    draw_sheet(SheetPicture(plain(tmp_path, 0), ("",)), hits, tmp_path / "s.png")
    sheet = pixels(tmp_path / "s.png").astype(int)
    left, top, _ = places(sheet.astype(np.uint8), COLOURS[0])
    for cell in (1, 2):
        x = left + cell * (176 + 10 + 12)
        assert abs(sheet[top + 88, x + 20] - (0, 0, 250)).max() < 30
        assert abs(sheet[top + 88, x + 156] - (250, 0, 0)).max() < 30


def test_a_picture_that_is_gone_is_a_grey_square(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")

    def refuses() -> io.BytesIO:
        raise OSError(5, "no disk")

    hits = [
        SheetPicture(tmp_path / "text.png", ("a",)),
        SheetPicture(tmp_path / "gone.png", ("b",)),
        SheetPicture(refuses, ("c",)),
    ]
    draw_sheet(SheetPicture(plain(tmp_path, 0), ("query",)), hits, tmp_path / "s.png")
    _, _, area = places(pixels(tmp_path / "s.png"), (222, 226, 230))
    assert 3 * 176 * 176 * 0.9 < area < 3 * 176 * 176


def test_captions_stay_within_their_picture(tmp_path: Path) -> None:
    captions = ["W" * 500, "[/x] <script> \x1b[31m \n\t \u202e", "猫" * 100, "é" * 100, "\udce9\udcff", "", "i" * 500]
    for caption in captions:
        hit = SheetPicture(plain(tmp_path, 1), (caption, caption))
        draw_sheet(SheetPicture(plain(tmp_path, 0), (caption,)), [hit], tmp_path / "s.png", title=caption)
        sheet = pixels(tmp_path / "s.png")
        left, top, _ = places(sheet, COLOURS[1])
        below = sheet[top + 176 + 5 :]
        assert (below[:, left + 176 :] == 255).all()
        assert (below[:, left - 12 : left - 1] == 255).all()
        assert (below != 255).any() == bool(caption)


def test_several_queries_and_bounded_size(tmp_path: Path) -> None:
    query, hit = SheetPicture(plain(tmp_path, 0), ("q",)), SheetPicture(plain(tmp_path, 1), ("h",))
    draw_sheets([SheetBlock(query, [hit] * 3, "one"), SheetBlock(query, [], "two")], tmp_path / "s.png")
    sheet = pixels(tmp_path / "s.png")
    assert places(sheet, COLOURS[0])[2] == 2 * 176 * 176
    assert places(sheet, COLOURS[1])[2] == 3 * 176 * 176
    draw_sheets([SheetBlock(query, [hit] * 150)] * 40, tmp_path / "s.png")
    sheet = pixels(tmp_path / "s.png")
    assert places(sheet, COLOURS[1])[2] == MAX_HITS * 176 * 176
    assert sheet.size < 60_000_000


def test_the_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    query = SheetPicture(plain(tmp_path, 0), ("q",))
    for bad in (tmp_path / "s.jpg", tmp_path / "s", tmp_path / "nowhere" / "s.png"):
        with pytest.raises(QueryError):
            draw_sheet(query, [], bad)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(QueryError, match="cannot be written"):
        draw_sheet(query, [], tmp_path / "folder.png")
    draw_sheet(query, [], tmp_path / "s.PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "folder.png", "s.PNG"]
