"""Recipes: TOML files of options by section, merged over the default one, which has all values."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ...runtime.errors import TrainingError
from ...runtime.text import display_path, printable
from .config import TrainConfig, config_from_dict, hint, options

__all__ = ["RECIPES", "load_config"]

RECIPES = ("default", "digits", "scenes", "seed")

_WEIGHT_WORDS = ("auto", "imagenet", "none")


def load_config(recipe: str | Path, overrides: Mapping[str, Any]) -> TrainConfig:
    """Merge the default recipe, ``recipe`` and the command line's options; later ones win.

    Args:
        recipe: one of :data:`RECIPES`, or the path of a TOML file.
        overrides: values by option name.

    Raises:
        TrainingError: no such recipe, not TOML, an unknown section or key, or a value that is not
            allowed.

    """
    values = _read_recipe("default")
    if str(recipe) != "default":
        values |= _read_recipe(recipe)
    values |= overrides
    config = config_from_dict(values, "the options")
    # Absolute paths, since a run may be resumed from another folder.
    if config.weights not in _WEIGHT_WORDS:
        config = dataclasses.replace(config, weights=str(Path(config.weights).resolve()))
    if config.relevance:
        config = dataclasses.replace(config, relevance=str(Path(config.relevance).resolve()))
    return config


def _read_recipe(recipe: str | Path) -> dict[str, Any]:
    where, text = _recipe_text(recipe)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TrainingError(f"{where} is not valid TOML: {error}.") from None
    return _flatten(document, where)


def _recipe_text(recipe: str | Path) -> tuple[str, str]:
    if str(recipe) in RECIPES:
        file = resources.files("deeprank.train") / "recipes" / f"{recipe}.toml"
        return f"recipe {recipe}", file.read_text("utf-8")
    try:
        return display_path(recipe), Path(recipe).read_text("utf-8")
    except FileNotFoundError:
        raise TrainingError(
            f"There is no recipe {display_path(recipe)}; expected {', '.join(RECIPES)}, or the path of a TOML file."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"The recipe {display_path(recipe)} cannot be read ({error}).") from None


def _flatten(document: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Flatten sections into one table, checking that each key is in its own section."""
    table = {option.name: option for option in options()}
    sections = tuple(dict.fromkeys(option.section for option in table.values()))
    values: dict[str, Any] = {}
    for section, content in document.items():
        if section not in sections or not isinstance(content, dict):
            raise TrainingError(
                f"{where}: unknown section [{printable(section)}]; expected {', '.join(f'[{s}]' for s in sections)}."
            )
        for key, value in content.items():
            if key not in table or table[key].section != section:
                allowed = {name: option for name, option in table.items() if option.section == section}
                raise TrainingError(f"{where}: unknown key {printable(key)} in [{section}]{hint(key, allowed)}.")
            values[key] = table[key].check(value, where)
    return values
