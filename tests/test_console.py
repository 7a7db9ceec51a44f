"""How a command ends."""

import subprocess
import sys

import pytest

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
