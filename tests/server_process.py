"""A running ``deeprank-serve`` for tests: the real command in a process of its own, on a free port."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import urlsplit

import httpx
import pytest
from conftest import BIN

Answer = TypeVar("Answer")

_LINE = re.compile(r"^Serving [\d,]+ pictures? at (http://\S+) ", re.MULTILINE)
_PATIENCE_S = 120
# A rule of a Content-Security-Policy that lets nothing in but what the server itself has.
_STRICT = re.compile(r"('none'|'self'|blob:| )+")
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
}

COMMAND = (str(BIN / "deeprank-serve"),)
# The same with less patience than a test can have: with uploads, other writers, a damaged index, what does not end.
IMPATIENT = (
    sys.executable,
    "-c",
    "import functools\n"
    "from deeprank.runtime.serve import cli, engine, server, writer\n"
    "server._HEAD_S = server._UNREAD_S = 1.5\n"
    "server._BODY_S = 6\n"
    "writer._PATIENCE_S = engine._PAUSE_S = engine._RENEWAL_S = 0.2\n"
    "cli.ServeSettings = functools.partial(cli.ServeSettings, max_body_s=4, drain_s=1)\n"
    "cli.main()\n",
)


def with_sizes(ask: Callable[[], Answer], unknown: int = 0) -> Answer:
    """Ask until at most so many pictures have no size: a busy machine answers before it has read them."""
    end = time.monotonic() + 60
    while True:
        answer = ask()
        if json.dumps(answer).count('"width": null') <= unknown or time.monotonic() > end:
            return answer


def sound(answer: httpx.Response, hidden: str) -> None:
    """Check what every answer has to be, whatever was asked: safe to show, and silent about where things lie."""
    for name, value in _HEADERS.items():
        assert answer.headers[name] == value, (name, answer)
    rules = dict(rule.strip().split(" ", 1) for rule in answer.headers["content-security-policy"].split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["frame-ancestors"] == "'none'"
    if not answer.request.url.path.startswith("/docs"):
        assert all(_STRICT.fullmatch(value) for value in rules.values()), rules
    assert "geolocation=()" in answer.headers["permissions-policy"]
    assert "server" not in answer.headers
    assert "public" not in answer.headers["cache-control"]
    said = answer.read() + repr(answer.headers.raw).encode()
    assert hidden.encode() not in said, said
    if answer.headers.get("content-type") == "application/json" and answer.content:
        document = json.loads(answer.content.decode("utf-8"), parse_constant=lambda name: pytest.fail(name))
        if answer.status_code >= 400:
            assert list(document) == ["error"]
            assert re.fullmatch(r"[^\n]+\.", document["error"]), document
            assert answer.status_code != 500, document
    else:
        assert answer.status_code < 400 or answer.request.method == "HEAD", answer
    if answer.status_code == 503:
        assert int(answer.headers["retry-after"]) > 0


class Server:
    """The command, from its start until its line says that it answers; ``with`` ends it and checks that it ends well.

    Attributes:
        url: such as ``http://127.0.0.1:45671``.
        process: of the command.
        answers: method, path and status of all that clients got.

    """

    def __init__(self, *arguments: object, program: Sequence[str] = COMMAND, **environment: str) -> None:
        words = [*program, *map(str, arguments)]
        if "--port" not in words:
            words += ["--port", "0"]
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
            env={**os.environ, "COLUMNS": "160", **environment},
        )
        self.answers: set[tuple[str, str, int]] = set()
        self._hidden = str(Path(words[words.index("--index") + 1]).resolve().parent)
        self._lines: list[str] = []
        self._answers = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._answers.wait(_PATIENCE_S)
        found = _LINE.search(self.stderr)
        if found is None:
            self.process.kill()
            raise AssertionError(f"{words} does not serve:\n{self.stderr}")
        self.url = found[1]

    @property
    def stderr(self) -> str:
        """What it has said on stderr until now."""
        return "".join(self._lines)

    @property
    def port(self) -> int:
        """The port that it listens at."""
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def client(self, **options: object) -> httpx.Client:
        """Return a client for it that checks every answer, and which no proxy of the environment comes between."""
        hooks = {"response": [self._check]}
        return httpx.Client(base_url=self.url, trust_env=False, timeout=60, event_hooks=hooks, **options)  # type: ignore[arg-type]

    def _check(self, answer: httpx.Response) -> None:
        self.answers.add((answer.request.method, answer.request.url.path, answer.status_code))
        sound(answer, self._hidden)

    def raw(self, *parts: bytes) -> bytes:
        """Send bytes as they are and return all that comes back until the connection is closed."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            for part in parts:
                connection.sendall(part)
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))

    def wait_for(self, holds: Callable[[], bool], what: str) -> None:
        """Wait until something holds."""
        pause = threading.Event()
        for _ in range(50 * _PATIENCE_S):
            if holds():
                return
            pause.wait(0.02)
        raise AssertionError(f"{what} did not come about:\n{self.stderr}")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Tell it to end, wait for that, and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait until it has ended, and return its exit status."""
        try:
            status = self.process.wait(_PATIENCE_S)
        finally:
            self.process.kill()
        self._reader.join()
        assert self.process.stdout is not None
        with self.process.stdout as out:
            assert out.read() == ""
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.stdout is None or self.process.stdout.closed:
            return  # somebody ended it, and looked at how
        status = self.end()
        if kind is None:
            assert status == 0, self.stderr
            assert "Traceback" not in self.stderr, self.stderr

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self._lines.append(line)
                if _LINE.search(line):
                    self._answers.set()
        self._answers.set()


@contextmanager
def serving(*arguments: object, program: Sequence[str] = COMMAND, **environment: str) -> Iterator[Server]:
    """Run ``deeprank-serve`` with these arguments; it must end with exit status 0 and without a traceback."""
    with Server(*arguments, program=program, **environment) as server:
        yield server
