"""The commands as a target, each in a process of its own, under limits."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from budgets import allowed
from cases import Case
from fixture import BIN, K, World
from harm import Harm
from index_mutations import vouch_for_model
from limits import Limits, Usage, run_limited
from outcomes import ANSWERED, CRASHED, OVER, REFUSED, WRONG, Outcome

__all__ = ["Commands"]

_TRACES = (b"Traceback (most recent call last)", b"internal error", b"Fatal Python error", b"Segmentation fault")
# An honest query is asked after so many hostile ones.
_HONEST_AFTER = 25
_PLAIN = {0: ANSWERED, 1: REFUSED, 2: REFUSED}

Words = Sequence[object]


class Commands:
    """Runs inputs through the commands: some for the first input of a kind, then one after another; 0: all for it."""

    name = "commands"

    def __init__(self, world: World, first: int) -> None:
        self._world = world
        self._first = first
        self._idle: dict[str, Usage] = {}
        self._runs = 0

    def accepts(self, case: Case) -> bool:
        """Tell whether such inputs are tried here."""
        return case.kind.family != "http"

    def close(self) -> None:
        """Nothing runs between inputs."""

    def run(self, case: Case, folder: Path, path: Any, only: str = "") -> Iterator[Outcome]:
        """Run commands on an input, each on a copy that is as new, and say what came of it."""
        names = list(_ACTIONS[case.kind.family])
        if only:
            names = [only]
        elif case.number == 0 and self._first:
            names = Random(case.name).sample(names, min(self._first, len(names)))
        elif case.number:
            names = [names[case.number % len(names)]]
        for number, name in enumerate(names):
            if number:
                shutil.rmtree(folder, ignore_errors=True)
                folder = self._world.case_folder(self.name)
                path = case.make(folder, self._world)
            yield self._run(case, name, folder, path)

    def _run(self, case: Case, name: str, folder: Path, path: Path) -> Outcome:
        idle = self._idle_use(case.kind.family, name)
        allows = allowed(case.kind.family, path, planted=case.kind.group == "planted")
        words = _ACTIONS[case.kind.family][name](self._world, folder, path)
        harm = Harm(folder)
        said = folder / "said.txt"
        limits = Limits(allows.memory + idle.peak, allows.cpu_s + idle.cpu_s, allows.wall_s)
        usage = run_limited(words, folder, said, limits)
        verdict, detail = _judged(usage, said.read_bytes(), harm)
        self._runs += 1
        if verdict in (ANSWERED, REFUSED) and self._runs % _HONEST_AFTER == 0:
            verdict, detail = self._honest(folder, verdict, detail)
        grown = max(0, usage.peak - idle.peak)
        return Outcome(case.name, case.kind.group, self.name, name, verdict, detail, grown, usage.cpu_s)

    def _idle_use(self, family: str, name: str) -> Usage:
        """Return what the same command takes for honest input; measured once."""
        if name not in self._idle:
            folder = self._world.case_folder(f"{self.name}-honest")
            path = self._honest_input(family, folder)
            (folder / "out").mkdir()
            words = _ACTIONS[family][name](self._world, folder, path)
            # Generous: it is measured here, maybe beside other work, and judges nothing.
            limits = Limits(2_000_000_000, cpu_s=120, wall_s=240)
            self._idle[name] = run_limited(words, folder, folder / "said.txt", limits)
            status, said = self._idle[name].status, (folder / "said.txt").read_text(errors="replace")
            shutil.rmtree(folder)
            if status != 0:
                raise RuntimeError(f"{words} fails for honest input: {status}\n{said}")
        return self._idle[name]

    def _honest_input(self, family: str, folder: Path) -> Path:
        from archive_mutations import honest_zip

        world, path = self._world, folder / "data.zip"
        if family == "index":
            return Path(shutil.copytree(world.index, folder / "evil.index"))
        if family == "archive":
            path.write_bytes(honest_zip(world.data))
            return path
        honest = {"picture": world.query, "model": world.model, "arrays": world.export}[family]
        return Path(shutil.copyfile(honest, folder / honest.name))

    def _honest(self, folder: Path, verdict: str, detail: str) -> tuple[str, str]:
        """Ask an honest query; a wrong answer is the verdict."""
        import json

        said = folder / "honest.txt"
        words = [_bin("query"), str(self._world.query), "--index", str(self._world.index), "-k", str(K), "--json"]
        run_limited(words, folder, said, Limits(1_000_000_000, 30))
        try:
            hits = json.loads(said.read_bytes())["results"][0]["hits"]
            right = self._world.answer_is_right([(hit["relative"], hit["distance"]) for hit in hits])
        except (ValueError, KeyError, IndexError):
            right = False
        return (verdict, detail) if right else (WRONG, f"an honest query is answered wrongly: {said.read_text()[:300]}")


def _judged(usage: Usage, said: bytes, harm: Harm) -> tuple[str, str]:
    end = said[-400:].decode("utf-8", "replace").strip()
    if usage.over:
        return OVER, f"{usage.over}; {end}"
    if usage.status not in _PLAIN or any(trace in said for trace in _TRACES):
        return CRASHED, f"exit status {usage.status}; {end}"
    if usage.left_behind:
        return WRONG, f"{usage.left_behind} processes left behind"
    if found := harm.done():
        return WRONG, f"{found}; {end}"
    return _PLAIN[usage.status], end[:200]


def _bin(name: str) -> str:
    return str(BIN / f"deeprank-{name}")


def _command(name: str, *words: object) -> list[str]:
    return [_bin(name), *map(str, words)]


def _query(world: World, folder: Path, path: Path) -> list[str]:
    return _command("query", path, "--index", world.index, "-k", K)


def _query_page(world: World, folder: Path, path: Path) -> list[str]:
    drawn = ("--html", folder / "out" / "page.html", "--sheet", folder / "out" / "sheet.png")
    return _command("query", path, world.query, "--index", world.index, "-k", K, *drawn)


def _sync_picture(world: World, folder: Path, path: Path) -> list[str]:
    (folder / "pictures").mkdir()
    path.rename(folder / "pictures" / path.name)
    shutil.copyfile(world.query, folder / "pictures" / "honest.png")
    return _command("index", "sync", folder / "pictures", "--index", folder / "new.index", "--model", world.model)


def _eval_picture(world: World, folder: Path, path: Path) -> list[str]:
    data = Path(shutil.copytree(world.data, folder / "data"))
    path.rename(data / "train" / "a" / path.name)
    return _command("eval", "--data", data, "--model", world.model, "--demo", 1, "--out", folder / "out")


def _eval(world: World, folder: Path, path: Path) -> list[str]:
    return _command("eval", "--data", path, "--model", world.model)


def _eval_demo(world: World, folder: Path, path: Path) -> list[str]:
    return _command("eval", "--data", path, "--model", world.model, "--demo", 2, "--out", folder / "out")


def _doctor_data(world: World, folder: Path, path: Path) -> list[str]:
    known = ("--model", world.model, "--index", world.index, "--device", "cpu")
    return _command("doctor", "--data", path, "--reference", world.reference, *known)


def _on_index(*words: object, command: str = "index") -> Any:
    return lambda world, folder, path: _command(command, *words, "--index", path)


def _index_query(*words: str) -> Any:
    return lambda world, folder, path: _command("query", world.query, "--index", path, "-k", K, *words)


def _index_copies(world: World, folder: Path, path: Path) -> list[str]:
    out = folder / "out"
    drawn = ("--copy-to", out / "copies", "--html", out / "page.html", "--sheet", out / "sheet.png")
    return _command("query", world.query, "--index", path, "-k", 20, *drawn)


def _index_farthest(world: World, folder: Path, path: Path) -> list[str]:
    drawn = ("--copy-to", folder / "out" / "copies", "--html", folder / "out" / "page.html")
    return _command("query", "--item", 1, "--index", path, "-k", 200, "--exact", *drawn)


def _copy_onto(world: World, folder: Path, path: Path) -> list[str]:
    shutil.copytree(world.index, folder / "out" / "honest.index")
    return _command("index", "copy", path, "--replace", "--index", folder / "out" / "honest.index")


def _serve(world: World, folder: Path, path: Path) -> list[str]:
    script = Path(__file__).with_name("served_index.py")
    return [sys.executable, str(script), str(path), str(world.folder / "world.json"), str(folder / "out")]


def _small_folder(world: World, folder: Path) -> Path:
    target = folder / "pictures"
    target.mkdir()
    for number in range(20):
        shutil.copyfile(world.photos / "abc"[number % 3] / f"{number}.png", target / f"{number}.png")
    return target


def _sync_model(world: World, folder: Path, path: Path) -> list[str]:
    pictures = _small_folder(world, folder)
    return _command("index", "sync", pictures, "--index", folder / "new.index", "--model", path)


def _reembed(world: World, folder: Path, path: Path) -> list[str]:
    shutil.copytree(world.index, folder / "new.index")
    return _command("index", "sync", "--reembed", "--model", path, "--index", folder / "new.index")


def _query_model(world: World, folder: Path, path: Path) -> list[str]:
    index = Path(shutil.copytree(world.index, folder / "new.index"))
    shutil.copyfile(path, index / "model.onnx")
    vouch_for_model(index)
    return _command("query", world.query, "--index", index, "-k", K)


def _eval_model(world: World, folder: Path, path: Path) -> list[str]:
    return _command("eval", "--data", world.data, "--model", path)


def _doctor_model(world: World, folder: Path, path: Path) -> list[str]:
    return _command("doctor", "--model", path, "--index", world.index, "--device", "cpu")


def _import(world: World, folder: Path, path: Path) -> list[str]:
    if path.name in (world.reference.name, world.carrying.name):
        return _eval_reference(world, folder, path)
    return _command("index", "import", path, "--index", folder / "new.index", "--model", world.model)


def _eval_reference(world: World, folder: Path, path: Path) -> list[str]:
    if path.name == world.export.name:
        return _import(world, folder, path)
    if path.name == world.carrying.name:
        known = ("--model", world.model, "--index", world.index, "--device", "cpu")
        return _command("doctor", "--reference", path, *known)
    return _command("eval", "--data", world.data, "--model", world.model, "--reference", path)


_ACTIONS: dict[str, dict[str, Any]] = {
    "picture": {"query": _query, "query --html": _query_page, "sync": _sync_picture, "eval --demo": _eval_picture},
    "archive": {"eval --data": _eval, "eval --data --demo": _eval_demo, "doctor --data": _doctor_data},
    "index": {
        "query": _index_query(),
        "query --copy-to": _index_copies,
        "query --search hnsw": _index_query("--search", "hnsw", "--json"),
        "query --item": _index_farthest,
        "verify": _on_index("verify"),
        "sync": lambda world, folder, path: _command("index", "sync", world.photos, "--index", path),
        "copy": lambda world, folder, path: _command("index", "copy", folder / "out" / "copied.index", "--index", path),
        "info": _on_index("info", "--json"),
        "serve": _serve,
        "doctor": _on_index("--thorough", "--device", "cpu", command="doctor"),
        "verify --repair": _on_index("verify", "--repair"),
        "export": lambda world, folder, path: _command("index", "export", folder / "out" / "e.npz", "--index", path),
        "dedupe": _on_index("dedupe", "--max-distance", "0.5", "--json"),
        "remove": _on_index("remove", "b/*", "--yes"),
        "compact": _on_index("compact"),
        "copy onto it": _copy_onto,
    },
    "model": {
        "sync --model": _sync_model,
        "eval --model": _eval_model,
        "query": _query_model,
        "doctor --model": _doctor_model,
        "sync --reembed": _reembed,
    },
    "arrays": {"import": _import, "eval --reference": _eval_reference},
}
