"""Does once what several requests of one turn of the event loop ask for.

With 16 connections, half of a read is the round trip to Redis and half of a prediction numpy's cost
per call; eight of each take hardly longer than one. A request that is alone does not wait.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

K = TypeVar("K")

V = TypeVar("V")


class Batcher(Generic[K, V]):
    """Turns a function of many into an awaitable one of one.

    Args:
        work: Gives a value for each of its arguments, in order. It runs on the event loop.
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
            # After all requests that have arrived by now, which run before it in this turn.
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
