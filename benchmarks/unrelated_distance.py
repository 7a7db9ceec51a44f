"""Where pictures are not similar any more: distances of right hits, and to collections of other things.

    python benchmarks/unrelated_distance.py --photos photos.zip --out results/photographs --model pretrained-fp32

``clothing`` and ``grocery`` have nothing in common. So a good line has the hits of a picture's own class on one side
and, on the other, the nearest picture of the other set. Printed for each squared distance: the share of the hits of the
right class among the ten nearest that are within it, and the share of the queries in the other set whose nearest
picture is. ``--unrelated-distance`` of ``deeprank-export`` states the line in a model.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from common import machine

from deeprank.runtime import Embedder
from deeprank.runtime.datasets import open_dataset
from deeprank.runtime.errors import PictureError
from deeprank.runtime.model.pretrained import find_model
from deeprank.runtime.text import markdown_table

SETS = {"clothing": None, "grocery": "leaf"}
LINES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
_HITS = 10


def embedded(embedder: Embedder, folder: Path, labels: str | None) -> tuple[npt.NDArray[np.float32], list[str]]:
    """Return the vectors of all pictures, float32 ``[n, d]``, and their classes."""
    data = open_dataset(str(folder), labels=labels)
    rows, classes = [], []
    for sample, row in embedder.stream(
        (*data.train, *data.val), lambda sample: embedder.load(io.BytesIO(sample.read()))
    ):
        if isinstance(row, PictureError):
            raise row
        rows.append(row)
        classes.append(sample.label)
    return np.stack(rows), classes


def main() -> None:
    """Embed both sets and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a folder for the photographs")
    parser.add_argument("--model", default="pretrained-fp32")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not (arguments.out / "clothing").exists():
        with zipfile.ZipFile(arguments.photos) as packed:
            packed.extractall(arguments.out)
    print(machine())
    embedder = Embedder(find_model(arguments.model))
    sets = {name: embedded(embedder, arguments.out / name, labels) for name, labels in SETS.items()}
    columns = {}
    for (name, (vectors, classes)), (other, _) in zip(sets.items(), reversed(sets.values()), strict=True):
        distances, labels = 2 - 2 * vectors @ vectors.T, np.array(classes)
        np.fill_diagonal(distances, np.inf)
        nearest = np.argsort(distances, axis=1)[:, :_HITS]
        right = np.take_along_axis(distances, nearest, axis=1)[labels[nearest] == labels[:, None]]
        columns[f"{name}: right hits"] = right
        columns[f"{name}: nearest of the other set"] = (2 - 2 * vectors @ other.T).min(axis=1)
    rows = [
        [f"{line:.1f}", *(f"{100 * float((values <= line).mean()):.1f} %" for values in columns.values())]
        for line in LINES
    ]
    print(*markdown_table(["squared distance", *columns], rows, right_aligned=range(5)), sep="\n")


if __name__ == "__main__":
    main()
