"""Recipes and options: they load, they merge, and what is not allowed is refused by name."""

import dataclasses
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from deeprank.runtime.errors import TrainingError
from deeprank.runtime.model.metadata import MAX_LICENSE
from deeprank.train.options.config import TrainConfig, config_from_dict, differences, options
from deeprank.train.options.recipes import RECIPES, load_config


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_load(recipe: str):
    config = load_config(recipe, {})
    assert isinstance(config, TrainConfig)
    assert config_from_dict(config.to_dict(), "again") == config


def test_the_seeds_recipe_is_the_seeds():
    config = load_config("seed", {})
    expected = {
        "backbone": "resnet101", "weights": "imagenet", "normalisation": "half", "image_size": 224,
        "picture_mode": "stretch", "epochs": 15, "optimizer": "sgd", "learning_rate": 0.01, "schedule": "constant",
        "margin": 1.0, "negatives": "random", "loss": "triplet", "freeze_backbone": False,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected


def test_digits_do_not_flip_and_start_from_random():
    config = load_config("digits", {})
    assert (config.flip, config.weights, config.image_size, config.freeze_backbone) == (False, "none", 32, False)


def test_defaults_stand_in_the_recipe_alone():
    assert all(field.default is dataclasses.MISSING for field in dataclasses.fields(TrainConfig))


def test_later_ones_win(tmp_path: Path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[loss]\nmargin = 1\n[network]\nhidden = [64, 32]\n")
    config = load_config(recipe, {"hidden": (8,), "seed": 3})
    assert (config.margin, config.hidden, config.seed) == (1.0, (8,), 3)
    assert isinstance(config.margin, float)
    assert config.temperature == load_config("default", {}).temperature


def test_a_weight_file_is_remembered_by_its_full_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("default", {"weights": "mine.pth"}).weights == str(tmp_path / "mine.pth")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[loss]\nmargen = 0.2\n", ["margen", "[loss]", "did you mean margin?"]),
        ("[loss]\nepochs = 3\n", ["epochs", "[loss]", "expected one of"]),
        ("[lost]\nmargin = 0.2\n", ["[lost]", "[network]", "[loss]"]),
        ("margin = 0.2\n", ["[margin]"]),
        ("[loss]\nmargin = 'wide'\n", ["margin", "'wide'", "a number from 0 to 4"]),
        ("[loss]\nmargin = 9.0\n", ["margin", "9.0", "0 to 4"]),
        ("[loss]\nmargin = nan\n", ["margin", "nan"]),
        ("[loss]\nnegatives = 'hardest'\n", ["negatives", "random, semi-hard, batch-hard"]),
        ("[network]\nhidden = [1.5]\n", ["hidden", "a list of whole numbers"]),
        ("[network]\nfreeze_backbone = 1\n", ["freeze_backbone", "true or false"]),
        ("[optimizer]\nepochs = true\n", ["epochs", "a whole number"]),
        ("[loss\n", ["not valid TOML"]),
        ('["[/x]\\u001b"]\n', ["unknown section", "\\x1b"]),
    ],
)
def test_what_is_not_allowed_is_named(tmp_path: Path, text: str, parts: list[str]):
    recipe = tmp_path / "bad.toml"
    recipe.write_text(text)
    with pytest.raises(TrainingError) as refusal:
        load_config(recipe, {})
    for part in (*parts, "bad.toml"):
        assert part in str(refusal.value)


def test_options_that_are_younger_than_a_run():
    """A run of an earlier version has no license; what every run has is not made up."""
    config = load_config("default", {})
    stored = config.to_dict()
    assert stored.pop("license") == ""
    assert config_from_dict(stored, "config.json") == config
    del stored["margin"]
    with pytest.raises(TrainingError, match=r"config\.json: no value for margin; another version"):
        config_from_dict(stored, "config.json")
    # The default of new runs is the recipe's.
    assert all(option.before is None or option.name in _default_recipe() for option in options())


def _default_recipe() -> set[str]:
    text = (resources.files("deeprank.train") / "recipes" / "default.toml").read_text("utf-8")
    return {name for section in tomllib.loads(text).values() for name in section}


@pytest.mark.parametrize("text", ["x" * 201, "two\nlines", "\x1b[31m", "\udcff"])
def test_a_license_is_one_short_line(text: str):
    with pytest.raises(TrainingError, match="expected one line of at most 200 characters") as refusal:
        load_config("default", {"license": text})
    assert str(refusal.value).isprintable()


def test_every_license_of_a_run_fits_into_a_file():
    (longest,) = [option.longest for option in options() if option.longest is not None]
    assert longest == MAX_LICENSE
    assert load_config("default", {"license": "ä" * longest}).license == "ä" * longest


def test_a_recipe_that_does_not_exist(tmp_path: Path):
    with pytest.raises(TrainingError, match="default, digits, scenes, seed"):
        load_config(tmp_path / "absent.toml", {})


def test_unknown_overrides_are_refused():
    with pytest.raises(TrainingError, match="did you mean epochs"):
        load_config("default", {"epoch": 3})


def test_differences_name_both_values():
    before = load_config("default", {"margin": 0.2, "epochs": 3})
    after = load_config("default", {"margin": 0.3, "epochs": 3})
    assert differences(before, after) == ["margin: 0.2, now 0.3"]
    assert differences(before, before) == []


def test_every_option_has_help_and_a_section():
    assert {option.section for option in options()} == {
        "network", "picture", "augmentation", "batch", "sampling", "loss", "optimizer", "data", "run",
    }  # fmt: skip
    assert all(option.help for option in options())


def test_reading_options_needs_no_torch():
    code = "import sys, deeprank.train.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
