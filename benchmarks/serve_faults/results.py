"""What came of the requests of one kind of trouble, and the table of all of them."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from client import LostError, Reply

__all__ = ["Tally", "show"]

_FIGURES = ("requests", "wrong", "lost", "server_errors")
_SHOWN = 20


@dataclass
class Tally:
    """Figures of one line.

    Attributes:
        what: the trouble, in words.
        requests: that were sent.
        wrong: answers that are not those of their request, or of no state that there was.
        lost: requests without a whole answer, and pictures that were acknowledged and are gone.
        server_errors: 5xx, but for a 503 with Retry-After where the server was to be overloaded.
        remark: what else was measured.
        failures: sentences about the first of what went wrong.

    """

    what: str
    requests: int = 0
    wrong: int = 0
    lost: int = 0
    server_errors: int = 0
    turned_away: int = 0
    remark: str = ""
    failures: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.wrong or self.lost or self.server_errors or self.failures)

    def judge(self, reply: Reply | LostError, problem: str | None = None, *, may_be_busy: bool = False) -> bool:
        """Count an answer; ``problem`` says what is wrong with it. Return whether it answers the request."""
        self.requests += 1
        if isinstance(reply, LostError):
            self.lose(str(reply))
            return False
        if reply.status == 503 and may_be_busy:
            self.turned_away += 1
            if not reply.headers.get("retry-after", "").isdecimal():
                self.fail("wrong", "a 503 without Retry-After")
            return False
        if reply.status >= 500:
            self.fail("server_errors", f"status {reply.status}: {reply.body[:300]!r}")
            return False
        if problem is not None:
            self.fail("wrong", problem)
        return problem is None

    def lose(self, what: str) -> None:
        """Count something that is lost."""
        self.fail("lost", what)

    def fail(self, kind: str, what: str) -> None:
        """Count what went wrong."""
        setattr(self, kind, getattr(self, kind) + 1)
        self.note(f"{kind}: {what}")

    def note(self, what: str) -> None:
        """Keep a sentence about what went wrong."""
        if len(self.failures) < _SHOWN:
            self.failures.append(what)

    def expect(self, holds: bool, what: str) -> None:
        """Note what does not hold."""
        if not holds:
            self.note(what)


def show(tallies: Sequence[Tally], arguments: argparse.Namespace) -> None:
    """Print the table, and what went wrong."""
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in vars(arguments).items())
    print(f"`python benchmarks/serve_faults {options}`\n")
    print("| what | requests | wrong | lost | 5xx | |\n|---|--:|--:|--:|--:|---|")
    total: Counter[str] = Counter()
    for tally in tallies:
        figures = {name: getattr(tally, name) for name in _FIGURES}
        total.update(figures)
        away = [f"{tally.turned_away:,} told to come again"] if tally.turned_away else []
        remark = "; ".join([*away, *([tally.remark] if tally.remark else [])])
        print(f"| {tally.what} | {' | '.join(f'{figure:,}' for figure in figures.values())} | {remark} |")
    print(f"| all | {' | '.join(f'{total[name]:,}' for name in _FIGURES)} | |")
    for tally in tallies:
        for failure in tally.failures:
            print(f"\nFAILED: {tally.what}: {failure}")
