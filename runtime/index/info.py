"""The content of an index, described without searching it."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import formats
from ..data.labels import is_split_layout
from ..errors import IndexDamagedError, IndexStateError, ModelFileError
from ..model.pretrained import is_superseded
from ..modelfile import ModelInfo, open_model
from .ann.graph import GraphUnusableError, open_graph
from .database.records import Item, Meta
from .database.store import Store
from .folder import bytes_in
from .layout import DATABASE, GRAPH, MODEL, RATINGS, UPLOADS
from .patterns import RootFilters
from .ratings.store import RatingStore
from .root_labels import RootLabels

__all__ = ["IndexInfo", "index_info"]


@dataclass(frozen=True)
class IndexInfo:
    """The content of an index.

    Attributes:
        path: the index folder.
        items: number of pictures.
        roots: number of pictures by synced folder; uploads count as one if there are any.
        uploads: the uploads' root among them.
        filters: of the synced folders that have any.
        labelling: sources of labels of the synced folders, except those labelled by top folders.
        splits: synced folders whose labels are names of splits, which --labels would read
            otherwise.
        outdated: number of pictures with vectors from older decoding rules.
        labels: number of pictures by label.
        unlabelled: number of pictures without a label.
        dim: length of a vector.
        model_sha256: of the model that made the vectors.
        superseded: an earlier version bundled that model, and this one bundles another.
        model: its metadata; None if unreadable, see ``model_problem``.
        graph: size, items, distinct vectors, removed ones and parameters; None if searches scan,
            see ``graph_problem``.
        ratings: number of comparisons and of marks; None if unreadable, see ``ratings_problem``.
        sizes: bytes of each file, and of the uploads together.
        schema: version of the database layout.

    """

    path: str
    items: int
    roots: Mapping[str, int]
    uploads: str | None
    filters: Mapping[str, RootFilters]
    labelling: Mapping[str, RootLabels]
    splits: tuple[str, ...]
    outdated: int
    labels: Mapping[str, int]
    unlabelled: int
    dim: int
    model_sha256: str
    superseded: bool
    model: ModelInfo | None
    model_problem: str | None
    graph: Mapping[str, Any] | None
    graph_problem: str | None
    ratings: Mapping[str, int] | None
    ratings_problem: str | None
    sizes: Mapping[str, int]
    schema: int


def index_info(index: str | Path) -> IndexInfo:
    """Describe an index.

    Raises:
        IndexStateError, IndexDamagedError: it cannot be opened, or is damaged.

    """
    folder = Path(index)
    with Store.open(folder) as store, store.snapshot():
        meta = store.meta()
        roots, filters, schema = store.roots(), store.filters(), store.schema()
        uploads = store.uploads_root()
        labelling = store.labelling()
        counted = _Counted()
        for item in store.all_items():
            counted.add(item)
        graph, graph_problem = _graph(store, meta)
    model, model_problem = _model(folder, meta.model_sha256)
    ratings, ratings_problem = _ratings(folder)
    labels = counted.labels
    unlabelled = labels.pop(None, 0)
    return IndexInfo(
        path=str(folder),
        items=meta.items,
        roots={os.fsdecode(path): counted.in_root[root] for root, path in roots.items()},
        uploads=None if uploads is None else os.fsdecode(roots[uploads]),
        filters={os.fsdecode(roots[root]): value for root, value in filters.items() if root in roots},
        labelling={os.fsdecode(roots[root]): value for root, value in labelling.items() if root in roots},
        splits=tuple(
            os.fsdecode(path)
            for root, path in roots.items()
            if root not in labelling and counted.has_splits_as_labels(root)
        ),
        outdated=counted.outdated,
        labels={label: count for label, count in sorted(labels.items(), key=_name) if label is not None},
        unlabelled=unlabelled,
        dim=meta.dim,
        model_sha256=meta.model_sha256,
        superseded=is_superseded(meta.model_sha256),
        model=model,
        model_problem=model_problem,
        graph=graph,
        graph_problem=graph_problem,
        ratings=ratings,
        ratings_problem=ratings_problem,
        sizes=_sizes(folder),
        schema=schema,
    )


@dataclass
class _Counted:
    """Counts over all items, from one pass."""

    labels: Counter[str | None] = field(default_factory=Counter)
    in_root: Counter[int] = field(default_factory=Counter)
    outdated: int = 0

    def __post_init__(self) -> None:
        self._tops: defaultdict[int, set[str]] = defaultdict(set)
        self._labelled_by_top: set[int] = set()

    def add(self, item: Item) -> None:
        self.labels[item.label] += 1
        self.in_root[item.root] += 1
        self.outdated += item.decoding < formats.DECODING_VERSION
        top, below, _ = item.path.partition(b"/")
        if below:
            self._tops[item.root].add(os.fsdecode(top))
            if item.label == os.fsdecode(top):
                self._labelled_by_top.add(item.root)

    def has_splits_as_labels(self, root: int) -> bool:
        return root in self._labelled_by_top and is_split_layout(self._tops[root])


def _sizes(folder: Path) -> dict[str, int]:
    sizes = {
        name: (folder / name).stat().st_size for name in (DATABASE, MODEL, GRAPH, RATINGS) if (folder / name).exists()
    }
    return {**sizes, UPLOADS: bytes_in(folder / UPLOADS)} if (folder / UPLOADS).is_dir() else sizes


def _name(entry: tuple[str | None, int]) -> str:
    return entry[0] or ""


def _graph(store: Store, meta: Meta) -> tuple[Mapping[str, Any] | None, str | None]:
    row = store.graph()
    if row is None:
        return None, "none has been built yet"
    try:
        file = open_graph(store.folder, row, meta)
    except GraphUnusableError as error:
        return None, str(error)
    counts = {"items": file.nodes.items, "vectors": file.nodes.count, "removed": file.dead}
    return {**file.parameters, **counts, "bytes": row.size}, None


def _ratings(folder: Path) -> tuple[Mapping[str, int] | None, str | None]:
    try:
        with RatingStore.open(folder) as store:
            totals = store.totals()
    except (IndexStateError, IndexDamagedError) as error:
        return None, str(error)
    return {"comparisons": totals.comparisons, "marks": totals.marks}, None


def _model(folder: Path, expected: str) -> tuple[ModelInfo | None, str | None]:
    try:
        model = open_model(folder / MODEL, device="cpu")
    except ModelFileError as error:
        return None, str(error)
    if model.sha256 != expected:
        return None, f"{MODEL} is not the model that the vectors were made with."
    return model.info, None
