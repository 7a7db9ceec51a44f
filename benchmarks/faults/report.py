"""The table of what the faults did."""

from __future__ import annotations

import argparse
from collections import Counter

import shim
from checks import Tally

_SENTENCES = 3


def show(tallies: list[Tally], arguments: argparse.Namespace, missing: list[str]) -> None:
    """Print the table, what was said, and the failures."""
    options = " ".join(f"--{name} {value}" for name, value in vars(arguments).items() if value != "")
    print(f"`python benchmarks/faults {options}`\n")
    print("| fault | runs | looked at | lost | wrong answers | crashes | sentences |\n|---|--:|--:|--:|--:|--:|---|")
    for tally in tallies:
        said = "; ".join(f"{count:,} × {text}" for text, count in tally.sentences.most_common(_SENTENCES))
        more = len(tally.sentences) - _SENTENCES
        said = said.replace("|", "\\|") + (f"; {more} others" if more > 0 else "")
        figures = (tally.runs, tally.looked_at, tally.lost, tally.wrong, tally.crashes)
        print(f"| {tally.fault} | {' | '.join(f'{figure:,}' for figure in figures)} | {said} |")
    total: Counter[str] = Counter()
    for tally in tallies:
        for name in ("runs", "looked_at", "lost", "wrong", "crashes"):
            total[name] += getattr(tally, name)
    print(f"| all | {' | '.join(f'{total[name]:,}' for name in ('runs', 'looked_at', 'lost', 'wrong', 'crashes'))} | |")
    if missing:
        print(f"\nNot there in this version: {', '.join(missing)}.")
    if not shim.has_shim():
        print("\nNot run without Linux and a C compiler: everything that fails at a chosen call.")
    for tally in tallies:
        for failure in tally.failures:
            print(f"\nFAILED: {failure}")
