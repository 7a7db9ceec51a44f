"""Serves an index for a moment and asks it what clients ask; a program of its own, so that limits hold for both.

usage: served_index.py INDEX WORLD.json OUT
"""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import time
from pathlib import Path

from fixture import BIN, World

_LINE = re.compile(rb"at http://127\.0\.0\.1:(\d+)")
_PATIENCE_S = 40.0
_END_S = 40.0


def main() -> int:
    """Return the exit status of the server; 0 where it answered, whatever it answered."""
    index, world, out = sys.argv[1], World.load(Path(sys.argv[2])), Path(sys.argv[3])
    said = out / "server.txt"
    with said.open("wb") as errors:
        words = [str(BIN / "deeprank-serve"), "--index", index, "--port", "0", "--originals"]
        server = subprocess.Popen(words, stdout=errors, stderr=errors, stdin=subprocess.DEVNULL)
    port = _port(server, said)
    if port is not None:
        _ask(port, world, out)
        server.terminate()
    try:
        status = server.wait(_END_S)
    except subprocess.TimeoutExpired:
        print("internal error: the server does not end when it is told to")
        server.kill()
        return 3
    print(said.read_text(errors="replace")[-2000:])
    return status


def _port(server: subprocess.Popen[bytes], said: Path) -> int | None:
    until = time.monotonic() + _PATIENCE_S
    while server.poll() is None and time.monotonic() < until:
        if found := _LINE.search(said.read_bytes()):
            return int(found[1])
        time.sleep(0.02)
    if server.poll() is None:
        print("internal error: the server neither serves nor ends")
        server.kill()
    return None


def _ask(port: int, world: World, out: Path) -> None:
    boundary = "attack"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="q.png"\r\n\r\n'
    body = head.encode() + world.query.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    form = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    asked = [
        ("POST", "/v1/search?k=5", body, form),
        ("GET", "/healthz", b"", {}),
        ("GET", "/v1/info", b"", {}),
        *(("GET", f"/v1/items/{number}/thumbnail", b"", {}) for number in (1, 2, 3)),
        *(("GET", f"/v1/items?order={order}&limit=500", b"", {}) for order in ("folder", "newest", "shuffle")),
        *(("GET", f"/v1/items/{number}/original", b"", {}) for number in (1, 2, 3)),
        ("POST", "/v1/search?k=5&sizes=1&box=0,0,0.5,0.5&id=1", b"", {}),
        ("POST", "/v1/search?k=150", body, form),
    ]
    for number, (method, target, content, headers) in enumerate(asked):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
        try:
            connection.request(method, target, content, headers)
            reply = connection.getresponse()
            found = reply.read()
        except (OSError, http.client.HTTPException) as error:
            print(f"{target}: {type(error).__name__}: {error}")
            continue
        finally:
            connection.close()
        (out / f"reply{number}").write_bytes(found)
        print(f"{target}: {reply.status}")
        if reply.status == 500:
            print(f"internal error: {found[:300]!r}")


if __name__ == "__main__":
    sys.exit(main())
