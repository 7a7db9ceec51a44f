"""What a new user gets on photographs of their own: train, export, sync, query, eval, each command as it is typed.

    python benchmarks/own_photographs.py --photos photos.zip --out results/photographs

The zip holds folders in their makers' layouts: ``clothing/{train,validation,test}/CLASS`` and
``grocery/{train,test}/GROUP[/KIND]/CLASS``. The test pictures are the queries, the train pictures the gallery.

Prints two Markdown tables. The first one compares the bundled model with one that was trained on all classes. The
second one is of a training without a fifth of the classes, before → after: learned classes among themselves, held-out
classes among themselves, all classes. Before is the bundled model. Then come the seconds of each command. Minutes on
two cores.
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from class_groups import GROUPS, Figures, by_group
from common import machine
from tiny_imagenet import timed

from deeprank.runtime import Embedder
from deeprank.runtime.text import markdown_table

# What is typed besides the folder: in grocery the class is the innermost folder.
SETS = {"clothing": (), "grocery": ("--labels", "leaf")}
BUNDLED = "pretrained"
HELD_OUT = 0.2
COLUMNS = {
    "precision@10": "precision_at_10",
    "precision@30": "precision_at_30",
    "of at most": "possible",
    "recall@1": "recall_at_1",
    "recall@10": "recall_at_10",
    "MAP@R": "map_at_r",
}
# Vectors, float32 ``[n, d]``, and labels.
Embedded = tuple[npt.NDArray[np.float32], list[str]]


def main() -> None:
    """Run the commands for each set and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=tuple(SETS))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    with zipfile.ZipFile(arguments.photos) as packed:
        packed.extractall(arguments.out)
    print(machine())
    measured = [PhotographSet(arguments.out, name, SETS[name]) for name in arguments.sets]
    models = [row for each in measured for row in each.models()]
    effects = [row for each in measured for row in each.effect()]
    print_table(("photographs", "model", *COLUMNS), models)
    print_table(("photographs", "classes", *COLUMNS), effects)
    for each in measured:
        print(f"{each.name}: {', '.join(f'{step} {seconds:.1f}' for step, seconds in each.seconds.items())} seconds")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table with two columns of words."""
    print("", *markdown_table(header, rows, right_aligned=range(2, len(header))), "", sep="\n", flush=True)


class PhotographSet:
    """One set in ``folder``, where the commands run, with the words that name its labels."""

    def __init__(self, folder: Path, name: str, labels: tuple[str, ...]) -> None:
        self.folder, self.name, self.labels = folder, name, labels
        self.seconds: dict[str, float] = {}
        self.bundled = self._evaluate(BUNDLED)

    def models(self) -> list[tuple[str, ...]]:
        """Train on all classes; return the row of the bundled model, and that of the trained one."""
        run, model, index = f"{self.name}.run", f"{self.name}.onnx", f"{self.name}.index"
        query = min((self.folder / self.name / "test").rglob("*.jpg")).relative_to(self.folder)
        self._do("train", "deeprank-train", self.name, *self.labels, "--out", run)
        self._do("export", "deeprank-export", run, "--out", model)
        self._do("sync", "deeprank-index", "sync", self.name, *self.labels, "--index", index, "--model", model)
        self._do("query", "deeprank-query", query, "--index", index)
        rows = {"bundled": self.bundled, "trained on its train pictures": self._evaluate(model)}
        found = {words: by_group(*vectors, frozenset(vectors[1][1]))["all"] for words, vectors in rows.items()}
        return [
            (self.name, words, *(f"{getattr(figures, key):.3f}" for key in COLUMNS.values()))
            for words, figures in found.items()
        ]

    def effect(self) -> list[tuple[str, ...]]:
        """Train without a fifth of the classes; return a row for each group of classes, before → after."""
        run, model = f"{self.name}.without.run", f"{self.name}.without.onnx"
        classes = len(set(self.bundled[1][1]))
        held_out = max(1, round(classes * HELD_OUT))
        timed(
            *("deeprank-train", self.name, *self.labels, "--out", run, "--holdout-classes", held_out),
            folder=self.folder,
        )
        timed("deeprank-export", run, "--out", model, folder=self.folder)
        learned = Embedder(self.folder / model).info.classes
        before, after = (by_group(*vectors, frozenset(learned)) for vectors in (self.bundled, self._evaluate(model)))
        counts = dict(zip(GROUPS, (len(learned), held_out, classes), strict=True))
        return [(self.name, f"{group} ({counts[group]})", *_changes(before[group], after[group])) for group in GROUPS]

    def _do(self, step: str, *words: object) -> None:
        _, self.seconds[step] = timed(*words, folder=self.folder)

    def _evaluate(self, model: str) -> tuple[Embedded, Embedded]:
        """Evaluate a model on the test pictures; return the vectors and labels of queries and gallery."""
        saved = f"{model}.vectors"
        asked = ("deeprank-eval", "--model", model, "--data", self.name, *self.labels, "--split", "test")
        _, self.seconds[f"eval of {model}"] = timed(*asked, "--save-embeddings", saved, folder=self.folder)
        queries, gallery = (np.load(self.folder / saved / f"{split}.npz") for split in ("queries", "gallery"))
        return (queries["vectors"], queries["labels"].tolist()), (gallery["vectors"], gallery["labels"].tolist())


def _changes(before: Figures, after: Figures) -> list[str]:
    return [f"{getattr(before, key):.3f} → {getattr(after, key):.3f}" for key in COLUMNS.values()]


if __name__ == "__main__":
    main()
