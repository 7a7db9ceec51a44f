"""Check a model file: it runs, and gives equal unit vectors alone and in a batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..devices import has_vnni
from ..shell import shell_word
from ..text import display_path, printable
from .finding import Finding, ok, problem, skipped, warning

if TYPE_CHECKING:
    from ..modelfile import OpenModel

__all__ = ["describe", "export_again", "model_finding", "report_finding", "report_path"]

_BATCH, _LARGE_SIDE, _LARGE_BATCH = 5, 512, 2
_MAX_REPORT = 4 * 2**20


def model_finding(check: str, opened: OpenModel, *, where: str, fix: str) -> Finding:
    """Run an open model on pictures of noise, as a batch and one by one.

    Args:
        check: name of the finding.
        opened: the model.
        where: its description; see :func:`describe`.
        fix: advice for a model with wrong results.

    Raises:
        ModelFileError: it cannot be run, or its vectors do not have unit length.

    """
    from ..embedder import Embedder
    from ..evaluate.parity import TOLERANCES, compare_vectors

    import numpy as np  # isort: skip

    info, embedder = opened.info, Embedder(opened)
    side = info.picture.size
    count = _BATCH if side <= _LARGE_SIDE else _LARGE_BATCH
    pictures = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    together = embedder.embed_batch(pictures)
    alone = np.concatenate([embedder.embed_batch(picture[None]) for picture in pictures])
    difference = compare_vectors(together, alone)
    failures = difference.failures(TOLERANCES[info.precision].for_one_engine())
    if failures:
        return problem(
            check, f"{where} gives different vectors in a batch than for single pictures: {'; '.join(failures)}", fix
        )
    summary = (
        f"{where}, sha256 {opened.sha256[:12]}: unit vectors, which differ by {difference.max_abs_difference:.1e} "
        f"between single pictures and a batch of {count}"
    )
    if info.precision == "int8" and opened.session.get_providers()[0] == "CPUExecutionProvider" and not has_vnni():
        return ok(check, f"{summary}; int8 without VNNI is correct, but slower than fp32")
    return ok(check, summary)


def describe(opened: OpenModel) -> str:
    """Return the name of the model and its metadata as text."""
    from ..model.pretrained import describe_model

    info, side = opened.info, opened.info.picture.size
    where = describe_model(opened.path, info)
    if where != f"the model {display_path(opened.path)}":  # the bundled model, whose description is complete
        return where
    terms = f"; license {printable(info.license)}" if info.license else ""
    return (
        f"{where} ({printable(info.name)}, {info.precision}, {info.embedding_dim} numbers from {side} x {side} "
        f"pixels{terms})"
    )


def report_path(model: Path) -> Path:
    """Return the path of a model's parity report; ``--format all`` writes it to another path."""
    alone, one_of_all = model.with_suffix(".parity.json"), model.with_name(f"{model.name}.parity.json")
    return one_of_all if one_of_all.is_file() and not alone.is_file() else alone


def report_finding(opened: OpenModel) -> Finding:
    """Check that the parity report beside a model is about this file."""
    path = report_path(opened.path)
    if not path.is_file():
        return skipped("model report", f"there is no {display_path(path.name)} beside the model")
    again = "use the file that was written with the model, or export it again: deeprank-export"
    try:
        sha256, precise = _read_report(path)
    except (OSError, ValueError, RecursionError) as error:
        return warning("model report", f"{display_path(path)} cannot be read ({printable(str(error)[:200])})", again)
    if sha256 != opened.sha256:
        return warning(
            "model report",
            f"{display_path(path)} describes another file: its sha256 is {sha256[:12]}, the model's is "
            f"{opened.sha256[:12]}",
            again,
        )
    return ok("model report", f"{display_path(path.name)} describes this file{precise}")


def _read_report(path: Path) -> tuple[str, str]:
    """Return the sha256 in a report, and its result as text."""
    if path.stat().st_size > _MAX_REPORT:
        raise ValueError(f"it has more than {_MAX_REPORT:,} bytes")
    report = json.loads(path.read_bytes())
    sha256 = report.get("sha256") if isinstance(report, dict) else None
    if not isinstance(sha256, str):
        raise ValueError("it names no sha256")
    cosine = report.get("min_cosine")
    return printable(sha256), f": smallest cosine to PyTorch {cosine:.6f}" if isinstance(cosine, float) else ""


def export_again(path: Path) -> str:
    """Return the command that replaces a broken model."""
    return f"deeprank-export --format onnx --out {shell_word(path)}  # in the folder of its run, with PyTorch"
