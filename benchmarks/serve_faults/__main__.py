"""Trouble for ``deeprank-serve``: what is answered wrongly, is lost or fails, as a table; exit status 1 if any is.

python benchmarks/serve_faults
python benchmarks/serve_faults --only storms,fuzz --clients 1000 --storms 3 --uploads 5000 --seed 1

storms: very many clients at once, all kinds of questions; more than the server accepts
floods: very large uploads at once; senders that dribble, stop, go away or do not read their answers
changes: the index is synced, cleaned, copied over, embedded anew, damaged and repaired while clients ask
endings: kill -9 under load with uploads going on, then a new start; SIGTERM under load
contract: schemathesis against the server's OpenAPI document
fuzz: mutated pictures of every format, bombs, malformed forms
stalls: how long /healthz waits while others search, and while very large pictures are decoded
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import logging
import sys
import tempfile
import time
from pathlib import Path

from results import Tally, show

# Each kind of trouble, and the module that makes it.
KINDS = {
    "storms": "overload",
    "floods": "slow_clients",
    "changes": "changes",
    "endings": "shutdown",
    "contract": "contract",
    "fuzz": "fuzz",
    "stalls": "liveness",
}


def main() -> int:
    """Make what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(KINDS), help="kinds of trouble, with commas between")
    parser.add_argument("--pictures", type=int, default=1000, help="in the index")
    parser.add_argument("--clients", type=int, default=1000, help="of a storm")
    parser.add_argument("--storms", type=int, default=5)
    parser.add_argument("--large", type=int, default=64, help="uploads of 20 MB at once")
    parser.add_argument("--slow", type=int, default=200, help="clients of each kind of slowness")
    parser.add_argument("--rounds", type=int, default=5, help="of changes to the index")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--examples", type=int, default=100, help="of each operation of the API")
    parser.add_argument("--phases", default="coverage,fuzzing,stateful", help="of schemathesis")
    parser.add_argument("--servers", default="open,writing", help="that schemathesis asks")
    parser.add_argument("--uploads", type=int, default=5000, help="of the fuzz")
    parser.add_argument("--megapixels", type=int, default=50, help="of very large pictures")
    parser.add_argument("--formats", default="JPEG,progressive,PNG,WebP,TIFF,AVIF", help="of these")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    kinds = arguments.only.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"unknown kinds of trouble: {', '.join(sorted(unknown))}; expected some of {', '.join(KINDS)}")
    with tempfile.TemporaryDirectory(prefix="deeprank-serve-faults-") as folder:
        return _run(Path(folder).resolve(), kinds, arguments)


def _run(folder: Path, kinds: list[str], arguments: argparse.Namespace) -> int:
    from fixture import make_world

    started = time.monotonic()
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # which tells of each client that goes away
    _allow_many_files()
    world = make_world(folder, arguments.pictures)
    tallies: list[Tally] = []
    for kind in kinds:
        module = importlib.import_module(KINDS[kind])
        wanted = set(inspect.signature(module.run).parameters) & set(vars(arguments))
        for tally in module.run(world, **{name: getattr(arguments, name) for name in wanted}):
            tallies.append(tally)
            print(f"{time.monotonic() - started:.0f} s: {tally.what}: {tally.requests} requests", file=sys.stderr)
            for failure in tally.failures[:5]:
                print(f"    {failure}", file=sys.stderr)
    show(tallies, arguments)
    return int(not all(tally.clean for tally in tallies))


def _allow_many_files() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536) if hard > 0 else 65_536, hard))


if __name__ == "__main__":
    sys.exit(main())
