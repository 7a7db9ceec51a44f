"""How pictures are prepared, as JSON of other libraries states it: transformers, timm and open_clip.

The files are untrusted, and a wrong preparation ranks badly without any error. So whatever is stated
but not understood is refused.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ...runtime.errors import ExportError
from ...runtime.files import NotRegularError, open_regular
from ...runtime.pictures.rule import Filter, Mode
from ...runtime.text import display_path, printable
from .preparation import MAX_SIDE, Preparation, normalisation_of

__all__ = ["preparation_of_timm", "preprocessor_beside", "read_preprocessor"]

NAME = "preprocessor_config.json"
_MAX_BYTES = 1 << 20
_MAX_SHOWN = 60
# Of any number; JSON allows integers beyond those of floating point, and NaN, which is not less either.
_MAX_NUMBER = 1e12

# Pillow's numbers, which transformers' files hold.
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_FILTERS = ("bilinear", "bicubic", "lanczos")
# Processors of transformers whose steps are those below; others have habits that their files do not
# state, such as LeViT's enlargement. Older files leave out whether the centre is cut, and the filter.
_CUTTING = ("CLIP", "ChineseCLIP", "Bit", "DeiT", "MobileNetV1", "MobileNetV2")
_KNOWN = ("", *_CUTTING, "Beit", "Blip", "ConvNext", "DINOv3ViT", "Siglip", "ViT")
_RESAMPLE_OF = {"CLIP": 3, "Bit": 3, "DeiT": 3, "Siglip": 3, "ViT": 2, "ConvNext": 2, "DINOv3ViT": 2}
# Steps that change pixels and have no counterpart here.
_UNKNOWN_STEPS = ("do_flip_channel_order", "do_pad", "do_thumbnail", "do_align_long_axis", "do_crop_margin")
# What is read, and what changes no pixel of a decoded picture. Another key that is neither null nor
# false has an effect that would be left out.
_READ = frozenset(
    {
        "image_processor_type",
        "feature_extractor_type",
        "do_resize",
        "size",
        "resample",
        "do_center_crop",
        "crop_size",
        "crop_pct",
        "do_rescale",
        "rescale_factor",
        "do_normalize",
        "image_mean",
        "image_std",
    }
)
_WITHOUT_EFFECT = frozenset(
    {
        "processor_class",
        "_processor_class",
        "_valid_processor_keys",
        "auto_map",
        "transformers_version",
        "do_convert_rgb",
        "return_tensors",
        "data_format",
        "input_data_format",
        "device",
        "disable_grouping",
        "default_to_square",
    }
)
_OPEN_CLIP = frozenset(
    {
        "size",
        "mode",
        "mean",
        "std",
        "interpolation",
        "resize_mode",
        "fill_color",
    }
)
# ConvNeXt's processor cuts below this side, and stretches from it on.
_CONVNEXT_CUTS_BELOW = 384


def read_preprocessor(path: Path) -> Preparation:
    """Read ``preprocessor_config.json``, timm's ``config.json`` or open_clip's ``open_clip_config.json``.

    Raises:
        ExportError: it cannot be read, or states what cannot be done here; the sentence names it.

    """
    shown = display_path(path)
    values = _json_object(path)
    if isinstance(values.get("preprocess_cfg"), dict):
        return _of_open_clip(values, shown)
    record = values.get("pretrained_cfg", values)
    if isinstance(record, dict) and ("pretrained_cfg" in values or {"input_size", "crop_pct"} <= values.keys()):
        return preparation_of_timm(record, shown)
    return _of_transformers(values, shown)


def preprocessor_beside(model: Path) -> Preparation | None:
    """Read the preparation that lies beside an ONNX file, or above a folder ``onnx`` as on Hugging Face.

    Returns:
        None if there is no such file.

    Raises:
        ExportError: see :func:`read_preprocessor`.

    """
    stem = model.name.removesuffix(".onnx").removesuffix(".float")
    folders = [model.parent, *([model.absolute().parent.parent] if model.absolute().parent.name == "onnx" else [])]
    candidates = [model.parent / f"{stem}.{NAME}", *(folder / NAME for folder in folders)]
    for path in candidates:
        if path.is_file():
            return read_preprocessor(path)
    return None


def preparation_of_timm(values: Mapping[str, Any], source: str = "timm's record") -> Preparation:
    """Return the preparation of a timm record (``pretrained_cfg``), as its evaluation does it.

    Raises:
        ExportError: it lacks something, or states what cannot be done here.

    """
    fields = _Fields(values, source)
    given = values.get("input_size")
    sizes: list[Any] = list(given[-2:]) if isinstance(given, list | tuple) else [given]
    side = fields.square(sizes, "input_size")
    ratio = fields.number("crop_pct", 0.875)
    if not 0.1 <= ratio <= 1:
        raise fields.refused("crop_pct", "0.1 to 1")
    mode = values.get("crop_mode") or "center"
    modes: dict[str, Mode] = {"center": "crop", "squash": "stretch", "border": "letterbox"}
    if not isinstance(mode, str) or mode not in modes:
        raise fields.refused("crop_mode", "center, squash or border")
    mean, std = fields.three("mean"), fields.three("std")
    fill = cast(tuple[int, int, int], tuple(min(255, max(0, round(255 * value))) for value in mean))
    return Preparation(
        normalisation=normalisation_of(mean, std),
        size=side,
        mode=modes[mode],
        filter=fields.filter(values.get("interpolation", "bicubic"), "interpolation"),
        resize=math.floor(side / ratio),
        fill=fill if mode == "border" else (0, 0, 0),
        source=source,
    )


def _of_open_clip(values: Mapping[str, Any], source: str) -> Preparation:
    stated = _Fields(values["preprocess_cfg"], source)
    stated.check_keys(_OPEN_CLIP)
    model = values.get("model_cfg")
    tower = model.get("vision_cfg") if isinstance(model, dict) else None
    given = stated.values.get("size") or (tower.get("image_size") if isinstance(tower, dict) else None)
    side = stated.square(given if isinstance(given, list) else [given], "size")
    modes: dict[str, Mode] = {"shortest": "crop", "squash": "stretch", "longest": "letterbox"}
    mode = stated.values.get("resize_mode") or "shortest"
    if not isinstance(mode, str) or mode not in modes:
        raise stated.refused("resize_mode", "shortest, squash or longest")
    fill = stated.values.get("fill_color") or 0
    colour = [fill] * 3 if isinstance(fill, int) else fill
    levels = isinstance(colour, list) and all(isinstance(one, int) and 0 <= one <= 255 for one in colour)
    if not levels or len(colour) != 3:
        raise stated.refused("fill_color", "a number from 0 to 255, or three")
    return Preparation(
        normalisation=normalisation_of(stated.three("mean"), stated.three("std")),
        size=side,
        mode=modes[mode],
        filter=stated.filter(stated.values.get("interpolation") or "bicubic", "interpolation"),
        resize=side,
        fill=cast(tuple[int, int, int], tuple(colour)) if mode == "longest" else (0, 0, 0),
        source=source,
    )


def _of_transformers(values: Mapping[str, Any], source: str) -> Preparation:
    fields = _Fields(values, source)
    named = values.get("image_processor_type") or values.get("feature_extractor_type") or ""
    kind = re.sub("(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(named))
    if kind not in _KNOWN:
        known = ", ".join(filter(None, _KNOWN))
        raise fields.refused("image_processor_type", f"one of the processors whose steps are known ({known})")
    for step in _UNKNOWN_STEPS:
        if values.get(step):
            raise fields.refused(step, "false; this step is not known here")
    fields.check_keys(_READ | _WITHOUT_EFFECT)
    if not fields.flag("do_resize", True):
        raise fields.refused("do_resize", "true; pictures have any size")
    size, mode, resize = _geometry(fields, kind)
    resample = values.get("resample", _RESAMPLE_OF.get(kind))
    if not isinstance(resample, int) or isinstance(resample, bool) or resample not in _RESAMPLE:
        raise fields.refused("resample", "1, 2 or 3 (lanczos, bilinear, bicubic)")
    return Preparation(
        normalisation=_transformers_normalisation(fields),
        size=size,
        mode=mode,
        filter=fields.filter(_RESAMPLE[resample], "resample"),
        resize=resize,
        cut="down",
        source=source,
    )


def _geometry(fields: _Fields, kind: str) -> tuple[int, Mode, int]:
    """Return S, the mode, and the pixels before the centre is cut."""
    given = fields.values.get("size")
    if isinstance(given, dict):
        given = {key: value for key, value in given.items() if value is not None}
    if isinstance(given, int) and not isinstance(given, bool):
        given = {"shortest_edge": given} if kind in (*_CUTTING, "ConvNext") else {"height": given, "width": given}
    if not isinstance(given, dict) or given.keys() not in ({"shortest_edge"}, {"height", "width"}):
        raise fields.refused("size", "shortest_edge, or height and width")
    by_shorter = "shortest_edge" in given
    resize = fields.square(list(given.values()), "size")
    if kind == "ConvNext":
        if resize >= _CONVNEXT_CUTS_BELOW:
            return resize, "stretch", resize
        ratio = fields.number("crop_pct", 224 / 256)
        if not 0.125 <= ratio <= 1:
            raise fields.refused("crop_pct", "0.125 to 1")
        return resize, "crop", int(resize / ratio)
    if not fields.flag("do_center_crop", kind in _CUTTING):
        if by_shorter:
            raise fields.refused(
                "size", "a centre crop with shortest_edge, or height and width; the network takes squares"
            )
        return resize, "stretch", resize
    crop = fields.values.get("crop_size", resize)
    side = fields.square(list(crop.values()) if isinstance(crop, dict) else [crop], "crop_size")
    if side > resize:
        raise fields.refused("crop_size", f"at most {resize}, the size before the crop")
    return side, "crop" if by_shorter else "stretch", resize


def _transformers_normalisation(fields: _Fields) -> Any:
    factor = fields.number("rescale_factor", 1 / 255) if fields.flag("do_rescale", True) else 1.0
    if not 1e-6 <= factor <= 1:
        raise fields.refused("rescale_factor", "a number above 0")
    if not fields.flag("do_normalize", True):
        return normalisation_of((0.0,) * 3, (1.0,) * 3, 1 / factor)
    return normalisation_of(fields.three("image_mean"), fields.three("image_std"), 1 / factor)


class _Fields:
    """Checked fields of an untrusted JSON object; errors name the file."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values, self._source = values, source

    def refused(self, key: str, expected: str) -> ExportError:
        """Return the error of a field."""
        value = self.values.get(key)
        shown = printable(json.dumps(value))
        shown = shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]} …"
        stated = f"says {key} = {shown}" if key in self.values else f"does not say {key}"
        return ExportError(
            f"{self._source} {stated}; expected {expected}. State the preparation with --size, --crop, "
            "--interpolation, --mean and --std instead."
        )

    def check_keys(self, known: frozenset[str]) -> None:
        """Refuse a key of unknown effect."""
        for key, value in self.values.items():
            if key not in known and value not in (None, False, [], {}):
                shown = printable(key[:_MAX_SHOWN])
                raise ExportError(
                    f"{self._source} has {shown!r}, whose effect is not known here; expected the keys of {NAME}. State "
                    "the preparation with --size, --crop, --interpolation, --mean and --std instead."
                )

    def flag(self, key: str, default: bool) -> bool:
        """Return a truth value; null counts as the default."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refused(key, "true or false")
        return value

    def number(self, key: str, default: float) -> float:
        """Return a finite number; null counts as the default."""
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MAX_NUMBER:
            return float(value)
        raise self.refused(key, "a number")

    def three(self, key: str) -> tuple[float, float, float]:
        """Return three finite numbers; a single one stands for all channels."""
        value = self.values.get(key)
        numbers: list[Any] = list(value) if isinstance(value, list | tuple) else [value] * 3
        fine = len(numbers) == 3 and all(isinstance(one, int | float) and not isinstance(one, bool) for one in numbers)
        if not fine or not all(abs(one) < _MAX_NUMBER for one in numbers):
            raise self.refused(key, "three numbers")
        red, green, blue = (float(one) for one in numbers)
        return red, green, blue

    def square(self, sides: list[Any], key: str) -> int:
        """Return the side of a square."""
        whole = all(
            isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= 8 * MAX_SIDE for side in sides
        )
        if not sides or not whole or len(set(sides)) != 1:
            raise self.refused(key, "the side of a square in pixels")
        return int(sides[0])

    def filter(self, value: Any, key: str) -> Filter:
        """Return a filter by its name."""
        if not isinstance(value, str) or value not in _FILTERS:
            raise self.refused(key, "bilinear, bicubic or lanczos")
        return cast(Filter, value)


def _json_object(path: Path) -> dict[str, Any]:
    shown = display_path(path)
    try:
        with open_regular(path, follow_links=True) as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MAX_BYTES:
                raise ExportError(f"{shown} has {size:,} bytes; expected a JSON file of at most {_MAX_BYTES:,}.")
            values = json.loads(file.read(_MAX_BYTES))
    except FileNotFoundError:
        raise ExportError(f"{shown} does not exist; expected a {NAME}.") from None
    except NotRegularError as error:
        raise ExportError(f"{shown} is a {error.kind}; expected a {NAME}.") from None
    except OSError as error:
        raise ExportError(f"{shown} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError):
        raise ExportError(f"{shown} is not JSON; expected a {NAME}.") from None
    if not isinstance(values, dict):
        raise ExportError(f"{shown} holds a {type(values).__name__}; expected a JSON object, as in {NAME}.")
    return values
