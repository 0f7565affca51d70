"""Prevents: an alert at every tick, one that is lost because the receiver was away, one that never
says that it is over, and one that tells strangers who the customers are.
"""

import datetime as dt
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from churn_assets.definitions import build_definitions
from churn_assets.monitoring.alerts import changes
from churn_assets.operations.installation import offline_store
from churn_assets.operations.jobs import RANGE_END, RANGE_START
from churn_assets.settings import Settings, SettingsError
from churn_assets.stores.digests import file_digest
from churn_assets.stores.verdicts import Verdict, write_verdict
from churn_assets_tests.conftest import make_settings


class Receiver(HTTPServer):
    """A webhook of our own: keeps what it is sent, and answers `status`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.received: list[dict[str, Any]] = []
        self.status = 200


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.status == 200:
            self.server.received.append(json.loads(body))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Shop:
    """A shop with files as its source, and its alert sensor."""

    def __init__(self, folder: Path, **overrides: object) -> None:
        self.settings = make_settings(
            folder, end=dt.datetime(2025, 3, 1, tzinfo=dt.UTC), **overrides
        )
        self.defs = build_definitions(self.settings)
        (folder / "dagster").mkdir()
        self.instance = dg.DagsterInstance.local_temp(str(folder / "dagster"))
        self.cursor: str | None = None

    def ingest(self) -> None:
        raw = self.defs.resolve_asset_graph().asset_keys_for_group("raw")
        self.defs.resolve_job_def("ingest").execute_in_process(
            instance=self.instance,
            asset_selection=[*raw, dg.AssetKey("daily_activity")],
            tags={RANGE_START: "2025-01-01", RANGE_END: "2025-02-01"},
            raise_on_error=False,
        )

    def deliver(self) -> None:
        """The file that the source waits for."""
        folder = Path(self.settings.input_folder)
        folder.mkdir(parents=True, exist_ok=True)
        header = "customer_id,event_timestamp,event_type"
        (folder / "events.csv").write_text(f"{header}\nanna,2025-01-05T10:00:00Z,purchase\n")

    def tick(self) -> str:
        """A tick of the sensor; gives why it launched nothing."""
        with dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            repository_def=self.defs.get_repository_def(),
        ) as context:
            result = self.defs.resolve_sensor_def("alert").evaluate_tick(context)
        self.cursor = result.cursor
        return result.skip_message or ""


def test_one_message_when_it_begins_and_one_when_it_is_over(
    tmp_path: Path, receiver: Receiver
) -> None:
    pytest.importorskip("apprise")
    shop = Shop(tmp_path, alert_url=f"json://127.0.0.1:{receiver.server_port}/alerts")
    shop.tick()
    assert receiver.received == []

    shop.ingest()
    shop.tick()
    [message] = receiver.received
    assert "failed: raw_events: 2 of 2 partitions, the first is 2025-01-01" in message["message"]
    assert "run failed: ingest" in message["message"]
    assert "started by command line" in message["message"]
    assert "daily_activity" not in message["message"], "it was skipped"
    assert "nothing open" not in message["title"]

    assert shop.tick() == "Nothing changed."
    assert len(receiver.received) == 1

    shop.deliver()
    shop.ingest()
    # The receiver is away: the tick fails, and the next one tries again.
    receiver.status = 500
    with pytest.raises(ConnectionError, match="could not be delivered"):
        shop.tick()
    receiver.status = 200
    shop.tick()
    assert "over: failed: raw_events" in receiver.received[-1]["message"]
    assert "nothing open" in receiver.received[-1]["title"]
    assert shop.tick() == "Nothing changed."
    assert len(receiver.received) == 2


def test_a_dry_run_logs_what_it_would_send_and_never_what_a_check_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Shop(tmp_path)
    shop.deliver()
    shop.ingest()
    assert shop.tick() == "Nothing changed."
    store = offline_store(shop.settings)
    table = store.tables["raw_events"]
    content = file_digest(store.path(table, "2025-01-01"))
    verdict = Verdict(content, ("values",), {"values": "customer anna has -1 orders"}, {})
    write_verdict(store.home, table.name, "2025-01-01", verdict)
    capsys.readouterr()
    assert shop.tick() == "churn-assets: 1 new, 0 over, 1 open"
    logged = capsys.readouterr().err
    assert "Not sent, because CHURN_ALERT_URL is not set" in logged
    assert "held back: raw_events: 1 of 2 partitions, the first is 2025-01-01" in logged
    assert "anna" not in logged
    assert shop.tick() == "Nothing changed."


def test_a_problem_stays_the_same_while_it_grows() -> None:
    one = {"failed: raw_events": "1 of 5 partitions"}
    two = {"failed: raw_events": "2 of 5 partitions"}
    assert changes({}, one, []) is not None
    assert changes(one, two, []) is None
    over = changes(two, {}, [])
    assert over is not None
    assert over.body == "over: failed: raw_events"


@pytest.mark.parametrize("url", ["nonsense://secret-token", "secret-token"])
def test_an_address_that_nobody_takes_stops_the_start(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("apprise")
    monkeypatch.setenv("CHURN_ALERT_URL", url)
    with pytest.raises(SettingsError, match="CHURN_ALERT_URL") as caught:
        Settings.read()
    assert "secret-token" not in str(caught.value)
