"""How far copies of a picture are from it, and how far the nearest different picture is: what a near-duplicate is.

Copies of pictures of a data set are made (compressed again, resized, cropped, brighter, darker, mirrored) and embedded
with a model, beside the pictures. Printed as Markdown: for each distance, the share of the copies of each kind that are
within it, and of the pictures to which a picture with other content is that near (a few of those are true copies that
the data set itself holds; ``--show`` lists the nearest pairs, to be looked at).

    python benchmarks/near_duplicates.py --data tiny-imagenet-subset.zip
"""

from __future__ import annotations

import argparse
import hashlib
import io
import random
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from common import machine
from PIL import Image, ImageEnhance, ImageOps

from deeprank.runtime import Embedder, pretrained_model
from deeprank.runtime.datasets import Sample, open_dataset
from deeprank.runtime.scan import nearest, squared_distances
from deeprank.runtime.text import markdown_table

Vectors = npt.NDArray[np.float32]
LIMITS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    """Return the picture as a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def png(image: Image.Image) -> bytes:
    """Return the picture as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def resized(image: Image.Image, factor: float) -> bytes:
    """Return the picture at another size."""
    size = round(image.width * factor), round(image.height * factor)
    return jpeg(image.resize(size, Image.Resampling.LANCZOS), 95)


def cropped(image: Image.Image, share: float) -> bytes:
    """Return the picture with ``share`` of its width and height cut away, half on each side."""
    x, y = round(image.width * share / 2), round(image.height * share / 2)
    return jpeg(image.crop((x, y, image.width - x, image.height - y)), 95)


def lit(image: Image.Image, factor: float) -> bytes:
    """Return the picture brighter or darker."""
    return jpeg(ImageEnhance.Brightness(image).enhance(factor), 95)


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "PNG": png,
    "JPEG, quality 90": lambda image: jpeg(image, 90),
    "JPEG, quality 75": lambda image: jpeg(image, 75),
    "JPEG, quality 50": lambda image: jpeg(image, 50),
    "0.5 x the size": lambda image: resized(image, 0.5),
    "0.8 x the size": lambda image: resized(image, 0.8),
    "2 x the size": lambda image: resized(image, 2),
    "cropped by 5 %": lambda image: cropped(image, 0.05),
    "10 % brighter": lambda image: lit(image, 1.1),
    "10 % darker": lambda image: lit(image, 0.9),
    "mirrored": lambda image: jpeg(ImageOps.mirror(image), 95),
}


def embedded(embedder: Embedder, files: Sequence[bytes]) -> Vectors:
    """Return the vectors of picture files, float32 ``[n, d]``."""
    rows = [row for _, row in embedder.stream(files, lambda file: embedder.load(io.BytesIO(file)))]
    return np.stack([row for row in rows if isinstance(row, np.ndarray)])


def nearest_other(vectors: Vectors, files: Sequence[bytes]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return, for each picture, the nearest one with other content: its number and distance."""
    contents = np.array([hashlib.sha256(file).hexdigest() for file in files])
    places, distances = nearest(vectors, vectors, 20)
    distances = np.where(contents[places] == contents[:, None], np.inf, distances)
    best = distances.argmin(axis=1)[:, None]
    return np.take_along_axis(places, best, axis=1)[:, 0], np.take_along_axis(distances, best, axis=1)[:, 0]


def percent(distances: npt.NDArray[np.float64]) -> list[str]:
    """Return the share within each limit."""
    return [f"{100 * float((distances <= limit).mean()):.1f}" for limit in LIMITS]


def report(originals: Vectors, copies: dict[str, Vectors], others: npt.NDArray[np.float64]) -> list[str]:
    """Return the lines of the table."""
    rows = []
    for kind, vectors in copies.items():
        distances = np.array([squared_distances(a, b[None])[0] for a, b in zip(originals, vectors, strict=True)])
        rows.append([kind, f"{np.median(distances):.4f}", *percent(distances)])
    rows.append(["a different picture (nearest)", f"{np.median(others):.4f}", *percent(others)])
    header = ["% within", "median D", *(f"{limit:g}" for limit in LIMITS)]
    return markdown_table(header, rows, right_aligned=range(1, len(header)))


def main() -> None:
    """Embed, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default=None, help="default: the one that ships")
    parser.add_argument("--gallery", type=int, default=10_000, help="train pictures (default: 10,000)")
    parser.add_argument("--originals", type=int, default=400, help="of them, to make copies of (default: 400)")
    parser.add_argument("--show", type=int, default=0, help="name so many of the nearest pairs of different pictures")
    arguments = parser.parse_args()
    samples: list[Sample] = list(open_dataset(arguments.data).train)
    random.Random(0).shuffle(samples)
    samples = samples[: arguments.gallery]
    embedder = Embedder(arguments.model or pretrained_model())
    files = [sample.read() for sample in samples]
    gallery = embedded(embedder, files)
    images = [Image.open(io.BytesIO(file)).convert("RGB") for file in files[: arguments.originals]]
    copies = {kind: embedded(embedder, [copy(image) for image in images]) for kind, copy in COPIES.items()}
    places, others = nearest_other(gallery, files)
    print(f"{len(images):,} pictures and their copies among {len(files):,}; {embedder.info.name}, {machine()}\n")
    print(*report(gallery[: len(images)], copies, others), sep="\n")
    for place in others.argsort()[: arguments.show]:
        print(f"{others[place]:.4f} {samples[place].path} {samples[places[place]].path}")


if __name__ == "__main__":
    main()
