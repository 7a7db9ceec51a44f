"""Picture rule 2 against the preparations of torchvision, timm and transformers: grey levels, and a ranking.

The photographs of a data set are prepared by each library and by the rule that states the same: the largest and the
mean difference in grey levels, the share of values that differ, then precision@10 of the bundled network (fp32) by the
library's pictures and by the rule's, and the share of equal neighbours. The processors of transformers are tried in
both forms, on tensors (its default) and by Pillow (``Pil``). A second table decodes the JPEGs at reduced scales, as
rule 1 does: each photograph is prepared at the largest side that leaves at least so many times its pixels, and is
enlarged for the network. Networks are sensitive to enlarged pictures, so its figures are the worst case. A third
table times photographs of 12 megapixels, made of the pictures of ``--data``.

    python benchmarks/preparation.py --photos photos.zip
    python benchmarks/preparation.py --photos photos.zip --data tiny-imagenet-subset.zip
"""

from __future__ import annotations

import argparse
import importlib
import io
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import machine
from photos import write_photos
from PIL import Image, ImageOps

from deeprank.runtime import Embedder, pretrained_model
from deeprank.runtime.images import PictureRule, load_picture
from deeprank.runtime.text import markdown_table

Picture = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float32]
Prepare = Callable[[bytes], Picture]
SIDE, NEIGHBOURS, BATCH = 224, 10, 50
SET = "clothing"
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
REDUCTIONS = (2, 3, 4, 6)


def opened(content: bytes) -> Image.Image:
    """Open a picture as users of the libraries do."""
    return ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")


def by_rule(rule: PictureRule) -> Prepare:
    """Return the preparation of ours."""
    return lambda content: load_picture(io.BytesIO(content), rule)


def torchvision(name: str, resize: int) -> Prepare:
    """Return torchvision's evaluation transform on Pillow's pictures."""
    from torchvision import transforms

    filters = transforms.InterpolationMode(name)
    steps = transforms.Compose([transforms.Resize(resize, filters), transforms.CenterCrop(SIDE)])
    return lambda content: np.asarray(steps(opened(content)))


def timm(name: str, mode: str, ratio: float) -> Prepare:
    """Return timm's evaluation transform; bars are black."""
    from timm.data import create_transform

    steps = create_transform(
        (3, SIDE, SIDE), interpolation=name, crop_pct=ratio, crop_mode=mode, mean=(0, 0, 0), normalize=False
    )
    return lambda content: steps(opened(content)).numpy().transpose(1, 2, 0)


def transformers(name: str, backend: str, **options: Any) -> Prepare:
    """Return a processor of transformers, without its normalisation."""
    module = f"transformers.models.{name.lower()}.image_processing_{'pil_' if backend else ''}{name.lower()}"
    processor = getattr(importlib.import_module(module), f"{name}ImageProcessor{backend}")(**options)

    def prepare(content: bytes) -> Picture:
        values = processor(opened(content), do_rescale=False, do_normalize=False, return_tensors="np")
        return values["pixel_values"][0].transpose(1, 2, 0).astype(np.uint8)

    return prepare


def preparations() -> dict[str, tuple[Prepare, PictureRule]]:
    """Return what is compared: the library's own preparation, and the rule that states it."""
    square, short = {"height": SIDE, "width": SIDE}, {"shortest_edge": SIDE}
    rows = {
        "torchvision Resize(256), CenterCrop(224)": (
            torchvision("bilinear", 256),
            PictureRule.of(SIDE, "crop", "bilinear", 256),
        ),
        "timm, crop_pct 0.9": (timm("bicubic", "center", 0.9), PictureRule.of(SIDE, "crop", "bicubic", 248)),
        "timm, squash": (timm("bicubic", "squash", 0.9), PictureRule.of(SIDE, "stretch", "bicubic", 248)),
        "timm, border": (timm("bicubic", "border", 1.0), PictureRule.of(SIDE, "letterbox", "bicubic")),
    }
    for backend in ("", "Pil"):
        for name, options, rule in (
            ("CLIP", {"size": short, "crop_size": square}, PictureRule.of(SIDE, "crop", "bicubic", SIDE, cut="down")),
            (
                "Bit",
                {"size": {"shortest_edge": 256}, "crop_size": square},
                PictureRule.of(SIDE, "crop", "bicubic", 256, cut="down"),
            ),
            ("Siglip", {"size": square}, PictureRule.of(SIDE, "stretch", "bicubic")),
            ("ViT", {"size": square}, PictureRule.of(SIDE, "stretch", "bilinear", SIDE)),
            (
                "ConvNext",
                {"size": short, "crop_pct": 0.875},
                PictureRule.of(SIDE, "crop", "bicubic", int(SIDE / 0.875), cut="down"),
            ),
        ):
            known = "Bit, as for DINOv2" if name == "Bit" else name
            rows[f"transformers {known}{', Pil' if backend else ''}"] = transformers(name, backend, **options), rule
    return rows


