"""Parts on a Ray cluster: Ray Data hands one part at a time to each worker, and again if a worker dies.

A part is one task, and its files are written whole, so a part that is embedded twice is the same. Workers get short
strings alone: Ray may lose larger arguments when it starts a worker again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ClusterError, DeepRankError, MissingExtraError
from ..parts.embedded_folder import EmbeddedFolder
from ..parts.listing import Generation, PartName
from ..parts.part import read_skipped
from ..progress import Advance
from ..text import first_line, printable
from .options import EmbedOptions
from .work import PartDone, embed_parts
from .worker import open_embedder

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np
    import numpy.typing as npt

    from ..embedder import Embedder

__all__ = ["embed_on_ray", "load_ray"]

_CONNECT_S = 10.0
_START = "start one with: ray start --head"


def embed_on_ray(
    folder: EmbeddedFolder, generation: Generation, parts: list[PartName], options: EmbedOptions, advance: Advance
) -> Iterator[PartDone]:
    """Embed parts of a generation on the workers of a cluster; see :func:`~.work.embed_parts`.

    Args:
        folder: every node sees it, and its source, under the same name.
        generation: of the parts.
        parts: their names.
        options: the cluster's address, the number of workers, and how they embed.
        advance: called with the number of pictures of each part that is done.

    Yields:
        each part that is done, in any order.

    Raises:
        ClusterError: the cluster cannot be reached, has no room for a worker, or has failed.
        DeepRankError: as on a worker.
        MissingExtraError: Ray is not installed.

    """
    threads = options.threads or 1
    by_number = {part.number: part for part in parts}
    task = {"out": folder.storage.uri, "generation": generation.number, "device": options.device, "threads": threads}
    task |= {"max_pixels": options.max_pixels, "may_be_lost": options.allow_mass_removal}
    with _cluster(options.address) as ray:
        workers = min(options.workers or _room(ray, threads), len(parts))
        results = ray.data.from_items([{"number": part.number} for part in parts], override_num_blocks=len(parts))
        results = results.map_batches(
            PartWorker,
            fn_constructor_args=(json.dumps(task),),
            batch_size=1,
            # whole cores: with halves, a small cluster waits for ever for the core of another step
            num_cpus=threads,
            num_gpus=1 if options.device == "cuda" else 0,
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        )
        for row in results.iter_rows():
            if row["error"]:
                raise ClusterError(row["error"])
            advance(int(row["embedded"] + row["skipped"]))
            yield PartDone(by_number[int(row["number"])], int(row["embedded"]), int(row["skipped"]))


class PartWorker:
    """A process of the cluster that embeds one part after the other.

    Args:
        task: JSON, with the folder's location and how to embed.

    """

    def __init__(self, task: str) -> None:
        values = json.loads(task)
        self._out, self._generation = values["out"], values["generation"]
        self._may_be_lost = values["may_be_lost"]
        self._options = EmbedOptions(
            device=values["device"], threads=values["threads"], max_pixels=values["max_pixels"]
        )
        self._place = tempfile.TemporaryDirectory(prefix="deeprank-")
        self._opened: tuple[EmbeddedFolder, Embedder] | None = None

    def __call__(self, batch: dict[str, npt.NDArray[np.int64]]) -> dict[str, list[Any]]:
        """Embed one part; an error is returned as its sentence, which would otherwise arrive as a traceback."""
        number = int(batch["number"][0])
        try:
            done = self._embed(PartName(self._generation, number))
        except DeepRankError as error:
            return {"number": [number], "embedded": [0], "skipped": [0], "error": [str(error)]}
        return {"number": [number], "embedded": [done.embedded], "skipped": [done.skipped], "error": [""]}

    def _embed(self, part: PartName) -> PartDone:
        if self._opened is None:
            folder = EmbeddedFolder.open(self._out)
            self._opened = folder, open_embedder(folder, Path(self._place.name), self._options)
        folder, embedder = self._opened
        generation = folder.generations[self._generation - 1]
        for done in embed_parts(folder, generation, [part], embedder, may_be_lost=self._may_be_lost):
            return done
        # A worker that died had written it.
        skipped = len(read_skipped(folder.storage, folder.settings, generation, part))
        return PartDone(part, generation.listed(part) - skipped, skipped)


def load_ray() -> ModuleType:
    """Import Ray and Ray Data.

    Raises:
        MissingExtraError: they are not installed.

    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # else it reports to its makers
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ part writes to stderr, past any logger
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise MissingExtraError("deeprank-embed --engine ray", "distributed") from error
    module: ModuleType = ray
    return module


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[ModuleType]:
    """Connect to a cluster, and yield the module ``ray``."""
    ray = load_ray()
    _check_reachable(address)
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    on_termination = signal.getsignal(signal.SIGTERM)
    try:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ClusterError(
                f"The Ray cluster at {printable(address)} cannot be used ({first_line(error)}); expected a running one "
                f"with the same versions of Ray and Python; {_START}"
            ) from None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_termination)  # Ray has replaced the one that ends a command cleanly
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield ray
    except ray.exceptions.RayError as error:
        fault = first_line(getattr(error, "cause", None) or error, named=True)
        raise ClusterError(
            f"The Ray cluster has failed ({fault}); finished parts are kept, and the same command continues there."
        ) from None
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Refuse an address that does not answer, which Ray would try for minutes."""
    if address == "auto":
        return
    host, mark, port = address.rpartition(":")
    try:
        if not mark or not port.isdigit():
            raise ClusterError(f"--address {printable(address)!r} is no address; expected auto or HOST:PORT.")
        socket.create_connection((host, int(port)), _CONNECT_S).close()
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise ClusterError(
            f"There is no Ray cluster at {printable(address)} ({reason}); name the address of its head, or {_START}"
        ) from None


def _room(ray: ModuleType, threads: int) -> int:
    """Return how many workers of so many cores the nodes have room for."""
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    room = sum(count // threads for count in cores)
    if not room:
        raise ClusterError(
            f"No node of the cluster has {threads} core{'' if threads == 1 else 's'} for a worker; its nodes have "
            f"{', '.join(map(str, cores)) or 'none'}. Lower --threads, or add nodes."
        )
    return room
