"""The service under load: latency at 1 and 16 connections, and with its Redis stopped in mid-load.

    python -m benchmarks.serving [--seconds 10] [--workers 2]

Serves the state of CHURN_HOME as `churn serve` does, on a port of its own. Each connection sends
its next request when the answer to the last one is complete, so the load is as high as the service
allows and the latencies are those of saturation. The client is one process on the same machine: it
parses nothing but the head of a response, and still takes a good part of a core from the service;
its share is printed.
"""

import argparse
import asyncio
import contextlib
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvloop

from churn_assets.online.io_manager import open_to_read
from churn_assets.online.server import stop
from churn_assets.online.store import read_version
from churn_assets.settings import Settings
from churn_assets.stores.identity import identify

HOST = "127.0.0.1"


@dataclass
class Load:
    """What a run of requests gave."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    stale: int = 0

    def at(self, share: float) -> float:
        """The latency in ms that this share of requests does not exceed."""
        return 1000 * sorted(self.seconds)[int(share * (len(self.seconds) - 1))]


def content_length(head: bytes) -> int | None:
    """Of the body, as the head of an answer says it."""
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return int(length) if length else None


class Connection(asyncio.Protocol):
    """Sends requests one after the other over one connection, until a time."""

    def __init__(self, requests: Sequence[bytes], until: float, load: Load) -> None:
        self.requests = requests
        self.until = until
        self.load = load
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.answer = b""
        self.began = time.perf_counter()
        self.transport.write(random.choice(self.requests))

    def data_received(self, data: bytes) -> None:
        self.answer += data
        head, _, body = self.answer.partition(b"\r\n\r\n")
        if (length := content_length(head)) is None or len(body) < length:
            return
        now = time.perf_counter()
        self.load.seconds.append(now - self.began)
        self.load.statuses[int(head[9:12])] += 1
        self.load.stale += b'"stale":true' in body
        if now < self.until:
            self.send()
        else:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not error and time.perf_counter() < self.until:
            error = ConnectionError("The service closed a connection.")
        if error:
            self.done.set_exception(error)
        else:
            self.done.set_result(None)


async def run(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> Load:
    """All connections at once."""
    load = Load()
    until = time.perf_counter() + seconds

    async def one() -> None:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(requests, until, load), HOST, port
        )
        await connection.done

    await asyncio.gather(*(one() for _ in range(connections)))
    return load


@contextlib.contextmanager
def service(workers: int, **variables: str) -> Iterator[tuple[int, int]]:
    """The port and the process of a service of CHURN_HOME, ready."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind((HOST, 0))
        port = int(probe.getsockname()[1])
    command = "from churn_assets.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, *f"serve --port {port} --workers {workers}".split()],
        env=os.environ | {"CHURN_RATE_LIMIT": "0"} | variables,
        stdout=subprocess.DEVNULL,
    )
    try:
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://{HOST}:{port}/ready").close()
                break
            time.sleep(0.2)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def report(name: str, connections: int, load: Load, seconds: float, cpu: float) -> None:
    count = len(load.seconds)
    print(
        f"{name:24} {connections:2} connections {count / seconds:7,.0f}/s   "
        f"p50 {load.at(0.5):6.2f}  p95 {load.at(0.95):6.2f}  p99 {load.at(0.99):6.2f} ms   "
        f"{dict(load.statuses)} stale {load.stale}   client {cpu / seconds:.0%} of a core",
        flush=True,
    )


def options(description: str | None) -> argparse.Namespace:
    """What a benchmark of the service was started with."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    return parser.parse_args()


def main() -> None:
    arguments = options(__doc__)
    settings = Settings.read()
    online = open_to_read(settings.home, settings.redis_url, identify(settings))
    ids = read_version(online)["customer_id"].to_pylist()
    chosen = random.Random(7).sample(ids, min(1000, len(ids)))
    head = f"HTTP/1.1\r\nHost: {HOST}\r\n"
    gets = [f"GET /features/{id_} {head}\r\n".encode() for id_ in chosen]
    posts = [f"POST /predict/{id_} {head}Content-Length: 0\r\n\r\n".encode() for id_ in chosen]
    with service(arguments.workers) as (port, _):
        uvloop.run(run(port, gets + posts, 16, 2))  # warm
        for name, requests in (("GET features", gets), ("POST predict", posts)):
            for connections in (1, 16):
                cpu = time.process_time()
                load = uvloop.run(run(port, requests, connections, arguments.seconds))
                used = time.process_time() - cpu
                report(name, connections, load, arguments.seconds, used)
        if settings.redis_url is None:
            cpu = time.process_time()
            load = uvloop.run(_with_outage(port, gets, arguments.seconds, settings))
            used = time.process_time() - cpu
            report("GET, Redis stopped", 16, load, arguments.seconds, used)


async def _with_outage(
    port: int, requests: Sequence[bytes], seconds: float, settings: Settings
) -> Load:
    """The private server is stopped after a third of the time; the service starts it again."""
    running = asyncio.create_task(run(port, requests, 16, seconds))
    await asyncio.sleep(seconds / 3)
    await asyncio.to_thread(stop, settings.home)
    return await running


if __name__ == "__main__":
    main()
