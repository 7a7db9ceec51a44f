"""How an adopted network's pictures are prepared: the rule without the side, and the normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...models.normalisation import Normalisation
from ...runtime.errors import ExportError
from ...runtime.pictures.rule import FILTERS, MAX_RESIZE, MODES, Cut, Filter, Mode, PictureRule

__all__ = ["MAX_SIDE", "Preparation", "checked_side", "normalisation_of"]

# As many as the metadata of a model file allows.
MAX_SIDE = 2048
_CHANNELS = 3


@dataclass(frozen=True)
class Preparation:
    """From a decoded picture to a network's input.

    Attributes:
        normalisation: None: none is known, or the network's own.
        size: S in pixels; None: the graph states it.
        mode, filter: of the rule.
        resize: see :class:`~...runtime.pictures.rule.PictureRule`; 0: S.
        fill: colour of the bars.
        cut: how half a pixel is rounded where the square begins.
        version: of the rule; 1 for files that deeprank wrote with it.
        source: the file that states it, or "options", to show.

    """

    normalisation: Normalisation | None = None
    size: int | None = None
    mode: Mode = "stretch"
    filter: Filter = "bilinear"
    resize: int = 0
    fill: tuple[int, int, int] = (0, 0, 0)
    cut: Cut = "even"
    version: int = 2
    source: str = "options"

    @classmethod
    def of_rule(cls, rule: PictureRule, source: str) -> Preparation:
        """Return the preparation of a model file, whose graph normalises."""
        return cls(None, rule.size, rule.mode, rule.filter, rule.resize, rule.fill, rule.cut, rule.version, source)

    @classmethod
    def of(
        cls,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: int | None = None,
        mode: str | None = None,
        resize: int | None = None,
        interpolation: str | None = None,
        base: Preparation | None = None,
    ) -> Preparation:
        """Return the preparation that options state, over that of a file.

        Args:
            mean: of red, green and blue, on the scale 0..1; needs ``std``.
            std: likewise.
            size: S.
            mode: ``stretch``, ``crop`` or ``letterbox``.
            resize: pixels before the centred square is cut.
            interpolation: ``bilinear``, ``bicubic`` or ``lanczos``.
            base: that of a file, for what is not given.

        Raises:
            ExportError: a value is out of range.

        """
        made = base or cls()
        if (size, mode, resize, interpolation) != (None,) * 4:
            made = replace(made, version=2)
        if (mean is None) != (std is None):
            raise ExportError("--mean and --std are given together: three numbers each, on the scale 0..1.")
        if mean is not None and std is not None:
            made = replace(made, normalisation=normalisation_of(mean, std))
        if size is not None:
            resized = 0 if made.resize == made.size else made.resize
            made = replace(made, size=checked_side(size, "--size" if resize is None else "--crop"), resize=resized)
        if mode is not None:
            made = replace(made, mode=_one_of(mode, MODES[2], "--picture-mode"))
        if resize is not None:
            made = replace(made, resize=checked_side(resize, "--size", MAX_SIDE * MAX_RESIZE))
        if interpolation is not None:
            made = replace(made, filter=_one_of(interpolation, FILTERS[2], "--interpolation"))
        return made

    def rule(self, side: int) -> PictureRule:
        """Return the rule at the side S of the network's input.

        Raises:
            ExportError: the picture would be resized to less than S, or to far more.

        """
        if self.version == 1:
            return PictureRule(side, self.mode)
        try:
            return PictureRule.of(side, self.mode, self.filter, self.resize or side, self.fill, self.cut)
        except ValueError:
            raise ExportError(
                f"Pictures are resized to {self.resize} pixels before {side} x {side} of them are taken "
                f"({self.source}); expected {side} to {MAX_RESIZE * side}."
            ) from None


def checked_side(value: int, name: str, most: int = MAX_SIDE) -> int:
    """Return a number of pixels.

    Raises:
        ExportError: it is out of range.

    """
    if not 1 <= value <= most:
        raise ExportError(f"{name} is {value}; expected 1 to {most} pixels.")
    return value


def normalisation_of(mean: Sequence[float], std: Sequence[float], scale: float = 255.0) -> Normalisation:
    """Return the normalisation with ``mean`` and ``std`` on the scale 0..255/``scale``.

    Raises:
        ExportError: not three finite numbers each, or a deviation that is not above 0.

    """
    for name, values in (("mean", mean), ("std", std)):
        fine = len(values) == _CHANNELS and all(abs(value * scale) <= 1e9 for value in values)
        if not fine or (name == "std" and not all(value * scale >= 1e-6 for value in values)):
            shown = ", ".join(f"{value:g}" for value in values[:4])
            raise ExportError(
                f"The {name} of the pictures is {shown}; expected three numbers, for red, green and blue"
                f"{', above 0' if name == 'std' else ''}."
            )
    red, green, blue = (float(value) * scale for value in mean)
    red_std, green_std, blue_std = (float(value) * scale for value in std)
    return Normalisation((red, green, blue), (red_std, green_std, blue_std))


def _one_of(value: str, allowed: tuple[str, ...], name: str) -> Any:
    if value not in allowed:
        raise ExportError(f"{name} {value!r}; expected one of {', '.join(allowed)}.")
    return value
