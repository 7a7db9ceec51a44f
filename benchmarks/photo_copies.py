"""Edited copies of photographs, as people pass them on: compressed, cropped, turned, framed, in a screenshot."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

__all__ = ["COPIES"]


def _jpeg(image: Image.Image, quality: int = 90) -> bytes:
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=quality)
    return file.getvalue()


def _cropped(image: Image.Image, share: float) -> bytes:
    """Cut ``share`` of width and height away, half on each side."""
    x, y = round(image.width * share / 2), round(image.height * share / 2)
    return _jpeg(image.crop((x, y, image.width - x, image.height - y)))


def _corner(image: Image.Image, share: float) -> bytes:
    """Keep the upper left corner without ``share`` of width and height."""
    return _jpeg(image.crop((0, 0, round(image.width * (1 - share)), round(image.height * (1 - share)))))


def _small(image: Image.Image, side: int) -> bytes:
    small = image.copy()
    small.thumbnail((side, side))
    return _jpeg(small)


def _logo(image: Image.Image) -> bytes:
    marked, (width, height) = image.copy(), image.size
    draw = ImageDraw.Draw(marked)
    draw.rectangle((width * 0.7, height * 0.85, width * 0.97, height * 0.96), fill=(200, 30, 40))
    draw.ellipse((width * 0.73, height * 0.87, width * 0.79, height * 0.94), fill="white")
    return _jpeg(marked)


def _screenshot(image: Image.Image) -> bytes:
    """Show the picture on a phone's screen: bars above and below it."""
    width = image.width
    screen = Image.new("RGB", (width, round(width * 2.1)), (18, 18, 18))
    fitted = ImageOps.contain(image, (width, round(width * 1.6)))
    screen.paste(fitted, ((width - fitted.width) // 2, (screen.height - fitted.height) // 2))
    draw = ImageDraw.Draw(screen)
    draw.rectangle((0, 0, width, round(width * 0.08)), fill="white")
    for place in range(4):
        x = width * (0.14 + 0.22 * place)
        draw.ellipse((x, screen.height - width * 0.12, x + width * 0.06, screen.height - width * 0.06), fill="white")
    return _jpeg(screen)


COPIES: Mapping[str, Callable[[Image.Image], bytes]] = {
    "JPEG, quality 50": lambda image: _jpeg(image, 50),
    "JPEG, quality 20": lambda image: _jpeg(image, 20),
    "200 px": lambda image: _small(image, 200),
    "cropped by 10 %": lambda image: _cropped(image, 0.1),
    "cropped by 30 %": lambda image: _cropped(image, 0.3),
    "corner without 30 %": lambda image: _corner(image, 0.3),
    "mirrored": lambda image: _jpeg(ImageOps.mirror(image)),
    "turned by 90°": lambda image: _jpeg(image.transpose(Image.Transpose.ROTATE_90)),
    "turned by 10°": lambda image: _jpeg(image.rotate(10, Image.Resampling.BICUBIC)),
    "gray": lambda image: _jpeg(ImageOps.grayscale(image)),
    "30 % brighter": lambda image: _jpeg(ImageEnhance.Brightness(image).enhance(1.3)),
    "blurred": lambda image: _jpeg(image.filter(ImageFilter.GaussianBlur(image.width / 150))),
    "border": lambda image: _jpeg(ImageOps.expand(image, image.width // 10, "white")),
    "logo": _logo,
    "screenshot": _screenshot,
}
