"""Hostile HTTP: raw bytes for a socket, some without an end, and mutations of honest requests."""

from __future__ import annotations

import itertools
import json
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random

__all__ = ["KINDS", "Request", "honest", "mutate"]

_START = b"POST /v1/search?k=3 HTTP/1.1\r\nHost: localhost\r\n"
_GET = b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\n"
_LOG_IN = b"POST /v1/session HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
_CHUNKED = _START + b"Content-Type: multipart/form-data; boundary=b\r\nTransfer-Encoding: chunked\r\n\r\n"
_END = b"\r\n"
# A picture of one pixel: an honest upload is small.
_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc0000003010100"
    "c9fe92ef0000000049454e44ae426082"
)
_PIECE = 16_384
_LETTERS = string.ascii_letters.encode()


def _endless(start: bytes, piece: Callable[[Random, int], bytes]) -> Callable[[Random], Iterator[bytes]]:
    """Return a maker of bytes that begin like this and go on without end."""

    def pieces(rng: Random) -> Iterator[bytes]:
        yield start
        for number in itertools.count():
            yield piece(rng, number)

    return pieces


def _run(rng: Random, number: int) -> bytes:
    return bytes([rng.choice(_LETTERS)]) * _PIECE


def _lines(pattern: bytes) -> Callable[[Random, int], bytes]:
    """Return a maker of many short lines, each with a number of its own."""

    def piece(rng: Random, number: int) -> bytes:
        count = _PIECE // (len(pattern) + 6)
        return b"".join(pattern % (number * count + line) for line in range(count))

    return piece


def _same(content: bytes) -> Callable[[Random, int], bytes]:
    return lambda rng, number: content * (_PIECE // len(content))


def _promised(rng: Random) -> bytes:
    length = rng.choice((10**9, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30))
    return _START + b"Content-Length: %d\r\n\r\nx" % length


def _ambiguous(rng: Random) -> bytes:
    """Two framings at once, as request smuggling has them."""
    framings = (
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 4\r\nContent-Length: 5\r\n",
        b"Content-Length: 4, 4\r\n",
        b"Content-Length: +4\r\n",
        b"Content-Length: 0x4\r\n",
        b"Content-Length: 4 4\r\n",
        b"Content-Length: -1\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: chunked, gzip\r\n",
        b"Transfer-Encoding: \x0bchunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: xchunked\r\n",
    )
    return _START + rng.choice(framings) + b"\r\n4\r\nabcd\r\n0\r\n\r\n" + _GET + _END


def _chunk_sizes(rng: Random) -> bytes:
    size = rng.choice((b"-1", b"+4", b"0x4", b"4 4", b"ffffffffffffffff", b"f" * 40, b"", b" 4", b"4\t", b"g", b"4\n"))
    return _CHUNKED + size + b"\r\nabcd\r\n0\r\n\r\n"


def _folded(rng: Random) -> bytes:
    return _GET + b"X-A: a\r\n" + (b" \t" * rng.randrange(1, 50) + b"folded\r\n") * rng.randrange(1, 1000) + _END


def _strange_bytes(rng: Random) -> bytes:
    strange = rng.choice((b"\0", b"\r", b"\n", b"\x7f", b"\xff", b"\x1b[31m", b"\xc0\xaf", b"\x80", b"\x0b"))
    places = (
        b"GET /%b HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GE%bT / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.%b1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHo%bst: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: local%bhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n\r\n",
        b"GET /?k=%b HTTP/1.1\r\nHost: localhost\r\n\r\n",
    )
    return rng.choice(places).replace(b"%b", strange * rng.choice((1, 1000)))


def _other_protocols(rng: Random) -> bytes:
    return rng.choice(
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9) * 100,
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(512),
            b"GET /\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
            b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\n\r\nSSH-2.0-x\r\n",
            _GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n" + rng.randbytes(4096),
            b"EHLO localhost\r\nMAIL FROM:<a@example.org>\r\n",
            rng.randbytes(4096),
        )
    )


