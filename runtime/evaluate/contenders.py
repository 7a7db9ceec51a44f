"""Open the models for ``deeprank-eval --models`` under distinct names."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..embedder import Embedder
from ..errors import ModelFileError
from ..images import Picture
from ..model.pretrained import find_model
from ..modelfile import ModelInfo
from ..text import printable
from .embedded import Embeds

__all__ = ["REFERENCE_NAME", "Contender", "Network", "distinct_names", "open_contenders"]

REFERENCE_NAME = "PyTorch reference"

# Other formats of deeprank-export; both need torch.
_OTHER_FORMS = frozenset({".pt", ".pt2"})


class Network(Embeds, Protocol):
    """A network with its metadata: an Embedder, or the PyTorch reference."""

    @property
    def info(self) -> ModelInfo:
        """The model's metadata."""

    def embed_batch(self, pictures: Picture) -> npt.NDArray[np.float32]:
        """Embed uint8 ``[n, S, S, 3]``: float32 ``[n, d]``, unit rows."""


@dataclass(frozen=True)
class Contender:
    """One of the compared models; ``path`` and ``size`` (bytes) are None without a single file."""

    name: str
    network: Network
    path: Path | None = None
    size: int | None = None


def open_contenders(files: Sequence[Path], open_file: Callable[[Path], Embedder]) -> list[Contender]:
    """Open every file, in the given order; the word ``pretrained`` means the bundled model.

    Raises:
        ModelFileError, DeviceError: of the first unusable file.

    """
    return [_open(name, find_model(file), open_file) for name, file in zip(distinct_names(files), files, strict=True)]


def _open(name: str, path: Path, open_file: Callable[[Path], Embedder]) -> Contender:
    try:
        return Contender(name, open_file(path), path, path.stat().st_size)
    except ModelFileError as error:
        if path.suffix.lower() in _OTHER_FORMS and path.is_file():
            raise ModelFileError(
                f"{error} TorchScript and .pt2 files are compared by deeprank-export --format all."
            ) from None
        raise


def distinct_names(files: Sequence[Path]) -> list[str]:
    """Return a name for each file: its file name, with folders if needed to be distinct."""
    alone = len({file.name for file in files}) == len(set(files))
    return list(_numbered(file.name if alone and file.name else str(file) for file in files))


def _numbered(names: Iterator[str]) -> Iterator[str]:
    """Append a number to a name that looks like an earlier one."""
    taken = {REFERENCE_NAME}
    for name in names:
        choices = itertools.chain([name], (f"{name} ({number})" for number in itertools.count(2)))
        chosen = next(choice for choice in choices if printable(choice) not in taken)
        taken.add(printable(chosen))
        yield chosen
