"""Batching: items of concurrent callers, processed together in threads."""

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
    """Collects items on the event loop and passes them to threads in batches.

    A batch starts once a thread is free and one of three conditions holds: it is full, no announced
    item could still join it, or its oldest item has waited ``wait_s``. So a single caller never
    waits.

    Args:
        work: called in a thread with 1 to ``limit`` items, and whether no other item is running,
            waiting or announced; returns a result or an exception for each item.
        workers: number of threads.
        limit: items per batch.
        wait_s: how long an item waits for announced items, in seconds.
        name: name of the threads.

    """

    def __init__(
        self,
        work: Callable[[list[T], bool], Sequence[R | BaseException]],
        *,
        workers: int = 1,
        limit: int,
        wait_s: float = 0.0,
        name: str,
    ) -> None:
        self._work = work
        self._workers = workers
        self._most = limit
        self._wait_s = wait_s
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
        self._waiting: deque[tuple[T, asyncio.Future[R], float]] = deque()
        self._busy = 0
        self._coming = 0
        self._timer: asyncio.TimerHandle | None = None

    def expect(self) -> None:
        """Announce an item; call :meth:`expect_no_longer` once it was passed or will not come."""
        self._coming += 1

    def expect_no_longer(self) -> None:
        """Withdraw the announcement of an item that came, or will not come."""
        self._coming -= 1
        self._send()

    async def do(self, item: T) -> R:
        """Process one item and return its result."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[R] = loop.create_future()
        self._waiting.append((item, done, loop.time()))
        # Items that arrive in the same iteration of the loop share a batch.
        loop.call_soon(self._send)
        return await done

    def close(self) -> None:
        """End the threads after the batches that they have."""
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