def _many_headers(rng: Random) -> bytes:
    name = rng.choice((b"a", b"Cookie", b"Host", b"Authorization", b"Content-Length", b"Connection", b"X-A"))
    return _GET + (name + b": " + rng.choice((b"", b"1", b"a=b")) + b"\r\n") * rng.choice((200, 5_000)) + _END


def _cookies(rng: Random) -> bytes:
    name = b"deeprank_session_8000="
    values = (
        b"; ".join(b"c%d=v" % number for number in range(7_000)),
        name + b'"' + b"\\" * 60_000 + b'"',
        name + b'"' + b"\\1" * 30_000 + b'"',
        (name + b"1; ") * 2_500,
        b"=" * 60_000,
        name + b"9" * 60_000 + b"." + b"f" * 64,
    )
    return b"GET /v1/session HTTP/1.1\r\nHost: localhost\r\nCookie: " + rng.choice(values) + b"\r\n\r\n"


def _long_token(rng: Random) -> bytes:
    return _GET + b"Authorization: Bearer " + b"t" * rng.choice((60_000, 2_000_000)) + b"\r\n\r\n"


def _query(rng: Random) -> bytes:
    """Parameters by the thousand, and such as take long to take apart."""
    queries = (
        b"&".join(b"p%d=1" % number for number in range(7_000)),
        b"label=a&" * 7_500,
        b"&" * 60_000,
        b"label=" + b"%61" * 20_000,
        b"label=" + b"%ff" * 20_000,
        b"k=" + b"9" * 60_000,
        b"max_distance=" + b"1" * 30_000 + b"e" + b"9" * 30_000,
        b"unique=1" + b"_0" * 30_000,
        b"label=" + b"%2e%2e%2f" * 6_000,
    )
    return b"POST /v1/search?" + rng.choice(queries) + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"


def _json(rng: Random) -> bytes:
    bodies = (
        b"[" * 9_000,
        b'{"token":' * 1_000,
        b'{"token":"' + b"\\ud800" * 1_500 + b'"}',
        b'{"token":' + b"9" * 9_000 + b"}",
        b'{"token":1e999}',
        b'{"token":"a","token":"b"}',
        json.dumps({f"k{number}": number for number in range(900)}).encode(),
        b"\xff\xfe[\0",
        b"NaN",
    )
    body = rng.choice(bodies)
    return _LOG_IN + b"Content-Length: %d\r\n\r\n" % len(body) + body


def _body_that_nobody_takes(rng: Random) -> bytes:
    target = rng.choice((b"GET /v1/info", b"GET /", b"DELETE /v1/session", b"GET /v1/items/1", b"POST /v1/session"))
    size = rng.choice((20_000, 5_000_000))
    return target + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)


@dataclass
class _Form:
    """A form with a picture; what is hostile is one thing of it."""

    boundary: bytes = b"b"
    content_type: bytes = b"multipart/form-data; boundary=%b"
    headers: bytes = b'Content-Disposition: form-data; name="image"; filename="a.png"\r\n'
    content: bytes = _PNG
    before: bytes = b""
    after: bytes = b""

    def request(self) -> bytes:
        body = b"%b--%b\r\n%b\r\n%b\r\n--%b--\r\n%b" % (
            self.before,
            self.boundary,
            self.headers,
            self.content,
            self.boundary,
            self.after,
        )
        kind = self.content_type.replace(b"%b", self.boundary)
        return _START + b"Content-Type: %b\r\nContent-Length: %d\r\n\r\n" % (kind, len(body)) + body


