"""Prevents: an audit log that hides failures, blames an asset for what failed before it, takes a
check for an asset, or cannot say who started a run.
"""

import getpass
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from churn_assets.monitoring.refresh_log import refresh_log
from churn_assets.operations.backfill import run_batch
from churn_assets.operations.jobs import RANGE_END, RANGE_START, Stage
from churn_assets.operations.plans import Batch

DAYS = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-10")
KEYS = ["2026-01-02", "2026-01-03", "2026-01-04"]
SINGLE_RUN = dg.BackfillPolicy.single_run()
FAILING, SLOW = "test/failing", "test/slow"


@dg.asset(partitions_def=DAYS, backfill_policy=SINGLE_RUN)
def orders(context: dg.AssetExecutionContext) -> None:
    if FAILING in context.run.tags:
        raise ValueError("no orders")
    if SLOW in context.run.tags:
        time.sleep(600)
    for key in context.partition_keys:
        context.add_asset_metadata({"dagster/row_count": 7, "seconds": 0.5}, partition_key=key)


@dg.asset(deps=[orders], partitions_def=DAYS, backfill_policy=SINGLE_RUN)
def features() -> None: ...


@dg.asset(partitions_def=DAYS, backfill_policy=SINGLE_RUN)
def reviews() -> None: ...


@dg.asset(output_required=False, partitions_def=DAYS, backfill_policy=SINGLE_RUN)
def scores() -> Iterator[dg.Output[None]]:
    """Waits for something, as scored reviews do for their topic model."""
    yield from ()


@dg.asset_check(asset=orders, blocking=True)
def orders_are_many() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=False)


def graph(*, checked: bool = False) -> dg.Definitions:
    return dg.Definitions(
        assets=[orders, features, reviews, scores],
        asset_checks=[orders_are_many] if checked else [],
        jobs=[dg.define_asset_job("all_of_it", dg.AssetSelection.all())],
        executor=dg.in_process_executor,
    )


def execute(
    instance: dg.DagsterInstance, tags: dict[str, str] | None = None, *, checked: bool = False
) -> dg.ExecuteInProcessResult:
    return (
        graph(checked=checked)
        .resolve_job_def("all_of_it")
        .execute_in_process(
            instance=instance,
            tags={RANGE_START: KEYS[0], RANGE_END: KEYS[-1], **(tags or {})},
            raise_on_error=False,
        )
    )


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


def statuses(instance: dg.DagsterInstance) -> dict[str, dict[str, str]]:
    log: dict[str, dict[str, str]] = {}
    for row in refresh_log(instance).to_pylist():
        log.setdefault(row["asset"], {})[row["partition"]] = row["status"]
    return log


def of_range(status: str) -> dict[str, str]:
    return dict.fromkeys(KEYS, status)


def test_a_failed_step_of_a_range_fails_alone(instance: dg.DagsterInstance) -> None:
    execute(instance, {FAILING: "yes"})
    assert statuses(instance) == {
        "orders": of_range("FAILURE"),
        "features": of_range("SKIPPED"),
        "reviews": of_range("SUCCESS"),
        "scores": of_range("SKIPPED"),
    }


def test_what_was_made_has_its_rows(instance: dg.DagsterInstance) -> None:
    execute(instance)
    log = refresh_log(instance).to_pylist()
    assert {(r["rows"], r["seconds"]) for r in log if r["asset"] == "orders"} == {(7, 0.5)}
    assert {r["asset"]: r["status"] for r in log}["scores"] == "SKIPPED"


def test_a_check_is_no_asset(instance: dg.DagsterInstance) -> None:
    execute(instance, checked=True)
    assert statuses(instance) == {
        "orders": of_range("SUCCESS"),
        "features": of_range("SKIPPED"),
        "reviews": of_range("SUCCESS"),
        "scores": of_range("SKIPPED"),
    }


def run_elsewhere(instance: dg.DagsterInstance, folder: Path) -> subprocess.Popen[bytes]:
    """A run in a process of its own, from when its first step has begun."""
    code = (
        "import dagster as dg\n"
        "from churn_assets_tests.monitoring.test_refresh_log import SLOW, execute\n"
        f"execute(dg.DagsterInstance.local_temp({str(folder)!r}), {{SLOW: 'yes'}})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    for _ in range(600):
        records = instance.get_run_records()
        if records and instance.all_logs(
            records[0].dagster_run.run_id, of_type=dg.DagsterEventType.STEP_START
        ):
            return process
        time.sleep(0.1)
    process.kill()
    raise TimeoutError("The run did not begin.")


def test_a_killed_run_is_running_until_it_is_given_up(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    process = run_elsewhere(instance, tmp_path)
    process.kill()
    process.wait()
    log = statuses(instance)
    assert log.keys() == {"orders", "features", "reviews", "scores"}
    assert all(status == of_range("STARTED") for status in log.values())

    # What run monitoring does.
    [record] = instance.get_run_records()
    instance.report_run_failed(record.dagster_run)
    assert all(status == of_range("FAILURE") for status in statuses(instance).values())


def test_a_cancelled_run_did_not_fail(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    process = run_elsewhere(instance, tmp_path)
    [record] = instance.get_run_records()
    instance.report_run_canceling(record.dagster_run)
    process.send_signal(signal.SIGTERM)
    process.wait()
    log = statuses(instance)
    assert log.keys() == {"orders", "features", "reviews", "scores"}
    assert all(status == of_range("CANCELED") for status in log.values())


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, "command line"),
        ({"user": "anna@example.com"}, "user anna@example.com"),
        ({"dagster/schedule_name": "nightly"}, "schedule nightly"),
        ({"dagster/sensor_name": "due"}, "sensor due"),
        ({"dagster/backfill": "abcdefgh", "user": "anna"}, "backfill abcdefgh, user anna"),
    ],
)
def test_the_log_says_who_started_a_run(
    instance: dg.DagsterInstance, tags: dict[str, str], expected: str
) -> None:
    execute(instance, tags)
    assert {row["started_by"] for row in refresh_log(instance).to_pylist()} == {expected}


def test_a_backfill_names_the_user(instance: dg.DagsterInstance) -> None:
    batch = Batch(Stage("all_of_it", (), ""), (orders.key,), tuple(KEYS))
    run_batch(batch, graph(), instance, lambda step, what: None)
    [started_by] = {row["started_by"] for row in refresh_log(instance).to_pylist()}
    assert started_by == f"churn backfill by {getpass.getuser()}"
