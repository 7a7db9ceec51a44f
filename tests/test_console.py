"""How a command ends."""

import re
import subprocess
import sys

import pytest

from deeprank.runtime.cli import _Speed

SHOWS = "-v shows where. Please report it."
NOTHING = "nothing was left half-written."


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("raise DataError('found x; expected y.')", 1, "error: found x; expected y.\n"),
        ("raise DataError('a\\x1b[31mb')", 1, "error: a\\x1b[31mb\n"),
        ("1 / 0", 1, f"error: internal error (ZeroDivisionError: division by zero); {SHOWS}\n"),
        ("raise KeyboardInterrupt", 130, "interrupted.\n"),
        ("open('/nonexistent/x')", 1, f"error: /nonexistent/x: No such file or directory; {NOTHING}\n"),
        ("sys.exit(3)", 3, ""),
        ("print('done')", 0, ""),
    ],
)
def test_endings(body: str, status: int, said: str) -> None:
    program = (
        "import sys; from deeprank.runtime.console import guarded; from deeprank.runtime.errors import DataError\n"
        f"@guarded\ndef command(*, verbose):\n    {body}\n"
        "command(verbose='-v' in sys.argv)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (status, said)
    verbose = subprocess.run([sys.executable, "-c", program, "-v"], capture_output=True, text=True)
    assert ("Traceback" in verbose.stderr) == (status in (1, 130))


def test_a_reader_that_has_gone_is_no_error() -> None:
    body = "print('x' * 10_000_000)"
    program = f"from deeprank.runtime.console import guarded\n@guarded\ndef command():\n    {body}\ncommand()\n"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr.read() == b""
    process.stderr.close()


def test_time_left_is_told_once_there_is_a_rate_to_tell_it_by() -> None:
    speed = _Speed(18_000)
    for place in range(16):  # a first batch, 10 s after the beginning
        speed.add(1, 10.4 + place / 1000)
        assert speed.words() == []
    speed.add(16, 12.0)
    assert speed.words() == []
    for batch in range(2, 12):
        speed.add(16, 10.4 + 1.6 * batch)
    # Sixteen in 1.6 s, so 10 a second; what came before the second batch does not count.
    rate, left = speed.words()
    assert float(rate.removesuffix("/s")) == pytest.approx(10, rel=0.01)
    minutes, seconds = re.fullmatch(r"(\d+) min (\d\d) s left", left).groups()
    assert 60 * int(minutes) + int(seconds) == pytest.approx((18_000 - 12 * 16) / 10, rel=0.01)
    endless = _Speed(None)
    for second in range(10):
        endless.add(5, float(second))
    assert endless.words() == ["5/s"]


def test_a_download_that_begins_again_has_no_rate() -> None:
    speed = _Speed(1000)
    speed.add(900, 0.0)
    speed.add(-900, 5.0)
    assert speed.words() == []
