"""`churn serve` as a user runs it. Prevents: workers that each show metrics of their own, logs that
no machine can read, and a service that anybody can reach because nobody thought of keys.
"""

import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from churn_assets.serving.access import new_key
from churn_assets.stores.online_server import stop
from churn_assets_tests.serving import eventually

CHURN = "from churn_assets.cli import main; main()"


def test_workers_share_metrics_log_json_and_end_gracefully(tmp_path: Path):
    key, entry = new_key("operator", ["metrics"])
    variables = {"CHURN_HOME": str(tmp_path), "CHURN_API_KEYS": entry, "PATH": os.environ["PATH"]}
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", CHURN, "serve", "--port", "0", "--workers", "2"],
            env=variables,
            stdout=out,
        )

        def lines() -> list[dict[str, Any]]:
            out.seek(0)
            return [json.loads(line) for line in out.read().splitlines()]

        def ask(path: str) -> bytes:
            headers = {"Authorization": f"Bearer {key}"}
            with urllib.request.urlopen(urllib.request.Request(url + path, headers=headers)) as got:
                content: bytes = got.read()
            return content

        try:
            eventually(lambda: sum(line["message"] == "serving" for line in lines()) == 2)
            (started,) = (line["message"] for line in lines() if "running on" in line["message"])
            url = started.split()[3]
            for _ in range(20):
                ask("/health")
            answered = 'churn_request_seconds_count{route="/health",status="200"} 20.0'
            assert answered in ask("/metrics").decode()
            with pytest.raises(urllib.error.HTTPError, match="503"):
                ask("/ready")
        finally:
            process.terminate()
            code = process.wait()
            stop(tmp_path)
        assert code == 0
        assert sum(line["message"] == "request" for line in lines()) == 22
        assert key not in str(lines())


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
