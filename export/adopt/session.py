"""Bare sessions of ONNX Runtime for graphs from elsewhere, under the runtime's limits of memory and time."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime.devices import Deadline, limit_memory, session_options
from ...runtime.errors import ExportError, ModelFileError
from ...runtime.model.onnx_limits import check_records
from ...runtime.text import first_line

__all__ = ["BareSession"]

_OPENING_SECONDS = 120.0
# Per picture and run, as the runtime's embedder allows.
_SECONDS = 60.0

Array = npt.NDArray[Any]


class BareSession:
    """A graph in ONNX Runtime on the CPU, with no other preparation of its inputs and outputs.

    Args:
        graph: the bytes of a model without side files.
        file: opened in their place; its side files are in its folder. It must compute the same as
            ``graph``, whose records are checked.
        threads: default: the usable cores, at most 4.

    Raises:
        ModelFileError: see :func:`~...runtime.model.onnx_limits.check_records`; or ONNX Runtime
            cannot open it.

    """

    def __init__(self, graph: bytes, *, file: Path | None = None, threads: int | None = None) -> None:
        import onnxruntime as ort

        overhead = check_records(graph)
        options, _ = session_options(threads)
        limit_memory(options, len(graph), overhead)
        with ExitStack() as stack:
            if file is None:
                # Without a folder of its own, a model read from bytes could name files of the working directory.
                empty = stack.enter_context(tempfile.TemporaryDirectory(prefix="deeprank-"))
                options.add_session_config_entry("session.model_external_initializers_file_folder_path", empty)
            deadline = Deadline(_OPENING_SECONDS, lambda: options.set_load_cancellation_flag(True))
            try:
                with deadline:
                    self._session = ort.InferenceSession(
                        graph if file is None else str(file),
                        options,
                        providers=["CPUExecutionProvider"],
                        enable_fallback=False,
                        read_config_from_model=False,
                    )
            except Exception as error:  # ONNX Runtime raises a dozen kinds, all from C++
                why = f"it took more than {_OPENING_SECONDS:.0f} s" if deadline.passed else first_line(error)
                raise ModelFileError(f"ONNX Runtime cannot open it ({why})") from None

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Run the graph.

        Args:
            outputs: names of the outputs to return.
            feeds: inputs by name; the first axis counts the pictures.

        Raises:
            ExportError: it fails, or takes too long.

        """
        import onnxruntime as ort

        options = ort.RunOptions()
        count = max((len(value) for value in feeds.values() if value.ndim), default=1)
        deadline = Deadline(_SECONDS * max(1, count), lambda: setattr(options, "terminate", True))
        try:
            with deadline:
                return [np.asarray(value) for value in self._session.run(list(outputs), dict(feeds), options)]
        except Exception as error:  # as when opening
            why = "it takes too long" if deadline.passed else first_line(error)
            raise ExportError(f"The graph cannot be run on {count} pictures ({why}).") from None
