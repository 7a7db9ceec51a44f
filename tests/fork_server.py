"""Our commands that train and export, each in a process of its own that need not import torch once more.

To import torch and what goes with it takes longer than most of what the tests let these commands do. So one process
imports it, and forks for each command: the child is told its words, its folder and where to write, and runs the
command's ``main`` as the installed script does.
"""

from __future__ import annotations

import atexit
import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["ForkingServer", "forking_server"]

SERVER = """
import json, os, sys
from importlib import import_module
import deeprank.train.loop.run, deeprank.export.package, deeprank.export.teach.undo, pytorch_metric_learning.losses
from deeprank.runtime.umbrella.commands import COMMANDS
for line in sys.stdin:
    asked = json.loads(line)
    if (child := os.fork()) == 0:
        os.chdir(asked["folder"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.environ.update(asked["environment"])
        sys.argv, status = asked["words"], 0
        try:
            import_module(COMMANDS[sys.argv[0].removeprefix("deeprank-")].module).main()
        except SystemExit as ended:
            status = ended.code or 0
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)  # to take a hundred modules down lasts longer than to be refused
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class ForkingServer:
    """A process that has imported everything, and forks for each command; with the limits of whoever starts it."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", SERVER]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(
        self, words: Sequence[str], cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run ``deeprank-train`` or ``deeprank-export``, and return what it said."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            out, err = (Path(folder, name) for name in ("out", "err"))
            asked = {"words": words, "folder": str(cwd or Path.cwd()), "out": str(out), "err": str(err)}
            self._process.stdin.write(json.dumps({**asked, "environment": environment}) + "\n")
            self._process.stdin.flush()
            status = int(self._process.stdout.readline())
            said = [path.read_bytes().decode("utf-8", "surrogateescape") for path in (out, err)]
        return subprocess.CompletedProcess(list(words), status, *said)

    def close(self) -> None:
        """End it."""
        self._process.communicate()


@functools.cache
def forking_server() -> ForkingServer:
    """Return the one that lives as long as this process."""
    server = ForkingServer()
    atexit.register(server.close)
    return server
