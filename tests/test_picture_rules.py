"""Rule 2 against the preparations of torchvision, timm and transformers; rule 1 against what it always gave."""

import dataclasses
import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import PEAK, run_command
from PIL import Image, ImageOps
from tiny_model import write_model
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from deeprank.runtime import images
from deeprank.runtime.decoding.pool import DecodingPool
from deeprank.runtime.images import PictureRule, load_picture, load_thumbnail
from deeprank.runtime.model.metadata import METADATA_KEY, ModelInfo
from deeprank.runtime.pictures import resampling

FILTERS = ("bilinear", "bicubic", "lanczos")
# Width and height: usual, odd, square, tiny, tall and wide (Pillow changes the order of its passes).
SIZES = [(200, 150), (151, 203), (97, 97), (64, 65), (5, 3), (33, 97), (40, 300), (300, 40), (1, 9), (90, 1), (64, 64)]


def texture(width: int, height: int) -> np.ndarray:
    """A picture with detail of every frequency, from whole numbers alone: uint8 ``[height, width, 3]``."""
    y, x = np.mgrid[0:height, 0:width]
    chirp = (x * x // 7 + 3 * y * x // 5 + y * y // 3) % 256
    return np.stack([chirp, (x * 37 + y * 11) % 256, (x ^ y) * 5 % 256], axis=-1).astype(np.uint8)


def photo(width: int, height: int) -> np.ndarray:
    """A picture as smooth as a photograph, with edges: uint8 ``[height, width, 3]``."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [np.sin(a * x + b * y) + 0.4 * np.sign(np.sin(b * x - a * y)) for a, b in ((9, 31), (40, 13), (22, 57))]
    return np.stack([127 + 85 * wave for wave in waves], axis=-1).astype(np.uint8)


def saved(
    pixels: np.ndarray | Image.Image, image_format: str = "PNG", orientation: int = 1, **options: object
) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    if orientation > 1:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def found(content: bytes, rule: PictureRule) -> np.ndarray:
    return load_picture(io.BytesIO(content), rule)


def theirs(content: bytes) -> Image.Image:
    """The picture as users of the libraries open it."""
    return ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")


def same(one: np.ndarray, other: np.ndarray, *what: object) -> None:
    apart = np.abs(one.astype(int) - np.asarray(other).astype(int))
    assert apart.max() == 0, (what, apart.max(), apart.mean())


def torchvision_crop(size: int, resize: int, name: str) -> transforms.Compose:
    return transforms.Compose([transforms.Resize(resize, InterpolationMode(name)), transforms.CenterCrop(size)])


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("extent", SIZES, ids=str)
def test_crop_is_that_of_torchvision(extent: tuple[int, int], name: str) -> None:
    content = saved(texture(*extent))
    for size, resize in ((64, 73), (64, 64), (33, 48)):
        expected = torchvision_crop(size, resize, name)(theirs(content))
        same(found(content, PictureRule.of(size, "crop", name, resize)), expected, extent, (size, resize))


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_square_is_cut_from_the_upright_picture(orientation: int, name: str) -> None:
    """Odd rests show where the cut is rounded; the passes have the order of the upright picture."""
    for extent in ((151, 203), (204, 150), (33, 97), (40, 300), (300, 40)):
        content = saved(texture(*extent), orientation=orientation)
        for size, resize in ((64, 73), (64, 75)):
            expected = torchvision_crop(size, resize, name)(theirs(content))
            same(found(content, PictureRule.of(size, "crop", name, resize)), expected, extent, resize)
        boxed = found(content, PictureRule.of(48, "letterbox", name, fill=(9, 99, 200)))
        same(boxed, timm_transform(48, name, "border", 1.0, (9, 99, 200))(theirs(content)), extent)


@pytest.mark.parametrize("name", FILTERS)
def test_the_part_alone_has_the_pixels_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Extremely long pictures are never resized whole; here the limit is lowered."""
    for extent, orientation in itertools.product(SIZES, (1, 3, 6, 7)):
        content = saved(texture(*extent), orientation=orientation)
        for rule in (PictureRule.of(64, "crop", name, 75), PictureRule.of(64, "stretch", name, 70)):
            monkeypatch.setattr(resampling, "_MAX_GRID", 2**24)
            whole = found(content, rule)
            monkeypatch.setattr(resampling, "_MAX_GRID", 0)
            apart = np.abs(found(content, rule).astype(int) - whole)
            assert apart.max() <= 2, (extent, orientation, rule)
            assert (apart > 0).mean() <= 0.1, (extent, orientation, rule)


def timm_transform(size: int, name: str, mode: str, ratio: float, fill: tuple[int, int, int] = (0, 0, 0)) -> object:
    """timm's own preparation, up to uint8 ``[S, S, 3]``."""
    data = pytest.importorskip("timm.data")
    transform = data.create_transform(
        (3, size, size),
        interpolation=name,
        crop_pct=ratio,
        crop_mode=mode,
        normalize=False,
        mean=[level / 255 for level in fill],
    )
    return lambda image: transform(image).numpy().transpose(1, 2, 0)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize(("theirs_is", "mode"), [("center", "crop"), ("squash", "stretch"), ("border", "letterbox")])
def test_modes_are_those_of_timm(theirs_is: str, mode: str, name: str) -> None:
    fill = (124, 116, 104) if mode == "letterbox" else (0, 0, 0)
    for ratio in (1.0, 0.9, 0.875):
        rule = PictureRule.of(64, mode, name, int(64 / ratio), fill)
        for extent in SIZES:
            if mode == "letterbox" and min(extent) == 1:
                continue  # timm makes a side of 0 pixels
            content = saved(texture(*extent))
            expected = timm_transform(64, name, theirs_is, ratio, fill)(theirs(content))
            same(found(content, rule), expected, extent, ratio)


def processor(name: str, backend: str, **options: object) -> object:
    """A processor of transformers without its normalisation, up to uint8 ``[S, S, 3]``."""
    transformers = pytest.importorskip("transformers", minversion="5")
    if backend == "pil":
        model = name.removesuffix("ImageProcessor").lower()
        made = getattr(
            __import__(f"transformers.models.{model}.image_processing_pil_{model}", fromlist=[name]), f"{name}Pil"
        )(**options)
    else:
        made = getattr(transformers, name)(**options)
    return lambda image: made(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]


PROCESSORS = {
    "CLIPImageProcessor": (
        {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}, "resample": 3},
        PictureRule.of(64, "crop", "bicubic", 64, cut="down"),
    ),
    "BitImageProcessor": (  # DINOv2
        {"size": {"shortest_edge": 73}, "crop_size": {"height": 64, "width": 64}, "resample": 3},
        PictureRule.of(64, "crop", "bicubic", 73, cut="down"),
    ),
    "SiglipImageProcessor": (
        {"size": {"height": 64, "width": 64}, "resample": 3},
        PictureRule.of(64, "stretch", "bicubic"),
    ),
    "ViTImageProcessor": (
        {"size": {"height": 64, "width": 64}, "resample": 2},
        PictureRule.of(64, "stretch", "bilinear", 64),
    ),
    "ConvNextImageProcessor": (  # below 384, it resizes to the ratio
        {"size": {"shortest_edge": 64}, "crop_pct": 0.875, "resample": 3},
        PictureRule.of(64, "crop", "bicubic", int(64 / 0.875), cut="down"),
    ),
}


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_the_processors_of_transformers(name: str, backend: str) -> None:
    """The default backend resizes tensors; it rounds the filter's weights, and shows it by a few levels."""
    options, rule = PROCESSORS[name]
    prepare = processor(name, backend, **options)
    for extent in ((200, 150), (201, 150), (128, 180), (64, 64), (40, 100), (300, 200), (67, 64)):
        content = saved(photo(*extent))
        expected = prepare(theirs(content)).transpose(1, 2, 0)
        if backend == "pil":
            same(found(content, rule), expected, extent)
            continue
        apart = np.abs(found(content, rule).astype(int) - expected)
        assert apart.max() <= 4, (extent, apart.max())
        assert apart.mean() < 0.3, (extent, apart.mean())


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_transformers_rounds_an_odd_cut_down_and_torchvision_to_even(backend: str) -> None:
    """67 - 64 leaves three pixels: torchvision cuts two at the left, transformers one."""
    content = saved(photo(67, 64))
    prepare = processor("CLIPImageProcessor", backend, **PROCESSORS["CLIPImageProcessor"][0])
    even, down = (PictureRule.of(64, "crop", "bicubic", 64, cut=cut) for cut in ("even", "down"))
    assert np.array_equal(prepare(theirs(content)).transpose(1, 2, 0), photo(67, 64)[:, 1:65])
    assert np.array_equal(found(content, down), photo(67, 64)[:, 1:65])
    assert np.array_equal(found(content, even), photo(67, 64)[:, 2:66])
    same(found(content, even), torchvision_crop(64, 64, "bicubic")(theirs(content)))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_formats_and_gray(image_format: str, mode: str) -> None:
    """A JPEG is decoded in full, also where rule 1 reduces it."""
    content = saved(Image.fromarray(photo(500, 380)).convert(mode), image_format, quality=90)
    for name in FILTERS:
        expected = torchvision_crop(32, 37, name)(theirs(content))
        same(found(content, PictureRule.of(32, "crop", name, 37)), expected)
    boxed = found(content, PictureRule.of(32, "letterbox", "bicubic", fill=(1, 2, 3)))
    assert boxed.shape == (32, 32, 3)
    assert (boxed[[*range(4), *range(28, 32)]] == (1, 2, 3)).all()


