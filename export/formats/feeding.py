"""How other programs feed an exported file, as text in the file (``doc_string`` of the ONNX model)."""

from __future__ import annotations

from ...models.normalisation import Normalisation
from ...runtime.images import PictureRule
from ...runtime.modelfile import INPUT_NAME, OUTPUT_NAME, ModelInfo

__all__ = ["feeding_text"]


def feeding_text(info: ModelInfo, float_input: tuple[str, Normalisation] | None = None) -> str:
    """Describe the input, its pictures and the output.

    Args:
        info: metadata of the file.
        float_input: name and normalisation of the float input; None for the uint8 form.

    """
    side = info.picture.size
    if float_input is None:
        given = f"{INPUT_NAME}: uint8 [n, {side}, {side}, 3], RGB, 0 to 255, not normalised."
    else:
        name, normalisation = float_input
        mean, deviation = (
            ", ".join(f"{value / 255:.9g}" for value in values)
            for values in (normalisation.mean, normalisation.deviation)
        )
        given = (
            f"{name}: float32 [n, 3, {side}, {side}], RGB. Scale pixels to 0..1, subtract the mean ({mean}) and divide "
            f"by the standard deviation ({deviation})."
        )
    return (
        f"Input {given} {_prepared(info.picture)} Turn pictures upright by EXIF first. "
        f"Output {OUTPUT_NAME}: float32 [n, {info.embedding_dim}], unit length; the dot product is the cosine."
    )


def _prepared(rule: PictureRule) -> str:
    side, resize = rule.size, rule.resize or rule.size
    how = f"{rule.filter}, antialiased"
    if rule.mode == "letterbox":
        return f"Resize the longer side to {side} ({how}) and pad to a centred square with {rule.fill}."
    if rule.mode == "crop":
        return f"Resize the shorter side to {resize} ({how}) and cut out the centred {side} x {side}."
    text = f"Resize the whole picture to {resize} x {resize} ({how})"
    return f"{text}." if resize == side else f"{text} and cut out the centred {side} x {side}."
