"""An honest client of two servers: the attacked one, and one that nobody attacks, asked in the same moment.

How much longer the first takes than the second is what the attack costs others: what else the machine does holds up
both. Prints a JSON line for each pair of answers.

usage: honest_client.py ATTACKED_PORT OTHER_PORT TOKEN WORLD.json
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fixture import K, World

_PAUSE_S = 0.05
_PATIENCE_S = 60.0
_BOUNDARY = "honest"


def main() -> None:
    """Ask until the pipe is closed."""
    ports, token, world = [int(port) for port in sys.argv[1:3]], sys.argv[3], World.load(Path(sys.argv[4]))
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="q.png"\r\n\r\n'
    body = head.encode() + world.query.read_bytes() + f"\r\n--{_BOUNDARY}--\r\n".encode()

    def ask(port: int) -> tuple[float, str]:
        started = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
        try:
            kind = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}", "Authorization": f"Bearer {token}"}
            # Pictures that others upload have no label.
            connection.request("POST", f"/v1/search?k={K}&label=a&label=b&label=c", body, kind)
            reply = connection.getresponse()
            found = reply.read()
            if reply.status != 200:
                return time.monotonic() - started, f"status {reply.status}: {found[:200]!r}"
            hits = json.loads(found)["results"][0]["hits"]
            right = world.answer_is_right([(hit["relative"], hit["distance"]) for hit in hits])
            return time.monotonic() - started, "" if right else f"wrong answer: {hits}"
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            return time.monotonic() - started, f"{type(error).__name__}: {error}"
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as both:
        while True:
            sent = time.monotonic()
            (attacked_s, problem), (other_s, _) = both.map(ask, ports)
            print(
                json.dumps({"sent": sent, "attacked_s": attacked_s, "other_s": other_s, "problem": problem}), flush=True
            )
            time.sleep(_PAUSE_S)


if __name__ == "__main__":
    main()