def _charset(rng: Random) -> bytes:
    """An encoding that takes long to decode: quadratic ones, and those that give no text at all."""
    names = b"punycode idna utf-7 unicode_escape raw_unicode_escape utf-16 utf-32 rot13 base64 hex zlib bz2 cp65001 "
    names += b"hz iso2022_jp mbcs undefined ../x \xff"
    charset = rng.choice(names.split())
    text = rng.choice((b"a" * 100_000 + b"-", b"-" + b"9" * 100_000, b"\\N{DIGIT ONE}" * 7_000, b"+AGE-" * 20_000))
    form = _Form(content_type=b'multipart/form-data; boundary=%b; charset="' + charset + b'"')
    if rng.random() < 0.5:
        form.headers = b'Content-Disposition: form-data; name="image"; filename="' + text[:4_000] + b'"\r\n'
    else:
        form.headers = b'Content-Disposition: form-data; name="vector"\r\n'
        form.content = text
    if rng.random() < 0.3:
        form.headers += b"Content-Type: text/plain; charset=" + charset + b"\r\n"
    if rng.random() < 0.3:
        part = b'--b\r\nContent-Disposition: form-data; name="_charset_"\r\n\r\n%b\r\n'
        form.before = part.replace(b"%b", charset)
    return form.request()


def _punycode(rng: Random) -> bytes:
    """Of nearly a megabyte, which is quadratic to decode."""
    fields = b'--b\r\nContent-Disposition: form-data; name="x%d"\r\n\r\n%b\r\n'
    body = b"".join(fields % (number, b"a" * 130_000) for number in range(7)) + b"--b--\r\n"
    kind = b"multipart/form-data; boundary=b; charset=punycode"
    return _START + b"Content-Type: %b\r\nContent-Length: %d\r\n\r\n" % (kind, len(body)) + body


def _extended_names(rng: Random) -> bytes:
    values = (
        b"punycode''" + b"a" * 3_000,
        b"utf-7''+AGE-",
        b"no-such''%ff",
        b"UTF-8''" + b"%e2%82%ac" * 300,
        b"''" * 900,
    )
    parameters = b'form-data; name="image"; filename="a.png"; filename*=' + rng.choice(values)
    return _Form(headers=b"Content-Disposition: " + parameters + b"\r\n").request()


def _disposition(rng: Random) -> bytes:
    """Parameters by the thousand and quotes without end."""
    many = (b"; x=y" * 800, b';"' * 2_000, b"; \\" * 1_300, b'; name="' + b'\\"' * 1_900, b";" * 4_000, b'"' * 4_000)
    parameters = b'form-data; name="image"; filename="a.png"' + rng.choice(many)
    return _Form(headers=b"Content-Disposition: " + parameters + b"\r\n").request()


def _content_type(rng: Random) -> bytes:
    """The same in the Content-Type of the request."""
    many = (
        b"; x=y" * 12_000,
        b';"' * 30_000,
        b'; x="' + b"\\" * 60_000,
        b";" * 60_000,
        b'"' * 60_000,
        b' ;x="\\"";' * 6_000,
    )
    return _Form(content_type=b"multipart/form-data" + rng.choice(many) + b"; boundary=%b").request()


