"""Write files atomically."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ..runtime.errors import TrainingError
from ..runtime.files import placed
from ..runtime.text import display_path, first_line

__all__ = ["write_atomically", "write_json"]


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Let ``write`` fill a temporary file in the same folder, then rename it to ``path``.

    A full disk or a kill leaves an earlier file of that name unchanged.

    Raises:
        TrainingError: the file cannot be written.

    """
    try:
        with placed(path) as file:
            write(file)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        reason = getattr(error, "strerror", None) or first_line(error)
        raise TrainingError(
            f"{display_path(path)} cannot be written ({reason}); an earlier file of that name is unchanged. "
            "Make room, or name another folder."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))
