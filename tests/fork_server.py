"""Our commands, each in a process of its own that need not import everything once more.

To import NumPy, ONNX Runtime or torch takes longer than most of what the tests let a command do. So one process
imports what the runtime needs, another what training and export need besides, and each forks for a command: the child
is told its words, its folder, its environment and where to write, and runs what the installed script runs.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["TRAINING", "ForkingServer", "forking_server"]

# What runs in processes that have torch.
TRAINING = ("deeprank-train", "deeprank-export", "deeprank-teach")

RUNTIME_MODULES = """
import hnswlib, onnxruntime, PIL.BmpImagePlugin, PIL.GifImagePlugin, PIL.JpegImagePlugin, PIL.PngImagePlugin
import sqlite3, concurrent.futures.thread
import deeprank.runtime.embed.cli, deeprank.runtime.evaluate.cli, deeprank.runtime.index.cli
import deeprank.runtime.query.cli, deeprank.runtime.query.arguments, deeprank.runtime.index.search.index
assert "torch" not in sys.modules
"""
TRAINING_MODULES = """
import torch, onnx, onnxruntime, onnxscript, pytorch_metric_learning.losses
import matplotlib.backends.backend_agg, matplotlib.figure, matplotlib.font_manager
import deeprank.train.loop.run, deeprank.export.package, deeprank.export.teach.undo
from deeprank.models.conversion import to_onnx
# The first conversion of a process takes longest: it imports and compiles.
to_onnx(torch.nn.Flatten().eval(), torch.zeros(2, 4, 4, 3, dtype=torch.uint8), "embedding")
deeprank.export.package._SECONDS = 0.02  # speeds are measured in three rounds: no test needs precise ones
"""
SERVER = """
import atexit, ctypes, gc, json, os, sys, threading
from deeprank.runtime.umbrella import cli
{modules}
gc.collect(), gc.freeze()  # so that no child collects these objects, nor copies their pages
for line in sys.stdin:
    asked = json.loads(line)
    if (child := os.fork()) == 0:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL: no command outlives its test
        os.chdir(asked["folder"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.environ.clear()
        os.environ.update(asked["environment"])
        sys.argv, status = asked["words"], 1
        name = sys.argv[0].removeprefix("deeprank").removeprefix("-") or "main"
        try:
            getattr(cli, {{"eval": "evaluate"}}.get(name, name))()
            status = 0
        except SystemExit as ended:
            status = ended.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        threading._shutdown(), atexit._run_exitfuncs(), sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)  # tearing down hundreds of modules takes time
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class ForkingServer:
    """A process that has imported everything, and forks for each command; with the limits of its parent."""

    def __init__(self, *, torch: bool = True) -> None:
        command = [sys.executable, "-c", SERVER.format(modules=TRAINING_MODULES if torch else RUNTIME_MODULES)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.inherited = _inherited()

    def run(
        self, words: Sequence[str], cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command, with ``environment`` added to this process's own, and return what it said."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            out, err = (Path(folder, name) for name in ("out", "err"))
            asked = {"words": words, "folder": str(cwd or Path.cwd()), "out": str(out), "err": str(err)}
            asked["environment"] = {**os.environ, **(environment or {})}
            try:
                self._process.stdin.write(json.dumps(asked) + "\n")
                self._process.stdin.flush()
                status = int(self._process.stdout.readline())
            except BaseException:  # a timeout, say: the next test must not read this one's answer
                self._process.kill()
                raise
            said = [path.read_bytes().decode("utf-8", "surrogateescape") for path in (out, err)]
        return subprocess.CompletedProcess(list(words), status, *said)

    @property
    def alive(self) -> bool:
        """Tell whether it can be asked."""
        return self._process.poll() is None

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError, ValueError):
            self._process.communicate()


_SERVERS: dict[bool, ForkingServer] = {}


def forking_server(*, torch: bool) -> ForkingServer | None:
    """Return the one that lives as long as this process; none while this process has other limits than it."""
    server = _SERVERS.get(torch)
    if server is None or not server.alive:
        server = _SERVERS[torch] = ForkingServer(torch=torch)
        atexit.register(server.close)
    return server if server.inherited == _inherited() else None


def _inherited() -> tuple[object, ...]:
    """Return what a child takes over from this process, apart from its environment and folder."""
    umask = os.umask(0)
    os.umask(umask)
    kinds = ("AS", "CORE", "CPU", "DATA", "FSIZE", "NOFILE")
    return umask, *(resource.getrlimit(getattr(resource, f"RLIMIT_{kind}")) for kind in kinds)
