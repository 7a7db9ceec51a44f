"""What lies beside an input and must stay as it is, and what must not be given out."""

from __future__ import annotations

from pathlib import Path

from fixture import shows_secret, snapshot

__all__ = ["Harm"]

# What a command may change: the index that it was given, and what it was told to write.
_MAY_CHANGE = frozenset({"evil.index", "out", "new.index", "said.txt"})
_MAX_BYTES = 50_000_000
_SHOWN = 5


class Harm:
    """Remembers the folder of a case as it was before; :meth:`done` says what was done to it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "out").mkdir(exist_ok=True)
        self._before = snapshot(folder, _MAY_CHANGE)

    def done(self) -> str:
        """Return what has changed outside, or which secret was given out; empty: nothing."""
        now = snapshot(self._folder, _MAY_CHANGE)
        changed = [
            name
            for name in sorted(self._before.keys() | now.keys())
            # Names beside an index that an earlier command left, and what is made there meanwhile.
            if self._before.get(name) != now.get(name) and not _is_preparation(name)
        ]
        if changed:
            return f"changed outside of the index: {', '.join(changed[:_SHOWN])}"
        for path in sorted((self._folder / "out").rglob("*")):
            if path.is_file() and not path.is_symlink() and path.stat().st_size < _MAX_BYTES:
                content = path.read_bytes()
                if shows_secret(content):
                    return f"a secret was given out: {path.relative_to(self._folder)}"
        return ""


def _is_preparation(name: str) -> bool:
    """Tell whether a name is one under which an index folder is made, beside it."""
    first = Path(name).parts[0]
    return first.startswith((".evil.index.", ".new.index."))
