"""Hostile requests to a real server: none exhausts its memory, time or slots, or delays other clients."""

import contextlib
import itertools
import json
import os
import random
import re
import resource
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import run_command
from server_process import Server, serving
from tiny_model import write_model, write_pictures

from deeprank.runtime.index.sync.sync import sync
from deeprank.runtime.serve.server import MAX_HEAD_BYTES, MAX_HEADERS, MAX_PARAMETERS

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "attack"))
from http_bytes import KINDS, mutate

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at a process by /proc")

TOKEN = "Zq3-7_tokenTOKENtoken.example"
BEARER = f"Authorization: Bearer {TOKEN}\r\n".encode()
GET = b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
CHUNKED = b"POST /v1/session HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
LOG_IN = b"POST /v1/session HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
# Bodies in honest chunks, which an answer need not wait for.
BODIES = ("endless chunks", "endless body", "endless body that nobody takes")
ENDLESS = [kind for kind in KINDS if kind.startswith("endless")]
# The real command with less patience, and room for fewer connections.
SMALL = (
    sys.executable,
    "-c",
    "from deeprank.runtime.serve import cli, server\n"
    "server._HEAD_S = server._BODY_S = server._KEEP_ALIVE_S = 2\n"
    "server.MIN_CONNECTIONS = 50\n"
    "cli.main()\n",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_pictures(folder / "photos", [f"label0/{number}.png" for number in range(4)])
    sync(folder / "my.index", [folder / "photos"], model=write_model(folder / "model.onnx"))
    (folder / "token").write_text(TOKEN)
    (folder / "token").chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    """One without a token: what is hostile reaches all of it."""
    with serving("--index", place / "my.index") as running:
        yield running


@pytest.fixture(scope="module")
def guarded(place: Path) -> Iterator[Server]:
    with serving("--index", place / "my.index", "--token-file", place / "token") as running:
        yield running


@pytest.fixture(scope="module")
def small(place: Path) -> Iterator[Server]:
    words = ("--token-file", place / "token", "--max-waiting", 20)
    with serving("--index", place / "my.index", *words, program=SMALL) as running:
        yield running


def memory(server: Server, field: str = "VmRSS") -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{server.process.pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def cpu(server: Server) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def connect(server: Server, first: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    with contextlib.suppress(OSError):
        connection.sendall(first)
    return connection


def send(connection: socket.socket, pieces: Iterator[bytes], limit: int) -> int:
    """Send until so many bytes are sent or the other side has closed; return how many were sent."""
    sent = 0
    with contextlib.suppress(OSError):
        while sent < limit:
            piece = next(pieces)
            connection.sendall(piece)
            sent += len(piece)
    return sent


def received(connection: socket.socket) -> bytes:
    """Return what comes until the other side closes."""
    pieces = []
    with contextlib.suppress(ConnectionError):
        pieces.extend(iter(lambda: connection.recv(1 << 16), b""))
    return b"".join(pieces)


def first_answer(server: Server, request: bytes) -> bytes:
    """Send a request and return the beginning of what comes back."""
    with connect(server) as connection:
        sender = threading.Thread(target=send, args=(connection, iter([request]), len(request)), daemon=True)
        sender.start()
        with contextlib.suppress(ConnectionError):
            connection.settimeout(20)
            return connection.recv(1 << 16)
    return b""


def is_open(connection: socket.socket) -> bool:
    """Tell whether the other side has not closed a connection; what it has sent is read."""
    connection.settimeout(0)
    try:
        while connection.recv(1 << 16):
            pass
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False


@pytest.mark.parametrize("kind", ENDLESS)
def test_what_never_ends_is_neither_kept_nor_parsed_for_long(guarded: Server, kind: str) -> None:
    before, spent = memory(guarded), cpu(guarded)
    pieces = KINDS[kind](random.Random(1))
    assert not isinstance(pieces, bytes)
    with connect(guarded) as connection:
        most = 20_000_000
        sent = send(connection, pieces, most)
        assert kind in BODIES or sent < most
    assert memory(guarded) - before < 8_000_000
    assert cpu(guarded) - spent < 0.5
    begun = time.monotonic()
    assert guarded.raw(GET % b"/healthz").startswith(b"HTTP/1.1 200")
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: ",
        CHUNKED + b"2\r\n{}\r\n0\r\nX-A: ",
        CHUNKED + b"2;",
        CHUNKED + b"2\r\n{}\r\n000",
    ],
)
def test_a_head_or_trailer_is_refused_at_64_kb(guarded: Server, start: bytes) -> None:
    """Sent slowly enough that the answer is not lost among what was still being sent."""
    with connect(guarded, start) as connection:
        for _ in range(0, MAX_HEAD_BYTES, 8192):
            connection.sendall(b"0" * 8192)
            time.sleep(0.01)
        answer = connection.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"too large" in answer


def test_many_endless_heads_at_once(guarded: Server) -> None:
    before = memory(guarded, "VmHWM")
    connections = [connect(guarded, b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: ") for _ in range(60)]
    for connection in connections:
        send(connection, itertools.repeat(b"a" * 65_536), 10_000_000)
    assert memory(guarded, "VmHWM") - before < 20_000_000
    assert not any(is_open(connection) for connection in connections)
    for connection in connections:
        connection.close()


def test_numbers_of_headers_and_parameters(server: Server) -> None:
    few = b"".join(b"X-%d: a\r\n" % number for number in range(MAX_HEADERS - 2))
    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    assert server.raw(head + few + b"\r\n").startswith(b"HTTP/1.1 200 ")
    refused = server.raw(head + few + b"X: a\r\n\r\n")
    assert refused.startswith(b"HTTP/1.1 400 ")
    assert b"more than 100 headers" in refused
    for number, status in ((1000, 200), (MAX_PARAMETERS, 422), (MAX_PARAMETERS + 1, 400)):
        query = b"&".join([b"id=1", *[b"label=label0"] * (number - 1)])
        start = (
            b"POST /v1/search?"
            + query
            + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        )
        assert server.raw(start).startswith(b"HTTP/1.1 %d " % status)


def test_small_chunks_are_taken_and_tiny_ones_without_end_are_not(server: Server) -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="id"\r\n\r\n1\r\n--b--\r\n'
    head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
    head += b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    tiny = b"".join(b"1\r\n%c\r\n" % byte for byte in form) + b"0\r\n\r\n"
    assert server.raw(head + tiny).startswith(b"HTTP/1.1 200 ")
    padded = form + b"x" * 3_000_000  # after its end a form may go on
    pieces = [padded[begin : begin + 100] for begin in range(0, len(padded), 100)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    assert server.raw(head + chunks + b"0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_trailers_are_no_headers(guarded: Server) -> None:
    request = b"POST /v1/search?id=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
    assert guarded.raw(request + b"\r\n0\r\n" + BEARER + b"\r\n").startswith(b"HTTP/1.1 401 ")
    assert guarded.raw(request + BEARER + b"\r\n0\r\nHost: evil.example\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_an_error_is_no_answer_to_a_request_before_it(server: Server) -> None:
    request = b"POST /v1/search?id=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    answer = server.raw(request + b"nonsense\r\n\r\n")
    assert answer == b"" or answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"GET /",
        b"GET / HTTP/1.1\r\nX-A: ",
        GET.replace(b"Connection: close\r\n", b"") % b"/healthz",
        CHUNKED,
        CHUNKED + b"2;x=",
        CHUNKED + b"2\r\n{}\r\n0\r\nX-A: ",
        LOG_IN % 9000,
    ],
)
@pytest.mark.parametrize("drop", [b"\r\n", b"0"])
def test_who_sends_a_little_at_a_time_is_not_waited_for(small: Server, start: bytes, drop: bytes) -> None:
    with connect(small, start) as connection:
        begun = time.monotonic()
        while is_open(connection) or time.monotonic() - begun < 0.5:
            assert time.monotonic() - begun < 15
            with contextlib.suppress(OSError):
                connection.setblocking(True)
                connection.sendall(drop)
            time.sleep(0.1)


def log_in(server: Server) -> bytes:
    body = json.dumps({"token": TOKEN}).encode()
    return server.raw((LOG_IN % len(body)).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + body)


def test_slow_log_ins_keep_nobody_from_the_page_nor_from_an_answer(place: Path) -> None:
    words = ("--index", place / "my.index", "--token-file", place / "token", "--max-waiting", 100)
    with serving(*words) as server:
        slow = [connect(server, LOG_IN % 100 + b"{") for _ in range(400)]
        for path in (b"/", b"/healthz", b"/v1/session"):
            assert server.raw(GET % path).startswith(b"HTTP/1.1 200 ")
        assert log_in(server).startswith(b"HTTP/1.1 204 ")
        with_token = (GET % b"/v1/info").replace(b"\r\n\r\n", b"\r\n" + BEARER + b"\r\n")
        assert server.raw(with_token).startswith(b"HTTP/1.1 200 ")
        assert sum(is_open(connection) for connection in slow) > 300  # they were there all the time
        for connection in slow:
            connection.close()


def test_idle_connections_give_way_and_uploads_with_the_token_do_not(small: Server) -> None:
    upload = b"POST /v1/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n" + BEARER + b"\r\n"
    uploading = [connect(small, upload) for _ in range(10)]
    idle = [connect(small, start) for start in [b"", b"GET / HTTP", LOG_IN % 100] * 40]
    small.wait_for(lambda: sum(map(is_open, idle)) <= 40, "that some are let go")
    assert small.raw(GET % b"/").startswith(b"HTTP/1.1 200 ")
    assert all(map(is_open, uploading))
    for connection in (*uploading, *idle):
        connection.close()


def test_where_all_connections_are_in_use_one_more_is_told_so(place: Path) -> None:
    program = (*SMALL[:2], SMALL[2].replace("MIN_CONNECTIONS = 50", "most_connections = lambda settings: 4"))
    upload = b"POST /v1/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n" + BEARER + b"\r\n"
    words = ("--index", place / "my.index", "--token-file", place / "token")
    with serving(*words, program=program) as server, contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(connect(server, upload))
        time.sleep(0.3)
        with connect(server) as one_more:
            head, _, body = received(one_more).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nretry-after: 1\r\n" in head
    assert b"\r\nx-content-type-options: nosniff\r\n" in head
    assert set(json.loads(body)) == {"error"}


def limited(files: int) -> tuple[str, ...]:
    code = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files}))\n"
    return (sys.executable, "-c", code + "from deeprank.runtime.serve.cli import main; main()")


@pytest.mark.thorough
def test_more_connections_than_files(place: Path) -> None:
    """Their number fits what the system allows; without a place for one more, the server neither stops nor spins."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    try:
        with serving("--index", place / "my.index", program=limited(600)) as server:
            flood = [connect(server) for _ in range(1500)]
            assert server.raw(GET % b"/healthz").startswith(b"HTTP/1.1 200 ")
            assert len(os.listdir(f"/proc/{server.process.pid}/fd")) < 600  # noqa: PTH208
            spent = cpu(server)
            time.sleep(1)
            assert cpu(server) - spent < 0.5
            for connection in flood:
                connection.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_few_files_are_said_at_the_start(place: Path) -> None:
    with pytest.raises(AssertionError, match="may open 300 files; expected at least 512"):
        Server("--index", place / "my.index", program=limited(300))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ENDLESS])
def test_whatever_is_sent_takes_a_tenth_of_a_second_for_a_megabyte(server: Server, kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(8):
        request = KINDS[kind](rng)
        assert isinstance(request, bytes)
        spent = cpu(server)
        answer = first_answer(server, request) if kind != "cut off" else b""
        # The clock ticks every hundredth of a second, and an honest search takes one, too.
        assert cpu(server) - spent < 0.1 + 0.1 * len(request) / 1e6
        assert not answer.startswith(b"HTTP/1.1 5"), answer
    assert server.raw(GET % b"/healthz").startswith(b"HTTP/1.1 200 ")


def test_cookies_that_take_long_to_take_apart(guarded: Server) -> None:
    for value in (b"\\" * 60_000, b"\\1" * 30_000):
        cookie = b'Cookie: a="' + value + b'"\r\n\r\n'
        spent = cpu(guarded)
        for path, status in ((b"/healthz", 200), (b"/v1/session", 200), (b"/v1/info", 401)):
            answer = guarded.raw((GET % path).removesuffix(b"\r\n") + cookie)
            assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert cpu(guarded) - spent < 0.5


@pytest.mark.parametrize("charset", ["punycode", "utf-7", "utf-16", "unicode_escape", "idna", "latin-1", "no-such"])
def test_text_is_utf_8_whatever_a_form_says(server: Server, charset: str) -> None:
    names = ("größe.png", "\\u0041-+AGE-xn--a.png")
    with server.client() as client:
        for name in names:
            part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="%b"; filename*=utf-7\'\'x\r\n'
            body = part % name.encode() + b"Content-Type: image/png; charset=" + charset.encode() + b"\r\n\r\n"
            body += (KINDS["extended file names"](random.Random(1))).partition(b"\r\n\r\n\x89PNG")[1][4:]  # type: ignore[union-attr]
            body += (KINDS["extended file names"](random.Random(1))).partition(b"\x89PNG")[2]  # type: ignore[union-attr]
            kind = f"multipart/form-data; boundary=b; charset={charset}"
            answer = client.post("/v1/search", content=body, headers={"Content-Type": kind})
            assert answer.json()["results"][0]["query"] == name


def test_mutated_requests_end_nothing_and_cost_little(server: Server) -> None:
    rng = random.Random(15)
    before, spent, total = memory(server), cpu(server), 0
    for _ in range(400):
        request = mutate(rng)
        total += len(request)
        with connect(server, request) as connection:
            connection.settimeout(0.1)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(1 << 16)
                assert not answer.startswith(b"HTTP/1.1 5"), (request, answer)
    assert server.raw(GET % b"/healthz").startswith(b"HTTP/1.1 200 ")
    assert memory(server) - before < 50_000_000
    assert cpu(server) - spent < 400 * 0.02 + 0.1 * total / 1e6
    assert "Traceback" not in server.stderr


def test_only_what_takes_a_picture_takes_a_large_body(server: Server) -> None:
    large = {"image": ("a.png", bytes(20_000))}
    with server.client() as client:
        for method, path in (("POST", "/v1/session"), ("DELETE", "/v1/session"), ("GET", "/v1/info"), ("GET", "/")):
            answer = client.request(method, path, files=large)
            assert answer.status_code == 413
            assert "10,000 bytes" in answer.json()["error"]
        assert client.post("/v1/embed", files=large).status_code == 422


WEAK = ("a" * 16, "ab" * 12, "abcdefghijklmnop", "0123456789012345", "passwordpassword", "aaaabbbbccccdddd", "z" * 64)


@pytest.mark.parametrize("token", WEAK)
def test_a_token_that_is_easy_to_guess(place: Path, tmp_path: Path, token: str) -> None:
    (tmp_path / "token").write_text(token)
    words = ("--index", place / "my.index", "--token-file", tmp_path / "token")
    line = run_command("deeprank-serve", *words, status=1).stderr.splitlines()[-1]
    assert "is easy to guess: it" in line
    assert "secrets.token_urlsafe(32)" in line
    assert token not in line


def test_random_tokens_are_taken(tmp_path: Path) -> None:
    from deeprank.runtime.serve.tokens import read_token

    rng = random.Random(3)
    for letters in ("0123456789abcdef", "abcdefghijklmnopqrstuvwxyz", "".join(map(chr, range(33, 127)))):
        for _ in range(300):
            (tmp_path / "token").write_text("".join(rng.choices(letters, k=16)))
            read_token(tmp_path / "token")


def test_the_numbers_in_the_security_policy_are_those_of_the_code() -> None:
    from deeprank.runtime.images import DEFAULT_MAX_PIXELS
    from deeprank.runtime.serve import limits, server, settings, tokens, upload_form
    from deeprank.runtime.serve.access import sign_in_links

    defaults = settings.ServeSettings(index=Path())
    numbers = {
        "pixels of a picture (`--max-pixels`)": DEFAULT_MAX_PIXELS,
        "bytes of an upload (`--max-upload`)": defaults.max_upload,
        "bytes of any other body": limits.MAX_SMALL_BODY,
        "bytes of all bodies at once": limits.MAX_BYTES_AT_ONCE,
        "seconds for a body to arrive": int(defaults.max_body_s),
        "seconds for the body of a request without a token": int(limits.STRANGERS_S),
        "requests with a token at once (`--max-waiting`)": defaults.most_waiting,
        "connections at once": server.MIN_CONNECTIONS,
        "bytes of a request's head, trailers and framing": server.MAX_HEAD_BYTES,
        "headers of a request": server.MAX_HEADERS,
        "parameters of a request": server.MAX_PARAMETERS,
        "requests ahead of their answers": server.MAX_PIPELINED,
        "seconds for a head to arrive, and idle between requests": int(server._HEAD_S),
        "seconds in which a client reads nothing": int(server._UNREAD_S),
        "parts of a form": upload_form.MAX_PARTS,
        "hits of a search": settings.MAX_HITS,
        "characters of a token, at least": tokens.MIN_CHARACTERS,
        "seconds that a sign-in link works, once (`--sign-in-link`)": sign_in_links.SECONDS,
        "open sign-in links": sign_in_links.MAX_LINKS,
        "wrong secrets while a sign-in link is open": sign_in_links.MAX_WRONG,
    }
    text = (Path(__file__).parents[1] / "SECURITY.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| ([^|]+) \| ([\d,]+) \| [^|]+ \|$", text, re.MULTILINE))
    assert {name: rows.get(name) for name in numbers} == {name: f"{number:,}" for name, number in numbers.items()}
    assert server._KEEP_ALIVE_S == server._HEAD_S
