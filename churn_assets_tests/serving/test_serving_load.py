"""Prevents: a caller, or somebody who is none, who keeps everybody else from an answer."""

import asyncio
import contextlib
import http.client
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi import HTTPException
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from churn_assets.features import feature_columns
from churn_assets.serving import access, bodies, protocol
from churn_assets.serving.access import Caller, RateLimit, new_key
from churn_assets.serving.schemas import MAX_BODY_BYTES, MAX_CUSTOMERS
from churn_assets.serving.turns import AtOnce, Turns
from churn_assets_tests.conftest import GROUPS
from churn_assets_tests.served_shop import Client, Shop, eventually, running

KEY, ENTRY = new_key("ann", ["features", "predict"])
JSON = "Content-Type: application/json"


@pytest.fixture(scope="module")
def client(shop: Shop) -> Iterator[Client]:
    with running(shop.settings, api_keys=SecretStr(ENTRY), rate_limit=0) as client:
        client.token = KEY
        yield client


@contextlib.contextmanager
def connected(client: Client, *lines: str) -> Iterator[socket.socket]:
    """A connection that has sent these lines of a head."""
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as connection:
        connection.sendall("".join(f"{line}\r\n" for line in lines).encode())
        yield connection


def status(connection: socket.socket) -> int:
    """Of the answer; 0 where the connection ended without one."""
    try:
        line = connection.makefile("rb").readline()
    except ConnectionResetError:
        return 0
    return int(line.split()[1]) if line else 0


# --------------------------------------------------------------------------- bodies


@pytest.mark.parametrize("path", ["/predict", "/features:batch"])
def test_who_may_not_is_told_before_the_body_comes(client: Client, path: str):
    for key, expected in (("wrong", 401), (KEY, 0)):
        head = (f"POST {path} HTTP/1.1", "Host: localhost", JSON, "Content-Length: 3000000")
        with connected(client, *head, f"Authorization: Bearer {key}", "") as connection:
            if expected:
                assert status(connection) == expected
            else:
                connection.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    connection.recv(1)


def test_a_body_that_breaks_off_is_no_failure_of_the_service(
    client: Client, caplog: pytest.LogCaptureFixture
):
    head = ("POST /predict HTTP/1.1", "Host: localhost", JSON, "Content-Length: 3000")
    with caplog.at_level("INFO", "churn_assets.serving"):
        with connected(client, *head, f"Authorization: Bearer {KEY}", "", "{") as connection:
            connection.settimeout(0.1)
            with pytest.raises(TimeoutError):
                connection.recv(1)
        eventually(lambda: "request" in [record.message for record in caplog.records])
    assert {record.levelname for record in caplog.records} == {"INFO"}


FIELDS = ", ".join(f'"field{number}": 1' for number in range(200_000))
LARGE = {
    "unknown fields of a row": f'{{"rows": [{{{FIELDS}}}]}}',
    "unknown fields": f'{{"rows": [{{}}], {FIELDS}}}',
    "wrong rows": json.dumps({"rows": [{"monetary": "x"}] * MAX_CUSTOMERS}),
    "wrong ids": json.dumps({"customer_ids": [1] * MAX_CUSTOMERS}),
    "a list": f"[{'{},' * 100_000}{{}}]",
    "numbers": f'{{"rows": [{",".join("1" * 100_000)}]}}',
}


@pytest.mark.parametrize("body", LARGE.values(), ids=LARGE.keys())
def test_no_more_is_found_wrong_than_is_told(
    client: Client, body: str, monkeypatch: pytest.MonkeyPatch
):
    """Issue: 300,000 errors took 1.8 s and an answer of 44 MB."""
    monkeypatch.setattr(bodies, "MOST_ERRORS", None)
    assert len(body) < MAX_BODY_BYTES
    status, answer = client.post("/predict", body.encode())
    assert status == 422
    assert 0 < len(answer["detail"]) <= 2
    assert len(json.dumps(answer)) < 1_000


def test_the_first_errors_of_a_row_are_told(client: Client):
    row: dict[str, Any] = {column.name: [] for column in feature_columns(GROUPS)}
    status, answer = client.post("/predict", {"rows": [row]})
    assert (status, len(answer["detail"])) == (422, bodies.MOST_ERRORS)


