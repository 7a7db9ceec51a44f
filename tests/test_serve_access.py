"""Access to a server: tokens, host names, origins, and which ways of starting it are refused."""

import hashlib
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import segno
from conftest import run_command
from server_process import IMPATIENT, Server, serving
from terminal import in_terminal
from tiny_model import write_model, write_picture, write_pictures

from deeprank.runtime.index.database.writer import locked
from deeprank.runtime.index.sync.sync import sync
from deeprank.runtime.serve.access.addresses import address_of, reachable_addresses
from deeprank.runtime.serve.access.qr_code import qr_lines, qr_svg
from deeprank.runtime.serve.access.sign_in_links import MAX_LINKS, MAX_WRONG, SignInLinks
from deeprank.runtime.serve.tokens import Tokens

TOKEN = "Zq3-7_tokenTOKENtoken.example"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
OTHER_NAME = "photos.example"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an index and a token."""
    folder = tmp_path_factory.mktemp("vault")
    write_pictures(folder / "photos", [f"{label}/{i}.png" for label in ("cats", "dogs") for i in range(5)])
    sync(folder / "my.index", [folder / "photos"], model=write_model(folder / "model.onnx"))
    (folder / "token").write_text(f"{TOKEN}\n")
    (folder / "token").chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def options(place: Path) -> tuple[object, ...]:
    guarded = ("--token-file", place / "token", "--allow-writes", "--allowed-host", OTHER_NAME)
    return ("--index", place / "my.index", *guarded)


@pytest.fixture(scope="module")
def server(options: tuple[object, ...]) -> Iterator[Server]:
    with serving(*options, program=IMPATIENT) as running:
        yield running
        assert "warning" not in running.stderr
        assert TOKEN not in running.stderr


@pytest.fixture
def stranger(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client(headers=BEARER) as client:
        yield client


@pytest.fixture
def picture(tmp_path: Path) -> bytes:
    """A picture that no other test has."""
    write_picture(tmp_path / "new.png", time.monotonic_ns())
    return (tmp_path / "new.png").read_bytes()


def image(content: bytes) -> dict[str, tuple[str, bytes]]:
    return {"image": ("photo.png", content)}


def hits(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return answer.json()["results"][0]["hits"]


def refused(answer: httpx.Response, status: int, sentence: str) -> None:
    assert answer.status_code == status, answer.text
    assert sentence in answer.json()["error"]
    assert ("www-authenticate" in answer.headers) == (status == 401)


# The token


OPEN = [
    "/",
    "/near-duplicates",
    "/rate",
    "/static/app.js",
    "/static/style.css",
    "/favicon.ico",
    "/healthz",
    "/readyz",
    "/v1/session",
    "/docs",
]
CLOSED = ["/v1/info", "/v1/items/1", "/v1/items/1/thumbnail", "/metrics"]


@pytest.mark.parametrize("address", [*OPEN, "/openapi.json", "/docs/start.js"])
def test_what_needs_no_token(stranger: httpx.Client, address: str) -> None:
    assert stranger.get(address).status_code == 200


@pytest.mark.parametrize("address", [*CLOSED, "/nothing", "/v1", "/healthz/"])
def test_what_needs_the_token(stranger: httpx.Client, client: httpx.Client, address: str) -> None:
    refused(stranger.get(address), 401, "Bearer TOKEN")
    assert client.get(address).status_code == (200 if address in CLOSED else 404)


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("//v1/info", 401),
        ("/./v1/info", 401),
        ("//healthz", 401),
        ("/static/../v1/info", 404),
        ("/static/%2e%2e/v1/info", 404),
        ("/docs/..%2fv1/info", 404),
        ("/%76%31/info", 401),
        ("/v1/info?/static/", 401),
        ("/v1/info#/static/", 401),
        ("http://localhost/v1/info", 401),
    ],
)
def test_ways_around_the_token(server: Server, address: str, status: int) -> None:
    """httpx tidies paths up; they are sent as they stand here."""
    answer = server.raw(f"GET {address} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b'"items"' not in answer


@pytest.mark.parametrize(("authorization", "status"), [(f"BEARER   {TOKEN} ", 200), ("Bearer ", 401), ("", 401)])
def test_tokens_that_httpx_does_not_send(server: Server, authorization: str, status: int) -> None:
    head = f"GET /v1/info HTTP/1.1\r\nHost: localhost\r\nAuthorization: {authorization}\r\nConnection: close\r\n\r\n"
    assert server.raw(head.encode()).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        (f"Bearer {TOKEN[:-1]}", 401),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN.upper()}", 401),
        (f"Bearer {TOKEN}, Bearer {TOKEN}", 401),
        ("Bearer", 401),
        (TOKEN, 401),
        (f"Token {TOKEN}", 401),
        (f"Basic {TOKEN}", 401),
        (f"Bearer{TOKEN}", 401),
        ("Bearer " + "x" * 30_000, 401),
        (b"Bearer \xff\xfe", 401),
    ],
)
def test_tokens(stranger: httpx.Client, authorization: str | bytes, status: int) -> None:
    answer = stranger.get("/v1/info", headers={"Authorization": authorization})
    assert answer.status_code == status
    known = stranger.get("/v1/session", headers={"Authorization": authorization}).json()
    assert known == {"token_required": True, "authenticated": status == 200, "links": False}


def test_a_token_is_only_taken_where_it_belongs(stranger: httpx.Client) -> None:
    assert stranger.get("/v1/info", params={"token": TOKEN}).status_code == 401
    assert stranger.get("/v1/info", headers={"Cookie": f"token={TOKEN}"}).status_code == 401
    assert stranger.get(f"http://x:{TOKEN}@{stranger.base_url.netloc.decode()}/v1/info").status_code == 401


def cookie_of(answer: httpx.Response) -> tuple[str, str]:
    (morsel,) = SimpleCookie(answer.headers["set-cookie"]).values()
    return morsel.key, morsel.value


def test_the_cookie_of_a_page(server: Server, stranger: httpx.Client, picture: bytes) -> None:
    for wrong in ("x" * 29, "größe", "\x00"):
        refused(stranger.post("/v1/session", json={"token": wrong}), 401, "wrong")
    refused(stranger.post("/v1/session", json={"token": "x" * 20_000}), 413, "10,000 bytes")  # not read for strangers
    answer = stranger.post("/v1/session", json={"token": f" {TOKEN}\n"})  # as it comes off a clipboard
    assert (answer.status_code, answer.content) == (204, b"")
    given = answer.headers["set-cookie"]
    assert re.search(r"; HttpOnly(;|$)", given)
    assert re.search(r"; SameSite=strict(;|$)", given, re.IGNORECASE)
    assert re.search(r"; Path=/(;|$)", given)
    assert "Domain" not in given
    assert TOKEN not in given
    assert hashlib.sha256(TOKEN.encode()).hexdigest() not in given
    # It reads and asks, and it does not write.
    assert stranger.get("/v1/session").json() == {"token_required": True, "authenticated": True, "links": False}
    for address in CLOSED:
        assert stranger.get(address).status_code == 200
    assert hits(stranger.post("/v1/search", files=image(picture)))
    assert stranger.post("/v1/embed", files=image(picture)).status_code == 200
    refused(stranger.post("/v1/items", files=image(picture)), 401, "Bearer TOKEN")
    refused(stranger.delete("/v1/items/1"), 401, "Bearer TOKEN")
    # Forgotten, it is gone from the browser.
    assert stranger.delete("/v1/session").status_code == 204
    assert not list(stranger.cookies)
    assert stranger.get("/v1/info").status_code == 401


def test_cookies_that_are_none(server: Server, stranger: httpx.Client) -> None:
    name, value = cookie_of(stranger.post("/v1/session", json={"token": TOKEN}))
    stranger.cookies.clear()
    expiry, signature = value.split(".")
    assert int(expiry) > time.time() + 3600
    expired = Tokens(TOKEN).cookie(10**9)
    tampered = [
        f"{int(expiry) + 1}.{signature}",
        f"{expiry}.{signature[:-1]}{'0' if signature[-1] != '0' else '1'}",
        f"{expiry}.",
        f".{signature}",
        f"{expiry}.{signature}.",
        f"{expiry}.{signature.upper()}",
        f"0{expiry}.{signature}",
        "",
        ".",
        "x" * 5000,
        "\xff\xfe",
        Tokens("another token, of 20 characters").cookie(int(expiry)),
        expired,
    ]
    for wrong in tampered:
        for quoted in (wrong, f'"{wrong}"'):
            header = f"{name}={quoted}".encode("latin-1")
            assert stranger.get("/v1/info", headers={"Cookie": header}).status_code == 401
    header = f"a=b; {name}={value}; c=d"
    assert stranger.get("/v1/info", headers={"Cookie": header}).status_code == 200
    assert stranger.get("/v1/info", headers={"Cookie": f"{name}x={value}"}).status_code == 401


# Names and origins


def headers_of(server: Server, headers: dict[str, str]) -> dict[str, str]:
    return {name: value.format(port=server.port, other=server.port ^ 1) for name, value in headers.items()}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("LocalHost", 200),
        ("[::1]:{port}", 200),
        ("[::1]", 200),
        ("127.0.0.1:1", 200),  # of a tunnel
        (OTHER_NAME, 200),
        (f"{OTHER_NAME.upper()}:443", 200),
        ("evil.example", 403),
        ("evil.example:{port}", 403),
        ("127.0.0.1.evil.example:{port}", 403),
        ("localhost.evil.example", 403),
        (f"{OTHER_NAME}.evil.example", 403),
        (f"evil.{OTHER_NAME}", 403),
        ("evil.example#@localhost", 403),
        ("localhost@evil.example", 403),
        ("localhost:{port}@evil.example", 403),
        ("localhost:80:80", 403),
        ("localhost:x", 403),
        ("[::1]x", 403),
        ("[::1", 403),
        ("::1", 403),
        ("0.0.0.0:{port}", 403),
        ("", 403),
    ],
)
def test_names(server: Server, client: httpx.Client, host: str, status: int) -> None:
    for address in ("/v1/info", "/", "/healthz"):
        answer = client.get(address, headers=headers_of(server, {"Host": host}))
        assert answer.status_code == status, (address, answer.text)
        if status == 403:
            refused(answer, 403, "--allowed-host")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Origin": "HTTP://127.0.0.1:{port}"}, 200),
        ({"Host": OTHER_NAME, "Origin": f"https://{OTHER_NAME}"}, 200),  # behind a proxy with TLS
        ({"Host": f"{OTHER_NAME}:443", "Origin": f"https://{OTHER_NAME}"}, 200),
        ({"Host": "localhost:80", "Origin": "http://localhost"}, 200),
        ({"Host": "[::1]:{port}", "Origin": "http://[::1]:{port}"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Origin": "http://127.0.0.1:{other}"}, 403),
        ({"Origin": "http://127.0.0.1"}, 403),
        ({"Origin": "http://localhost:{port}"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://evil.example:{port}"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "ftp://127.0.0.1:{port}"}, 403),
        ({"Origin": "http://127.0.0.1:{port}.evil.example"}, 403),
        ({"Origin": "http://evil.example@127.0.0.1:{port}"}, 403),
        ({"Host": OTHER_NAME, "Origin": "http://127.0.0.1:{port}"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:{port}"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),
    ],
)
def test_origins(server: Server, client: httpx.Client, picture: bytes, headers: dict[str, str], status: int) -> None:
    sent = headers_of(server, headers)
    answers = [
        client.get("/v1/info", headers=sent),
        client.get("/v1/items/1/thumbnail", headers=sent),
        client.post("/v1/search", files=image(picture), headers=sent),
    ]
    assert [answer.status_code for answer in answers] == [status] * 3
    # Nothing is let out to other origins, whoever asks.
    assert not [name for answer in answers for name in answer.headers if name.startswith("access-control")]


def test_a_link_of_another_site_leads_to_the_page(stranger: httpx.Client) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert stranger.get("/?id=7&k=3", headers=link).status_code == 200
    for other in ({"Sec-Fetch-Dest": "iframe"}, {"Sec-Fetch-Mode": "no-cors"}, {"Origin": "http://evil.example"}):
        refused(stranger.get("/", headers=link | other), 403, "another site")
    refused(stranger.post("/", headers=link), 403, "another site")
    preflight = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    refused(stranger.options("/v1/search", headers=preflight), 403, "another site")


def test_ipv6(place: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with serving("--index", place / "my.index", "--host", "::1") as server, server.client() as client:
        assert server.url == f"http://[::1]:{server.port}"
        assert client.get("/v1/info").status_code == 200
        assert client.get("/v1/info", headers={"Origin": server.url}).status_code == 200


def test_addresses_of_this_machine(place: Path) -> None:
    words = ("--host", "0.0.0.0", "--token-file", place / "token")
    with serving("--index", place / "my.index", *words) as server:
        told = re.findall(r"On other machines: (.*); another name or address needs --allowed-host", server.stderr)
        others = [url for line in told for url in line.split(" or ")]
        assert f"http://127.0.0.1:{server.port}" not in others
        for url in others:
            assert httpx.get(f"{url}/v1/info", headers=BEARER, trust_env=False).status_code == 200
        # Every address is one only where the connection came to it.
        for host, status in (("127.0.0.2", 200), ("127.0.0.2:1", 200), ("127.0.0.3", 403), ("evil.example", 403)):
            answer = httpx.get(f"http://127.0.0.2:{server.port}/healthz", headers={"Host": host}, trust_env=False)
            assert answer.status_code == status, host
        foreign = {**BEARER, "Origin": "http://evil.example"}
        refused(httpx.get(f"http://127.0.0.2:{server.port}/v1/info", headers=foreign, trust_env=False), 403, "another")


def test_addresses_as_browsers_write_them() -> None:
    written = {
        "127.0.0.1": "127.0.0.1",
        "[::1]": "::1",
        "2001:DB8:0:0::1": "2001:db8::1",
        "::ffff:192.0.2.7": "192.0.2.7",
        "photos.example": None,
        "": None,
    }
    assert {text: address_of(text) for text in written} == written
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0")):
        with socket.create_server((host, 0), family=family) as listening:
            found = reachable_addresses(listening)
        assert not found or host == "0.0.0.0"
        for address in found:  # a socket can be bound to no other machine's
            socket.create_server((address, 0), family=socket.AF_INET).close()


# Sign-in links


LINK = re.compile(
    r"^To sign in once, within five minutes, on this machine: (http://\S+/)#sign-in=(\S{22})$", re.MULTILINE
)


@pytest.fixture(scope="module")
def linked(place: Path) -> Iterator[Server]:
    words = ("--token-file", place / "token", "--sign-in-link", "--allow-writes", "--log-requests")
    with serving("--index", place / "my.index", *words) as running:
        yield running
        running.wait_for(lambda: LINK.search(running.stderr) is not None, "the link")
        page, first = LINK.search(running.stderr).groups()
        assert page == f"{running.url}/"
        assert running.stderr.count(first) == 1
        assert (
            len(re.findall("[A-Za-z0-9_-]{22}", running.stderr.replace(first, ""))) == 0
        )  # nor in the log of requests


def secret_of(link: httpx.Response) -> str:
    assert link.status_code == 201, link.text
    said = link.json()
    assert (said["seconds"], said["local"]) == (300, True)
    return said["url"].partition("/#sign-in=")[2]


def test_a_link_signs_in_once(linked: Server, picture: bytes) -> None:
    linked.wait_for(lambda: LINK.search(linked.stderr) is not None, "the link")
    secret = LINK.search(linked.stderr)[2]
    with linked.client() as first, linked.client() as second, linked.client() as third:
        assert first.get("/v1/session").json() == {"token_required": True, "authenticated": False, "links": True}
        for wrong in (secret[:-1], secret.swapcase(), "x" * 22, "größe"):
            refused(first.post("/v1/session", json={"link": wrong}), 401, "sign-in link was used already")
        for body in ({}, {"link": secret, "token": TOKEN}):
            refused(first.post("/v1/session", json=body), 422, "neither a token nor a link, or both")
        assert first.post("/v1/session", json={"link": secret}).status_code == 204
        assert hits(first.post("/v1/search", files=image(picture)))
        refused(first.post("/v1/items", files=image(picture)), 401, "Bearer TOKEN")
        refused(second.post("/v1/session", json={"link": secret}), 401, "sign-in link was used already")
        refused(second.post("/v1/session/links", json={"page": f"{linked.url}/"}), 401, "Bearer TOKEN")
        # A page that is signed in makes a further one, which ends with its own session.
        made = secret_of(first.post("/v1/session/links", json={"page": f"{linked.url}/?id=7#v=x"}))
        assert made != secret
        assert second.post("/v1/session", json={"link": made}).status_code == 204
        ends = [client.cookies[f"deeprank_session_{linked.port}"].split(".")[0] for client in (first, second)]
        assert ends[0] == ends[1]
        assert third.get("/v1/info").status_code == 401


@pytest.mark.parametrize(
    "page",
    [
        "http://evil.example/",
        "http://127.0.0.1/",
        "ftp://{host}/",
        "{host}/",
        "http://{host}/x",
        "http://{host}/größe/",
        "http://[/",
    ],
)
def test_links_lead_to_this_server(linked: Server, page: str) -> None:
    with linked.client(headers=BEARER) as client:
        host = urlsplit(linked.url).netloc
        refused(client.post("/v1/session/links", json={"page": page.format(host=host)}), 422, "not one of this server")
        proxied = client.post("/v1/session/links", json={"page": f"https://{host}/photos/"})
        assert proxied.json()["url"].startswith(f"https://{host}/photos/#sign-in=")


def test_links_of_a_server_without_them(client: httpx.Client, server: Server) -> None:
    refused(client.post("/v1/session/links", json={"page": f"{server.url}/"}), 404, "no such page")
    refused(client.post("/v1/session", json={"link": "x" * 22}), 401, "sign-in link was used already")


def test_a_link_ends_by_time_by_guesses_and_by_further_links() -> None:
    now = [1000.0]
    links = SignInLinks(lambda: now[0])
    early, late = links.make(), links.make(session_ends=77)
    now[0] += 299.9
    assert links.use(early) == (True, None)
    now[0] += 0.2
    assert links.use(late) == (False, None)
    guessed, spared = links.make(), links.make()
    for _ in range(MAX_WRONG - 1):
        assert links.use("wrong") == (False, None)
    assert links.use(guessed) == (True, None)
    links.use("wrong")
    assert links.use(spared) == (False, None)
    several = [links.make(number) for number in range(MAX_LINKS + 1)]
    assert [links.use(secret)[1] for secret in several] == [None, *range(1, MAX_LINKS + 1)]


def test_a_code_holds_the_link() -> None:
    text = "http://192.168.100.200:8000/#sign-in=AbCdEfGhIjKlMnOpQrStUv"
    matrix = [list(map(int, row)) for row in segno.make_qr(text, error="m", boost_error=False).matrix]
    halves = {"█": (1, 1), "▀": (1, 0), "▄": (0, 1), " ": (0, 0)}
    drawn = [[halves[block][half] for block in line] for line in qr_lines(text) for half in (0, 1)]
    assert [row[2:-2] for row in drawn[2 : 2 + len(matrix)]] == matrix
    assert not any(map(any, drawn[:2] + drawn[2 + len(matrix) :]))
    dark = {(int(x), int(y)) for x, y in re.findall(r"M(\d+) (\d+)h1v1h-1z", qr_svg(text))}
    side = range(len(matrix))
    assert dark == {(x + 4, y + 4) for y in side for x in side if matrix[y][x]}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("columns", "variables", "drawn"), [(80, {}, True), (30, {}, False), (80, {"NO_COLOR": "1"}, False)]
)
def test_a_terminal_gets_a_code(place: Path, columns: int, variables: dict[str, str], drawn: bool) -> None:
    # The server ends itself once it has said where it is.
    program = (
        "import os, signal, threading\n"
        "from deeprank.runtime.serve import cli\n"
        "said = cli._tell\n"
        "end = threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM))\n"
        "cli._tell = lambda *about: [said(*about), end.start()]\n"
        "cli.main()\n"
    )
    words = ["--index", place / "my.index", "--port", 0, "--token-file", place / "token", "--sign-in-link"]
    command = [sys.executable, "-c", program, *map(str, words)]
    status, written = in_terminal(command, place, columns=columns, variables=variables)
    assert status == 0, written
    link = re.search(r"http://\S+#sign-in=\S+", written)
    assert link is not None
    code = [f"\x1b[38;5;16;48;5;231m{line}\x1b[0m" for line in qr_lines(link[0])]
    assert ("\r\n".join(code) in written) == drawn
    assert ("\x1b[38;5;16" in written) == drawn


# Writing


def uploads(place: Path) -> list[str]:
    return sorted(path.name for path in (place / "my.index" / "uploads").glob("*"))


def test_a_picture_that_is_added_is_found_until_it_is_removed(
    place: Path, client: httpx.Client, picture: bytes
) -> None:
    label = "new\n<b>größe</b>"
    added = client.post("/v1/items", params={"label": label}, files=image(picture))
    assert added.status_code == 201
    item = added.json()
    name = hashlib.sha256(picture).hexdigest() + ".png"
    assert item == {"schema": 1, "id": item["id"], "path": name, "label": label, "created": True}
    assert (place / "my.index/uploads" / name).read_bytes() == picture

    again = client.post("/v1/items", params={"label": "another"}, files=image(picture))
    assert (again.status_code, again.json()) == (200, item | {"created": False})

    for options in ({"k": 1}, {"label": label, "k": 1000}):
        (hit,) = hits(client.post("/v1/search", params=options, files=image(picture)))
        assert (hit["id"], hit["distance"], hit["root"], hit["label"]) == (item["id"], 0.0, "uploads", label)
    info = client.get("/v1/info").json()
    assert (info["writes"], info["items"], info["labels"][label]) == (True, 11, 1)
    assert {"name": "uploads", "items": 1} in info["roots"]
    address = f"/v1/items/{item['id']}"
    assert client.get(f"{address}/thumbnail").status_code == 200
    assert client.get(address).json()["bytes"] == len(picture)

    removed = client.delete(address)
    assert (removed.status_code, removed.json()) == (200, {"schema": 1, "id": item["id"], "file_deleted": True})
    assert uploads(place) == []
    for answer in (client.delete(address), client.get(address), client.get(f"{address}/thumbnail")):
        refused(answer, 404, f"no picture with the id {item['id']}")
    assert item["id"] not in [hit["id"] for hit in hits(client.post("/v1/search?k=1000", files=image(picture)))]
    assert client.get("/v1/info").json()["items"] == 10


def test_a_picture_of_a_synced_folder_keeps_its_file(place: Path, client: httpx.Client) -> None:
    found = hits(client.post("/v1/search?k=1000&id=1"))
    number, path = next((hit["id"], hit["path"]) for hit in found if hit["path"] == "dogs/4.png")
    assert client.delete(f"/v1/items/{number}").json() == {"schema": 1, "id": number, "file_deleted": False}
    assert (place / "photos" / path).is_file()
    refused(client.delete(f"/v1/items/{number}"), 404, "no picture")
    # Its next sync brings it back, and the server picks that up.
    run_command("deeprank-index", "sync", place / "photos", "--index", place / "my.index")
    assert path in [hit["path"] for hit in hits(client.post("/v1/search?k=1000&id=1"))]


@pytest.mark.parametrize(
    ("label", "content", "status", "sentence"),
    [
        ("cats", b"no picture", 422, "not a picture"),
        ("cats", b"", 422, "not a picture"),
        ("", None, 422, "label is ''"),
        ("x" * 256, None, 422, "label is"),
        ("a\0b", None, 422, "label"),
    ],
)
def test_what_is_not_added(
    place: Path, client: httpx.Client, picture: bytes, label: str, content: bytes | None, status: int, sentence: str
) -> None:
    sent = image(picture if content is None else content)
    refused(client.post("/v1/items", params={"label": label}, files=sent), status, sentence)
    refused(client.post("/v1/items"), 422, "no picture")
    assert uploads(place) == []
    assert client.get("/v1/info").json()["items"] == 10


@pytest.mark.parametrize("number", ["0", "-1", str(2**63), "abc", str(2**63 - 1)])
def test_numbers_that_are_not_removed(client: httpx.Client, number: str) -> None:
    assert client.delete(f"/v1/items/{number}").status_code == (404 if number == str(2**63 - 1) else 422)


def test_who_has_no_token_does_not_write(place: Path, stranger: httpx.Client, picture: bytes) -> None:
    refused(stranger.post("/v1/items", files=image(picture)), 401, "Bearer TOKEN")
    refused(stranger.delete("/v1/items/1"), 401, "Bearer TOKEN")
    foreign = BEARER | {"Origin": "http://evil.example"}
    refused(stranger.post("/v1/items", files=image(picture), headers=foreign), 403, "another site")
    assert uploads(place) == []


def test_another_writer_is_waited_for_a_little(place: Path, client: httpx.Client, picture: bytes) -> None:
    with locked(place / "my.index"):
        for answer in (client.post("/v1/items", files=image(picture)), client.delete("/v1/items/1")):
            refused(answer, 503, "being written to by another process")
            assert int(answer.headers["retry-after"]) > 0
        assert hits(client.post("/v1/search", files=image(picture)))  # reading goes on
        assert client.get("/readyz").status_code == 200
    added = client.post("/v1/items", files=image(picture))
    assert added.status_code == 201
    assert client.delete(f"/v1/items/{added.json()['id']}").status_code == 200


def test_the_description_of_a_guarded_server(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    scheme = document["components"]["securitySchemes"]["token"]
    assert scheme == {"type": "http", "scheme": "bearer"}
    assert document["security"] == [{"token": []}]
    assert set(document["paths"]["/v1/items"]) == {"get", "post"}
    assert set(document["paths"]["/v1/items/{id}"]) == {"get", "delete"}
    assert {"200", "201", "401", "403", "413", "422", "503"} <= set(document["paths"]["/v1/items"]["post"]["responses"])


@pytest.mark.thorough
def test_a_restart_forgets_nothing(place: Path, picture: bytes, tmp_path: Path) -> None:
    """Neither uploads nor cookies; without --allow-writes, what was uploaded is still found."""
    index = tmp_path / "my.index"
    shutil.copytree(place / "my.index", index)
    options = ("--index", index, "--token-file", place / "token")
    with serving(*options, "--allow-writes") as server, server.client(headers=BEARER) as client:
        number = client.post("/v1/items?label=kept", files=image(picture)).json()["id"]
        _, value = cookie_of(client.post("/v1/session", json={"token": TOKEN}))
    with serving(*options) as server, server.client() as client:
        name, _ = cookie_of(client.post("/v1/session", json={"token": TOKEN}))
        client.cookies.clear()
        client.headers["Cookie"] = f"{name}={value}"
        assert hits(client.post("/v1/search?label=kept", files=image(picture)))[0]["id"] == number
        assert client.get(f"/v1/items/{number}/thumbnail").status_code == 200
        assert client.get("/v1/info").json()["writes"] is False
        assert client.post("/v1/items", files=image(picture), headers=BEARER).status_code == 405
        assert client.delete(f"/v1/items/{number}", headers=BEARER).status_code == 405


# Starting


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read (No such file or directory); make one with: python3 -c"),
        (b"", "has 0 characters; expected at least 16"),
        (b"\n", "has 0 characters"),
        (b"short\n", "has 5 characters"),
        (b"two lines of one\nand the same file\n", "one line of visible ASCII"),
        (b"0123456789abcdef 0123456789\n", "one line of visible ASCII"),
        (b"\x00\xff" * 20, "one line of visible ASCII"),
        ("größer-als-sechzehn-zeichen\n".encode(), "one line of visible ASCII"),
        (b"x" * 5000, "one line of visible ASCII"),
    ],
)
def test_token_files_that_are_none(place: Path, tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "tok\nen"
    if content is not None:
        path.write_bytes(content)
    failed = run_command("deeprank-serve", "--index", place / "my.index", "--token-file", path, status=1)
    (line,) = failed.stderr.splitlines()
    assert sentence in line
    assert "tok\\nen" in line
    assert "short" not in line


WITHOUT = "can be reached from other machines, but no token was given"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--host", "0.0.0.0"], WITHOUT),
        (["--host", "::"], WITHOUT),
        (["--host", "192.0.2.1"], WITHOUT),
        (["--host", "photos.example"], WITHOUT),
        (["--host", ""], WITHOUT),
        (["--allow-writes"], "--allow-writes was given without a token"),
        (["--allow-writes", "--insecure"], "--allow-writes was given without a token"),
        (["--sign-in-link"], "--sign-in-link was given, but without a token"),
        (["--token-file", "token", "--insecure"], "Both a token and --insecure"),
        (["--token-file", "token", "--host", "192.0.2.1"], "The server cannot listen on 192.0.2.1, port 0 ("),
        (
            ["--token-file", "token", "--host", "no\nsuch.invalid"],
            "no\\nsuch.invalid is not an address of this machine",
        ),
        (["--port", "{taken}"], "port {taken} (Address already in use)"),
        (["--index", "nothing"], "nothing does not exist; expected an index folder"),
        (["--index", "photos"], "deeprank-index sync"),
    ],
)
def test_starts_that_are_refused(place: Path, words: list[str], sentence: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        filled = [word.format(taken=taken.getsockname()[1]) for word in words]
        index = [] if "--index" in words else ["--index", "my.index"]
        port = [] if "--port" in words else ["--port", "0"]
        failed = run_command("deeprank-serve", *index, *port, *filled, cwd=place, status=1)
        line = failed.stderr.splitlines()[-1]
        assert line.startswith("error: ")
        assert sentence.format(taken=taken.getsockname()[1]) in line
        assert failed.stdout == ""


@pytest.mark.thorough
def test_what_is_warned_of(place: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o644)
    words = ["--index", tmp_path / "none", "--host", "0.0.0.0", "--port", "0", "--token-file", token]
    said = run_command("deeprank-serve", *words, status=1).stderr
    assert "warning: other users can read" in said
    assert "warning: HTTP is not encrypted" in said
    assert TOKEN not in said
    token.chmod(0o600)
    said = run_command("deeprank-serve", *words, "--allowed-host", OTHER_NAME, status=1).stderr
    assert "other users" not in said


def test_wrong_usage() -> None:
    for words in (["--port", "70000"], ["--port", "x"], ["--max-upload", "1"], ["--device", "abacus"], ["--colour"]):
        assert "Traceback" not in run_command("deeprank-serve", *words, status=2).stderr


def test_a_part_that_is_missing(place: Path) -> None:
    code = "import sys; sys.modules['uvicorn'] = None; from deeprank.runtime.serve.cli import main; main()"
    command = [sys.executable, "-c", code, "--index", str(place / "my.index")]
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode == 1
    (line,) = failed.stderr.splitlines()
    assert line.startswith("error: deeprank-serve needs packages that are not installed here")
    assert line.partition("install them with: ")[2].startswith(f"{sys.executable} -m pip install 'fastapi>=")


def test_everybody_may_ask_an_insecure_server(place: Path, picture: bytes) -> None:
    words = ("--host", "0.0.0.0", "--insecure", "--allowed-host", OTHER_NAME)
    with serving("--index", place / "my.index", *words) as server:
        assert "warning: HTTP is not encrypted" in server.stderr
        assert server.url == f"http://127.0.0.1:{server.port}"  # an address that the browser of this machine opens
        with server.client() as client:
            assert client.get("/v1/session").json() == {"token_required": False, "authenticated": True, "links": False}
            assert hits(client.post("/v1/search", files=image(picture), headers={"Host": OTHER_NAME}))
            assert client.get("/v1/info", headers={"Host": "evil.example"}).status_code == 403
