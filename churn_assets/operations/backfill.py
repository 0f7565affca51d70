"""Runs of a backfill, in this process and without a daemon: one Dagster run per batch.

Which batches there are is decided in `operations.plans`.
"""

import getpass
import logging
import os
import threading
import uuid
from collections.abc import Callable
from typing import Any

import dagster as dg

from churn_assets.operations.instance import storage_error
from churn_assets.operations.jobs import RANGE_END, RANGE_START
from churn_assets.operations.killed_runs import running
from churn_assets.operations.plans import Batch
from churn_assets.operations.runs import interrupts_kept, run_job

# So that a step is told of while it runs. The end of a run is waited for by itself.
SECONDS_BETWEEN_LOOKS = 0.2


class BackfillFailed(Exception):
    """A run of a backfill failed; the message names the asset, its partitions and the error."""


def run_batch(
    batch: Batch,
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    on_step: Callable[[str, str], None],
) -> None:
    """Run one batch in this process and report what happens.

    Args:
        batch: The run.
        defs: The code location.
        instance: Keeps its events.
        on_step: Is told of every step that starts, succeeds or fails (`started`, `done`, `failed`),
            and of every warning of an asset or a check (`warned`), with its text for the step.

    Raises:
        BackfillFailed: The run failed.
        KeyboardInterrupt: The process was interrupted; the run is over in Dagster's records too.
    """
    job = defs.resolve_job_def(batch.stage.name)
    tags = {"churn/started_by": f"churn backfill by {_user()}"}
    if batch.keys:
        tags |= {RANGE_START: batch.keys[0], RANGE_END: batch.keys[-1]}
    run_id = str(uuid.uuid4())
    done = threading.Event()
    reporter = threading.Thread(target=_report, args=(instance, run_id, done, on_step), daemon=True)
    reporter.start()
    try:
        with interrupts_kept(), running(instance, run_id):
            result = run_job(job, instance, run_id, tags, batch.assets)
    finally:
        done.set()
        reporter.join()
    if not result.success:
        raise BackfillFailed(_failure(batch, result))


def _user() -> str:
    """Who runs this process; a container may have no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _report(
    instance: dg.DagsterInstance,
    run_id: str,
    done: threading.Event,
    on_step: Callable[[str, str], None],
) -> None:
    """Follow a run's events until it is over."""
    names = {
        dg.DagsterEventType.STEP_START: "started",
        dg.DagsterEventType.STEP_SUCCESS: "done",
        dg.DagsterEventType.STEP_FAILURE: "failed",
    }
    checks: dict[str, list[dg.AssetCheckEvaluation]] = {}
    cursor: str | None = None
    last_look = False
    while True:
        try:
            connection = instance.get_records_for_run(run_id, cursor)
        except Exception as error:
            if storage_error(error):  # the run meets it too, and says so
                return
            raise
        cursor = connection.cursor
        for record in connection.records:
            entry = record.event_log_entry
            event = entry.dagster_event
            if event is None:
                if entry.level == logging.WARNING:
                    on_step(entry.user_message, "warned")
            elif event.step_key and event.event_type in names:
                on_step(event.step_key, names[event.event_type])
            elif event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
                check = event.asset_check_evaluation_data
                if not check.passed and check.severity == dg.AssetCheckSeverity.WARN:
                    checks.setdefault(check.asset_key.to_user_string(), []).append(check)
        if last_look:
            break
        last_look = done.wait(SECONDS_BETWEEN_LOOKS)
    for asset, found in checks.items():
        partition = f" {found[0].partition}" if found[0].partition else ""
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        on_step(f"{asset}{partition}{more}: {found[0].description}", "warned")


def _failure(batch: Batch, result: Any) -> str:
    """What failed, for which partitions, and why: the error below Dagster's own."""
    lines = []
    for event in result.all_events:
        if event.event_type != dg.DagsterEventType.STEP_FAILURE:
            continue
        error = event.step_failure_data.error
        while error is not None and error.cause and _is_of_dagster(error):
            error = error.cause
        message = error.message.strip() if error else "unknown error"
        partitions = f" [{batch.keys[0]} … {batch.keys[-1]}]" if batch.keys else ""
        lines.append(f"{event.step_key}{partitions}: {message}")
    if not lines:
        lines = [
            event.message or str(event.event_type)
            for event in result.all_events
            if event.event_type == dg.DagsterEventType.RUN_FAILURE
        ]
    return f"{batch.label} failed.\n" + "\n".join(lines)


def _is_of_dagster(error: Any) -> bool:
    """Whether an error only says that a step failed, or failed too often."""
    name = str(error.cls_name)
    return name.startswith(("Dagster", "Retry")) or error.message.startswith("Exceeded max_retries")
