"""schemathesis against the server's own OpenAPI document: what it promises is what it does."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from fixture import World
from results import Tally
from server_process import Server

__all__ = ["run"]

# A schema can say that a picture is bytes and an id a number, not that the bytes are a picture, that there is such a
# number, or that a query is one of several fields: to refuse those is right. What is too long may be refused unread.
_CONFIG = """\
[checks]
positive_data_acceptance.expected-statuses = ["2xx", 304, 401, 403, 404, 409, 410, 413, 422]
negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 413, 422]
"""
# Whether it takes pictures, and has a token.
_SERVERS = {"open": False, "writing": True}
_LONGEST = 300
_SENTENCES = 10


def run(world: World, examples: int, phases: str, servers: str, seed: int) -> Iterator[Tally]:
    """Run it against a server without a token, and against one with a token that takes pictures."""
    for server_of in servers.split(","):
        writes = _SERVERS[server_of]
        folder = world.copied(f"contract-{server_of}")
        tally = Tally(f"schemathesis, {'a token, uploads' if writes else 'no token'}")
        with world.serve("--originals", index=folder / "my.index", writes=writes) as server:
            _attack(
                world, server, folder, ["--max-examples", examples, "--phases", phases, "--seed", seed], writes, tally
            )
            asyncio.run(_count(world, server, tally))
        tally.expect(tally.requests > examples, "it has asked too little")
        yield tally


def _attack(world: World, server: Server, folder: Path, options: list[object], writes: bool, tally: Tally) -> None:
    (folder / "schemathesis.toml").write_text(_CONFIG)
    options = ["--checks", "all", "--generation-database", "none", *options]
    header = ["--header", f"Authorization: Bearer {world.token}"] if writes else []
    command = [Path(sys.executable).parent / "schemathesis", "run", f"{server.url}/openapi.json", *options, *header]
    result = subprocess.run(
        [*map(str, command), "--continue-on-failure", "--no-color"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
    )
    if result.returncode != 0:
        for failure in _failures(result.stdout) or [f"it failed: {result.stdout[-500:]}{result.stderr[-500:]}"]:
            tally.fail("wrong", failure)
    found = re.search(r"([\d,]+) generated", result.stdout)
    tally.remark = f"{found[1] if found else 'no'} cases"


def _failures(said: str) -> list[str]:
    """Return what it found, a sentence each, with the operation."""
    operation, found = "", []
    for line in said.splitlines():
        if heading := re.fullmatch(r"_+ (\w+ /\S*) _+", line):
            operation = heading[1]
        elif line.startswith("- "):
            found.append(f"{operation}: {line[2:_LONGEST]}")
    return found[:_SENTENCES]


async def _count(world: World, server: Server, tally: Tally) -> None:
    """Take from the server's own counters how many requests there were, and how many of them ended with a 5xx."""
    text = (await world.client(server).get("/metrics")).body.decode()
    for status, count in re.findall(r'^deeprank_requests_total\{.*status="(\d+)"\} ([\d.e+]+)$', text, re.MULTILINE):
        tally.requests += int(float(count))
        if status.startswith("5"):
            tally.server_errors += int(float(count))
            tally.note(f"status {status}: {count} times")
