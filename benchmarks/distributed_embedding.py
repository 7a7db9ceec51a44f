"""Two Ray nodes of one core each against one process with two cores, by pictures per second of ``deeprank-embed``.

Both embed the same pictures into parts of the same size, and take turns. Start-up is left out: the clock of a run
starts when its first parts are done (one for each core), and stops with the last one. Their files tell both times.

    python benchmarks/distributed_embedding.py --photos photos --rounds 3
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common import in_turn, machine, ratio

from deeprank.runtime.formats import EXTENSIONS
from deeprank.runtime.model.pretrained import find_model
from deeprank.runtime.parts import EmbeddedFolder

COMMAND = Path(sys.executable).with_name("deeprank-embed")
CORES = 2


def copies(photos: Path, folder: Path, count: int) -> Path:
    """Make a folder of ``count`` pictures: each photograph once, then once more, and so on."""
    paths = sorted(path for path in photos.rglob("*") if path.suffix.lower() in EXTENSIONS)
    if not paths:
        sys.exit(f"error: {photos} holds no pictures")
    folder.mkdir()
    for number, path in enumerate(itertools.islice(itertools.cycle(paths), count)):
        shutil.copy(path, folder / f"{number:06d}{path.suffix.lower()}")
    return folder


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """Start two nodes of one core each, and yield their address."""
    place = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short, because sockets lie below it
    os.environ |= {"RAY_TMPDIR": place, "RAY_USAGE_STATS_ENABLED": "0"}
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(CORES - 1):
        nodes.add_node(num_cpus=1)
    try:
        yield nodes.address
    finally:
        nodes.shutdown()
        shutil.rmtree(place, ignore_errors=True)


def rate(pictures: Path, model: Path, part_size: int, how: list[str]) -> float:
    """Embed the pictures, and return how many a second, after the first part of each core."""
    with tempfile.TemporaryDirectory(prefix="deeprank-") as place:
        out = Path(place, "parts")
        words = [COMMAND, pictures, "--out", out, "--model", model, "--part-size", str(part_size), *how]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        folder = EmbeddedFolder.open(out)
        (generation,) = folder.generations
        ends = sorted(((out / part.vectors).stat().st_mtime, generation.listed(part)) for part in generation.part_names)
    seconds = ends[-1][0] - ends[CORES - 1][0]
    return sum(count for _, count in ends[CORES:]) / seconds


def main() -> None:
    """Print both rates' ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of pictures, repeated as often as needed")
    parser.add_argument("--model", default="pretrained", help="default: the one that ships")
    parser.add_argument("--pictures", type=int, default=3072, help="default: %(default)s")
    parser.add_argument("--part-size", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    arguments = parser.parse_args()
    model = find_model(arguments.model)
    with tempfile.TemporaryDirectory(prefix="deeprank-") as place, cluster() as address:
        pictures = copies(arguments.photos, Path(place, "photos"), arguments.pictures)
        ray, here = in_turn(
            lambda: rate(pictures, model, arguments.part_size, ["--engine", "ray", "--address", address]),
            lambda: rate(pictures, model, arguments.part_size, ["--threads", str(CORES)]),
            arguments.rounds,
        )
    print(machine())
    print(f"{arguments.pictures:,} pictures in parts of {arguments.part_size}; pictures per second, in turn:")
    for name, rates in (("two Ray nodes of one core", ray), ("one process with two cores", here)):
        print(f"  {name}: {', '.join(f'{each:.1f}' for each in rates)}")
    print(f"  Ray / one process: {ratio(ray, here)}")


if __name__ == "__main__":
    main()
