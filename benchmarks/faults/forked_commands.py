"""Running a command in a forked child, which costs a few milliseconds: everything is imported once, here."""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 - what the commands import when they run, so that no child has to
import importlib
import json
import mmap  # noqa: F401
import os
import pkgutil
import signal
import sys
import tempfile  # noqa: F401
import time
import traceback
import zoneinfo  # noqa: F401
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock  # noqa: F401
import hnswlib  # noqa: F401
import index_rows
import onnxruntime  # noqa: F401
import PIL.Image
import shim
from shim import Fault

import deeprank.runtime.embedder
import deeprank.runtime.index
import deeprank.runtime.index.cli as index_cli
import deeprank.runtime.index.search.index
import deeprank.runtime.index.sync.run as run_module
import deeprank.runtime.modelfile
from deeprank.runtime.index.database.writer import Writer
from deeprank.runtime.index.ratings.writer import RatingWriter

# So that a run of half a second has dozens of commits.
COMMIT_INTERVAL_S = 0.004
_LONGEST_S = 120.0


@dataclass(frozen=True)
class Outcome:
    """How a child ended.

    Attributes:
        status: exit status; None: a signal ended it.
        signal: the signal, 0 for none.
        out: what it printed.
        err: what it said.
        reports: (kind, folder, digest, calls before) for every commit: ``try`` before it, ``done`` after it; ``rated``
            after a commit of ratings, without a digest.
        calls: calls that changed files, as far as counted.
        seconds: how long it took.

    """

    status: int | None
    signal: int
    out: str
    err: str
    reports: list[tuple[str, str, str, int]]
    calls: int
    seconds: float

    @property
    def crashed(self) -> bool:
        """Whether it ended in a way that no command may: a signal that was not ours, a traceback, a bug report."""
        unexpected = self.signal not in (0, signal.SIGKILL)
        return unexpected or "Traceback" in self.err or "internal error" in self.err

    @property
    def sentence(self) -> str:
        """The last line on stderr."""
        return (self.err.strip().splitlines() or [""])[-1]


class Forks:
    """Starts children; ``scratch`` is for their output, outside of what is watched."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._number = 0
        PIL.Image.init()
        for module in pkgutil.iter_modules(deeprank.runtime.index.__path__, "deeprank.runtime.index."):
            importlib.import_module(module.name)

    def start(
        self,
        work: Callable[[], int | None],
        *,
        watched: Path | None = None,
        fault: Fault = Fault.COUNT,
        at: int = 0,
        trace: Path | None = None,
        user: int | None = None,
        digest: Callable[[index_rows.Rows], str] | None = index_rows.digest,
    ) -> Child:
        """Start ``work`` in a child; what it returns is the exit status."""
        self._number += 1
        files = {name: self._scratch / f"{self._number}.{name}" for name in ("out", "err", "reports", "calls")}
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child:
            return Child(child, files)
        status = 70
        try:
            for name, descriptor in (("out", 1), ("err", 2)):
                os.dup2(os.open(files[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
            reports = os.open(files["reports"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            counted = os.open(files["calls"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            if digest is not None:
                _report_commits(reports, digest)
            recording = -1 if trace is None else os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            if user is not None:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            if watched is not None and shim.has_shim():
                shim.arm(watched, fault, at, recording)
            try:
                status = work() or 0
            except SystemExit as ended:
                status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            os.write(counted, str(shim.calls()).encode())
            shim.disarm()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def run(self, work: Callable[[], int | None], *, kill_after: float | None = None, **options: Any) -> Outcome:
        """Run ``work`` in a child to its end, or kill it after ``kill_after`` seconds."""
        child = self.start(work, **options)
        return child.wait(kill_after)

    def value(self, work: Callable[[], Any]) -> tuple[Any, Outcome]:
        """Run ``work`` in a child and return what it returned (as JSON can tell it), None where it crashed."""

        def printed() -> int:
            print(json.dumps(work()))
            return 0

        outcome = self.run(printed, digest=None)
        return (json.loads(outcome.out.splitlines()[-1]) if outcome.status == 0 else None), outcome


class Child:
    """A child that runs."""

    def __init__(self, process: int, files: dict[str, Path]) -> None:
        self.process = process
        self._files = files
        self._started = time.monotonic()

    def kill(self) -> None:
        """Kill it, as kill -9 does."""
        os.kill(self.process, signal.SIGKILL)

    def wait(self, kill_after: float | None = None) -> Outcome:
        """Wait for its end."""
        deadline = self._started + (kill_after if kill_after is not None else _LONGEST_S)
        ended = 0
        while not ended:
            ended, status = os.waitpid(self.process, os.WNOHANG)
            left = deadline - time.monotonic()
            if ended:
                break
            if left <= 0:
                self.kill()
                _, status = os.waitpid(self.process, 0)
                break
            time.sleep(min(0.001, left))
        seconds = time.monotonic() - self._started
        code = os.waitstatus_to_exitcode(status)
        texts = {
            name: path.read_text("utf-8", "surrogateescape") if path.exists() else ""
            for name, path in self._files.items()
        }
        for path in self._files.values():
            path.unlink(missing_ok=True)
        reports = [json.loads(line) for line in texts["reports"].splitlines()]
        return Outcome(
            code if code >= 0 else None,
            -code if code < 0 else 0,
            texts["out"],
            texts["err"],
            [(kind, folder, digest, calls) for kind, folder, digest, calls in reports],
            int(texts["calls"] or 0),
            seconds,
        )


def command(words: Sequence[str | Path]) -> Callable[[], int | None]:
    """Return what runs ``deeprank-index`` with these words."""

    def work() -> int | None:
        sys.argv = ["deeprank-index", *map(str, words)]
        index_cli.main()
        return 0

    return work


def _report_commits(reports: int, name: Callable[[index_rows.Rows], str]) -> None:
    """Let every commit be told from outside: what it is about to make durable, and that it has."""
    assert hasattr(run_module, "_COMMIT_INTERVAL_S")
    run_module._COMMIT_INTERVAL_S = COMMIT_INTERVAL_S
    commit = Writer.commit

    def tell(kind: str, writer: Writer, digest: str) -> None:
        line = json.dumps([kind, os.path.realpath(writer.folder), digest, shim.calls()])
        os.write(reports, line.encode() + b"\n")

    def reporting(writer: Writer) -> None:
        digest = name(index_rows.rows_of(writer.connection))
        tell("try", writer, digest)
        commit(writer)
        tell("done", writer, digest)

    Writer.commit = reporting  # type: ignore[method-assign,assignment]
    commit_ratings = RatingWriter.commit

    def reporting_ratings(writer: RatingWriter) -> None:
        commit_ratings(writer)
        os.write(reports, json.dumps(["rated", os.path.realpath(writer.folder), "", shim.calls()]).encode() + b"\n")

    RatingWriter.commit = reporting_ratings  # type: ignore[method-assign]
