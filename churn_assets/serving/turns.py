"""Large requests of a worker process: one after the other, and no caller before another.

A batch holds Python's interpreter for some 50 ms, most of it in one piece. Several at once would
make every read of one customer wait for all of them. One at a time leaves the interpreter to reads
in between. The next turn goes to the caller who has waited longest for one, however many requests
somebody else has sent.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from fastapi import HTTPException


class AtOnce:
    """Counts the requests of each caller that are under way.

    Args:
        most: So many of one caller, no more.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts = Counter[str]()

    @contextmanager
    def one(self, caller: str) -> Iterator[None]:
        """Count a request for the time of the context; raises HTTPException 429 where it is one
        too many.
        """
        if self._counts[caller] >= self._most:
            text = f"{self._most} of your requests are under way; try again in 1 s."
            raise HTTPException(429, text, {"Retry-After": "1"})
        self._counts[caller] += 1
        try:
            yield
        finally:
            self._counts[caller] -= 1
            if not self._counts[caller]:
                del self._counts[caller]


class Turns:
    """Gives out turns, one at a time. It is used on one event loop."""

    def __init__(self) -> None:
        self._is_taken = False
        # In the order in which callers get their next turn.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, caller: str) -> AsyncIterator[None]:
        """Wait for a turn, and keep it for the time of the context."""
        if self._is_taken:
            await self._wait(caller)
        self._is_taken = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, caller: str) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():  # the turn came together with the end
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """Give the turn to the next who still wants it; it stays taken on the way there."""
        while self._waiting:
            caller = next(iter(self._waiting))
            waiting = self._waiting.pop(caller)
            following = waiting.popleft()
            if waiting:
                self._waiting[caller] = waiting
            if not following.done():
                following.set_result(None)
                return
        self._is_taken = False
