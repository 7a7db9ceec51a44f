"""Attacks the library, the commands and a running server for a time, and prints what came of it as a Markdown table.

python benchmarks/attack --minutes 60 --seed 1 --out report.md
python benchmarks/attack --only "mutated pictures,graphs" --targets library,commands --minutes 5
python benchmarks/attack --rounds 1 --commands 0    every kind that is known once, with every command
python benchmarks/attack --again 1/graphs/near/0    one input again; @TARGET:ACTION for one of them alone

Inputs are those of the makers (pictures, archives, graphs, databases, folders, models, http_bytes) and mutations of
honest and hostile ones. The same seed gives the same inputs in the same order; how many there are is a matter of time.
Every input has limits: 512 MB beyond the idle process and 10 s of CPU time for the library and for a command; for the
server 512 MB, and an honest client beside must get right answers, at most 1 s later than from a server that nobody
attacks. Exit status 1 if anything crashed, went beyond a limit, answered wrongly, did harm to what lies beside it or
gave out a secret.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cases import Case, Kind, case_of, chosen, planted_kinds
from fixture import World, make_world
from limits import adopt_orphans, children_of, end_tree, prepare_parent_death
from outcomes import Outcome, details, table

TARGETS = ("library", "commands", "server")
# In each round after the first, what mutates is tried so often, and what is made once.
_MUTATIONS_A_ROUND = 5
_ENDING_S = 20.0
# How long after the end of the time a lane may be busy with its last input.
_LAST_INPUT_S = 600.0
_MAKING_S = 120
_MOST_FAILURES = 20
_REPORT_S = 60.0


def main() -> int:
    """Run what was asked for and print the table."""
    arguments = _arguments()
    if arguments.lane:
        return _lane(arguments)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _interrupt)
    folder = Path(tempfile.mkdtemp(prefix="deeprank-attack-")).resolve()
    try:
        if arguments.planted:
            (folder / "planted").mkdir()
            shutil.copyfile(Path(__file__).with_name("planted_faults.py"), folder / "planted" / "sitecustomize.py")
            os.environ["PYTHONPATH"] = str(folder / "planted")
        make_world(folder).save(folder / "world.json")
        return _attack(folder, arguments)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds: groups, families or full names, with commas between")
    parser.add_argument("--targets", default=",".join(TARGETS), help="of these, with commas between")
    parser.add_argument("--rounds", type=int, default=0, help="end after so many; default: when the time is over")
    parser.add_argument("--commands", type=int, default=3, help="that take the first input of a kind; 0: all of them")
    parser.add_argument("--out", type=Path, help="write the report to this file, too, and keep it up to date")
    parser.add_argument("--keep", type=Path, help="keep each input that something fell for in this folder")
    parser.add_argument("--again", default="", metavar="CASE", help="run one input again and say all that came of it")
    parser.add_argument("--planted", action="store_true", help="attack a package with planted faults: they are found")
    parser.add_argument("--lane", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        arguments.kinds = _kinds(arguments)
        if unknown := set(arguments.targets.split(",")) - set(TARGETS):
            parser.error(f"unknown targets: {', '.join(sorted(unknown))}; expected some of {', '.join(TARGETS)}")
    except ValueError as error:
        parser.error(str(error))
    return arguments


def _kinds(arguments: argparse.Namespace) -> list[Kind]:
    if arguments.planted:
        return planted_kinds()
    if arguments.again:
        case_of(arguments.again.partition("@")[0])
    return chosen(name.strip() for name in arguments.only.split(",") if name.strip())


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt


# -- all lanes ---------------------------------------------------------------------------------------------------------


def _attack(folder: Path, arguments: argparse.Namespace) -> int:
    """Run a lane for each target, gather what they say, and report."""
    started = time.monotonic()
    adopt_orphans()
    said: queue.Queue[dict[str, Any] | None] = queue.Queue()
    lanes = [_started_lane(target, folder, arguments, said) for target in _targets(arguments)]
    outcomes: list[Outcome] = []
    notes: list[str] = []
    failed: list[str] = []
    left, next_report, interrupted = len(lanes), started + _REPORT_S, False
    try:
        while left:
            with contextlib.suppress(queue.Empty):
                line = said.get(timeout=1.0)
                if line is None:
                    left -= 1
                elif "failed" in line:
                    failed.append(line["failed"])
                    print(f"    {failed[-1]}", file=sys.stderr, flush=True)
                elif "note" in line:
                    notes.append(line["note"])
                else:
                    outcomes.append(Outcome(**line))
                    _tell(outcomes[-1], arguments)
            if time.monotonic() > started + 60 * arguments.minutes + _LAST_INPUT_S:
                failed.append("FAILED: a lane of the attack itself does not end")
                break
            if time.monotonic() > next_report:
                next_report = time.monotonic() + _REPORT_S
                _progress(outcomes, started)
                _write(arguments, _report(outcomes, [*notes, *failed], arguments, time.monotonic() - started))
    except KeyboardInterrupt:
        interrupted = True
        notes.append("Interrupted.")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        failed += _end(lanes, interrupted)
    while not said.empty():
        line = said.get()
        if line is not None and "verdict" in line:
            outcomes.append(Outcome(**line))
    report = _report(outcomes, [*notes, *failed], arguments, time.monotonic() - started)
    _write(arguments, report)
    print("\n".join(report))
    return int(any(outcome.is_bad for outcome in outcomes) or bool(failed) or not outcomes)


def _targets(arguments: argparse.Namespace) -> list[str]:
    if arguments.again and "@" in arguments.again:
        return [arguments.again.partition("@")[2].partition(":")[0]]
    return str(arguments.targets).split(",")


def _started_lane(
    target: str, folder: Path, arguments: argparse.Namespace, said: queue.Queue[dict[str, Any] | None]
) -> subprocess.Popen[bytes]:
    words = [sys.executable, str(Path(__file__).resolve().parent), "--lane", target, "--folder", str(folder)]
    for name in ("minutes", "seed", "only", "rounds", "keep", "again", "commands"):
        if (value := getattr(arguments, name)) not in (None, ""):
            words += [f"--{name}", str(value.resolve() if isinstance(value, Path) else value)]
    words += ["--planted"] if arguments.planted else []
    lane = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True, preexec_fn=prepare_parent_death
    )

    def read() -> None:
        assert lane.stdout is not None
        for line in lane.stdout:
            with contextlib.suppress(ValueError):
                said.put(json.loads(line))
        said.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lane


def _end(lanes: Sequence[subprocess.Popen[bytes]], interrupted: bool) -> list[str]:
    """End all lanes and what they started; return which failed by themselves."""
    for lane in lanes:
        if lane.poll() is None:
            lane.terminate()
    failed = []
    for lane in lanes:
        try:
            lane.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            end_tree(lane.pid)
            lane.wait()
        if lane.returncode != 0 and not interrupted:
            failed.append(f"FAILED: a lane of the attack itself ended with {lane.returncode}")
    for pid in children_of(os.getpid()):
        end_tree(pid)
    return failed


def _tell(outcome: Outcome, arguments: argparse.Namespace) -> None:
    if outcome.is_bad or arguments.again:
        print(f"    {outcome.sentence}", file=sys.stderr, flush=True)


def _progress(outcomes: Sequence[Outcome], started: float) -> None:
    counts = {target: sum(outcome.target == target for outcome in outcomes) for target in TARGETS}
    bad = sum(outcome.is_bad for outcome in outcomes)
    shown = ", ".join(f"{target} {count:,}" for target, count in counts.items())
    print(f"{time.monotonic() - started:.0f} s: {shown}; {bad} bad", file=sys.stderr, flush=True)


def _report(
    outcomes: Sequence[Outcome], notes: Sequence[str], arguments: argparse.Namespace, seconds: float
) -> list[str]:
    options = f"--minutes {arguments.minutes:g} --seed {arguments.seed}"
    options += f" --only {arguments.only!r}" if arguments.only else ""
    options += f" --rounds {arguments.rounds}" if arguments.rounds else ""
    head = [f"`python benchmarks/attack {options}`: {seconds / 60:.1f} minutes", ""]
    return [*head, *table(outcomes), "", *notes, "", *details(outcomes)]


def _write(arguments: argparse.Namespace, report: Sequence[str]) -> None:
    if arguments.out is not None:
        prepared = arguments.out.with_name(f"{arguments.out.name}.part")
        prepared.write_text("\n".join(report) + "\n", "utf-8", "replace")
        prepared.replace(arguments.out)


# -- one lane ----------------------------------------------------------------------------------------------------------


def _lane(arguments: argparse.Namespace) -> int:
    """Attack one target and say on stdout what came of it."""
    adopt_orphans()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    world = World.load(arguments.folder / "world.json")
    target = _target(arguments.lane, world, 0 if arguments.again else arguments.commands)
    answers = os.fdopen(os.dup(1), "w", errors="replace")
    os.dup2(2, 1)
    until = time.monotonic() + 60 * arguments.minutes
    told = failures = 0
    try:
        for case in _cases(arguments):
            if time.monotonic() > until:
                break
            try:
                for outcome in _run(target, case, world, arguments):
                    print(json.dumps(outcome.document()), file=answers, flush=True)
            except Exception as error:  # of the attack itself: what is left of the time is not to be lost
                failures += 1
                said = (
                    f"FAILED: the attack itself, at {case.name} and {arguments.lane}: {type(error).__name__}: {error}"
                )
                print(json.dumps({"failed": said[:800]}), file=answers, flush=True)
                target.close()
                if failures > _MOST_FAILURES:
                    break
            for note in getattr(target, "notes", [])[told:]:
                print(json.dumps({"note": note}), file=answers, flush=True)
                told += 1
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        target.close()
        for pid in children_of(os.getpid()):
            end_tree(pid)
    return 0


def _target(name: str, world: World, commands: int) -> Any:
    if name == "library":
        from library import Library

        return Library(world)
    if name == "commands":
        from commands import Commands

        return Commands(world, commands)
    from server import Server

    return Server(world)


def _cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """Yield what to try: every kind once, then mutations more often than what makers make."""
    if arguments.again:
        yield case_of(arguments.again.partition("@")[0])
        return
    kinds = _in_turn(arguments.kinds)
    for number in itertools.count():
        if arguments.rounds and number >= arguments.rounds:
            return
        for kind in kinds:
            if number == 0 or not kind.mutates:
                yield Case(arguments.seed, kind, number)
        if number:
            for repeat, kind in itertools.product(range(_MUTATIONS_A_ROUND), kinds):
                if kind.mutates:
                    yield Case(arguments.seed, kind, (number - 1) * _MUTATIONS_A_ROUND + repeat + 1)


def _in_turn(kinds: Sequence[Kind]) -> list[Kind]:
    """Return kinds so that those of all groups come soon, whenever the time is over."""
    groups: dict[str, list[Kind]] = {}
    for kind in kinds:
        groups.setdefault(kind.group, []).append(kind)
    places = [((number + 0.5) / len(group), kind) for group in groups.values() for number, kind in enumerate(group)]
    return [kind for _, kind in sorted(places, key=lambda place: place[0])]


def _run(target: Any, case: Case, world: World, arguments: argparse.Namespace) -> Iterator[Outcome]:
    """Make an input, let a target take it, and keep it if that went badly."""
    if not target.accepts(case):
        return
    folder = world.case_folder(target.name)
    try:
        with _alarm(_MAKING_S):
            path = None if case.kind.family == "http" else case.make(folder, world)
        only = arguments.again.partition("@")[2].partition(":")[2]
        for outcome in target.run(case, folder, path, only):
            yield outcome
            if outcome.is_bad and arguments.keep is not None:
                _keep(arguments.keep, case, outcome, world)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in what takes longer than this."""

    def ring(number: int, _: object) -> None:
        raise TimeoutError(f"an input is not made after {seconds} s")

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def _keep(place: Path, case: Case, outcome: Outcome, world: World) -> None:
    """Keep an input, made anew, and what came of it."""
    name = f"{outcome.case} {outcome.target} {outcome.action}".replace("/", "_").replace(" ", "-")
    folder = place / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "case.json").write_text(json.dumps(outcome.document(), indent=1))
    made = case.make(folder, world)
    if case.kind.family == "http":
        pieces = [made] if isinstance(made, bytes) else itertools.islice(made, 20)
        (folder / "sent.bin").write_bytes(b"".join(pieces))


if __name__ == "__main__":
    sys.exit(main())
