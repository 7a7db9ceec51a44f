"""What a new user gets on photographs of their own: train, export, sync, query, eval, each command as it is typed.

    python benchmarks/own_photographs.py --photos photos.zip --out results/photographs

The zip holds folders in their makers' layouts: ``clothing/{train,validation,test}/CLASS`` and
``grocery/{train,test}/GROUP[/KIND]/CLASS``. Prints a Markdown table: precision@30 of the test pictures against the
train pictures for the model that ships and for the trained one, and how long each command took. Minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from pathlib import Path

from common import machine
from tiny_imagenet import timed

from deeprank.runtime.text import markdown_table

# What is typed besides the folder: in grocery the class is the innermost folder.
SETS = {"clothing": (), "grocery": ("--labels", "leaf")}


def main() -> None:
    """Run the commands for each set and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=tuple(SETS))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    with zipfile.ZipFile(arguments.photos) as packed:
        packed.extractall(arguments.out)
    print(machine())
    rows = [row for name in arguments.sets for row in measure(arguments.out, name, SETS[name])]
    header = ("photographs", "model", "precision@30", "of at most", "recall@1", "MAP@R", "seconds")
    print("\n".join(markdown_table(header, rows, right_aligned=range(2, 6))))


def measure(folder: Path, name: str, labels: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Run the commands on a set; return the rows of the model that ships and of the trained one."""
    run, model, index = f"{name}.run", f"{name}.onnx", f"{name}.index"
    query = min(path for path in (folder / name / "test").rglob("*.jpg")).relative_to(folder)
    commands = {
        "train": ("deeprank-train", name, *labels, "--out", run),
        "export": ("deeprank-export", run, "--out", model),
        "sync": ("deeprank-index", "sync", name, *labels, "--index", index, "--model", model),
        "query": ("deeprank-query", query, "--index", index),
    }
    seconds = {step: timed(*command, folder=folder)[1] for step, command in commands.items()}
    return [
        evaluated(folder, name, labels, "the one that ships", "pretrained", {}),
        evaluated(folder, name, labels, "trained on its train pictures", model, seconds),
    ]


def evaluated(
    folder: Path, name: str, labels: tuple[str, ...], words: str, model: str, seconds: dict[str, float]
) -> tuple[str, ...]:
    """Evaluate a model on the test pictures of a set; return its row."""
    asked = ("deeprank-eval", "--model", model, "--data", name, *labels, "--split", "test", "--json")
    output, took = timed(*asked, folder=folder)
    figures = json.loads(output)
    return (
        name,
        words,
        f"{figures['precision_at_k']['runtime_exact']:.3f}",
        f"{figures['possible_precision_at_k']:.3f}",
        f"{figures['recall_at_1']:.3f}",
        f"{figures['map_at_r']:.3f}",
        ", ".join(f"{step} {value:.1f}" for step, value in {**seconds, "eval": took}.items()),
    )


if __name__ == "__main__":
    main()
