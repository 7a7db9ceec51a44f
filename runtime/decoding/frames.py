"""What the server and its decoding processes say to each other: fixed binary frames, no pickle.

The parent sends JSON, with the descriptors of the file and of the memory for the pixels beside it where the system has
both, and the bytes of the file behind it where not. A worker answers with :class:`Answer`. It may have been taken over
by the file that it decodes, so each of its numbers is checked before anything is allocated for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

__all__ = ["Answer", "Channel", "Code", "FrameError", "shares_memory"]

_LENGTH = struct.Struct("!I")
_ANSWER = struct.Struct("!B?IIQ")
# Of one read or write: a call for each picture, and no copy of a large one.
_CHUNK = 1 << 20
MAX_TEXT = 1 << 14


class FrameError(Exception):
    """A frame is not one of ours."""


class Code(IntEnum):
    """What an answer says."""

    READY = 1
    NEEDS = 2
    PICTURE = 3
    REFUSED = 4


@dataclass(frozen=True)
class Answer:
    """A frame of a worker.

    Attributes:
        code: what it says.
        height: of the picture that was decoded.
        width: of the picture.
        size: bytes that decoding takes (NEEDS), or of what was decoded or said (PICTURE, REFUSED).
        last: the worker ends after this answer.

    """

    code: Code
    last: bool = False
    height: int = 0
    width: int = 0
    size: int = 0


def shares_memory() -> bool:
    """Tell whether descriptors of files and of memory can be handed to a worker; elsewhere bytes are copied."""
    return hasattr(os, "memfd_create") and hasattr(socket, "send_fds")


class Channel:
    """One end of the line between the parent and a worker.

    Args:
        receiving: descriptor to read from.
        sending: descriptor to write to; the same one where it is a socket.

    """

    def __init__(self, receiving: int, sending: int) -> None:
        self._receiving = receiving
        self._sending = sending

    def send(self, values: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send JSON, and descriptors beside it.

        Raises:
            OSError: the other end is gone.

        """
        content = json.dumps(values).encode()
        frame = _LENGTH.pack(len(content)) + content
        if descriptors:
            with contextlib.closing(socket.socket(fileno=os.dup(self._sending))) as line:
                sent = socket.send_fds(line, [frame], descriptors)
            frame = frame[sent:]
        self.write(frame)

    def receive(self, max_descriptors: int = 0) -> tuple[dict[str, Any], list[int]]:
        """Return JSON of the parent, and the descriptors that came beside it.

        Raises:
            EOFError, OSError: the other end is gone.

        """
        head, descriptors = b"", list[int]()
        if max_descriptors:
            with contextlib.closing(socket.socket(fileno=os.dup(self._receiving))) as line:
                head, descriptors, _, _ = socket.recv_fds(line, _LENGTH.size, max_descriptors)
            if not head:
                raise EOFError
        head += self.read(_LENGTH.size - len(head))
        return json.loads(self.read(_LENGTH.unpack(head)[0])), descriptors

    def answer(self, answer: Answer, content: bytes = b"") -> None:
        """Send an answer, and the bytes that belong to it."""
        self.write(_ANSWER.pack(answer.code, answer.last, answer.height, answer.width, answer.size))
        if content:
            self.write(content)

    def next_answer(self) -> Answer:
        """Return the next answer; what it announces is not read yet.

        Raises:
            EOFError, OSError: the other end is gone.
            FrameError: it is none.

        """
        code, last, height, width, size = _ANSWER.unpack(self.read(_ANSWER.size))
        if code not in Code._value2member_map_:
            raise FrameError(f"code {code}")
        return Answer(Code(code), last, height, width, size)

    def text(self, size: int) -> dict[str, Any]:
        """Return a refusal's JSON.

        Raises:
            EOFError, OSError: the other end is gone.
            FrameError: it is none, or too long.

        """
        if size > MAX_TEXT:
            raise FrameError(f"text of {size} bytes")
        try:
            values = json.loads(self.read(size))
        except (ValueError, RecursionError) as error:
            raise FrameError("no JSON") from error
        if not isinstance(values, dict):
            raise FrameError("no object")
        return values

    def wait(self, seconds: float) -> None:
        """Wait until there is something to read.

        Raises:
            TimeoutError: there is nothing within this time.

        """
        ready = select.poll()  # select takes no descriptor above 1023, and a server has many
        ready.register(self._receiving, select.POLLIN)
        if not ready.poll(1000 * seconds):
            raise TimeoutError("no answer")

    def read(self, size: int) -> bytes:
        """Return exactly so many bytes.

        Raises:
            EOFError, OSError: the other end is gone.

        """
        content = bytearray()
        while len(content) < size:
            chunk = os.read(self._receiving, min(_CHUNK, size - len(content)))
            if not chunk:
                raise EOFError
            content += chunk
        return bytes(content)

    def write(self, content: bytes | memoryview) -> None:
        """Send all of these bytes.

        Raises:
            OSError: the other end is gone.

        """
        left = memoryview(content)
        while left:
            left = left[os.write(self._sending, left[:_CHUNK]) :]

    def close(self) -> None:
        """Close both descriptors."""
        for descriptor in {self._receiving, self._sending}:
            with contextlib.suppress(OSError):
                os.close(descriptor)
