"""What a request can meet that a command cannot."""

from __future__ import annotations

from ..errors import DeepRankError

__all__ = ["BusyError", "GoneError", "NotFoundError", "OtherModelError", "RefusedError", "UnwritableError"]


class RefusedError(DeepRankError):
    """A request is refused: the status, and a sentence that says what was expected."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = headers or {}


class NotFoundError(RefusedError):
    """The index has no such picture."""

    def __init__(self, number: int) -> None:
        super().__init__(404, f"The index has no picture with the id {number}; expected one that a search returned.")


class GoneError(RefusedError):
    """The file of a picture of the index is gone, or is another now."""

    def __init__(self, what: str) -> None:
        super().__init__(
            410,
            f"The file of this picture {what}; the next sync of its folder notices, and an upload can be sent again.",
        )


class OtherModelError(RefusedError):
    """A vector comes from another model than the index's."""

    def __init__(self) -> None:
        super().__init__(
            409, "The vector was made by another model than the index has now; embed the picture again, by /v1/embed."
        )


class UnwritableError(RefusedError):
    """The index can be read, but not written to."""

    def __init__(self) -> None:
        super().__init__(
            503, "The index cannot be written to at the moment; the server's log says why.", {"Retry-After": "60"}
        )


class BusyError(RefusedError):
    """Too much is going on at the moment."""

    def __init__(self, what: str = "Too many requests are being worked on", seconds: int = 1) -> None:
        super().__init__(503, f"{what}; try again in a moment.", {"Retry-After": str(seconds)})
