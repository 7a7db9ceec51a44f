"""Run every benchmark, each in a process of its own, one after the other: ``make bench DATA=tiny-imagenet-subset.zip``.

What takes long to make (embeddings, galleries, indexes) stays in --cache. ``--quick`` takes small sizes, to see that
everything runs; its figures are worth little.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from deeprank.runtime.errors import DeepRankError
from deeprank.runtime.model.pretrained import find_model

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Script:
    """A benchmark: which of the options it shares with others it takes, and its own, in full and quick."""

    name: str
    takes: tuple[str, ...]
    full: str = ""
    quick: str = ""


SCRIPTS = (
    Script("cold_query.py", ("model", "data"), quick="--rounds 5"),
    Script("folder_embedding.py", ("model", "data"), quick="--pictures 256 --rounds 2"),
    Script(
        "vector_search.py",
        ("model", "data", "cache"),
        "--sizes 10000,100000,1000000",
        "--sizes 10000 --rounds 3 --singles 50",
    ),
    Script(
        "scale.py",
        ("model", "data", "cache"),
        "--sizes 10000,100000,1000000",
        "--sizes 2000,10000 --rounds 3 --add-rounds 1",
    ),
    Script("equal_vectors.py", (), quick="--sets 2000,0,0 200,4,100"),
    Script("serving.py", ("model", "data"), quick="--gallery 500 --requests 100 --rounds 1"),
    Script("browsing.py", ("model",), quick="--rows 20000 --pictures 4"),
    Script("sync_unchanged.py", ("model", "data", "cache"), "--files 100000", "--files 2000 --rounds 3"),
    Script("batch_size.py", ("model",), quick="--rounds 2 --pictures 64"),
    Script("large_pictures.py", ("model",), quick="--copies 2"),
    Script("near_duplicates.py", ("data",), "--gallery 50000 --originals 1000", "--gallery 500 --originals 20"),
    Script("faults", (), quick="--only kills,disk --kills 30 --calls 2"),
    Script(
        "serve_faults",
        (),
        "--clients 1000",
        "--pictures 100 --clients 200 --storms 2 --large 16 --slow 20 --rounds 1 --kills 2 --examples 5 --uploads 200 "
        "--megapixels 6",
    ),
    Script("training_throughput.py", ("data",), quick="--rounds 1 --steps 4 --frozen-steps 40"),
)


def main() -> None:
    """Run them one after the other, so that none disturbs another; one that fails does not stop the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pretrained", help="default: the one that ships")
    parser.add_argument("--data", required=True)
    parser.add_argument("--cache", type=Path, default=Path("data/benchmarks"), help="default: %(default)s")
    parser.add_argument("--quick", action="store_true")
    names = [script.name.removesuffix(".py") for script in SCRIPTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    arguments = parser.parse_args()
    shared = {"data": arguments.data, "cache": str(arguments.cache)}
    try:
        shared["model"] = str(find_model(arguments.model))
    except DeepRankError as error:
        sys.exit(f"error: {error}")
    if not Path(shared["model"]).is_file():
        sys.exit(f"error: {shared['model']} does not exist; make one with deeprank-export, or leave out --model.")
    failed = []
    for script in SCRIPTS:
        if script.name.removesuffix(".py") not in arguments.only:
            continue
        words = [word for name in script.takes for word in (f"--{name}", shared[name])]
        words += (script.quick if arguments.quick else script.full).split()
        print(f"\n$ python benchmarks/{script.name} {shlex.join(words)}\n", flush=True)
        if subprocess.run([sys.executable, str(HERE / script.name), *words]).returncode:
            failed.append(script.name)
    if failed:
        sys.exit(f"error: {', '.join(failed)} failed.")


if __name__ == "__main__":
    main()