def test_a_body_is_paid_for_whatever_it_holds(shop: Shop):
    with running(shop.settings, api_keys=SecretStr(ENTRY), rate_limit=1) as client:
        body = b'{"rows": [' + b" " * (MAX_BODY_BYTES // 2 - 100)
        assert client.post("/predict", body, token=KEY)[0] == 400
        assert client.post("/predict", body, token=KEY)[0] == 400
        assert client.post("/predict", body, token=KEY)[0] == 429
        # What came with no right to it costs nobody anything.
        assert client.post("/predict", body, token="wrong")[0] == 401


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded"])
def test_only_json_is_read(client: Client, kind: str):
    """A page of another site may send the other kinds without being asked about it."""
    connection = http.client.HTTPConnection("127.0.0.1", client.port)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": kind}
    connection.request("POST", "/predict", b'{"customer_ids": ["c1"]}', headers)
    assert connection.getresponse().status == 422
    connection.close()


# --------------------------------------------------------------------------- turns


@given(
    requests=st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=30),
    seed=st.integers(0, 1000),
)
def test_turns_go_round_one_at_a_time(requests: list[tuple[str, bool]], seed: int):
    """Whoever gives up while they wait keeps nobody from their turn."""
    draw = random.Random(seed)
    turns, served, holding = Turns(), list[str](), 0

    async def ask(caller: str) -> None:
        nonlocal holding
        async with turns.turn(caller):
            holding += 1
            assert holding == 1
            try:
                for _ in range(draw.randrange(3)):
                    await asyncio.sleep(0)
                served.append(caller)
            finally:
                holding -= 1

    async def all_of_them() -> None:
        tasks = [asyncio.create_task(ask(caller)) for caller, _ in requests]
        for _ in range(draw.randrange(5)):
            await asyncio.sleep(0)
        for task, (_, gives_up) in zip(tasks, requests, strict=True):
            if gives_up:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(1):
            await ask("last")

    asyncio.run(all_of_them())
    stayed = Counter(caller for caller, gives_up in requests if not gives_up)
    assert Counter(served) >= stayed


def test_a_caller_with_many_requests_keeps_no_other_waiting():
    async def order() -> list[str]:
        turns, served = Turns(), list[str]()

        async def ask(caller: str) -> None:
            async with turns.turn(caller):
                await asyncio.sleep(0)
                served.append(caller)

        await asyncio.gather(*(ask(caller) for caller in "aaaaaab"))
        return served

    assert asyncio.run(order()).index("b") <= 2


def test_requests_at_once_are_counted_by_caller():
    at_once = AtOnce(2)
    with at_once.one("ann"), at_once.one("ann"), at_once.one("bob"):
        with pytest.raises(HTTPException) as refused, at_once.one("ann"):
            pass
        assert refused.value.status_code == 429
    with at_once.one("ann"):
        pass


def test_rates_of_callers_who_are_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(access, "MOST_BUCKETS", 10)
    now = 0.0
    limit = RateLimit(100, clock=lambda: now)
    for number in range(1_000):
        now += 1
        limit.charge(Caller(f"caller {number}", frozenset()), 500)
    assert len(limit._buckets) <= 12
    # Who spent all of it just now is remembered.
    greedy = Caller("greedy", frozenset())
    limit.charge(greedy, MAX_CUSTOMERS)
    for number in range(20):
        limit.charge(Caller(f"other {number}", frozenset()), 1)
    with pytest.raises(HTTPException):
        limit.charge(greedy, 1)


# --------------------------------------------------------------------------- connections


@pytest.mark.parametrize(
    "head",
    [
        ["GET /" + "x" * 20_000 + " HTTP/1.1", "Host: localhost"],
        ["GET /health HTTP/1.1", "Host: localhost", "X: " + "x" * 20_000],
        ["GET /health HTTP/1.1", "Host: localhost", *[f"X-{n}: {n}" for n in range(4_000)]],
        ["GET /health HTTP/1.1", "Host: localhost", "Cookie: " + "x" * 3_000_000],
    ],
    ids=["path", "header", "headers", "3 MB"],
)
@pytest.mark.parametrize("ends", [True, False])
def test_a_large_head_is_refused(client: Client, head: list[str], ends: bool):
    with (
        contextlib.suppress(ConnectionResetError, BrokenPipeError),
        connected(client, *head, *[""] * ends) as connection,
    ):
        # What is still being sent may be answered by the end of the connection alone.
        assert status(connection) in ((431, 0) if len(head[-1]) > 1_000_000 else (431,))
    assert client.get("/health")[0] == 200


