"""A running server as a target: hostile uploads and bytes, with an honest client beside them all the time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from cases import Case
from fixture import BIN, World, shows_secret
from limits import STOP_BYTES, Meter, children_of, end_tree, prepare_child, reset_peak
from outcomes import ANSWERED, CRASHED, OVER, REFUSED, WRONG, Outcome

__all__ = ["MOST_DELAY_S", "MOST_GROWTH", "Server"]

MOST_DELAY_S = 1.0
# For one upload. Pages that processes share are counted in each: those of a worker that is forked anew, and the upload.
MOST_GROWTH = 512_000_000 + 40_000_000
_LINE = re.compile(rb"at http://127\.0\.0\.1:(\d+)")
_START_S = 60.0
# What one connection sends at most, and for how long.
_MOST_SENT = 40_000_000
_SENDING_S = 8.0
_REPLY_S = 30.0
_SILENCE_S = 1.5
_AT_ONCE = 3
_CALM_S = 20.0
_IDLE_S = 4.0
_POLL_S = 0.02
_BOUNDARY = b"attack"


@dataclass
class _Running:
    """A server that runs: its process, port and what it says."""

    process: subprocess.Popen[bytes]
    port: int
    said: Path


@dataclass
class _Replies:
    """What came back: first lines of replies, bodies of those that are errors, and the ids of what was added."""

    statuses: list[int] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    lost: int = 0


class Server:
    """Sends inputs to a server."""

    name = "server"

    def __init__(self, world: World) -> None:
        self._world = world
        self._token = secrets.token_urlsafe(32)
        self._folder = world.folder / "cases" / "servers"
        self._attacked: _Running | None = None
        self._other: _Running | None = None
        self._client: subprocess.Popen[bytes] | None = None
        self._answers: list[dict[str, Any]] = []
        self._idle = self._before = 0
        self.notes: list[str] = []

    def accepts(self, case: Case) -> bool:
        """Tell whether such inputs are tried here; index folders are served by the commands."""
        return case.kind.family in ("http", "picture")

    def run(self, case: Case, folder: Path, path: Any, only: str = "") -> Iterator[Outcome]:
        """Send an input several times at once and say what it did to the server and its honest client."""
        self._start()
        assert self._attacked is not None
        replies = _Replies()
        began, first, said = time.monotonic(), len(self._answers), self._attacked.said.stat().st_size
        pid = self._attacked.process.pid
        meter = Meter(pid)
        for each in (pid, *children_of(pid)):
            reset_peak(each)
        # What it kept of the uploads before is no cost of this one; where that is much, it is started again below.
        self._before, spent = meter.read()
        meter.peak = 0
        sending = threading.Thread(target=self._send, args=(case, path, replies), daemon=True)
        sending.start()
        while sending.is_alive():
            sending.join(_POLL_S)
            if meter.read()[0] > STOP_BYTES:
                end_tree(pid)
        over = self._calm(meter)
        self._wait_for_honest(time.monotonic(), meter)
        verdict, detail, delay = self._judged(case, replies, meter, first, said, over)
        grown = max(0, meter.peak - self._before)
        cpu_s = max(0.0, meter.cpu_s - spent)
        yield Outcome(
            case.name,
            case.kind.group,
            self.name,
            "upload" if case.kind.family == "picture" else "bytes",
            verdict,
            f"{detail} (after {time.monotonic() - began:.1f} s)" if detail else "",
            grown,
            cpu_s,
            delay,
        )
        if verdict in (CRASHED, OVER, WRONG) or meter.read()[0] - self._idle > MOST_GROWTH // 2:
            self.close()

    # -- sending ------------------------------------------------------------------------------------------------------

    def _send(self, case: Case, path: Any, replies: _Replies) -> None:
        asyncio.run(self._send_all(case, path, replies))

    async def _send_all(self, case: Case, path: Any, replies: _Replies) -> None:
        assert self._attacked is not None
        if case.kind.family == "picture":
            content = path.read_bytes()
            targets = (b"/v1/search?k=3", b"/v1/embed", b"/v1/items")
            each = [iter([self._upload(target, content)]) for target in targets]
        else:
            each = [self._pieces(case) for _ in range(_AT_ONCE)]
        port = self._attacked.port
        patience = _REPLY_S if case.kind.family == "picture" else _SILENCE_S
        at_once = _AT_ONCE if _together(case) else 1
        for begin in range(0, len(each), at_once):
            some = each[begin : begin + at_once]
            await asyncio.gather(*(_exchange(port, pieces, replies, patience) for pieces in some))
        for body in list(replies.bodies):
            # Of a picture that was added; hits of a search have ids, too.
            if b'"created":' in body and (found := re.search(rb'"id":\s*(\d+)', body)):
                for method, rest in ((b"GET", b"/thumbnail"), (b"DELETE", b"")):
                    head = self._head(method, b"/v1/items/" + found[1] + rest)
                    await _exchange(port, iter([head + b"Content-Length: 0\r\n\r\n"]), replies, _REPLY_S)

    def _head(self, method: bytes, target: bytes) -> bytes:
        line = b"%b %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" % (method, target)
        return line + b"Authorization: Bearer " + self._token.encode() + b"\r\n"

    def _upload(self, target: bytes, content: bytes) -> bytes:
        part = b'--%b\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\n\r\n' % _BOUNDARY
        body = part + content + b"\r\n--%b--\r\n" % _BOUNDARY
        kind = b"Content-Type: multipart/form-data; boundary=%b\r\n" % _BOUNDARY
        return self._head(b"POST", target) + kind + b"Content-Length: %d\r\n\r\n" % len(body) + body

    def _pieces(self, case: Case) -> Iterator[bytes]:
        """Return the bytes of a case, made anew; half of the cases bear the token."""
        found = case.make(Path(), self._world)
        known = Random(f"{case.name} token").random() < 0.5
        token = b"Host: localhost\r\nAuthorization: Bearer " + self._token.encode() + b"\r\n"
        sent = 0
        for number, piece in enumerate([found] if isinstance(found, bytes) else found):
            sent += len(piece)
            if sent > _MOST_SENT:
                return
            # A client with the token may remove pictures, and would.
            bears = known and number < 2 and b"DELETE" not in piece
            yield piece.replace(b"Host: localhost\r\n", token) if bears else piece

    # -- judging ------------------------------------------------------------------------------------------------------

    def _calm(self, meter: Meter) -> str:
        """Wait until the server has no more to do; say so if it goes on and on."""
        until = time.monotonic() + _CALM_S
        seconds = meter.read()[1]
        while time.monotonic() < until:
            before = time.monotonic()
            time.sleep(0.2)
            now = meter.read()[1]
            # The honest client's own requests take a small part of a core.
            if now - seconds < 0.5 * (time.monotonic() - before) or self._has_ended():
                return ""
            seconds = now
        return f"still busy {_CALM_S:.0f} s later"

    def _has_ended(self) -> bool:
        return self._attacked is None or self._attacked.process.poll() is not None

    def _wait_for_honest(self, since: float, meter: Meter) -> None:
        """Wait for an answer that an honest client asked for after the attack."""
        until = time.monotonic() + 65
        while time.monotonic() < until and not self._has_ended():
            if self._answers and self._answers[-1]["sent"] >= since:
                return
            meter.read()
            time.sleep(_POLL_S)

    def _judged(
        self, case: Case, replies: _Replies, meter: Meter, first: int, said: int, over: str
    ) -> tuple[str, str, float]:
        assert self._attacked is not None
        answers = self._answers[first:]
        delay = max((one["attacked_s"] - one["other_s"] for one in answers), default=0.0)
        problems = [one["problem"] for one in answers if one["problem"]]
        new = self._attacked.said.read_bytes()[said:]
        end = new[-500:].decode("utf-8", "replace").strip()
        grown = meter.peak - self._before
        if meter.peak > STOP_BYTES:
            return OVER, f"{grown / 1e6:.0f} MB more", delay
        if self._has_ended():
            return CRASHED, f"the server ended with {self._attacked.process.returncode}: {end}", delay
        if b"Traceback (most recent call last)" in new or 500 in replies.statuses:
            return CRASHED, f"an internal error: {replies.statuses} {end or replies.bodies}"[:700], delay
        if grown > MOST_GROWTH * (_AT_ONCE if _together(case) else 1):
            return OVER, f"{grown / 1e6:.0f} MB more", delay
        if delay > MOST_DELAY_S:
            return OVER, f"an honest client waited {delay:.1f} s longer than at another server", delay
        if over:
            return OVER, over, delay
        if problems:
            return WRONG, f"an honest client got: {problems[0]}"[:500], delay
        if any(shows_secret(body) for body in replies.bodies):
            return WRONG, "a secret was given out", delay
        return (ANSWERED if any(200 <= status < 300 for status in replies.statuses) else REFUSED), "", delay

    # -- servers ------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._attacked is not None and self._attacked.process.poll() is None:
            return
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        (self._folder / "token").write_text(self._token)
        (self._folder / "token").chmod(0o600)
        self._attacked, self._other = self._served("attacked"), self._served("other")
        words = [str(self._attacked.port), str(self._other.port), self._token, str(self._world.folder / "world.json")]
        self._client = _popen([sys.executable, str(Path(__file__).with_name("honest_client.py")), *words])
        threading.Thread(target=self._read, args=(self._client, self._answers), daemon=True).start()
        first, began = len(self._answers), time.monotonic()
        while time.monotonic() < began + _IDLE_S or len(self._answers) < first + 5:
            time.sleep(_POLL_S)
            if time.monotonic() > began + _START_S:
                raise RuntimeError(f"the honest client gets no answers: {self._attacked.said.read_text()[-500:]}")
        idle = self._answers[first + 1 :]
        if bad := [one["problem"] for one in idle if one["problem"]]:
            raise RuntimeError(f"an idle server does not answer an honest client: {bad[0]}")
        self._idle = Meter(self._attacked.process.pid).read()[0]
        if not self.notes:
            delay = max(one["attacked_s"] - one["other_s"] for one in idle)
            slowest = max(one["attacked_s"] for one in idle)
            self.notes.append(
                f"Idle server: an honest client waits {slowest:.2f} s at most, {delay:.2f} s longer than at the other; "
                f"{self._idle / 1e6:.0f} MB."
            )

    def _served(self, name: str) -> _Running:
        index = Path(shutil.copytree(self._world.index, self._folder / name / "my.index"))
        said = self._folder / name / "said.txt"
        words = [str(BIN / "deeprank-serve"), "--index", str(index), "--port", "0", "--allow-writes"]
        with said.open("wb") as out:
            process = _popen([*words, "--token-file", str(self._folder / "token")], out)
        until = time.monotonic() + _START_S
        while time.monotonic() < until and process.poll() is None:
            if found := _LINE.search(said.read_bytes()):
                return _Running(process, int(found[1]), said)
            time.sleep(_POLL_S)
        end_tree(process.pid)
        raise RuntimeError(f"the server does not start: {said.read_text()[-500:]}")

    @staticmethod
    def _read(client: subprocess.Popen[bytes], answers: list[dict[str, Any]]) -> None:
        assert client.stdout is not None
        with contextlib.suppress(ValueError, OSError):
            for line in client.stdout:
                answers.append(json.loads(line))

    def close(self) -> None:
        """End both servers and the honest client."""
        for process in (
            self._client,
            *(running.process for running in (self._attacked, self._other) if running is not None),
        ):
            if process is not None:
                end_tree(process.pid)
                process.wait()
        self._client = self._attacked = self._other = None


def _together(case: Case) -> bool:
    """Tell whether an input is sent several times at once: bytes always, every second picture of a kind."""
    return case.kind.family == "http" or case.number % 2 == 1


def _popen(words: list[str], out: Any = subprocess.PIPE) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT if out is not subprocess.PIPE else subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=prepare_child,
        env={**os.environ, "PYTHONFAULTHANDLER": "1"},
    )


async def _exchange(port: int, pieces: Iterator[bytes], replies: _Replies, patience: float) -> None:
    """Send pieces over a connection as long as it takes them, and read what comes back."""
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), _REPLY_S)
    except (OSError, TimeoutError):
        replies.lost += 1
        return
    reading = asyncio.create_task(_read_reply(reader))
    try:
        async with asyncio.timeout(_SENDING_S if patience == _SILENCE_S else patience):
            for piece in pieces:
                if reading.done():
                    break
                writer.write(piece)
                await writer.drain()
    except (OSError, TimeoutError):
        pass
    done, _ = await asyncio.wait([reading], timeout=patience)
    if done:
        content = reading.result()
    else:
        reading.cancel()
        content = b""
    writer.transport.abort()
    if found := re.match(rb"HTTP/1\.[01] (\d{3})", content):
        replies.statuses.append(int(found[1]))
        replies.bodies.append(content.partition(b"\r\n\r\n")[2])
    else:
        replies.lost += 1


async def _read_reply(reader: asyncio.StreamReader) -> bytes:
    """Return the first bytes that come, up to the end of a reply that ends."""
    content = b""
    with contextlib.suppress(OSError):
        while len(content) < 1_000_000:
            more = await reader.read(1 << 16)
            if not more:
                break
            content += more
            head, end, body = content.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
            if end and length and len(body) >= int(length[1]):
                break
    return content