def test_large_jpegs_are_reduced_to_no_less_than_four_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is lowered: a picture above it is decoded smaller, and stays close."""
    content = saved(photo(1200, 900), "JPEG", quality=90)
    rule = PictureRule.of(48, "crop", "bicubic", 56)
    full = found(content, rule)
    sizes = []
    monkeypatch.setattr(
        images, "placed", lambda image, *rest: sizes.append(image.size) or resampling.placed(image, *rest)
    )
    for limit, expected in ((1_080_000, (1200, 900)), (1_079_999, (300, 225)), (0, (300, 225))):
        monkeypatch.setattr(images, "_MAX_IN_FULL", limit)
        apart = np.abs(found(content, rule).astype(int) - full)
        assert sizes.pop() == expected
        assert apart.max() <= 6
        assert apart.mean() < 0.5


def made_before() -> dict[str, bytes]:
    """Files whose pixels by rule 1 were recorded before rule 2 existed."""
    gray = np.mgrid[0:60, 0:80][1].astype(np.uint16) * 800
    alpha = np.dstack([texture(90, 60), texture(90, 60)[::-1, :, 0]])
    return {
        "png": saved(texture(200, 150)),
        "tall": saved(texture(150, 201)),
        "tiny": saved(texture(5, 3)),
        "turned": saved(texture(120, 90), orientation=6),
        "mirrored": saved(texture(91, 120), orientation=5),
        "jpeg": saved(texture(300, 200), "JPEG", quality=90),
        "reduced": saved(texture(1001, 703), "JPEG", quality=90),
        "gray": saved(Image.fromarray(texture(100, 80)).convert("L")),
        "deep": saved(gray),
        "alpha": saved(alpha),
        "webp": saved(texture(100, 130), "WEBP", lossless=True),
    }


# The first 12 hex digits of the sha256 of stretch and of crop at 64 pixels, and of the thumbnail. A thumbnail is no
# part of the rule: that of a JPEG has changed since.
BEFORE = {
    "png": ("99c737cfe5b3", "efb24da4db3d", "73ea71feb543"),
    "tall": ("c0b02a36cff6", "b7a7b33d2fa2", "2dc16f153ecb"),
    "tiny": ("c99c2e7783a1", "1581331ee4c1", "5e5ef852effb"),
    "turned": ("679f1cc8d37d", "3ba6c968a953", "e129ef6e34b8"),
    "mirrored": ("764c78bcad86", "0fd46ff86f55", "8515ed3c8122"),
    "jpeg": ("d73e7b44a345", "5155e786ad60", "d404080f0f44"),
    "reduced": ("0eba02622867", "89658c643ec3", "d9a86993df63"),
    "gray": ("d5a37b1a6a86", "212ae1379e28", "77ce6a9d10b6"),
    "deep": ("f23d552a733b", "ada8e30c1ef2", "2c067f3234a5"),
    "alpha": ("5f27c3fa0424", "5e9222736625", "bb72eb47754d"),
    "webp": ("b6526d46400e", "998b9512be94", "289afa38ae78"),
}


def digests(content: bytes) -> tuple[str, str, str]:
    made = (
        load_picture(io.BytesIO(content), PictureRule(64)),
        load_picture(io.BytesIO(content), PictureRule(64, "crop")),
        load_thumbnail(io.BytesIO(content), 50),
    )
    return tuple(hashlib.sha256(one.tobytes()).hexdigest()[:12] for one in made)


@pytest.mark.parametrize("name", made_before())
def test_rule_1_keeps_its_pixels(name: str) -> None:
    assert digests(made_before()[name]) == BEFORE[name]


def test_the_lowest_version_that_states_a_rule() -> None:
    assert PictureRule.of(64) == PictureRule(64)
    assert PictureRule.of(64, "crop") == PictureRule(64, "crop")
    assert PictureRule.of(64, "crop").values() == {"size": 64, "mode": "crop", "filter": "bilinear", "version": 1}
    others = [
        PictureRule.of(64, "crop", resize=64),
        PictureRule.of(64, filter="bicubic"),
        PictureRule.of(64, "letterbox"),
        PictureRule.of(64, "letterbox", "lanczos", 70, (1, 2, 3)),
        PictureRule.of(64, "crop", cut="down"),
    ]
    assert [rule.version for rule in others] == [2] * 5
    for rule in [PictureRule(64), *others]:
        assert PictureRule.from_values(rule.values()) == rule
        assert rule.resized(64) == rule


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "letterbox"},
        {"filter": "bicubic"},
        {"resize": 64},
        {"fill": (1, 1, 1)},
        {"version": 3},
        {"cut": "down"},
        {"version": 2, "cut": "up"},
        {"version": 2, "resize": 63},
        {"version": 2, "resize": 513},
        {"version": 2, "mode": "pad"},
    ],
    ids=str,
)
def test_no_version_states_this(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no rule of version"):
        PictureRule(64, **options)


def test_augmentation_starts_from_the_same_part_at_a_larger_size() -> None:
    rule = PictureRule.of(224, "crop", "bicubic", 256).resized(258)
    assert rule == PictureRule(258, "crop", "bicubic", 2, 295)
    assert PictureRule.of(224, "letterbox", "bicubic", fill=(5, 5, 5)).resized(100).fill == (5, 5, 5)


def test_processes_that_decode_give_the_same_pixels() -> None:
    content = saved(photo(600, 400), "JPEG", 6)
    rules = [
        PictureRule(48, "crop"),
        PictureRule.of(48, "crop", "bicubic", 56),
        PictureRule.of(48, "letterbox", "lanczos", 50, (7, 8, 9)),
        PictureRule.of(48, "stretch", "bilinear", 48),
    ]
    with DecodingPool(1) as pool:
        for rule in rules:
            assert np.array_equal(pool.load_picture(io.BytesIO(content), rule), found(content, rule))


@pytest.mark.thorough
def test_an_index_follows_the_rule_of_its_model(tmp_path: Path) -> None:
    """`info` shows the rule; a query by an indexed picture, decoded here, finds what a process decoded."""
    rule = PictureRule.of(8, "crop", "bicubic", 10)
    model = onnx.load(write_model(tmp_path / "model.onnx"))
    (entry,) = [one for one in model.metadata_props if one.key == METADATA_KEY]
    entry.value = dataclasses.replace(ModelInfo.from_json(entry.value), picture=rule).to_json()
    onnx.save(model, tmp_path / "model.onnx")
    for number, extent in enumerate(SIZES):
        path = tmp_path / "photos" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(saved(texture(*extent)))
    run_command("deeprank-index", "sync", "photos", "--model", "model.onnx", "--isolate", cwd=tmp_path)
    shown = run_command("deeprank-index", "info", cwd=tmp_path).stdout
    assert "from 8 x 8 pixels (crop of 10, bicubic, rule 2)" in shown
    described = json.loads(run_command("deeprank-index", "info", "--json", cwd=tmp_path).stdout)
    assert described["model"]["picture"] == rule.values()
    answer = json.loads(run_command("deeprank-query", "photos/1.png", "--json", cwd=tmp_path).stdout)
    nearest = answer["results"][0]["hits"][0]
    assert (Path(nearest["path"]).name, nearest["distance"]) == ("1.png", pytest.approx(0, abs=1e-6))


@pytest.mark.thorough
@pytest.mark.parametrize(
    "extent", [(1, 100_000), (100_000, 1), (100, 100_000), (100_000, 100), (1, 30_000_000)], ids=str
)
def test_extreme_proportions_take_bounded_memory(extent: tuple[int, int], tmp_path: Path) -> None:
    """The whole picture, resized to a shorter side of 256, would have up to 25 million x 256 pixels."""
    path = tmp_path / "long.png"
    Image.new("L", extent, 200).save(path)
    script = (
        "import sys\nfrom deeprank.runtime.images import PictureRule, load_picture\n"
        f"{PEAK}\n"
        "for turn in ('crop', 'stretch', 'letterbox'):\n"
        "    for resize in (0, 256):\n"
        "        picture = load_picture(sys.argv[1], PictureRule.of(224, turn, 'bicubic', resize))\n"
        "        assert picture.max() in (200, 201) and (turn == 'letterbox' or picture.min() == 200)\n"
        "print(peak())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, os.fspath(path)], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 500_000  # KB
