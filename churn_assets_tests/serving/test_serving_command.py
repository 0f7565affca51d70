"""`churn serve` as a user runs it. Prevents: workers that each show metrics of their own, logs that
no machine can read, and a service that anybody can reach because nobody thought of keys.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from churn_assets.online.server import stop
from churn_assets.serving.access import new_key
from churn_assets_tests.served_shop import eventually

CHURN = "from churn_assets.cli import main; main()"


@dataclass
class Command:
    """A `churn serve` with two workers, ready to answer."""

    process: subprocess.Popen[bytes]
    out: Path

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged so far, without a line that is being written."""
        complete, _, _ = self.out.read_text().rpartition("\n")
        return [json.loads(line) for line in complete.splitlines()]

    @property
    def port(self) -> int:
        (started,) = (line["message"] for line in self.lines() if "running on" in line["message"])
        return int(started.split()[3].rpartition(":")[2])

    def count(self, message: str) -> int:
        return sum(line["message"] == message for line in self.lines())


@contextmanager
def serve(home: Path, **variables: str) -> Iterator[Command]:
    # Read through a file of its own: to seek in the one that is written would move the writers.
    with tempfile.NamedTemporaryFile("a") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", CHURN, "serve", "--port", "0", "--workers", "2"],
            env={"CHURN_HOME": str(home), "PATH": os.environ["PATH"]} | variables,
            stdout=out,
        )
        command = Command(process, Path(out.name))
        try:
            eventually(lambda: command.count("Application startup complete.") == 2)
            yield command
        finally:
            process.terminate()
            process.wait()
            stop(home)


def test_workers_share_metrics_log_json_and_end_gracefully(tmp_path: Path):
    key, entry = new_key("operator", ["metrics"])
    with serve(tmp_path, CHURN_API_KEYS=entry) as command:
        asked: list[str] = []

        def ask(path: str) -> bytes:
            asked.append(path)
            url = f"http://127.0.0.1:{command.port}{path}"
            headers = {"Authorization": f"Bearer {key}"}
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as got:
                content: bytes = got.read()
            return content

        for _ in range(20):
            ask("/health")
        answered = 'churn_request_seconds_count{route="/health",status="200"} 20.0'
        # The other worker counts a request after it has answered.
        eventually(lambda: answered in ask("/metrics").decode())
        with pytest.raises(urllib.error.HTTPError, match="503"):
            ask("/ready")
        command.process.terminate()
        assert command.process.wait() == 0
        assert command.count("request") == len(asked)
        assert key not in str(command.lines())


def test_a_request_that_began_before_the_end_is_answered(tmp_path: Path):
    body = b'{"customer_ids": []}'
    head = (
        "POST /predict HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with serve(tmp_path) as command, socket.create_connection(("127.0.0.1", command.port)) as held:
        held.sendall(head.encode())
        assert held.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"  # a worker waits for the body
        held.sendall(body[:5])
        command.process.terminate()
        eventually(
            lambda: command.count("Waiting for connections to close. (CTRL+C to force quit)")
        )
        held.sendall(body[5:])
        assert held.recv(1000).startswith(b"HTTP/1.1 422 ")
        assert command.process.wait() == 0


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "everybody who reaches 0.0.0.0"),
        ({"CHURN_API_KEYS": "ann:hunter2:features"}, "entry 1 is no name:sha256:scope"),
        ({"CHURN_JWT_KEY": "hunter2"}, "CHURN_JWT_KEY is too short"),
    ],
)
def test_the_command_refuses_to_expose(tmp_path: Path, variables: dict[str, str], message: str):
    run = subprocess.run(
        [sys.executable, "-c", CHURN, "serve", "--host", "0.0.0.0", "--port", "0"],
        env={"CHURN_HOME": str(tmp_path), "PATH": os.environ["PATH"]} | variables,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert message in run.stderr
    assert "hunter2" not in run.stderr + run.stdout
