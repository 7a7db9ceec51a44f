"""What came of one input at one target, and the table of all."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["ANSWERED", "BAD", "CRASHED", "OVER", "REFUSED", "VERDICTS", "WRONG", "Outcome", "details", "table"]

REFUSED, ANSWERED, CRASHED, OVER, WRONG = "refused", "answered", "crashed", "over limits", "wrong"
VERDICTS = (REFUSED, ANSWERED, CRASHED, OVER, WRONG)
BAD = (CRASHED, OVER, WRONG)
_SHOWN = 200


@dataclass(frozen=True)
class Outcome:
    """What came of one input at one target.

    Attributes:
        case: its name, for ``--again``.
        group: of its kind.
        target: ``library``, ``commands`` or ``server``.
        action: what was done with it: a command, say.
        verdict: one of ``VERDICTS``; ``wrong`` is a wrong answer, harm to what lies beside, or a secret given out.
        detail: in words.
        peak: bytes of memory at most, beyond what the idle process has.
        cpu_s: seconds of CPU time.
        delay_s: how much longer than another, untouched server an honest client waited at most.

    """

    case: str
    group: str
    target: str
    action: str
    verdict: str
    detail: str = ""
    peak: int = 0
    cpu_s: float = 0.0
    delay_s: float = 0.0

    @property
    def is_bad(self) -> bool:
        """Whether this must not come of any input."""
        return self.verdict in BAD

    @property
    def sentence(self) -> str:
        """The failure, in words."""
        return f"{self.case} at {self.target}, {self.action}: {self.verdict}: {self.detail}"

    def document(self) -> dict[str, object]:
        """Return it for a line of JSON."""
        return dataclasses.asdict(self)


def table(outcomes: Iterable[Outcome]) -> list[str]:
    """Return a Markdown table: a row for each group of kinds and target."""
    rows: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        rows[outcome.group, outcome.target].append(outcome)
    lines = [
        f"| inputs | target | tried | {' | '.join(VERDICTS)} | most MB | most CPU s | delay s |",
        f"|---|---|{'--:|' * (len(VERDICTS) + 4)}",
    ]
    lines += [_row(*key, found) for key, found in sorted(rows.items(), key=lambda row: row[0])]
    return [*lines, _row("all", "", [outcome for found in rows.values() for outcome in found])]


def _row(group: str, target: str, found: Sequence[Outcome]) -> str:
    counts = Counter(outcome.verdict for outcome in found)
    figures = [f"{len(found):,}", *(f"{counts[verdict]:,}" for verdict in VERDICTS)]
    peak = max((outcome.peak for outcome in found), default=0)
    seconds = max((outcome.cpu_s for outcome in found), default=0.0)
    delay = max((outcome.delay_s for outcome in found), default=0.0)
    delays = f"{delay:.2f}" if any(outcome.target == "server" for outcome in found) else ""
    return f"| {group} | {target} | {' | '.join(figures)} | {peak / 1e6:.0f} | {seconds:.1f} | {delays} |"


def details(outcomes: Iterable[Outcome]) -> list[str]:
    """Return a Markdown table with a row for each kind at which anything was bad, and a sentence for each failure."""
    bad = [outcome for outcome in outcomes if outcome.is_bad]
    kinds = [outcome.case.partition("/")[2].rpartition("/")[0] for outcome in bad]
    rows = Counter((kind, outcome.target, outcome.action) for kind, outcome in zip(kinds, bad, strict=True))
    lines = ["| kind | target | with | failures |", "|---|---|---|--:|"]
    lines += [f"| {kind} | {target} | {action} | {count} |" for (kind, target, action), count in sorted(rows.items())]
    sentences = [f"FAILED: {outcome.sentence}" for outcome in bad[:_SHOWN]]
    more = [f"and {len(bad) - _SHOWN} more"] if len(bad) > _SHOWN else []
    return [*lines, "", *sentences, *more] if bad else []
