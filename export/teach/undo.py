"""Go back to the model that an index had before it was taught."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from ...runtime.console import to_paste
from ...runtime.errors import ExportError, IndexStateError
from ...runtime.files import file_sha256
from ...runtime.index.database.store import Store
from ...runtime.index.folder import check_model
from ...runtime.index.layout import MODEL, PREVIOUS
from ...runtime.index.maintenance.model_exchange import ModelExchange, replace_model
from ...runtime.index.maintenance.reembed import reembed
from ...runtime.index.sync.options import SyncOptions
from ...runtime.model.taught import TAUGHT, previous_sha256
from ...runtime.modelfile import open_model
from ...runtime.progress import StartProgress, start_nothing
from ...runtime.text import display_path
from .start import Start, read_start
from .vectors import mapping

__all__ = ["Undone", "undo"]


@dataclass(frozen=True)
class Undone:
    """The result of :func:`undo`.

    Attributes:
        model_name: name of the model that the index has again.
        taught: whether that model was taught, too, by earlier ratings.
        embedded: whether all pictures were embedded again, because the vectors could not be computed.
        exchange: the new state of the index.

    """

    model_name: str
    taught: bool
    embedded: bool
    exchange: ModelExchange


def undo(index: Path, *, progress: StartProgress = start_nothing) -> Undone:
    """Give an index the model before the one that was taught last, and the vectors of that model.

    That is ``previous.onnx``. Without it, it is the start of the model in use, whose head is taken off. Pictures that
    were added since stay. Vectors are computed from those in the index; where that is impossible, all pictures are
    embedded again.

    Raises:
        IndexStateError: the index was not taught, or ``previous.onnx`` is damaged.
        DeepRankError: see :func:`~...runtime.index.maintenance.model_exchange.replace_model` and
            :func:`~...runtime.index.maintenance.reembed.reembed`. The index then stays as it was.

    """
    with Store.open(index) as store:
        of = store.meta().model_sha256
    check_model(index, of, None)
    former = _former(index)
    if former is None:
        content, head = read_start(index / MODEL).content, None
    else:
        then = _same_start(index / MODEL, former)
        if then is None:
            return _embed_again(index, former, progress)
        content, head = former.read_bytes(), then.head
    with tempfile.TemporaryDirectory(prefix="deeprank-", ignore_cleanup_errors=True) as folder:
        target = Path(folder) / MODEL
        target.write_bytes(content)
        info = open_model(target, device="cpu").info
        mapped = mapping(open_model(index / MODEL, device="cpu").info, head)
        exchange = replace_model(index, target, mapped, of=of, keep=False, progress=progress)
    return Undone(info.name, head is not None, False, exchange)


def _same_start(model: Path, former: Path) -> Start | None:
    """Read the former model; None: vectors cannot be computed, as both do not have one start."""
    try:
        then = read_start(former)
        return then if read_start(model).content == then.content else None
    except ExportError:  # of a model that was changed since it was taught
        return None


def _former(index: Path) -> Path | None:
    """Return the file of the model before, if it is there.

    Raises:
        IndexStateError: the index was not taught, or the file is damaged.

    """
    previous = index / PREVIOUS
    if previous.exists():
        if file_sha256(previous, follow_links=False) == previous_sha256(index / MODEL):
            return previous
        raise IndexStateError(
            f"{display_path(previous)} is not the model that {display_path(index)} had before; delete it with "
            f"{to_paste('deeprank-index', 'verify', '--repair', '--index', index)}, and --undo takes the head off."
        )
    if TAUGHT not in open_model(index / MODEL, device="cpu").info.training:
        raise IndexStateError(
            f"{display_path(index)} was not taught, so there is nothing to undo; expected an index of deeprank-teach."
        )
    return None


def _embed_again(index: Path, former: Path, progress: StartProgress) -> Undone:
    opened = open_model(former, device="cpu")
    report = reembed(index, SyncOptions(model=former), progress=progress)
    exchange = ModelExchange(report.items, opened.sha256, 0, tuple(report.remarks))
    return Undone(opened.info.name, TAUGHT in opened.info.training, True, exchange)
