"""What clicking teaches: simulated raters, held-out ratings and queries, against the number of ratings.

    python benchmarks/teaching.py --photos photos.zip --out results/teaching

The zip holds ``clothing`` and ``grocery`` as for ``own_photographs.py``. Raters of :mod:`raters` rate the train
pictures of one collection. The other collection is never rated. Test pictures are the held-out queries, and the train
pictures their gallery. Held-out ratings are by raters who never err: half of the pairs are any two pictures, half are
of the 30 nearest of the start.

Of the ratings, the learner keeps 30 % of the queries for its own comparison, as it does for users: numbers of ratings
here include these. ``clever`` asks as the product does; ``near`` asks about two of the 30 nearest of any picture, and
``random`` about any two pictures. ``rounds`` is ``clever`` with the index taught after each number of ratings, where
the comparison says that it is better. The last row of a taste is the ceiling: 10,000 ratings without an error, more
than the learner takes into a fit.

Each condition is kept as a file in the folder, so a run that was ended goes on. Prints Markdown tables and writes a
drawing of the curves, ``teaching.svg``. One thread and one process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine
from panels import Panel, panels
from raters import TASTES, taste
from rating_sessions import CEILING, METHODS, Collection, Rated, ceiling, held_out_ratings, session, start

from deeprank.runtime import Embedder
from deeprank.runtime.datasets import Sample, open_dataset
from deeprank.runtime.evaluate.embeddings import EmbeddedSplit, embed_split
from deeprank.runtime.model.pretrained import find_model
from deeprank.runtime.text import markdown_table

SETS = {"clothing": None, "grocery": "leaf"}
NUMBERS = (50, 200, 1000, 5000)
SEEDS = (0, 1, 2)
WRONG = (0.1, 0.2)
FEW = (200, 1000)
# Measured once, without a method of asking.
ALONE = {"start": start, "ceiling": ceiling}

Points = list[dict[str, Any]]


@dataclass(frozen=True)
class Condition:
    """A rater in front of a collection: how it is asked, and how often it errs; ``rounds`` of teaching."""

    collection: str
    taste: str
    method: str
    wrong: float = 0.0
    seed: int = 0
    numbers: tuple[int, ...] = NUMBERS

    @property
    def name(self) -> str:
        """Of the condition's file."""
        wrong, last = f"{100 * self.wrong:.0f}", self.numbers[-1]
        return "-".join(map(str, (self.collection, self.taste, self.method, wrong, self.seed, last)))

    def points(self, seen: Rated) -> Points:
        """Measure."""
        if self.method in ALONE:
            return [asdict(ALONE[self.method](seen))]
        rounds = self.method == "rounds"
        method = METHODS["clever" if rounds else self.method]
        return [asdict(point) for point in session(seen, method, self.wrong, self.seed, self.numbers, rounds=rounds)]


def conditions(seen: Sequence[tuple[str, str]], seeds: Sequence[int]) -> Iterator[Condition]:
    """Yield all conditions for collections and their tastes, those first that say most and cost least."""
    *few, most = NUMBERS
    for each in seen:
        yield Condition(*each, "start", numbers=(0,))
    for seed in seeds:
        for each in seen:
            for method in METHODS:
                yield Condition(*each, method, 0.0, seed, tuple(few))
        if seed == seeds[0]:
            for each in seen:
                yield Condition(*each, "ceiling", numbers=(CEILING,))
    for seed in seeds:
        for each in seen:
            for wrong in WRONG:
                yield Condition(*each, "clever", wrong, seed, FEW)
        for each in seen:
            yield Condition(*each, "rounds", 0.0, seed, FEW)
    for seed in seeds:
        for method in METHODS:
            for each in seen:
                yield Condition(*each, method, 0.0, seed, (most,))


def collections(photos: Path, out: Path, model: str) -> dict[str, Collection]:
    """Unpack and embed both sets."""
    if not (out / "clothing").exists():
        with zipfile.ZipFile(photos) as packed:
            packed.extractall(out)
    made = {}
    for name, labels in SETS.items():
        data = open_dataset(out / name, labels=labels)
        gallery = (*data.train, *data.val)
        pictures = embedded((*gallery, *data.test), model, out / f"{name}.npz")
        made[name] = Collection(name, pictures, len(gallery))
    return made


def embedded(samples: Sequence[Sample], model: str, kept: Path) -> EmbeddedSplit:
    """Return the pictures with their vectors, from the file of an earlier run where there is one."""
    if kept.exists():
        arrays = np.load(kept)
        return EmbeddedSplit(tuple(samples), arrays["vectors"], tuple(map(bytes, arrays["hashes"])))
    split = embed_split(samples, Embedder(find_model(model)))
    np.savez(kept, vectors=split.vectors, hashes=np.array([list(each) for each in split.hashes], dtype=np.uint8))
    return split


