"""Options that are ``auto``: what a new run chooses, tells and stores."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_train_run import TINY, Listener, rows_of, surroundings, train

from deeprank.runtime.datasets import open_dataset
from deeprank.runtime.errors import TrainingError, TrainingInterrupted
from deeprank.train.data.splits import prepare
from deeprank.train.loop.automatic import decided, median_side, with_kept_weight
from deeprank.train.loop.distributed import ALONE
from deeprank.train.loop.run import resume_run
from deeprank.train.options.config import KEPT_WEIGHT, options
from deeprank.train.options.flags import typed_options
from deeprank.train.options.recipes import load_config
from deeprank.train.report.page import changed_options


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


def pictures(folder: str, sizes: list[tuple[int, int]]) -> Path:
    """Write two classes of pictures with these sizes, in turn."""
    for place in range(24):
        path = Path(folder) / "ab"[place % 2] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", sizes[place // 2 % len(sizes)], (place * 10, 0, 0)).save(path)
    return Path(folder)


@pytest.mark.parametrize(
    ("changes", "weight"),
    [
        ({}, KEPT_WEIGHT),
        ({"weights": "mine.pth"}, KEPT_WEIGHT),
        ({"unfreeze": 2}, 0.0),
        ({"freeze_backbone": False}, 0.0),
        ({"weights": "none"}, 0.0),
        ({"keep_start": 0.5}, 0.5),
        ({"keep_start": 0.0}, 0.0),
    ],
    ids=str,
)
def test_the_start_is_kept_where_it_is_pretrained_and_frozen(changes: dict, weight: float):
    assert with_kept_weight(load_config("default", changes)).keep_start == weight


def test_recipes_with_a_number_keep_it():
    assert load_config("default", {}).automatic == ("keep_start", "image_size", "filter")
    for recipe, size in (("digits", 32), ("seed", 224)):
        config = load_config(recipe, {})
        assert config.automatic == ()
        assert (config.image_size, config.keep_start) == (size, 0.0)


@pytest.mark.parametrize(
    ("sizes", "side", "chosen"),
    [
        ([(64, 48)], 64, 160),
        ([(20, 64)], 64, 160),
        ([(65, 65)], 65, 224),
        ([(64, 64), (64, 64), (900, 900)], 64, 160),
        ([(300, 200)], 300, 224),
    ],
    ids=str,
)
def test_the_picture_size_follows_from_the_median_of_the_longer_sides(sizes, side: int, chosen: int):
    data = prepare(open_dataset(pictures("data", sizes)))
    assert median_side(data, 0) == side
    listener = Listener()
    config = decided(load_config("default", {"keep_start": 0.0}), data, ALONE, listener)
    assert config.image_size == chosen
    assert listener.remarks == [
        f"Chosen: --image-size {chosen} (the pictures' longer side is {side} px in the median)."
    ]


def test_headers_are_enough_and_damaged_ones_do_not_count():
    folder = pictures("data", [(300, 200)])
    paths = sorted(folder.rglob("*.png"))
    for path in paths[:8]:
        path.write_bytes(b"no picture")
    for path in paths[8:]:
        path.write_bytes(path.read_bytes()[:60])  # the header, and nothing that could be decoded
    assert median_side(prepare(open_dataset(folder)), 0) == 300
    for path in paths:
        path.write_bytes(b"")
    assert median_side(prepare(open_dataset(folder)), 0) == 0


def test_the_sample_is_bounded_and_seeded(monkeypatch: pytest.MonkeyPatch):
    """Of a data set of 1,000 pictures with rising sides, at most 200 are opened, the same for a seed."""
    folder = Path("many")
    for place in range(1000):
        path = folder / "ab"[place % 2] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (1 + place, 1)).save(path)
    data = prepare(open_dataset(folder))
    opened = []
    usual = type(data.train[0]).open
    monkeypatch.setattr(type(data.train[0]), "open", lambda sample: (opened.append(sample.path), usual(sample))[1])
    first, count = median_side(data, 0), len(opened)
    assert count == 200
    assert first == median_side(data, 0) != median_side(data, 1)
    assert abs(first - np.median([int(Path(data.train[place].path).stem) + 1 for place in data.fit])) < 100
    assert not set(opened) - {data.train[place].path for place in data.fit}


@pytest.mark.thorough
def test_a_run_tells_once_and_stores_plain_values(digits: Path):
    import timm

    torch.manual_seed(0)
    torch.save(timm.create_model("resnet10t", num_classes=0).state_dict(), "w.pth")
    listener = Listener(100)  # in the first epoch, once the features of 96 pictures are computed
    changes = {"image_size": "auto", "keep_start": "auto", "freeze_backbone": True, "views": 0, "weights": "w.pth"}
    with pytest.raises(TrainingInterrupted):
        train(digits, "run", listener, **changes)
    (remark,) = [remark for remark in listener.remarks if remark.startswith("Chosen: ")]
    assert remark == (
        "Chosen: --image-size 160 (the pictures' longer side is 32 px in the median), "
        "--keep-start 0.5 (the backbone is pretrained and frozen)."
    )
    description = json.loads(Path("run/config.json").read_text())
    assert (description["config"]["image_size"], description["config"]["keep_start"]) == (160, 0.5)
    assert description["automatic"] == ["keep_start", "image_size"]
    # The report tells what a user has changed, and these the run has chosen.
    changed = {name for name, _, _ in changed_options({**description, "recipe": "default"})[1]}
    assert {"weights", "views"} <= changed
    assert not {"image_size", "keep_start"} & changed
    with pytest.raises(TrainingError, match=r"image_size: 160, now 224"):
        resume_run(Path("run"), {"image_size": 224}, surroundings(), Listener())
    resumed = resume_run(Path("run"), {"image_size": "auto"}, surroundings(), later := Listener())
    assert not any(remark.startswith("Chosen: ") for remark in later.remarks)
    assert len(rows_of(resumed.run)) == TINY["epochs"] + 1


@pytest.mark.thorough
def test_a_run_without_a_value_is_damaged(digits: Path):
    run = train(digits, "run", epochs=1).run
    description = json.loads((run / "config.json").read_text())
    description["config"]["image_size"] = "auto"
    shutil.copytree(run, "other")
    Path("other/config.json").write_text(json.dumps(description))
    with pytest.raises(TrainingError, match=r"other/config\.json is damaged"):
        resume_run(Path("other"), {}, surroundings(), Listener())


def test_low_sizes_are_compared_with_the_chosen_size(digits: Path):
    low = {"image_size": "auto", "low_image_size": 200, "low_epochs": 1}
    with pytest.raises(TrainingError, match=r"--low-image-size 200 is above --image-size 160"):
        train(digits, "run", **low)
    assert not Path("run").exists()


def test_the_recipe_says_what_auto_chooses():
    recipe = Path(__file__).resolve().parents[1] / "train" / "recipes" / "default.toml"
    assert f"# A head alone forgets what it was not trained on. auto: {KEPT_WEIGHT:g} beside" in recipe.read_text()


def test_words_and_numbers_of_the_command_line():
    assert typed_options({"image_size": "auto", "keep_start": "auto"}) == {"image_size": "auto", "keep_start": "auto"}
    assert typed_options({"image_size": "96", "keep_start": "0.5"}) == {"image_size": 96, "keep_start": 0.5}
    for typed, expected in (
        ({"image_size": "wide"}, r"image_size = 'wide'; expected a whole number from 16 to 1024, or auto"),
        ({"keep_start": "1"}, r"keep_start = 1\.0; expected a number from 0 to 0\.95, or auto"),
        ({"keep_start": "nan"}, r"keep_start = nan; expected a number"),
    ):
        with pytest.raises(TrainingError, match=expected):
            load_config("default", typed_options(typed))
    with pytest.raises(TrainingError, match=r"epochs = 'auto'; expected a whole number from 1 to 100000\."):
        load_config("default", {"epochs": "auto"})


def test_automatic_options_are_told_apart_from_words_of_the_same_name():
    assert {option.name for option in options() if option.auto} == {"keep_start", "image_size", "filter"}
    assert "weights" not in load_config("default", {"weights": "auto"}).automatic
