"""Single reads of one caller while somebody else floods the service, or a part of it fails.

    python -m benchmarks.serving_faults [--seconds 10] [--workers 2]

Serves the state of CHURN_HOME. The reader sends one request after the other over one connection and
connects anew where that ends; each latency runs from the first attempt to the answer. Who floods is
a process of its own on the same machine, with another key and without a limit on its rate, so it
also takes the reader's cores. The memory is the largest of a worker, after the fault.
"""

import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.serving import HOST, Load, content_length, options, service
from churn_assets.online.io_manager import open_to_read
from churn_assets.online.store import read_version
from churn_assets.serving.access import new_key
from churn_assets.settings import Settings
from churn_assets.stores.identity import identify

READER, READER_ENTRY = new_key("reader", ["features", "predict"])
OTHER, OTHER_ENTRY = new_key("other", ["features", "predict"])


def post(path: str, body: bytes, key: str) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


# --------------------------------------------------------------------------- who floods


def flood(port: int, content: bytes, connections: int) -> None:
    """Send the same again and again over many connections, until killed."""

    async def one() -> None:
        while True:
            with contextlib.suppress(Exception):
                reader, writer = await asyncio.open_connection(HOST, port)
                with contextlib.closing(writer):
                    writer.write(content)
                    head = await reader.readuntil(b"\r\n\r\n")
                    await reader.readexactly(content_length(head) or 0)

    async def all_of_them() -> None:
        await asyncio.gather(*(one() for _ in range(connections)))

    asyncio.run(all_of_them())


def hold_half_sent(port: int, connections: int) -> None:
    """Keep so many connections open whose heads never end, until killed."""
    opened: list[socket.socket] = []
    while True:
        for connection in opened:
            with contextlib.suppress(OSError):
                connection.sendall(b"x")
        while len(opened) < connections:
            with contextlib.suppress(OSError):
                opened.append(socket.create_connection((HOST, port)))
                opened[-1].sendall(b"GET /features/c1 HTTP/1.1\r\nHost: localhost\r\nX: ")
        time.sleep(1)
        opened = [connection for connection in opened if _is_open(connection)]


def _is_open(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


# --------------------------------------------------------------------------- who reads


def read(port: int, ids: list[str], seconds: float) -> Load:
    """One read after the other, 200 a second at most."""
    reads, until, connection = Load(), time.perf_counter() + seconds, None
    number = 0
    while (began := time.perf_counter()) < until:
        id_ = ids[(number := number + 1) % len(ids)]
        request = f"GET /features/{id_} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {READER}"
        while True:
            try:
                connection = connection or socket.create_connection((HOST, port), timeout=30)
                connection.sendall(f"{request}\r\n\r\n".encode())
                answer = b""
                while not _is_whole(answer):
                    piece = connection.recv(65_536)
                    if not piece:
                        raise ConnectionResetError
                    answer += piece
                break
            except OSError:
                if connection:
                    connection.close()
                connection = None
                if time.perf_counter() > until:
                    break
        now = time.perf_counter()
        reads.seconds.append(now - began)
        reads.statuses[int(answer[9:12] or 0)] += 1
        time.sleep(max(0, 0.005 - (now - began)))
    return reads


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    return bool(end) and len(body) >= (content_length(head) or 0)


# --------------------------------------------------------------------------- the service


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def workers_of(process: int) -> list[int]:
    """The processes that serve: those of its children that are none of multiprocessing's own."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    found = [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    return found or [process]


def megabytes(process: int) -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def redis_server(home: Path) -> int:
    return int((home / "online_store" / "server.pid").read_text())


def main() -> None:
    arguments = options(__doc__)
    settings = Settings.read()
    online = open_to_read(settings.home, settings.redis_url, identify(settings))
    ids = read_version(online)["customer_id"].to_pylist()[:1000]
    batch = post("/features:batch", json.dumps({"customer_ids": ids}).encode(), OTHER)
    row = {"monetary": 1.5, "recency_days": 3, "total_events": 17}
    raw = post("/predict", json.dumps({"rows": [row] * 1000}).encode(), OTHER)
    fields = ", ".join(f'"field{number}": {number}' for number in range(180_000))
    wrong = post("/predict", f'{{"rows": [{{{fields}}}]}}'.encode(), OTHER)
    uninvited = post("/predict", f'{{"rows": [{{{fields}}}]}}'.encode(), "nobody")
    head = b"GET /features/c1 HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 2_000_000

    floods: dict[str, tuple[Any, ...]] = {
        "64 batches of 1,000 ids": (flood, batch, 64),
        "64 batches of raw rows": (flood, raw, 64),
        "8 wrong bodies of 4 MB": (flood, wrong, 8),
        "8 bodies without a key": (flood, uninvited, 8),
        "16 heads of 2 MB": (flood, head, 16),
        "500 half-sent requests": (hold_half_sent, 500),
    }
    entries = f"{READER_ENTRY},{OTHER_ENTRY}"
    with service(arguments.workers, CHURN_API_KEYS=entries) as (port, process):
        read(port, ids, 2)

        def measure(name: str) -> None:
            reads = read(port, ids, arguments.seconds)
            memory = max(map(megabytes, workers_of(process)))
            print(
                f"{name:26} {len(reads.seconds):6,} reads   p50 {reads.at(0.5):6.2f}  "
                f"p99 {reads.at(0.99):6.2f}  max {reads.at(1):8.2f} ms   {dict(reads.statuses)}   "
                f"{memory:4.0f} MB   ready: {is_ready(port)}",
                flush=True,
            )

        measure("nothing")
        for name, (work, *given) in floods.items():
            attack = multiprocessing.get_context("spawn").Process(
                target=work, args=(port, *given), daemon=True
            )
            attack.start()
            time.sleep(2)
            measure(name)
            attack.kill()
            attack.join()
        measure("nothing, after them")
        if arguments.workers > 1:
            os.kill(workers_of(process)[0], signal.SIGKILL)
            measure("a worker killed")
        if settings.redis_url is None:
            server = redis_server(settings.home)
            os.kill(server, signal.SIGSTOP)
            measure("Redis paused")
            os.kill(server, signal.SIGCONT)
            time.sleep(3)
            os.kill(server, signal.SIGKILL)
            measure("Redis killed")


if __name__ == "__main__":
    main()
