"""Faults against an index: what is lost, answered wrongly or crashes, as a Markdown table; exit status 1 if any is.

python benchmarks/faults
python benchmarks/faults --only kills,powercut --kills 300 --calls 0 --seed 1

kills: kill -9 at random moments, before every call that changes a file, and in the middle of every write
powercut: what was not synced is lost, at every call
disk: the disk is full (a small tmpfs where we are root; else, and besides, write() says so), or reports errors
damage: bytes flipped, blocks zeroed or swapped, files cut, in graph.hnsw, model.onnx, items.sqlite and its log, and
  ratings.sqlite
readers, writers, users: others at the same time; a read-only folder of another user
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import shutil
import sys
import tempfile
import time
from pathlib import Path

import shim

KINDS = ("kills", "powercut", "disk", "damage", "readers", "writers", "users")
_MODULES = {"users": "permissions"}


def main() -> int:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(KINDS), help="kinds of faults, with commas between")
    parser.add_argument("--commands", default="", help="with commas between; default: all that write")
    parser.add_argument("--kills", type=int, default=300, help="at random moments, in all")
    parser.add_argument("--calls", type=int, default=40, help="calls of each command to fail at; 0: all of them")
    parser.add_argument("--damages", type=int, default=8, help="places in each 512 bytes to be damaged")
    parser.add_argument("--share", type=float, default=1.0, help="of the damages to be tried")
    parser.add_argument("--files", default="", help="to be damaged, with commas between; default: all")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long readers and writers run, each command")
    parser.add_argument("--pictures", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    kinds = arguments.only.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"unknown kinds of faults: {', '.join(sorted(unknown))}; expected some of {', '.join(KINDS)}")
    folder = shim.scratch() or Path(tempfile.mkdtemp(prefix="deeprank-faults-")).resolve()
    shim.restart_with_shim(folder)
    try:
        return _run(folder, kinds, arguments)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(folder: Path, kinds: list[str], arguments: argparse.Namespace) -> int:
    from fixture import make_world
    from forked_commands import Forks

    folder.chmod(0o755)
    (folder / "said").mkdir()
    started = time.monotonic()
    world = make_world(folder, Forks(folder / "said"), arguments.pictures)
    world.wanted = [name for name in arguments.commands.split(",") if name]
    tallies = []
    for kind in kinds:
        module = importlib.import_module(_MODULES.get(kind, kind))
        wanted = set(inspect.signature(module.run).parameters) & set(vars(arguments))
        for tally in module.run(world, **{name: getattr(arguments, name) for name in wanted}):
            tallies.append(tally)
            print(f"{time.monotonic() - started:.0f} s: {tally.fault}: {tally.runs} runs", file=sys.stderr)
            for failure in tally.failures[:5]:
                print(f"    {failure}", file=sys.stderr)
    import report

    report.show(tallies, arguments, sorted(set(world.missing)))
    return int(not all(tally.clean for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
