"""Entry point of ``python -m deeprank.train`` and ``torchrun ... -m deeprank.train``.

Both are the same as ``deeprank-train``.
"""

import atexit
import os
import sys

from .cli import main


def _main_among_others() -> None:
    """Run, then exit without PyTorch's shutdown.

    Its threads between processes can abort a process that has finished otherwise.
    """
    status = 0
    try:
        main()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _main_among_others()
    main()