def test_heads_of_usual_size_are_read_in_any_pieces(client: Client):
    line = "GET /health HTTP/1.1"
    with connected(client, line, "Host: localhost", "X: " + "x" * 12_000) as connection:
        for _ in range(3):
            time.sleep(0.02)
            connection.sendall(b"Y: y\r\n")
        connection.sendall(b"\r\n")
        assert status(connection) == 200
    # Several requests in one piece, bodies and all.
    body = json.dumps({"customer_ids": ["nobody"] * 900})
    post = f"POST /features:batch HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    post += f"{JSON}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as connection:
        connection.sendall(post.encode() * 3 + b"GET /health HTTP/1.0\r\n\r\n")
        answers = connection.makefile("rb").read()
    assert answers.count(b"HTTP/1.1 200") == 4


@pytest.mark.parametrize(
    ("limit", "head"),
    [
        ("HEAD_SECONDS", []),
        ("HEAD_SECONDS", ["GET /health HTTP/1.1", "Host: localhost"]),
        (
            "BODY_SECONDS",
            [
                *("POST /predict HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}"),
                *(JSON, "Content-Length: 9", ""),
            ],
        ),
    ],
    ids=["nothing", "half a head", "no body"],
)
def test_who_sends_no_more_is_let_go(
    client: Client, monkeypatch: pytest.MonkeyPatch, limit: str, head: list[str]
):
    monkeypatch.setattr(protocol, limit, 0.1)
    with connected(client, *head) as connection:
        assert status(connection) == 0


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int] | None]:
    """The addresses of clients whose connections the service has ended."""
    found: list[tuple[str, int] | None] = []
    connection_lost = protocol.Limited.connection_lost

    def note(self: protocol.Limited, error: Exception | None) -> None:
        found.append(self.client)
        connection_lost(self, error)

    monkeypatch.setattr(protocol.Limited, "connection_lost", note)
    return found


@contextlib.contextmanager
def reading_nothing(client: Client) -> Iterator[tuple[socket.socket, bytes]]:
    """A connection with little room for answers, and a request for a large one."""
    body = json.dumps({"customer_ids": [f"c{n}" for n in range(200)] * 5})
    post = f"POST /features:batch HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    post += f"{JSON}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.connect(("127.0.0.1", client.port))
        yield connection, post.encode()


def test_who_reads_no_answer_is_let_go(
    client: Client, monkeypatch: pytest.MonkeyPatch, lost: list[tuple[str, int]]
):
    monkeypatch.setattr(protocol, "UNREAD_SECONDS", 0.1)
    with reading_nothing(client) as (connection, post):
        connection.sendall(post * 8)
        eventually(lambda: connection.getsockname() in lost)


def test_who_asks_again_instead_of_reading_is_let_go(
    client: Client, monkeypatch: pytest.MonkeyPatch, lost: list[tuple[str, int]]
):
    """The next request must not count as a sign of life."""
    monkeypatch.setattr(protocol, "UNREAD_SECONDS", 1)
    with reading_nothing(client) as (connection, post):
        with contextlib.suppress(OSError):
            for _ in range(8):
                connection.sendall(post)
                time.sleep(0.2)  # the one before is being answered
        eventually(lambda: connection.getsockname() in lost)


def test_idle_connections_make_room(
    client: Client, monkeypatch: pytest.MonkeyPatch, lost: list[tuple[str, int]]
):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 1_000)
    monkeypatch.setattr(protocol, "MOST_CONNECTIONS", 20)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connected(client, "GET /health HTTP/1.1")) for _ in range(100)]
        for _ in range(5):
            assert client.get("/health")[0] == 200
        addresses = [connection.getsockname() for connection in idle]
        eventually(lambda: lost[:80] == addresses[:80])


def test_refreshes_of_one_caller_wait_for_no_other(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    """Issue: one lock for all callers, so one of them could keep the others from it."""
    (bob, bobs), (ann, anns) = (new_key(name, ["refresh"]) for name in ("bob", "ann"))
    going_on, may_end = threading.Event(), threading.Event()

    def recompute(*_: Any) -> None:
        going_on.set()
        may_end.wait(60)

    monkeypatch.setattr("churn_assets.serving.routes.recompute", recompute)
    entries = SecretStr(f"{anns},{bobs}")
    with running(shop.settings, api_keys=entries) as client, ThreadPoolExecutor(2) as threads:
        refresh = Client(client.port, client.service).post
        first = threads.submit(refresh, "/refresh/c0", token=ann)
        assert going_on.wait(60)
        second = threads.submit(refresh, "/refresh/c0", token=bob)
        assert client.post("/refresh/c0", token=ann)[0] == 429
        may_end.set()
        assert first.result()[0] == second.result()[0] == 200
