"""What a connection may cost: the size of a request's head, the time it takes, and room for others.

uvicorn by itself buffers a head of any size, waits for ever for one that was begun, for a body that
stops coming and for a client that does not read, and keeps every connection. Here each of these has
an end. Where there are too many connections, the one that has been idle longest makes room for a
new one, so idle connections keep nobody out.

Bodies are limited in `app` and `bodies`. A proxy in front may have smaller limits, never larger.
"""

import asyncio
import resource
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Request line and headers. Tokens and the headers that proxies add take 2 to 4 KB.
HEAD_BYTES = 16_384

HEAD_SECONDS = 10.0

# From the head's end to the body's: 4 MB at half a megabit per second.
BODY_SECONDS = 60.0

# That a client may leave an answer unread.
UNREAD_SECONDS = 30.0

# Of a worker process. Each needs a descriptor, of which the process keeps some for itself.
MOST_CONNECTIONS = 1_000

OWN_DESCRIPTORS = 100

TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n"
END = b"content-length: 0\r\nconnection: close\r\n\r\n"


def most_connections() -> int:
    """How many connections a process may have open."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(MOST_CONNECTIONS, descriptors - OWN_DESCRIPTORS))


class Limited(HttpToolsProtocol):
    """uvicorn's protocol, one object per connection, with the limits above."""

    # Those without a request under way, the one that has been so longest first.
    idle: ClassVar[dict["Limited", None]] = {}

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._sent_by: asyncio.TimerHandle | None = None
        self._read_by: asyncio.TimerHandle | None = None
        self._is_in_head = self._is_between = True
        self._received = 0  # since the present head began, or the piece after
        self._is_too_large = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.idle[self] = None
        self._within(HEAD_SECONDS)
        if len(self.connections) > most_connections():
            longest = next(iter(self.idle))
            if longest is self:
                self._refuse(TOO_MANY)
            else:
                longest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.idle.pop(self, None)
        for deadline in filter(None, (self._sent_by, self._read_by)):
            deadline.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._received = len(data) if self._is_between else self._received + len(data)
        super().data_received(data)
        is_too_long = self._is_in_head and self._received > HEAD_BYTES
        if (is_too_long or self._is_too_large) and not self.transport.is_closing():
            self._refuse(TOO_LARGE)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self._is_between:  # what is before it in the same piece is not known
            self._received = 0
        self._is_in_head, self._is_between, self._is_too_large = True, False, False
        self._within(HEAD_SECONDS)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        self._is_too_large = size > HEAD_BYTES
        if not self._is_too_large:
            self.idle.pop(self, None)
            self._within(BODY_SECONDS)
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._is_too_large:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_between = True
        self._within(None)
        if not self._is_too_large:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and self.cycle.response_complete:
            self.idle[self] = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read_by = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._read_by:
            self._read_by.cancel()

    def _within(self, seconds: float | None) -> None:
        """End the connection unless something else of a request is expected until then."""
        if self._sent_by:
            self._sent_by.cancel()
        self._sent_by = self.loop.call_later(seconds, self.transport.abort) if seconds else None

    def _refuse(self, status: bytes) -> None:
        self.transport.write(status + END)
        self.transport.close()