def rated(both: dict[str, Collection], name: str, liking: str) -> Rated:
    """Return a collection as a rater of a taste sees it."""
    collection = both[name]
    (other,) = (each for each in both.values() if each is not collection)
    similar = taste(liking, collection.pictures.samples, np.arange(collection.gallery))
    return Rated(collection, similar, held_out_ratings(collection, similar), other)


class Measured:
    """The points of conditions, by their names; figures are means over the seeds."""

    def __init__(self, folder: Path, chosen: Sequence[Condition]) -> None:
        self._found: list[tuple[Condition, Points]] = []
        for condition in chosen:
            path = folder / f"{condition.name}.json"
            if path.exists():
                self._found.append((condition, json.loads(path.read_text("utf-8"))))

    @property
    def seen(self) -> list[tuple[str, str]]:
        """Collections and tastes, each once."""
        return list(dict.fromkeys((condition.collection, condition.taste) for condition, _ in self._found))

    def points(self, seen: tuple[str, str], method: str, number: int, wrong: float = 0.0) -> Points:
        """Return the point of each seed; of 0 ratings the start's, whatever the method."""
        sought = (*seen, "start" if number == 0 else method, wrong)
        return [
            point
            for condition, points in self._found
            if (condition.collection, condition.taste, condition.method, condition.wrong) == sought
            for point in points
            if point["ratings"] == number
        ]

    def figure(self, figure: str, seen: tuple[str, str], method: str, number: int, wrong: float = 0.0) -> float | None:
        """Return a mean of :class:`~rating_sessions.Figures`; None if it was not measured."""
        values = [point["figures"][figure] for point in self.points(seen, method, number, wrong)]
        return statistics.mean(values) if values else None

    def gain(self, figure: str, seen: tuple[str, str], method: str, number: int) -> float | None:
        """Return the gain over the start."""
        before, after = (self.figure(figure, seen, method, count) for count in (0, number))
        return None if before is None or after is None else after - before


def cell(value: float | None, form: str = ".3f") -> str:
    """Return a figure as text; empty if it was not measured."""
    return "" if value is None else format(value, form)


def table_of_figures(measured: Measured) -> None:
    """Print similarity precision and precision@10 for each way of asking; the others for the clever one."""
    shown = [(figure, method) for figure in ("similarity", "precision") for method in METHODS]
    shown += [("score", "clever"), ("elsewhere", "clever")]
    rows = []
    for seen in measured.seen:
        for number in (0, *NUMBERS, CEILING):
            ways = {"clever": "ceiling"} if number == CEILING else {method: method for method in METHODS}
            cells = [
                cell(
                    measured.figure(figure, seen, ways[method], number) if method in ways else None,
                    ",.0f" if figure == "score" else ".3f",
                )
                for figure, method in shown
            ]
            rows.append([", ".join(seen), "ceiling" if number == CEILING else f"{number:,}", *cells])
    names = {"similarity": "similarity precision", "precision": "precision@10", "score": "score-at-top-30"}
    names["elsewhere"] = "elsewhere"
    header = [f"{names[figure]}: {method}" for figure, method in shown]
    print_table(("photographs, taste", "ratings", *header), rows, 1)


def table_of_errors(measured: Measured) -> None:
    """Print what raters who err teach."""
    rows = []
    for seen in measured.seen:
        for number in FEW:
            figures = (
                measured.figure(figure, seen, "clever", number, wrong)
                for figure in ("similarity", "precision")
                for wrong in (0.0, *WRONG)
            )
            rows.append([", ".join(seen), f"{number:,}", *map(cell, figures)])
    header = [
        f"{name}: {100 * wrong:.0f} % wrong"
        for name in ("similarity precision", "precision@10")
        for wrong in (0.0, *WRONG)
    ]
    print_table(("photographs, taste", "ratings", *header), rows, 1)


def table_of_rounds(measured: Measured) -> None:
    """Print one round against rounds of teaching, and the questions that were skipped for 100 ratings."""
    rows = []
    for seen in measured.seen:
        for number in FEW:
            figures = [
                measured.figure(figure, seen, method, number)
                for figure in ("similarity", "precision")
                for method in ("clever", "rounds")
            ]
            skips = [
                [100 * point["skipped"] / number for point in measured.points(seen, method, number)]
                for method in (*METHODS, "rounds")
            ]
            shares = [cell(statistics.mean(each) if each else None, ",.0f") for each in skips]
            rows.append([", ".join(seen), f"{number:,}", *map(cell, figures), *shares])
    header = [
        f"{name}: {kind}" for name in ("similarity precision", "precision@10") for kind in ("one round", "rounds")
    ]
    skipped = [f"skipped: {method}" for method in (*METHODS, "rounds")]
    print_table(("photographs, taste", "ratings", *header, *skipped), rows, 1)


