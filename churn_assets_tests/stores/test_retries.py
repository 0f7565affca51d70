"""Prevents: a run that is lost because a server was away for a moment, and a wrong value that is
tried again and again.
"""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from churn_assets.online.server import server_binary
from churn_assets.stores import retries
from churn_assets.stores.retries import MOST_RETRIES, connections_are_retried
from churn_assets_tests.test_journey import free_port


class Server:
    """A Redis that is away until it is started."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [server_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self.process = subprocess.Popen(
            [*command, "--dir", str(self.folder)], stdout=subprocess.DEVNULL
        )

    def ping(self) -> None:
        redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0)).ping()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(retries, "SECONDS_BETWEEN", 1.0)
    server = Server(tmp_path)
    yield server
    if server.process is not None:
        server.process.terminate()
        server.process.wait()


def run(talk: Callable[[], None]) -> tuple[bool, int]:
    """Whether a run whose step talks to a server succeeds, and how often the step is tried."""
    tries = 0

    @dg.asset
    def step() -> None:
        nonlocal tries
        tries += 1
        with connections_are_retried():
            talk()

    return dg.materialize([step], raise_on_error=False).success, tries


def test_a_server_that_comes_back_between_two_tries_saves_the_run(server: Server) -> None:
    def talk() -> None:
        try:
            server.ping()
        finally:
            if server.process is None:
                server.start()

    success, tries = run(talk)
    assert success
    assert tries >= 2


def test_a_server_that_stays_away_fails_the_run(server: Server) -> None:
    success, tries = run(server.ping)
    assert not success
    assert tries == 1 + MOST_RETRIES


def test_what_is_refused_is_not_tried_again() -> None:
    def talk() -> None:
        raise ValueError("a wrong value")

    success, tries = run(talk)
    assert not success
    assert tries == 1
