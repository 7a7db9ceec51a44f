"""A training option: type, allowed values, validation."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..runtime.errors import TrainingError
from ..runtime.text import printable

__all__ = ["Option", "hint"]


@dataclass(frozen=True)
class Option:
    """A training option: its section in a recipe, its type, allowed values, and one line of help.

    ``choices``: the allowed texts. ``forms``: further ones, with NAME as a placeholder. ``least``,
    ``most``: bounds of numbers. ``common``: ``--help`` shows it, not only ``--help-all``.
    """

    name: str
    section: str
    kind: type
    help: str
    choices: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    common: bool = False

    def check(self, value: Any, where: str) -> Any:
        """Return ``value`` converted to the option's type.

        Raises:
            TrainingError: wrong type or out of range; names the option, the value and the allowed
                values.

        """
        converted = self._converted(value)
        if converted is None or not self._allowed(converted):
            raise TrainingError(f"{where}: {self.name} = {printable(repr(value))}; expected {self.expected}.")
        return converted

    @property
    def expected(self) -> str:
        """The allowed values, as the end of a sentence."""
        if self.choices:
            return "one of " + ", ".join((*self.choices, *self.forms))
        noun = _NOUNS[self.kind]
        if self.least is None and self.most is None:
            return noun
        if self.most is None:
            return f"{noun} of at least {self.least:g}"
        return f"{noun} from {self.least:g} to {self.most:g}"

    def _converted(self, value: Any) -> Any:
        if self.kind is tuple:
            whole = isinstance(value, list | tuple) and all(type(item) is int for item in value)
            return tuple(value) if whole else None
        if self.kind is dict:
            return dict(value) if isinstance(value, Mapping) and all(map(_is_plain, value.values())) else None
        if self.kind is float and type(value) is int:
            return float(value)
        return value if type(value) is self.kind else None

    def _allowed(self, value: Any) -> bool:
        if self.choices:
            named = (re.escape(form).replace("NAME", r"\w+") for form in self.forms)
            return value in self.choices or any(re.fullmatch(form, value) for form in named)
        numbers: Iterable[float] = value if self.kind is tuple else (value,) if self.kind in (int, float) else ()
        return all(
            (self.least is None or number >= self.least) and (self.most is None or number <= self.most)
            for number in numbers
        )


_NOUNS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    tuple: "a list of whole numbers",
    dict: "a table of texts, finite numbers, true or false",
}


def _is_plain(value: Any) -> bool:
    return type(value) in (str, bool, int) or (type(value) is float and math.isfinite(value))


def hint(key: str, allowed: Mapping[str, Option]) -> str:
    """Return the option that ``key`` probably means, or all options, as the end of a sentence."""
    close = difflib.get_close_matches(str(key), allowed, n=1)
    return f"; did you mean {close[0]}?" if close else f"; expected one of {', '.join(allowed)}"
