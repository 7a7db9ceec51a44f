"""Input normalisation: the mean and deviation that belong to a network's weights."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HALF", "IMAGENET", "LITE", "NORMALISATIONS", "Normalisation"]


@dataclass(frozen=True)
class Normalisation:
    """``(x - mean) / deviation`` for each channel R, G, B; all three on the scale 0..255."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]

    @classmethod
    def from_unit_range(cls, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Normalisation:
        """Convert from mean and deviation on the usual scale 0..1."""
        red, green, blue = (255.0 * value for value in mean)
        red_deviation, green_deviation, blue_deviation = (255.0 * value for value in deviation)
        return cls((red, green, blue), (red_deviation, green_deviation, blue_deviation))


IMAGENET = Normalisation.from_unit_range((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Normalisation.from_unit_range((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# The TensorFlow original of EfficientNet-Lite was trained on (x - 127) / 128.
LITE = Normalisation((127.0, 127.0, 127.0), (128.0, 128.0, 128.0))

NORMALISATIONS = {"imagenet": IMAGENET, "half": HALF, "lite": LITE}
