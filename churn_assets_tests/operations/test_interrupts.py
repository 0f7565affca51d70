"""Prevents: an interrupt that is a traceback, that Dagster takes for a run that goes on, or that is
forgotten; and a storage of Dagster's that is away and says so with a traceback.
"""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import dagster as dg
import pytest
from dagster._utils.interrupts import capture_interrupts
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError

from churn_assets.operations.instance import dagster_instance, storage_error
from churn_assets.operations.killed_runs import running
from churn_assets.operations.runs import interrupts_kept
from churn_assets_tests.conftest import make_settings
from churn_assets_tests.faults import SHOP
from churn_assets_tests.served_shop import eventually

CHURN = [sys.executable, "-c", "from churn_assets.cli import main; main()"]


@pytest.fixture
def command(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A backfill as a terminal runs it: with all that it starts in one process group."""
    settings = {f"CHURN_{name.upper()}": str(value) for name, value in SHOP.items()}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("CHURN_", "DAGSTER"))}
    process = subprocess.Popen(
        [*CHURN, "backfill", "--stage=ingest"],
        env=environment | settings | {"CHURN_HOME": str(tmp_path / "state"), "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    process.kill()
    process.communicate()


def press_ctrl_c(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert said.strip() == "Interrupted."
    assert process.returncode == 130


def test_an_interrupt_while_it_starts_is_one_line(command: subprocess.Popen[str]) -> None:
    loaded = Path(f"/proc/{command.pid}/maps")
    eventually(lambda: "pydantic_core" in loaded.read_text())  # `main` is running, and imports
    press_ctrl_c(command)


def test_an_interrupt_during_a_run_ends_it(command: subprocess.Popen[str], tmp_path: Path) -> None:
    runs = tmp_path / "state" / "dagster" / "history" / "runs.db"
    history = runs.parent / "runs"

    def step_has_begun() -> bool:
        query = "SELECT count(*) FROM event_logs WHERE dagster_event_type = 'STEP_START'"
        for path in history.glob("*-*.db"):
            with closing(sqlite3.connect(path)) as events, suppress(sqlite3.OperationalError):
                return bool(events.execute(query).fetchone()[0])
        return False

    eventually(step_has_begun)
    time.sleep(0.5)  # in the step, where processes copy its output
    press_ctrl_c(command)
    with closing(sqlite3.connect(runs)) as database:
        [(status,)] = database.execute("SELECT status FROM runs").fetchall()
    assert status in ("FAILURE", "CANCELED")
    assert [p.name for p in (tmp_path / "state/dagster/backfills").iterdir()] == ["lock"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_dagster_forgets_is_kept(number: signal.Signals) -> None:
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        with interrupts_kept(), capture_interrupts():
            pass
        with pytest.raises(KeyboardInterrupt), interrupts_kept(), capture_interrupts():
            os.kill(os.getpid(), number)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def test_a_run_that_never_began_is_over_when_its_backfill_is(tmp_path: Path) -> None:
    @dg.job
    def nothing() -> None: ...

    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        run = instance.create_run_for_job(nothing)
        with pytest.raises(KeyboardInterrupt), running(instance, run.run_id):
            raise KeyboardInterrupt
        ended = instance.get_run_by_id(run.run_id)
        assert ended is not None and ended.status == dg.DagsterRunStatus.FAILURE


@pytest.mark.parametrize("damage", [b"no database", None], ids=["damaged", "away"])
def test_a_storage_that_cannot_be_used_is_one_message(
    tmp_path: Path, damage: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    settings = make_settings(tmp_path)
    with dagster_instance(settings) as instance:
        instance.get_runs()
    monkeypatch.setenv("DAGSTER_HOME", "")
    runs = settings.dagster_home / "history" / "runs.db"
    runs.unlink()
    if damage:
        runs.write_bytes(damage * 1_000)
    else:
        runs.mkdir()
    refused = pytest.raises(OSError, match=r"Dagster's storage, as .*dagster.yaml names it, cannot")
    with refused, dagster_instance(settings) as instance:
        instance.get_runs()


def test_the_message_of_a_storage_quotes_no_statement(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'database'}")
    with engine.connect() as connection, pytest.raises(DBAPIError) as failed:
        connection.exec_driver_sql("SELECT password FROM missing")
    try:
        raise RuntimeError("too many retries") from failed.value
    except RuntimeError as error:
        assert storage_error(error) == "no such table: missing."
    assert storage_error(RuntimeError("another")) == ""


def test_an_interrupt_while_garbage_is_collected_is_not_lost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Python cannot raise there: it showed a traceback and went on."""

    class Garbage:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    went_on = False
    with pytest.raises(KeyboardInterrupt), interrupts_kept():
        garbage = Garbage()
        del garbage
        time.sleep(5)
        went_on = True
    assert not went_on
    assert capsys.readouterr().err == ""
