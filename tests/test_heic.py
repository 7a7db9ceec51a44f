"""HEIC pictures: the files of ``tests/heic``, which ``make.py`` there has written, against their formula."""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_model import write_model

from deeprank.runtime.errors import PictureError
from deeprank.runtime.formats import decoders
from deeprank.runtime.images import PictureRule, load_picture, load_thumbnail

FOLDER = Path(__file__).parent / "heic"
sys.path.insert(0, str(FOLDER))

from pattern import pattern  # noqa: E402  beside the files

if not any(importlib.util.find_spec(name) for name in ("_pi_heif", "_pillow_heif")):
    pytest.skip("no decoder is installed", allow_module_level=True)

CLOCKWISE: Callable[[np.ndarray], np.ndarray] = lambda p: np.rot90(p, -1)  # noqa: E731
SHOWN = {
    "plain": pattern(),
    "turned": CLOCKWISE(pattern()),
    "mirrored": pattern()[:, ::-1],
    "turned_and_mirrored": CLOCKWISE(pattern())[:, ::-1],
    "turned_with_exif": CLOCKWISE(pattern()),  # EXIF says the same: once is enough
    "exif_alone": pattern(),  # the container decides
    "second_is_primary": pattern(),
    "grid": pattern(90, 100),
    "with_depth": pattern(),
    "ten_bit": pattern(),
    "alpha": np.where((np.arange(96) < 48)[None, :, None], pattern(), 255),
}


def close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).mean() < 2


@pytest.mark.parametrize("name", SHOWN)
def test_as_the_container_says_that_it_is_shown(name: str) -> None:
    close(load_thumbnail(FOLDER / f"{name}.heic", 1000), SHOWN[name])


@pytest.mark.parametrize("name", ["monochrome", "monochrome_ten_bit"])
def test_monochrome(name: str) -> None:
    close(load_thumbnail(FOLDER / f"{name}.heic", 1000), pattern()[..., :1].repeat(3, axis=-1))


def test_a_file_that_lies_about_its_depth_does_no_harm(tmp_path: Path) -> None:
    content = bytearray((FOLDER / "monochrome.heic").read_bytes())
    depth = content.index(b"hvcC") + 4 + 17
    content[depth] = content[depth] & 0xF8 | 1  # 9 bits; there are 8
    path = tmp_path / "lie.heic"
    path.write_bytes(content)
    program = (
        "import sys\nfrom deeprank.runtime.images import PictureError, load_thumbnail\n"
        "for _ in range(20):\n    try: load_thumbnail(sys.argv[1], 99)\n    except PictureError: pass\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_every_file_is_looked_at() -> None:
    assert {path.stem for path in FOLDER.glob("*.heic")} == {*SHOWN, "monochrome", "monochrome_ten_bit"}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_cut_files_are_refused(share: float, tmp_path: Path) -> None:
    content = (FOLDER / "grid.heic").read_bytes()
    path = tmp_path / "cut.heic"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(PictureError, match=r"cut\.heic is a damaged HEIF file") as caught:
        load_thumbnail(path, 100)
    assert caught.value.kind == "damaged"


def test_damage_gives_a_picture_or_a_picture_error(tmp_path: Path) -> None:
    draw, content = np.random.default_rng(0), (FOLDER / "turned_with_exif.heic").read_bytes()
    path = tmp_path / "damaged.heic"
    for _ in range(200):
        mutant = bytearray(content)
        for place in draw.integers(0, len(mutant), 4):
            mutant[place] = draw.integers(0, 256)
        path.write_bytes(mutant)
        try:
            assert load_picture(path, PictureRule(16), max_pixels=1_000_000).shape == (16, 16, 3)
        except PictureError:
            continue


def test_the_limit_holds_before_decoding() -> None:
    with pytest.raises(PictureError, match="100 x 90 = 9,000 pixels; at most 8,999 are accepted") as caught:
        load_picture(FOLDER / "grid.heic", PictureRule(16), max_pixels=8_999)
    assert caught.value.kind == "too large"


def test_nothing_is_registered_and_nothing_loaded_before_it_is_needed(tmp_path: Path) -> None:
    program = """
import json, sys
from PIL import Image
from deeprank.runtime.images import load_thumbnail
load_thumbnail(sys.argv[1], 9)
before = "_pi_heif" in sys.modules or "_pillow_heif" in sys.modules
load_thumbnail(sys.argv[2], 9)
after = "_pi_heif" in sys.modules or "_pillow_heif" in sys.modules
print(json.dumps([before, after, "HEIF" in Image.OPEN, "HEIF" in Image.ID]))
"""
    from PIL import Image

    Image.fromarray(pattern()).save(tmp_path / "a.png")
    command = [sys.executable, "-c", program, str(tmp_path / "a.png"), str(FOLDER / "plain.heic")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == [False, True, False, False]


def test_without_the_decoder_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_pi_heif", "_pillow_heif"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PictureError, match="-m pip install pi-heif") as caught:
        load_thumbnail(FOLDER / "plain.heic", 9)
    assert caught.value.kind == "unsupported"
    assert "plain.heic is a HEIF (HEIC) file" in str(caught.value)
    assert caught.value.short.endswith("-m pip install pi-heif")  # a sync names the package where it skips the file


def test_another_decoder_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that files that could not be read before are tried again."""
    first = decoders()
    assert "pi-heif" in first or "pillow-heif" in first
    for name in ("_pi_heif", "_pillow_heif"):
        monkeypatch.setitem(sys.modules, name, None)
    assert decoders() != first


def test_the_decoder_has_no_encoder_and_comes_with_the_base() -> None:
    pi_heif = pytest.importorskip("pi_heif")

    info = pi_heif.libheif_info()
    assert "x265" not in json.dumps(info)
    assert not info["HEIF"]
    required = importlib.metadata.requires("deep-ranking") or []
    lines = [line for line in required if line.replace("_", "-").startswith("pi-heif")]
    if lines:  # an installation from before says nothing of it
        assert "extra" not in lines[0]
    # The package with the encoder comes only where it is asked for.
    assert all("extra" in line for line in required if line.replace("_", "-").startswith("pillow-heif"))


def test_sync_and_query_read_heic(tmp_path: Path) -> None:
    from deeprank.runtime.index.search.index import Index
    from deeprank.runtime.index.sync.sync import sync

    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("turned", "grid", "monochrome"):
        (photos / f"{name}.HEIC").write_bytes((FOLDER / f"{name}.heic").read_bytes())
    sync(tmp_path / "index", [photos], model=write_model(tmp_path / "model.onnx"))
    with Index.open(tmp_path / "index") as index:
        assert len(index) == 3
