"""Micro-batching: requests that arrive in one turn of the event loop share one call.

A read spends half of its time on the round trip to Redis, and a prediction on numpy's cost per
call. Eight of them in one call take hardly longer than one. A request that is alone does not wait.

What the calls do is not known here.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

K = TypeVar("K")

V = TypeVar("V")


class Batcher(Generic[K, V]):
    """Makes an awaitable function of one argument from a function of many.

    Args:
        work: Returns one value per argument, in order. It runs on the event loop.
    """

    def __init__(self, work: Callable[[Sequence[K]], Sequence[V]]) -> None:
        self._work = work
        self._waiting: list[tuple[K, asyncio.Future[V]]] = []

    async def __call__(self, argument: K) -> V:
        """The value of one argument; raises what the work raises."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[V] = loop.create_future()
        self._waiting.append((argument, future))
        if len(self._waiting) == 1:
            # The loop first runs all requests that have arrived by now, and then this call.
            loop.call_soon(self._run)
        return await future

    def _run(self) -> None:
        waiting, self._waiting = self._waiting, []
        futures = [future for _, future in waiting if not future.done()]
        try:
            values = self._work([argument for argument, future in waiting if not future.done()])
        except Exception as error:
            for future in futures:
                future.set_exception(error)
        else:
            for future, value in zip(futures, values, strict=True):
                future.set_result(value)
