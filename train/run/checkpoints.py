"""Read checkpoints of tensors, numbers, strings, lists and dicts; no code in them can run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from ...runtime.errors import TrainingError
from ...runtime.text import display_path, first_line

__all__ = ["read_checkpoint"]

_SCHEMA = 1


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read ``best.pt`` or ``last.pt``.

    Raises:
        TrainingError: missing, damaged, of a newer version, or holding an object that could run
            code.

    """
    shown = display_path(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TrainingError(
            f"{shown} does not exist: the run has not finished its first epoch. Resume it with deeprank-train --resume."
        ) from None
    except pickle.UnpicklingError:
        raise TrainingError(
            f"{shown} is refused: it holds something other than tensors and plain values, which could run code. "
            "Expected a checkpoint written by deeprank-train."
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise TrainingError(
            f"{shown} is damaged ({first_line(error)}); expected a checkpoint written by deeprank-train."
        ) from None
    schema = checkpoint.get("schema") if isinstance(checkpoint, dict) else None
    if not isinstance(schema, int) or schema > _SCHEMA:
        raise TrainingError(
            f"{shown} has the schema {schema!r}; expected a checkpoint written by deeprank-train, of schema {_SCHEMA} "
            "or below."
        )
    return dict(checkpoint)
