"""Format parity reports: rows for a terminal, Markdown for a file, and a comparison of forms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ..runtime.evaluate.tables import of_at_most
from ..runtime.text import display_path, markdown_table, printable
from .formats.formats import FORMS, Form
from .package import Bundle, Package
from .parity import ParityReport

__all__ = ["bundle_json", "bundle_markdown", "comparison_table", "package_markdown", "parity_rows", "remarks"]

SCHEMA = 1
# Within these, a difference in speed is noise of a shared machine.
_FASTER, _SLOWER = 1.1, 0.97


def parity_rows(package: Package) -> list[tuple[str, str]]:
    """Return the results as names and values."""
    report, evaluation, k = package.report, package.report.evaluation, package.report.k
    possible = of_at_most(evaluation.possible)
    rows = [
        ("largest difference of a component", f"{report.difference.max_abs_difference:.1e}"),
        ("smallest and mean cosine", f"{report.difference.min_cosine:.7f}, {report.difference.mean_cosine:.7f}"),
        ("batch 1 against batch n", f"{report.batch_difference.max_abs_difference:.1e}"),
        ("smallest cosine of numeric extremes", f"{report.extremes.min_cosine:.7f}"),
        (f"overlap of the {k} nearest", f"{report.change.overlap:.4f}"),
        (f"precision@{k}, {report.engine}, exact", f"{evaluation.reference:.4f}{possible}"),
        (f"precision@{k}, exported, exact", f"{evaluation.runtime_exact:.4f} ({_changed(report)})"),
        (f"precision@{k}, exported, HNSW", f"{evaluation.runtime_hnsw:.4f}"),
        ("size", f"{package.size / 1e6:.1f} MB"),
    ]
    return rows + _speed_rows(report) + _quantisation_rows(package)


def _changed(report: ParityReport) -> str:
    change = f"{report.change.precision:+.4f}"
    return f"{change}, standard error {report.change.error:.4f}" if report.tolerance.by_chance else change


def _speed_rows(report: ParityReport) -> list[tuple[str, str]]:
    speeds = report.speeds
    if speeds is None:
        return []
    ours, theirs = speeds.exported, speeds.reference
    latency, throughput = theirs.latency_ms / ours.latency_ms, ours.pictures_per_second / theirs.pictures_per_second
    rows = [
        ("one picture", f"{ours.latency_ms:.1f} ms, {report.engine} {theirs.latency_ms:.1f} ms ({latency:.2f} ×)"),
        (
            "batches of 32",
            f"{ours.pictures_per_second:.0f} pictures/s, {report.engine} {theirs.pictures_per_second:.0f} "
            f"({throughput:.2f} ×)",
        ),
    ]
    if speeds.fp32 is not None:
        rows.append(
            (
                "the fp32 file beside it",
                f"{speeds.fp32.pictures_per_second:.0f} pictures/s ({speeds.ratio_to_fp32:.2f} × that)",
            )
        )
    return rows


def _quantisation_rows(package: Package) -> list[tuple[str, str]]:
    quantisation = package.quantisation
    if quantisation is None:
        return []
    rules = ", ".join(f"{name} {cosine:.4f}" for name, cosine in quantisation.cosine_by_rule.items())
    in_float = f"{len(quantisation.in_float)} of {quantisation.layers}"
    return [
        (
            "ranges by",
            f"{quantisation.rule} (mean cosine on {quantisation.held_out_pictures} held-out pictures: {rules})",
        ),
        ("layers put back to float32", in_float),
    ]


def remarks(package: Package) -> Iterator[str]:
    """Yield advice for the choice of a form, from the measured speeds."""
    speeds, precision = package.report.speeds, package.form.precision
    ratio = None if speeds is None else speeds.ratio_to_fp32
    if speeds is None or ratio is None or precision == "fp32":
        return
    here = f"on this processor ({speeds.processor}, {speeds.threads} threads)"
    if precision == "fp16":
        yield f"fp16 is {ratio:.2f} × as fast as fp32 {here}. It is meant for GPUs, and halves the size."
    elif ratio < _SLOWER:
        yield f"int8 is slower than fp32 {here}: {ratio:.2f} ×. Use fp32 on this machine."
    elif ratio > _FASTER:
        yield f"int8 is {ratio:.2f} × as fast as fp32 {here}."
    else:
        yield f"int8 is as fast as fp32 {here}, {ratio:.2f} ×. Its gain is the size."


def package_markdown(package: Package) -> str:
    """Return the report of one form as a Markdown document."""
    lines = [
        f"# {printable(package.model.name)}: parity with the {package.report.engine} network",
        "",
        *_on_what(package),
        "",
    ]
    lines += markdown_table(("what", package.form.name), parity_rows(package))
    lines += [line for remark in remarks(package) for line in ("", remark)]
    return "\n".join([*lines, "", _tolerance(package), ""])


def _on_what(package: Package) -> list[str]:
    report = package.report
    return [
        f"{len(report.queries):,} queries and {len(report.gallery):,} gallery pictures of {printable(package.data)}, "
        f"compared with the {report.engine} network. All checks passed."
    ]


def _tolerance(package: Package) -> str:
    allowed, k = package.report.tolerance, package.report.k
    change = f"{allowed.precision_change:g} of precision@{k}"
    if allowed.by_chance:
        least = package.report.change.least_overlap(allowed.neighbour_overlap)
        change += f" (a loss beyond its sampling error), {least:.4g} for the overlap of the {k} nearest"
    return (
        f"Tolerances of {package.form.precision}: {change}, {allowed.mean_cosine:.7g} for the mean cosine, "
        f"{allowed.min_cosine:.7g} for the cosine of a picture ({allowed.extreme_cosine:.7g} of numeric extremes), "
        f"{allowed.max_abs_difference:g} for a component."
    )


def comparison_table(bundle: Bundle) -> list[str]:
    """Return all forms side by side, as the lines of a Markdown table."""
    first = bundle.packages[0].report
    k = first.k
    header = (
        *("form", "file", "MB", "largest difference", "mean cosine", "smallest cosine", f"overlap@{k}"),
        *(
            f"precision@{k}",
            "change",
            "HNSW",
            "ms",
            "pictures/s",
            f"× {bundle.packages[0].report.engine}",
            "× ONNX fp32",
        ),
    )
    rows = {package.form: _row(package) for package in bundle.packages}
    rows |= {form: (form.name, "not written", *[""] * (len(header) - 2)) for form, _ in bundle.failures}
    ordered = [rows[form] for form in FORMS if form in rows]
    return markdown_table(header, ordered, right_aligned=range(2, len(header)))


def _row(package: Package) -> tuple[str, ...]:
    report, evaluation = package.report, package.report.evaluation
    speeds = report.speeds
    assert speeds is not None
    ratio = speeds.exported.pictures_per_second / speeds.reference.pictures_per_second
    to_fp32 = speeds.ratio_to_fp32
    return (
        package.form.name,
        display_path(package.model.name),
        f"{package.size / 1e6:.1f}",
        f"{report.difference.max_abs_difference:.1e}",
        f"{report.difference.mean_cosine:.6f}",
        f"{report.difference.min_cosine:.6f}",
        f"{report.change.overlap:.4f}",
        f"{evaluation.runtime_exact:.4f}",
        f"{report.change.precision:+.4f}",
        f"{evaluation.runtime_hnsw:.4f}",
        f"{speeds.exported.latency_ms:.1f}",
        f"{speeds.exported.pictures_per_second:.0f}",
        f"{ratio:.2f}",
        "1.00" if package.form == FORMS[0] else "–" if to_fp32 is None else f"{to_fp32:.2f}",
    )


def bundle_markdown(bundle: Bundle) -> str:
    """Return the comparison of all forms as a Markdown document."""
    first = bundle.packages[0]
    speeds = first.report.speeds
    assert speeds is not None
    k = first.report.k
    about = (
        f"{len(first.report.queries):,} queries and {len(first.report.gallery):,} gallery pictures of "
        f"{printable(first.data)}; precision@{k} of the {first.report.engine} network: "
        f"{first.report.evaluation.reference:.4f}. "
        f"Speeds on {speeds.processor}, {speeds.threads} threads, all in one run."
    )
    lines = ["# The forms of this model, side by side", "", about, "", *comparison_table(bundle)]
    lines += [line for package in bundle.packages for remark in remarks(package) for line in ("", remark)]
    lines += [line for form, why in bundle.failures for line in ("", _failure(form, why))]
    return "\n".join([*lines, ""])


def _failure(form: Form, why: str) -> str:
    return f"Not written: {form.name}: {printable(why)}"


def bundle_json(bundle: Bundle) -> dict[str, Any]:
    """Return the JSON comparison: the parity report of each form, and failures of the others."""
    reports = [json.loads(package.parity.read_text("utf-8")) for package in bundle.packages]
    return {
        "schema": SCHEMA,
        "forms": reports,
        "failures": [{"format": form.format, "precision": form.precision, "why": why} for form, why in bundle.failures],
    }
