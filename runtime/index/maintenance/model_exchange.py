"""Give an index another model without embedding its pictures again: its vectors are computed from those it holds."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...embedder import Embedder
from ...errors import IndexStateError, PictureError
from ...files import SourceError, finish_exchange, regular_status
from ...formats import DECODING_VERSION
from ...progress import StartProgress, start_nothing
from ...scan import are_unit
from ...text import display_path
from ..database.records import Item
from ..database.store import Store, Vectors
from ..database.writer import Writer, locked, open_writer
from ..folder import check_model, has_log, install_model, new_folder
from ..graph_update import update_graph
from ..layout import MODEL, PREVIOUS, UPLOADS, permissions_of, put_copy
from ..ratings.copies import carry_ratings
from ..search.items import IndexedImage
from ..search.pictures import LOCAL, open_picture
from ..uploads.store import is_upload, link_or_copy, make_uploads, upload_items, uploads_of
from .replacement import replacement

__all__ = ["Mapped", "ModelExchange", "replace_model", "sampled_pictures"]

Mapped = Callable[[Vectors], Vectors]

_ROWS_AT_A_TIME = 4096
# Pictures that the new model embeds, to compare with the computed vectors; and those that are tried.
_COMPARED, _TRIED = 32, 256
_SEED = 0


@dataclass(frozen=True)
class ModelExchange:
    """The result of :func:`replace_model`.

    Attributes:
        items: number of pictures.
        model_sha256: hex, of the model that the index has now.
        compared: pictures that the new model embedded, whose vectors agree with the computed ones.
        remarks: what a user should know.

    """

    items: int
    model_sha256: str
    compared: int
    remarks: tuple[str, ...] = ()


def replace_model(
    index: str | Path,
    model: Path,
    mapped: Mapped,
    *,
    of: str,
    keep: bool = True,
    accept: Callable[[Path], None] = lambda _: None,
    progress: StartProgress = start_nothing,
) -> ModelExchange:
    """Exchange the model of an index, and compute its vectors from those that the index holds.

    The new index is made beside the old one, with the same ids, rows, folders, filters, labels, uploads and ratings,
    and with the pictures that were added since ``mapped`` was made. The old one answers until it is exchanged in one
    step.

    Args:
        index: the index folder.
        model: the new model file.
        mapped: computes its vectors, float32 ``[n, d]`` unit rows, from those of the model in use.
        of: hex sha256 of the model in use, for whose vectors ``mapped`` was made.
        keep: whether the model in use stays in the folder, as ``previous.onnx``; then the metadata of ``model`` name
            its sha256 (see :mod:`~...model.taught`).
        accept: called with the complete new index before the exchange; its error keeps the old one.
        progress: called as the work proceeds.

    Raises:
        IndexStateError: there is no index, it has another model than ``of``, the new model gives other vectors than
            ``mapped``, or the new index is not sound or cannot be written. The old index then stays.
        IndexLockedError: another process is writing to the index.
        IndexDamagedError: the database is damaged.
        ModelFileError: the new model cannot be used.

    """
    folder = Path(os.path.realpath(index))
    finish_exchange(folder)
    with locked(folder), Store.open(folder) as store:
        meta = store.meta()  # after the exchange, the path is another database's
        if meta.model_sha256 != of:
            raise IndexStateError(
                f"{display_path(folder)} got another model meanwhile, and is unchanged; run the command again."
            )
        check_model(folder, of, None)
        embedder = Embedder(model, device="cpu")
        with replacement(folder) as fresh:
            remarks = _make(store, fresh, embedder, model, mapped, of if keep else None, progress)
            compared = _compared(store, embedder, mapped)
            accept(fresh)
    if not compared and meta.items:
        remarks.append("No picture could be read to compare with, so the model's own vectors were not checked here.")
    return ModelExchange(meta.items, embedder.sha256, compared, tuple(remarks))


def _make(
    store: Store,
    fresh: Path,
    embedder: Embedder,
    model: Path,
    mapped: Mapped,
    previous: str | None,
    progress: StartProgress,
) -> list[str]:
    """Make the new index; return remarks. ``previous``: the sha256 of the model in use, if it is kept."""
    folder, permissions = store.folder, permissions_of(store.folder)
    with new_folder(fresh, permissions):
        install_model(fresh, model, embedder.sha256, embedder.dim, permissions)
        if previous is not None and put_copy(folder / MODEL, fresh / PREVIOUS, permissions) != previous:
            raise IndexStateError(f"{display_path(folder / MODEL)} changed while it was read; run the command again.")
        with open_writer(fresh) as writer:
            _carry_folders(store, writer)
            _map_items(store, writer, mapped, progress)
            reason = update_graph(writer, progress)
        _link_uploads(store, fresh)
        carry_ratings(folder, fresh, permissions)
    if has_log(fresh):
        raise IndexStateError(
            f"{display_path(folder)} is unchanged: the new index could not be written completely (is the disk full?); "
            "free some space and run the command again."
        )
    return [] if reason is None else [f"There is no graph: {reason}. Searches scan instead."]


def _carry_folders(store: Store, writer: Writer) -> None:
    """Carry the roots under their numbers, with what is remembered of each."""
    roots, uploads = store.synced_roots(), store.uploads_root()
    filters, labelling = store.filters(), store.labelling()
    for root in sorted([*roots, *([] if uploads is None else [uploads])]):
        writer.add_root(roots.get(root, os.fsencode(UPLOADS)), root)
        if root in filters:
            writer.set_filters(root, filters[root])
        if root in labelling:
            writer.set_labelling(root, labelling[root])
        writer.keep_unread(root, store.unread(root).values())
    writer.reserve_ids(store.meta().last_id)
    writer.commit()


def _map_items(store: Store, writer: Writer, mapped: Mapped, progress: StartProgress) -> None:
    meta = store.meta()
    advance = progress("computing vectors", meta.items)
    items = store.all_items()
    vector_sum = 0
    for ids, vectors, crcs in _joined(store.vector_chunks()):
        vector_sum += crcs
        for number, vector in zip(ids, _checked(mapped, vectors, writer), strict=True):
            item = next(items, None)
            if item is None or item.id != number:
                raise store.damage(f"item {number} is out of order")
            writer.restore(item, vector.astype("<f4", copy=False).tobytes())
        writer.commit()
        advance(len(ids))
    if next(items, None) is not None or vector_sum != meta.vector_sum:
        raise store.damage(f"items are missing: {meta.items:,} are expected, with another sum of checksums")


def _joined(chunks: Iterator[tuple[np.ndarray, Vectors, int]]) -> Iterator[tuple[list[int], Vectors, int]]:
    """Join the small chunks of a database, which a matrix product would be slow on."""
    while some := list(itertools.islice(chunks, _ROWS_AT_A_TIME // 64)):
        ids = [int(number) for chunk, _, _ in some for number in chunk]
        yield ids, np.concatenate([vectors for _, vectors, _ in some]), sum(crcs for _, _, crcs in some)


def _checked(mapped: Mapped, vectors: Vectors, writer: Writer) -> Vectors:
    computed = mapped(vectors)
    dim = writer.meta().dim
    if computed.shape != (len(vectors), dim) or not are_unit(computed).all():
        raise IndexStateError(f"The computed vectors are not unit vectors of {dim:,} numbers; the index is unchanged.")
    return computed


def _link_uploads(store: Store, fresh: Path) -> None:
    """Link the files of uploads; one that is missing stays a row alone, as ``verify`` shows it."""
    items = upload_items(store)
    target = make_uploads(fresh) if items else None
    for path, item in items.items():
        source = uploads_of(store.folder) / os.fsdecode(path)
        if target is not None and is_upload(path, item.sha256) and _is_regular(source):
            link_or_copy(source, target / source.name)


def _is_regular(path: Path) -> bool:
    try:
        regular_status(path)
    except OSError:
        return False
    return True


def _compared(store: Store, embedder: Embedder, mapped: Mapped) -> int:
    """Compare the new model's vectors of some pictures with the computed ones; return their number.

    Raises:
        IndexStateError: they differ by more than the precision of the model explains.

    """
    from ...evaluate.parity import TOLERANCES, compare_vectors

    embedded: dict[int, Vectors] = {}
    for image in sampled_pictures(store, _TRIED, seed=_SEED):
        try:
            with open_picture(LOCAL, image) as file:
                embedded[image.id] = embedder.embed([file])[0]
        except (PictureError, SourceError, OSError):
            continue
        if len(embedded) == _COMPARED:
            break
    if not embedded:
        return 0
    computed = mapped(store.vectors_of(list(embedded)))
    difference = compare_vectors(computed, np.stack(list(embedded.values())))
    # Vectors of another processor or a GPU differ more than those of one engine.
    tolerance = TOLERANCES["fp16" if embedder.info.precision == "fp32" else embedder.info.precision]
    if failures := difference.failures(tolerance):
        raise IndexStateError(
            f"The new model gives other vectors than those computed from {display_path(store.folder)}: {failures[0]}. "
            "The index is unchanged; embed all pictures again with deeprank-index sync --reembed."
        )
    return len(embedded)


def sampled_pictures(store: Store, most: int, *, seed: int = 0) -> Iterator[IndexedImage]:
    """Yield pictures of an index whose vectors are by the present decoding rules, in a seeded random order.

    Args:
        store: the index.
        most: number of pictures at most.
        seed: of the order.

    """
    roots = store.roots()
    ids = store.ids_by_path()
    np.random.default_rng(seed).shuffle(ids)
    for start in range(0, min(most, len(ids)), _COMPARED):
        some = ids[start : min(start + _COMPARED, most)].tolist()
        items: dict[int, Item] = store.items(some)
        for number in some:
            if items[number].decoding == DECODING_VERSION:
                yield IndexedImage.of(items[number], roots[items[number].root])
