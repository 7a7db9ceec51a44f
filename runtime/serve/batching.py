"""What many callers want at the same time, done together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

__all__ = ["Batcher"]

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Gathers items on the event loop and gives them to threads, several at a time.

    A batch goes as soon as a thread is free for it and it is full, or nobody is on the way who could still join it, or
    its oldest item has waited long enough. So one caller alone never waits.

    Args:
        work: called in a thread with 1 to ``most`` items, and whether they are all there is to do; returns a result or
            an exception for each.
        workers: threads.
        most: items of a batch.
        wait_s: how long an item waits for others that are on the way.
        name: of the threads.

    """

    def __init__(
        self,
        work: Callable[[list[T], bool], Sequence[R | BaseException]],
        *,
        workers: int = 1,
        most: int,
        wait_s: float = 0.0,
        name: str,
    ) -> None:
        self._work = work
        self._workers = workers
        self._most = most
        self._wait_s = wait_s
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
        self._waiting: deque[tuple[T, asyncio.Future[R], float]] = deque()
        self._busy = 0
        self._coming = 0
        self._timer: asyncio.TimerHandle | None = None

    def expect(self) -> None:
        """Say that an item is on the way; :meth:`expect_no_longer` follows, after it was given or when it is not."""
        self._coming += 1

    def expect_no_longer(self) -> None:
        """Say that an item came, or will not come."""
        self._coming -= 1
        self._send()

    async def do(self, item: T) -> R:
        """Have one item done."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[R] = loop.create_future()
        self._waiting.append((item, done, loop.time()))
        # Those who arrive in this round of the loop go together.
        loop.call_soon(self._send)
        return await done

    def close(self) -> None:
        """End the threads when they have done what they have."""
        self._pool.shutdown(wait=False)

    def _send(self) -> None:
        while self._waiting and self._busy < self._workers:
            left = self._left_to_wait()
            if left > 0:
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(left, self._on_time)
                return
            self._start([self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))])

    def _left_to_wait(self) -> float:
        if len(self._waiting) >= self._most or self._coming == 0:
            return 0.0
        return self._waiting[0][2] + self._wait_s - asyncio.get_running_loop().time()

    def _on_time(self) -> None:
        self._timer = None
        self._send()

    def _start(self, batch: list[tuple[T, asyncio.Future[R], float]]) -> None:
        alone = self._busy == 0 and not self._waiting and self._coming == 0
        waiting = [entry for entry in batch if not entry[1].cancelled()]
        if not waiting:
            return
        self._busy += 1
        running = asyncio.get_running_loop().run_in_executor(self._pool, self._work, [e[0] for e in waiting], alone)
        running.add_done_callback(lambda done: self._finish([e[1] for e in waiting], done))

    def _finish(self, callers: list[asyncio.Future[R]], done: asyncio.Future[Sequence[R | BaseException]]) -> None:
        self._busy -= 1
        error = done.exception()
        results: Sequence[R | BaseException] = [error] * len(callers) if error is not None else done.result()
        for caller, result in zip(callers, results, strict=True):
            if caller.done():
                continue
            if isinstance(result, BaseException):
                caller.set_exception(result)
            else:
                caller.set_result(result)
        self._send()