class Ranking:
    """Queries and a gallery, ranked by the bundled network.

    Args:
        queries: files of the queries; the folder is the label.
        gallery: files of the gallery.

    """

    def __init__(self, queries: Sequence[Path], gallery: Sequence[Path]) -> None:
        self.files = [path.read_bytes() for path in (*queries, *gallery)]
        self._count = len(queries)
        self._labels = np.array([path.parent.name for path in (*queries, *gallery)])
        path = pretrained_model("fp32")
        assert path is not None
        self._embedder = Embedder(path)
        self._known: dict[bytes, Vectors] = {}

    def pictures(self, prepare: Prepare) -> Picture:
        """Prepare all files: uint8 ``[n, S, S, 3]``; smaller pictures are enlarged for the network."""
        made = [prepare(content) for content in self.files]
        side = self._embedder.rule.size
        if made[0].shape[0] != side:
            bicubic = Image.Resampling.BICUBIC
            made = [np.asarray(Image.fromarray(one).resize((side, side), bicubic)) for one in made]
        return np.stack(made)

    def neighbours(self, pictures: Picture) -> npt.NDArray[np.intp]:
        """Return the nearest of the gallery for each query, ``[queries, 10]``."""
        parts = [self._embedder.embed_batch(pictures[at : at + BATCH]) for at in range(0, len(pictures), BATCH)]
        vectors = np.concatenate(parts)
        alike = vectors[: self._count] @ vectors[self._count :].T
        return np.argsort(-alike, axis=1, kind="stable")[:, :NEIGHBOURS]

    def compare(self, theirs: Picture, ours: Picture) -> list[str]:
        """Return the cells of a row: differences of the pictures, and of the ranking."""
        apart = np.abs(theirs.astype(np.int16) - ours)
        one = self.neighbours(theirs)
        other = one if not apart.any() else self.neighbours(ours)
        equal = np.mean([len(set(a) & set(b)) / NEIGHBOURS for a, b in zip(one, other, strict=True)])
        return [
            f"{apart.max()}",
            f"{apart.mean():.4f}",
            f"{(apart > 0).mean():.4f}",
            f"{self._precision(one):.4f}",
            f"{self._precision(other):.4f}",
            f"{equal:.4f}",
        ]

    def _precision(self, near: npt.NDArray[np.intp]) -> float:
        return float((self._labels[self._count :][near] == self._labels[: self._count, None]).mean())


def reduced(times: int, scale: int, name: str, *, reduces: bool) -> Prepare:
    """Return the preparation of a JPEG that is decoded at 1/scale, and has ``times`` the pixels a side then.

    Args:
        times: how many times the resulting side is left by the reduced decoding.
        scale: 2, 4 or 8.
        name: of the filter.
        reduces: False: the same picture, decoded in full.

    """

    def prepare(content: bytes) -> Picture:
        image = Image.open(io.BytesIO(content))
        full = image.size
        side = min(full) // scale // times
        extent = full
        if reduces:
            drafted = image.draft(None, (full[0] // scale, full[1] // scale))
            assert drafted is not None
            extent = drafted[1][2:]
            assert extent == (full[0] / scale, full[1] / scale)
        corner = (extent[0] - min(extent)) / 2, (extent[1] - min(extent)) / 2
        box = (*corner, corner[0] + min(extent), corner[1] + min(extent))
        return np.asarray(image.convert("RGB").resize((side, side), PILLOW[name], box=box))

    return prepare


def milliseconds(paths: Sequence[Path], reduction: int) -> float:
    """Return the processor time of a photograph, prepared by Resize(256), CenterCrop(224), bicubic."""
    times = []
    for _ in range(3):
        begun = time.process_time()
        for path in paths:
            image = Image.open(path)
            if reduction:
                image.draft(None, (reduction * 256, reduction * 256))
            image.convert("RGB").resize((341, 256), Image.Resampling.BICUBIC)
        times.append((time.process_time() - begun) / len(paths))
    return 1000 * min(times)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--data", help="also time photographs made of these pictures")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--gallery", type=int, default=200)
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(arguments.photos) as packed:
            packed.extractall(folder, [name for name in packed.namelist() if name.startswith(f"{SET}/")])
        chosen = [
            spread(sorted((Path(folder) / SET / split).rglob("*.jpg")), count)
            for split, count in (("test", arguments.queries), ("train", arguments.gallery))
        ]
        ranking = Ranking(*chosen)
        print(f"\n{arguments.queries} queries, {arguments.gallery} pictures in the gallery\n")
        print_libraries(ranking)
        print_reductions(ranking)
        if arguments.data:
            paths = write_photos(arguments.data, Path(folder) / "made", 6)
            rows = [(str(one or "in full"), f"{milliseconds(paths, one):.0f}") for one in (*REDUCTIONS, 0)]
            heads = ("12 megapixels, at least so many times 256", "ms a picture")
            print(*markdown_table(heads, rows), sep="\n")


def spread(paths: Sequence[Path], count: int) -> list[Path]:
    """Return ``count`` paths at equal distances, so that every folder is among them."""
    return [paths[at * len(paths) // count] for at in range(min(count, len(paths)))]


COLUMNS = ("largest", "mean", "share", "precision@10", "by rule 2", "equal neighbours")


def print_libraries(ranking: Ranking) -> None:
    """Print the table of the libraries' preparations."""
    rows = []
    for name, (theirs, rule) in preparations().items():
        rows.append((name, str(rule), *ranking.compare(ranking.pictures(theirs), ranking.pictures(by_rule(rule)))))
    print(*markdown_table(("preparation", "rule", *COLUMNS), rows), sep="\n", flush=True)


def print_reductions(ranking: Ranking) -> None:
    """Print the table of reduced decoding against decoding in full."""
    rows = []
    for times in REDUCTIONS:
        full = ranking.pictures(reduced(times, 2, "bicubic", reduces=False))
        less = ranking.pictures(reduced(times, 2, "bicubic", reduces=True))
        rows.append((str(times), *ranking.compare(full, less)))
    heads = ("at least so many times the side", *COLUMNS[:4], "reduced", COLUMNS[5])
    print("", *markdown_table(heads, rows), "", sep="\n", flush=True)


if __name__ == "__main__":
    main()