def table_of_verdicts(measured: Measured) -> None:
    """Print how many sessions the learner's own comparison judges better than the start."""
    ways = [("clever", 0.0), *(("clever", wrong) for wrong in WRONG), ("random", 0.0)]
    rows = []
    for seen in measured.seen:
        verdicts = [
            [point["verdict"] for point in measured.points(seen, method, number, wrong)]
            for method, wrong in ways
            for number in FEW
        ]
        cells = [f"{each.count('better')} of {len(each)}" if each else "" for each in verdicts]
        rows.append([", ".join(seen), *cells])
    names = [f"{method}, {100 * wrong:.0f} % wrong" if wrong else method for method, wrong in ways]
    print_table(("photographs, taste", *(f"{name}: {number:,}" for name in names for number in FEW)), rows, 1)


def table_of_aims(measured: Measured) -> None:
    """Print the share of the ceiling's gain that 200 ratings give, how many the others need, and the loss elsewhere."""
    rows = []
    for seen in measured.seen:
        cells = []
        for figure in ("similarity", "precision"):
            few, most = measured.gain(figure, seen, "clever", 200), measured.gain(figure, seen, "ceiling", CEILING)
            cells.append(cell(few / most if few is not None and most else None, ".0%"))
            cells += [needed(measured, figure, seen, method) for method in ("near", "random")]
        losses = [measured.gain("elsewhere", seen, "clever", number) for number in NUMBERS[1:]]
        rows.append([", ".join(seen), *cells, *(cell(None if loss is None else 100 * loss, "+.1f") for loss in losses)])
    header = [
        f"{name}: {what}"
        for name in ("similarity precision", "precision@10")
        for what in ("share of the ceiling's gain", "near needs", "random needs")
    ]
    print_table(("photographs, taste", *header, *(f"elsewhere, {number:,}" for number in NUMBERS[1:])), rows, 1)


def needed(measured: Measured, figure: str, seen: tuple[str, str], method: str) -> str:
    """Return how many ratings another way of asking needs for the gain of 200 clever ones, between measured numbers."""
    sought = measured.gain(figure, seen, "clever", 200)
    gains = [(number, measured.gain(figure, seen, method, number)) for number in NUMBERS]
    known = [(number, gain) for number, gain in gains if gain is not None]
    if sought is None or not known:
        return ""
    if known[0][1] >= sought:
        return f"≤ {known[0][0]:,}"
    for (low, before), (high, after) in itertools.pairwise(known):
        if after >= sought:
            share = (sought - before) / (after - before)
            return f"{math.exp((1 - share) * math.log(low) + share * math.log(high)):,.0f}"
    return f"> {known[-1][0]:,}"


def drawing(measured: Measured) -> str:
    """Return the curves of similarity precision as an SVG file."""
    places = (0, *NUMBERS)
    shown = []
    for seen in measured.seen:
        curves = {
            method: [(x, y) for x in places if (y := measured.figure("similarity", seen, method, x)) is not None]
            for method in METHODS
        }
        shown.append(Panel(", ".join(seen), curves, measured.figure("similarity", seen, "ceiling", CEILING)))
    return panels("Similarity precision on held-out ratings by the number of ratings", places, "ceiling", shown)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> None:
    """Print a Markdown table whose first columns are words."""
    print("", *markdown_table(header, rows, right_aligned=range(words, len(header))), "", sep="\n", flush=True)


def main() -> None:
    """Measure the conditions that are not measured yet, then print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="pretrained-fp32")
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=tuple(SETS))
    parser.add_argument("--tastes", nargs="+", choices=TASTES, default=TASTES)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--tables", action="store_true", help="print what was measured before, and measure nothing")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    print(machine(), flush=True)
    chosen = list(conditions(list(itertools.product(arguments.sets, arguments.tastes)), arguments.seeds))
    if not arguments.tables:
        measure(arguments, chosen)
    measured = Measured(arguments.out, chosen)
    for table in (table_of_figures, table_of_errors, table_of_rounds, table_of_verdicts, table_of_aims):
        table(measured)
    (arguments.out / "teaching.svg").write_text(drawing(measured), "utf-8")


def measure(arguments: argparse.Namespace, chosen: Sequence[Condition]) -> None:
    """Measure the conditions without a file, and write their files."""
    both = collections(arguments.photos, arguments.out, arguments.model)
    seen: dict[tuple[str, str], Rated] = {}
    for condition in chosen:
        path = arguments.out / f"{condition.name}.json"
        if path.exists():
            continue
        key = condition.collection, condition.taste
        if key not in seen:
            seen[key] = rated(both, *key)
        began = time.monotonic()
        points = condition.points(seen[key])
        path.write_text(json.dumps(points, indent=1) + "\n", "utf-8")
        last = points[-1]
        print(
            f"{condition.name}: {last['ratings']:,} ratings, {last['skipped']:,} skipped, "
            f"similarity precision {last['figures']['similarity']:.3f}, "
            f"precision@10 {last['figures']['precision']:.3f}, {last['verdict']}, {time.monotonic() - began:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