def _parts(rng: Random) -> bytes:
    """Very many tiny parts."""
    part = rng.choice(
        (
            b'--b\r\nContent-Disposition: form-data; name="id"\r\n\r\n1\r\n',
            b"--b\r\n\r\n\r\n",
            b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n\r\n',
            b"--b\r\nX: y\r\n" * 5,
        )
    )
    return _Form(before=part * (rng.choice((100_000, 2_000_000)) // len(part))).request()


def _part_headers(rng: Random) -> bytes:
    header = rng.choice((b"X-A: a\r\n", b"X: " + b"y" * 4_000 + b"\r\n", b"a" * 4_000 + b": b\r\n", b" folded\r\n"))
    return _Form(headers=header * (rng.choice((1_000, 900_000)) // len(header))).request()


def _boundary(rng: Random) -> bytes:
    """Content that is all beginnings of the boundary, or boundaries that go on differently."""
    boundary = rng.choice((b"b", b"b" * 70, b"-" * 70, b"b" * 255, b"=_.'()+,/:?b"))
    near = b"\r\n--" + boundary
    contents = (
        near[: rng.randrange(1, len(near))],
        near + b"X",
        near + b"-",
        near + b"\r",
        near + b" ",
        b"\r",
        b"\n",
        b"-",
    )
    content = rng.choice(contents)
    size = rng.choice((200_000, 900_000, 5_000_000))
    form = _Form(boundary=boundary, content_type=b'multipart/form-data; boundary="%b"')
    form.content = content * (size // len(content))
    return form.request()


def _around(rng: Random) -> bytes:
    """Much before the first boundary, after it, or after the last."""
    junk = rng.choice((b"\r\n", b" ", b"-", b"x", b"\0", b"--b ")) * rng.choice((200_000, 900_000))
    form = _Form()
    place = rng.randrange(3)
    if place == 0:
        form.before = junk
    elif place == 1:
        form.after = junk
    else:
        form.boundary = b"b"
        form.before = b"--b" + b" " * len(junk)
    return form.request()


def _encoded(rng: Random) -> bytes:
    encoding = rng.choice((b"base64", b"quoted-printable", b"gzip", b"x" * 3_000))
    header = b"Content-Transfer-Encoding: " + encoding + b"\r\n"
    form = _Form(content=b"A" * rng.choice((3, 900_000)))
    form.headers += header
    return form.request()


def _nested(rng: Random) -> bytes:
    inner = _PNG
    for depth in range(rng.choice((1, 50, 1_000))):
        inner = b"--n%d\r\nContent-Type: multipart/mixed; boundary=n%d\r\n\r\n%b\r\n--n%d--\r\n" % (
            depth,
            depth + 1,
            inner,
            depth,
        )
    form = _Form(content=inner)
    form.headers += b"Content-Type: multipart/mixed; boundary=n0\r\n"
    return form.request()


def _vector(rng: Random) -> bytes:
    content = rng.choice((b"A" * 131_000, b"=" * 131_000, b"\xff" * 131_000, b"AAAA" * 16, b"9" * 131_000))
    name = rng.choice((b"vector", b"id", b"model"))
    return _Form(headers=b'Content-Disposition: form-data; name="' + name + b'"\r\n', content=content).request()


def _ahead(rng: Random) -> bytes:
    """Requests sent ahead of the answers, the last one not whole."""
    one = rng.choice(
        (_GET + _END, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", _LOG_IN + b"Content-Length: 2\r\n\r\n{}")
    )
    return one * rng.choice((2, 50, 5_000)) + one[: rng.randrange(len(one))] + rng.choice((b"", b"\0", b"X" * 70_000))


def _cut_off(rng: Random) -> bytes:
    request = honest(rng).bytes()
    return request[: rng.randrange(1, len(request))]


# What is sent to a socket as it is; an iterator never ends.
KINDS: Mapping[str, Callable[[Random], bytes | Iterator[bytes]]] = {
    "endless header value": _endless(_GET + b"X-A: ", _run),
    "endless header name": _endless(_GET, _run),
    "endless headers": _endless(_GET, _lines(b"X-%d: a\r\n")),
    "endless empty headers": _endless(_GET, _same(b"a:\r\n")),
    "endless folded header": _endless(_GET + b"X-A: a\r\n", _same(b" a\r\n")),
    "endless method": _endless(b"", _run),
    "endless target": _endless(b"GET /", _run),
    "endless query": _endless(b"GET /?", _lines(b"p%d=1&")),
    "endless version": _endless(b"GET / HTTP/", _same(b"1")),
    "endless spaces in the request line": _endless(b"GET ", _same(b" ")),
    "endless line ends before a request": _endless(b"", _same(b"\r\n")),
    "endless line ends after a request": _endless(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", _same(b"\r\n")),
    "endless spaces in a header": _endless(_GET + b"X-A:", _same(b" ")),
    "endless authorization": _endless(_GET + b"Authorization: Bearer ", _run),
    "endless transfer encoding": _endless(_START + b"Transfer-Encoding: chunked", _same(b",chunked")),
    "endless content length": _endless(_START + b"Content-Length: ", _same(b"0")),
    "endless chunk size": _endless(_CHUNKED, _same(b"0")),
    "endless chunk extension": _endless(_CHUNKED + b"4;", _run),
    "endless chunk extensions": _endless(_CHUNKED + b"4", _lines(b";x%d=y")),
    "endless quoted chunk extension": _endless(_CHUNKED + b'4;x="', _run),
    "endless extensions of tiny chunks": _endless(_CHUNKED, _same(b"1;" + b"x" * 1_000 + b"\r\nx\r\n")),
    "endless tiny chunks": _endless(_CHUNKED, _same(b"1\r\nx\r\n")),
    "endless chunks": _endless(_CHUNKED, _same(b"1000\r\n" + b"x" * 4_096 + b"\r\n")),
    "endless trailer value": _endless(_CHUNKED + b"0\r\nX-A: ", _run),
    "endless trailer name": _endless(_CHUNKED + b"0\r\n", _run),
    "endless trailers": _endless(_CHUNKED + b"0\r\n", _lines(b"X-%d: a\r\n")),
    "endless trailer after a body": _endless(_CHUNKED + b"4\r\nabcd\r\n0\r\nX-A: ", _run),
    "endless trailer of a log-in": _endless(_LOG_IN + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: ", _run),
    "endless body": _endless(_START + b"Content-Length: 1000000000000\r\n\r\n", _run),
    "endless body that nobody takes": _endless(
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n\r\n", _run
    ),
    "endless requests ahead": _endless(b"", _same(_GET + _END)),
    "endless random bytes": _endless(b"", lambda rng, number: rng.randbytes(_PIECE)),
    "promised length": _promised,
    "two framings": _ambiguous,
    "chunk sizes": _chunk_sizes,
    "folded headers": _folded,
    "strange bytes": _strange_bytes,
    "other protocols": _other_protocols,
    "many headers": _many_headers,
    "cookies": _cookies,
    "long token": _long_token,
    "query": _query,
    "JSON": _json,
    "body that nobody takes": _body_that_nobody_takes,
    "charset of a form": _charset,
    "punycode form": _punycode,
    "extended file names": _extended_names,
    "content disposition": _disposition,
    "content type": _content_type,
    "tiny parts": _parts,
    "headers of parts": _part_headers,
    "boundaries": _boundary,
    "around a form": _around,
    "transfer encoding of a part": _encoded,
    "nested form": _nested,
    "fields": _vector,
    "requests ahead": _ahead,
    "cut off": _cut_off,
}


@dataclass
class Request:
    """An honest request in its parts, to be changed one at a time."""

    method: bytes = b"POST"
    target: bytes = b"/v1/search"
    version: bytes = b"HTTP/1.1"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    parts: list[tuple[list[tuple[bytes, bytes]], bytes]] = field(default_factory=list)
    body: bytes = b""
    boundary: bytes = b"b0undary"
    chunks: list[int] | None = None
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)

    def content(self) -> bytes:
        """Return the body before it is cut into chunks."""
        if not self.parts:
            return self.body
        each = [
            b"--" + self.boundary + b"\r\n" + _header_lines(headers) + b"\r\n" + content + b"\r\n"
            for headers, content in self.parts
        ]
        return b"".join(each) + b"--" + self.boundary + b"--\r\n"

    def bytes(self) -> bytes:
        """Return all of it as it is sent."""
        content = self.content()
        headers = list(self.headers)
        if self.parts:
            headers.append((b"Content-Type", b"multipart/form-data; boundary=" + self.boundary))
        if self.chunks is None:
            headers.append((b"Content-Length", b"%d" % len(content)))
            framed = content
        else:
            headers.append((b"Transfer-Encoding", b"chunked"))
            framed = self._chunked(content)
        line = b"%b %b %b\r\n" % (self.method, self.target, self.version)
        return line + _header_lines(headers) + b"\r\n" + framed

    def _chunked(self, content: bytes) -> bytes:
        ends = sorted({min(end, len(content)) for end in self.chunks or ()} | {len(content)})
        pieces = [content[begin:end] for begin, end in itertools.pairwise([0, *ends]) if end > begin]
        framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        return framed + b"0\r\n" + _header_lines(self.trailers) + b"\r\n"


def _header_lines(headers: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%b: %b\r\n" % header for header in headers)


def _picture_part() -> tuple[list[tuple[bytes, bytes]], bytes]:
    disposition = (b"Content-Disposition", b'form-data; name="image"; filename="a.png"')
    return [disposition, (b"Content-Type", b"image/png")], _PNG


def _field_part(name: bytes, value: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    return [(b"Content-Disposition", b'form-data; name="%b"' % name)], value


_LIST = b"/v1/items?order=newest&seed=3&limit=2&label=label0&folder=label0&cursor="


def honest(rng: Random) -> Request:
    """Return a request that clients really send."""
    request = Request(headers=[(b"Host", b"localhost"), (b"Accept", b"*/*"), (b"User-Agent", b"attack")])
    kind = rng.randrange(6)
    if kind == 0:
        request.parts = [_picture_part()]
        request.target = rng.choice((b"/v1/search", b"/v1/search?k=3", b"/v1/search?label=a&label=b", b"/v1/embed"))
    elif kind == 1:
        request.parts = [_field_part(b"id", b"1")] * rng.randrange(1, 4)
        request.target = rng.choice((request.target, b"/v1/search?sizes=1", b"/v1/embed"))
        if len(request.parts) == 1:
            request.parts.append(_field_part(b"box", b"0,0.25,0.5,1"))
    elif kind == 2:
        request.parts = [_field_part(b"vector", b"AACAPwAAAAAAAAAAAAAAAA=="), _field_part(b"model", b"0123456789ab")]
    elif kind == 3:
        request.target, request.body = b"/v1/session", b'{"token": "0123456789abcdefghij"}'
        request.headers.append((b"Content-Type", b"application/json"))
    elif kind == 4:
        request.method = b"GET"
        items = (b"/v1/items/1", b"/v1/items/1/thumbnail?size=256", b"/v1/items/1/original", _LIST)
        request.target = rng.choice((b"/v1/info", *items, b"/", b"/docs"))
        request.headers.append((b"If-None-Match", b'"0123"'))
        request.headers.append((b"Cookie", b"deeprank_session_8000=1.ab; other=1"))
    else:
        request.method, request.target = b"DELETE", rng.choice((b"/v1/session", b"/v1/items/1"))
    if rng.random() < 0.3:
        request.chunks = [rng.randrange(1, 400) for _ in range(rng.randrange(4))]
    return request


def mutate(rng: Random) -> bytes:
    """Return an honest request with one to four things of it changed, each within the structure or in the bytes."""
    request = honest(rng)
    for _ in range(rng.randrange(1, 4)):
        rng.choice(_CHANGES)(request, rng)
    content = request.bytes()
    if rng.random() < 0.3:
        content = _flipped(content, rng)
    if rng.random() < 0.1:
        content += honest(rng).bytes()
    return content


def _text(rng: Random) -> bytes:
    """Return bytes that are likely to matter to a parser."""
    long = rng.choice((1, 1, 1, 10, 300, 5_000, 70_000))
    return rng.choice(
        (
            b"",
            b"a" * long,
            b"\0" * min(long, 10),
            b"%00" * long,
            b"%" * long,
            b"\r\n" * min(long, 300),
            b"\r\n\r\n",
            b" " * long,
            b"\t",
            b'"' * long,
            b"\\" * long,
            b";" * long,
            b"-" * long,
            b"0" * long,
            b"9" * min(long, 300),
            b"-1",
            b"\xff" * long,
            b"\xe2\x80\xae",
            b"../" * min(long, 5_000),
            b"chunked",
            b"identity",
            b"100-continue",
            b"localhost",
            b"image",
            rng.randbytes(rng.randrange(1, 60)),
        )
    )


def _inserted(content: bytes, rng: Random) -> bytes:
    place = rng.randrange(len(content) + 1)
    kept = rng.choice((place, place, min(len(content), place + rng.randrange(1, 20))))
    return content[:place] + _text(rng) + content[kept:]


def _flipped(content: bytes, rng: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 6)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _change_headers(headers: list[tuple[bytes, bytes]], rng: Random) -> None:
    """Change, repeat, drop, move or add one."""
    place = rng.randrange(len(headers)) if headers else None
    way = rng.randrange(6)
    if place is None or way == 0:
        names = (
            b"Expect",
            b"Transfer-Encoding",
            b"Content-Length",
            b"Connection",
            b"Upgrade",
            b"Origin",
            b"Range",
            b"TE",
        )
        headers.insert(rng.randrange(len(headers) + 1), (rng.choice((*names, _text(rng))), _text(rng)))
        return
    name, value = headers[place]
    if way == 1:
        headers[place] = (_inserted(name, rng), value)
    elif way == 2:
        headers[place] = (name, _inserted(value, rng))
    elif way == 3:
        headers[place:place] = [headers[place]] * rng.choice((1, 2, 50, 3_000))
    elif way == 4:
        del headers[place]
    else:
        headers.insert(rng.randrange(len(headers)), headers.pop(place))


def _method(request: Request, rng: Random) -> None:
    methods = (
        b"GET",
        b"HEAD",
        b"PUT",
        b"PATCH",
        b"OPTIONS",
        b"TRACE",
        b"CONNECT",
        b"PRI",
        b"get",
        b"M-SEARCH",
        b"QUERY",
    )
    request.method = rng.choice((*methods, _inserted(request.method, rng)))


def _target(request: Request, rng: Random) -> None:
    targets = (b"*", b"//", b"http://localhost/v1/info", b"http://evil.example/", b"/v1/items/99999999999999999999")
    request.target = rng.choice((*targets, *[_inserted(request.target, rng)] * 5))


def _version(request: Request, rng: Random) -> None:
    request.version = rng.choice((b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/9.9", b"http/1.1", b"", _text(rng)))


def _headers(request: Request, rng: Random) -> None:
    _change_headers(request.headers, rng)


def _body(request: Request, rng: Random) -> None:
    request.body = _inserted(request.body, rng)


def _boundary_of(request: Request, rng: Random) -> None:
    request.boundary = rng.choice((_text(rng), _inserted(request.boundary, rng), b"b" * rng.randrange(1, 300)))


def _part(request: Request, rng: Random) -> None:
    """Change a part's headers or content, repeat it or drop it."""
    if not request.parts:
        request.parts.append(rng.choice((_picture_part(), _field_part(b"id", _text(rng)))))
        return
    place = rng.randrange(len(request.parts))
    headers, content = request.parts[place]
    way = rng.randrange(4)
    if way == 0:
        _change_headers(headers, rng)
    elif way == 1:
        request.parts[place] = (headers, _inserted(content, rng))
    elif way == 2:
        request.parts[place:place] = [request.parts[place]] * rng.choice((1, 2, 9, 3_000))
    else:
        near = b"\r\n--" + request.boundary
        request.parts[place] = (headers, near[: rng.randrange(1, len(near) + 1)] * rng.choice((1, 1_000)))


def _chunks(request: Request, rng: Random) -> None:
    request.chunks = [rng.randrange(1, 2_000) for _ in range(rng.choice((0, 1, 10, 1_000)))]
    for _ in range(rng.randrange(3)):
        _change_headers(request.trailers, rng)


_CHANGES: tuple[Callable[[Request, Random], None], ...] = (
    _method,
    _target,
    _version,
    _headers,
    _headers,
    _body,
    _boundary_of,
    _part,
    _part,
    _chunks,
)
