"""The options of ``deeprank-embed``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..devices import Device
from ..errors import QueryError
from ..images import DEFAULT_MAX_PIXELS
from ..parts.listing import PartName
from ..text import printable

__all__ = ["DEFAULT_PART_SIZE", "ENGINES", "EmbedOptions", "Engine", "Share"]

Engine = Literal["here", "ray"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
DEFAULT_PART_SIZE = 8192


@dataclass(frozen=True)
class Share:
    """One of several workers beside each other: the parts whose number leaves ``place - 1``, divided by ``workers``."""

    place: int
    workers: int

    @classmethod
    def of(cls, text: str) -> Share:
        """Parse ``I/N``.

        Raises:
            QueryError: it is not of this form, or I is not from 1 to N.

        """
        place, mark, workers = text.partition("/")
        numbers = place.isascii() and place.isdigit() and workers.isascii() and workers.isdigit()
        if not mark or not numbers or not 1 <= int(place) <= int(workers):
            raise QueryError(f"--parts {printable(text)!r} is no share; expected I/N with I from 1 to N, such as 3/16.")
        return cls(int(place), int(workers))

    def takes(self, part: PartName) -> bool:
        """Tell whether a part is this worker's."""
        return part.number % self.workers == self.place - 1


@dataclass(frozen=True)
class EmbedOptions:
    """How pictures become an embedded folder.

    None in the first six: as the folder has it, and for a new one the default.

    Attributes:
        model: see :func:`~..model.pretrained.find_model`.
        labels: top, leaf, path, none, or a CSV of path,label. Default: the listing's, else top.
        include: patterns of the pictures to take.
        exclude: patterns of the pictures to leave out.
        root: where the paths of a listing begin. Default: the folder of the listing.
        part_size: pictures in a part.
        engine: ``here`` embeds in this process, ``ray`` on a cluster.
        address: of the Ray cluster.
        workers: processes on the cluster. Default: as many as its cores allow.
        share: embed only these parts, beside other processes.
        retry_skipped: try the pictures again that could not be read.
        allow_mass_removal: accept a source that is empty, or has lost most of its pictures.
        device: runs the network.
        threads: CPU threads of each process. Default: here the usable cores, on a cluster one.
        max_pixels: larger pictures are skipped.

    """

    model: str | None = None
    labels: str | None = None
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    root: str | None = None
    part_size: int | None = None
    engine: Engine = "here"
    address: str = "auto"
    workers: int | None = None
    share: Share | None = None
    retry_skipped: bool = False
    allow_mass_removal: bool = False
    device: Device = "auto"
    threads: int | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS
