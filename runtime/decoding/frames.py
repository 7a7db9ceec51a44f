"""The protocol between parent and decoding processes: fixed binary frames, no pickle.

The parent sends JSON. Descriptors of the file and of the memory for pixels accompany it if the
system supports both; otherwise the file's bytes follow. A worker answers with :class:`Answer`. A
decoded file may have taken it over, so each number is checked before anything is allocated.
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
_ANSWER = struct.Struct("!B?IIIIQ")
# Bytes of one read or write: one call for a small picture, and no copy of a large one.
_CHUNK = 1 << 20
MAX_TEXT = 1 << 14


class FrameError(Exception):
    """A frame is invalid."""


class Code(IntEnum):
    """The kind of an answer."""

    READY = 1
    NEEDS = 2
    PICTURE = 3
    REFUSED = 4
    SIZE = 5


@dataclass(frozen=True)
class Answer:
    """A frame from a worker.

    Attributes:
        code: its kind.
        height: of the decoded picture.
        width: of the decoded picture.
        whole: width and height of the upright picture in the file (SIZE, and PICTURE of a
            rendition).
        size: bytes that decoding takes (NEEDS), or of the pixels or text that follow (PICTURE,
            REFUSED).
        last: the worker ends after this answer.

    """

    code: Code
    last: bool = False
    height: int = 0
    width: int = 0
    whole: tuple[int, int] = (0, 0)
    size: int = 0


def shares_memory() -> bool:
    """Tell whether file and memory descriptors can be passed to a worker; else bytes are copied."""
    return hasattr(os, "memfd_create") and hasattr(socket, "send_fds")


class Channel:
    """One end of the connection between the parent and a worker.

    Args:
        receiving: descriptor to read from.
        sending: descriptor to write to; for a socket the same one.

    """

    def __init__(self, receiving: int, sending: int) -> None:
        self._receiving = receiving
        self._sending = sending

    def send(self, values: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send JSON with descriptors attached.

        Raises:
            OSError: the other end is closed.

        """
        content = json.dumps(values).encode()
        frame = _LENGTH.pack(len(content)) + content
        if descriptors:
            with contextlib.closing(socket.socket(fileno=os.dup(self._sending))) as line:
                sent = socket.send_fds(line, [frame], descriptors)
            frame = frame[sent:]
        self.write(frame)

    def receive(self, max_descriptors: int = 0) -> tuple[dict[str, Any], list[int]]:
        """Return JSON from the parent, and the attached descriptors.

        Raises:
            EOFError, OSError: the other end is closed.

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
        """Send an answer and its content."""
        self.write(_ANSWER.pack(answer.code, answer.last, answer.height, answer.width, *answer.whole, answer.size))
        if content:
            self.write(content)

    def next_answer(self) -> Answer:
        """Return the next answer; its content is not read yet.

        Raises:
            EOFError, OSError: the other end is closed.
            FrameError: not an answer.

        """
        code, last, height, width, *whole, size = _ANSWER.unpack(self.read(_ANSWER.size))
        if code not in Code._value2member_map_:
            raise FrameError(f"code {code}")
        return Answer(Code(code), last, height, width, (whole[0], whole[1]), size)

    def text(self, size: int) -> dict[str, Any]:
        """Return a refusal's JSON.

        Raises:
            EOFError, OSError: the other end is closed.
            FrameError: invalid or too long.

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
        """Wait until there is data to read.

        Raises:
            TimeoutError: no data within this time.

        """
        ready = select.poll()  # select is limited to descriptors below 1024, and a server has many
        ready.register(self._receiving, select.POLLIN)
        if not ready.poll(1000 * seconds):
            raise TimeoutError("no answer")

    def read(self, size: int) -> bytes:
        """Return exactly ``size`` bytes.

        Raises:
            EOFError, OSError: the other end is closed.

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
            OSError: the other end is closed.

        """
        left = memoryview(content)
        while left:
            left = left[os.write(self._sending, left[:_CHUNK]) :]

    def close(self) -> None:
        """Close both descriptors."""
        for descriptor in {self._receiving, self._sending}:
            with contextlib.suppress(OSError):
                os.close(descriptor)
