"""The options of a sync."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...devices import Device
from ...images import DEFAULT_MAX_PIXELS
from ..patterns import RootFilters
from ..root_labels import RootLabels

if TYPE_CHECKING:
    from ...embedder import Embedder

__all__ = ["SyncOptions"]


@dataclass(frozen=True)
class SyncOptions:
    """How an index follows its folders.

    Attributes:
        model: of a new index, see :func:`~...model.pretrained.find_model`. Default:
            ``./model.onnx``, else the bundled one. An existing index keeps its own.
        filters: which pictures of the roots belong to the index from now on. None: each root keeps its filters.
        labels: where the labels of the roots come from, from now on; its ``splits`` are ignored. None: each root keeps
            its rule. A new root has the label of its top folder, below the splits if there are some.
        moved_roots: ``OLD=NEW`` each: the root OLD of the index is now the folder NEW, which is synced, too.
        keep_missing: keep pictures in the index whose files are gone.
        allow_mass_removal: accept a root that is missing, empty, or has lost most of its pictures.
        shared: let the group read a new index. By default only its owner can; an existing index keeps its permissions.
        device: runs the network.
        threads: CPU threads of the network. None: the usable cores, at most 16.
        max_pixels: larger pictures are skipped.
        isolate: decode in separate processes, under limits of memory and time; see :class:`~...embedder.Embedder`.

    """

    model: str | Path | None = None
    filters: RootFilters | None = None
    labels: RootLabels | None = None
    moved_roots: tuple[str, ...] = ()
    keep_missing: bool = False
    allow_mass_removal: bool = False
    shared: bool = False
    device: Device = "auto"
    threads: int | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS
    isolate: bool = False

    def of_embedder(self) -> SyncOptions:
        """Return the model and the options of :meth:`open_embedder`, with defaults for the rest."""
        return SyncOptions(
            model=self.model,
            device=self.device,
            threads=self.threads,
            max_pixels=self.max_pixels,
            isolate=self.isolate,
        )

    def open_embedder(self, model: Path) -> Embedder:
        """Open a model for embedding pictures."""
        from ...embedder import Embedder

        return Embedder(
            model, device=self.device, threads=self.threads, max_pixels=self.max_pixels, isolate=self.isolate
        )
