"""The run folder: the files of a run, complete at any moment, and a link to the newest run."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ...runtime.errors import TrainingError
from ...runtime.files import placed
from ...runtime.text import display_path, first_line

__all__ = ["LATEST", "RUNS", "RunFolder", "create_run", "open_run", "write_atomically", "write_json"]

RUNS = Path("runs")
LATEST = RUNS / "latest"
_SCHEMA = 1


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    It holds ``config.json`` (options, versions, data), ``metrics.jsonl``, ``best.pt`` and
    ``last.pt``; for the reader, ``report.html``, ``curves.png``, ``tsne.png`` and
    ``per_class.csv``.
    """

    path: Path

    @property
    def config_path(self) -> Path:
        """Every option, the versions and the data, as JSON."""
        return self.path / "config.json"

    @property
    def metrics_path(self) -> Path:
        """One JSON object for each epoch, and one with the final metrics."""
        return self.path / "metrics.jsonl"

    @property
    def curves_path(self) -> Path:
        """The plot of the curves."""
        return self.path / "curves.png"

    @property
    def report_path(self) -> Path:
        """The report page."""
        return self.path / "report.html"

    @property
    def map_path(self) -> Path:
        """The map of the embedding."""
        return self.path / "tsne.png"

    @property
    def classes_path(self) -> Path:
        """The metrics of each class."""
        return self.path / "per_class.csv"

    @property
    def best_path(self) -> Path:
        """The network with the best ranking of the held-out tenth."""
        return self.path / "best.pt"

    @property
    def last_path(self) -> Path:
        """The checkpoint for resuming."""
        return self.path / "last.pt"

    def write_config(self, values: Mapping[str, Any]) -> None:
        """Write ``config.json``."""
        write_json(self.config_path, {"schema": _SCHEMA, **values})

    def read_config(self) -> dict[str, Any]:
        """Read ``config.json``.

        Raises:
            TrainingError: missing, damaged, or written by a newer version.

        """
        shown = display_path(self.config_path)
        try:
            values = json.loads(self.config_path.read_text("utf-8"))
        except OSError as error:
            raise TrainingError(f"{shown} cannot be read ({error.strerror or error}).") from None
        except ValueError as error:
            raise TrainingError(f"{shown} is damaged ({error}); train again.") from None
        schema = values.get("schema") if isinstance(values, dict) else None
        if not isinstance(schema, int) or schema > _SCHEMA:
            raise TrainingError(
                f"{shown} has schema {schema!r}; this version reads up to {_SCHEMA}. Upgrade deep-ranking."
            )
        return dict(values)

    def write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write ``metrics.jsonl`` with all rows so far; NaN becomes null, since JSON has no NaN."""
        lines = [json.dumps({key: _finite(value) for key, value in row.items()}) + "\n" for row in rows]
        write_atomically(self.metrics_path, lambda file: file.write("".join(lines).encode("ascii")))

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the rows of ``metrics.jsonl``, or no rows if the file does not exist yet.

        Raises:
            TrainingError: damaged.

        """
        try:
            return [json.loads(line) for line in self.metrics_path.read_text("utf-8").splitlines()]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise TrainingError(f"{display_path(self.metrics_path)} cannot be read ({error}).") from None

    def read_final(self) -> dict[str, Any] | None:
        """Return the row with the final metrics, or None if the run is unfinished.

        Raises the errors of :meth:`read_metrics`.
        """
        return next((row for row in reversed(self.read_metrics()) if row.get("kind") == "final"), None)

    def save(self, path: Path, checkpoint: Mapping[str, Any]) -> None:
        """Write a checkpoint of plain values and tensors; a full disk keeps the earlier one."""
        import torch  # slow, and a run on ratings needs none of it

        write_atomically(path, lambda file: torch.save(dict(checkpoint), file))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def create_run(out: Path | None, backbone: str) -> RunFolder:
    """Create a run folder, by default ``runs/<time>-<backbone>``, and point ``runs/latest`` to it.

    Raises:
        TrainingError: the folder already holds a run, or cannot be created.

    """
    path = out if out is not None else _fresh(backbone)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(
            f"The run folder {display_path(path)} cannot be made ({error.strerror or error})."
        ) from None
    run = RunFolder(path)
    if run.config_path.exists():
        raise TrainingError(
            f"{display_path(path)} holds a run already; resume it with --resume {display_path(path)}, "
            "or name another folder with --out."
        )
    _point_latest(path)
    return run


def _fresh(backbone: str) -> Path:
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', backbone)}"
    path = RUNS / stem
    number = 2
    while path.exists():
        path = RUNS / f"{stem}-{number}"
        number += 1
    return path


def _point_latest(path: Path) -> None:
    """Make ``runs/latest`` a relative link to the run; without links, a text file with its path."""
    try:
        RUNS.mkdir(exist_ok=True)
        target = os.path.relpath(path.resolve(), RUNS.resolve())
        link = RUNS / f".latest.{os.urandom(16).hex()}.tmp"
        try:
            link.symlink_to(target, target_is_directory=True)
        except (OSError, NotImplementedError):
            with placed(LATEST) as file:
                file.write(f"{target}\n".encode("utf-8", "surrogateescape"))
        else:
            link.replace(LATEST)  # a link, which ``placed`` does not make
    except OSError as error:
        raise TrainingError(f"{display_path(LATEST)} cannot be written ({error.strerror or error}).") from None


def open_run(path: Path | None) -> RunFolder:
    """Open a run folder; None means the newest, ``runs/latest``.

    Raises:
        TrainingError: it does not exist or is not a run folder.

    """
    named = LATEST if path is None else path
    folder = named
    if folder.is_file():
        folder = folder.parent / folder.read_text("utf-8").strip()
    run = RunFolder(folder.resolve() if folder.is_symlink() else folder)
    if not run.config_path.is_file():
        state = "does not exist" if not os.path.lexists(named) else "is not a run folder (it has no config.json)"
        raise TrainingError(
            f"{display_path(named)} {state}; expected the folder of a run. Make one with deeprank-train."
        )
    return run


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
            "Free some space, or name another folder."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))
