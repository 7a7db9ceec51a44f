"""Labels from folders: which top folders are splits, and which folder names the class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..errors import DataError
from ..text import printable

__all__ = ["LABEL_RULES", "SPLITS", "FolderLabels", "LabelRule", "Split", "is_split_layout", "label_rule", "split_of"]

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

LabelRule = Literal["top", "leaf", "path", "none"]
LABEL_RULES: tuple[LabelRule, ...] = get_args(LabelRule)

_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def split_of(name: str) -> Split | None:
    """Return the split that a folder or CSV field names, in any letter case, or None."""
    return _SPLIT_NAMES.get(name.strip().lower())


def is_split_layout(folders: Iterable[str]) -> bool:
    """Tell whether top folders are splits: all have split names, with train or at least two.

    Args:
        folders: names of the top folders that contain pictures.

    """
    names = set(folders)
    splits = {split_of(name) for name in names}
    return bool(names) and None not in splits and ("train" in splits or len(names) > 1)


def label_rule(text: str) -> LabelRule | None:
    """Return the rule that ``--labels`` names; None if it names a label table.

    Raises:
        DataError: it is neither.

    """
    if text in LABEL_RULES:
        return text
    if Path(text).suffix.lower() == ".csv" and not Path(text).exists():
        raise DataError(f"{printable(text)} does not exist; expected a CSV of path,label.")
    if not Path(text).is_file():
        raise DataError(
            f"--labels {printable(text)!r} is no rule and no file; expected top, leaf, path, a CSV of path,label, or, "
            "for an index, none."
        )
    return None


@dataclass(frozen=True)
class FolderLabels:
    """How the folders of a picture become its label.

    Attributes:
        rule: ``top``: the first folder; ``leaf``: the innermost; ``path``: all, joined by ``/``;
            ``none``.
        splits: top folders are splits, and labels begin below them.

    """

    rule: LabelRule = "top"
    splits: bool = False

    def split(self, path: str) -> Split | None:
        """Return the split of a picture, by its posix path relative to the tree."""
        top, separator, _ = path.partition("/")
        return split_of(top) if self.splits and separator else None

    def label(self, path: str) -> str | None:
        """Return the label of a picture, by its posix path; None outside class folders."""
        folders = path.split("/")[:-1]
        if self.split(path) is not None:
            del folders[0]
        if not folders or self.rule == "none":
            return None
        if self.rule == "path":
            return "/".join(folders)
        return folders[-1 if self.rule == "leaf" else 0]
