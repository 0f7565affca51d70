"""Backfills without a daemon: the stages in order, one Dagster run per stage and range.

A stage materializes what it lacks, and whatever lies in the range that was asked for. For a range
of cutoffs, every earlier partition that those cutoffs need is made first where it is missing.
"""

import datetime as dt
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import dagster as dg

from churn_assets.cutoffs import Calendar, parse_key
from churn_assets.jobs import STAGES, Stage

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"


class BackfillFailed(Exception):
    """A run of a backfill failed; the message names the asset, its partitions and the error."""


@dataclass(frozen=True)
class Batch:
    """One Dagster run: assets of a stage for contiguous partitions (none: unpartitioned)."""

    stage: Stage
    assets: tuple[dg.AssetKey, ...]
    keys: tuple[str, ...]

    @property
    def label(self) -> str:
        if not self.keys:
            return self.stage.name
        first, last = self.keys[0], self.keys[-1]
        return f"{self.stage.name} {first}" + ("" if first == last else f" … {last}")


@dataclass(frozen=True)
class Range:
    """The cutoffs that a backfill was asked for, both included."""

    first: dt.date
    last: dt.date


def wanted_range(
    calendar: Calendar,
    first: dt.date | None,
    last: dt.date | None,
    newest: int | None,
    now: dt.datetime,
) -> Range | None:
    """The range that options name: bounds, or the newest cutoffs; None where they name none.

    Raises:
        ValueError: A bound is no cutoff of history, or both forms are given.
    """
    if newest is not None and (first or last):
        raise ValueError("Give either --last N or --from and --to, not both.")
    cutoffs = calendar.cutoffs.get_partition_keys(current_time=now)
    if newest is not None and cutoffs:
        return Range(parse_key(cutoffs[-newest:][0]), parse_key(cutoffs[-1]))
    if first is None and last is None:
        return None
    bounds = [day.isoformat() for day in (first, last) if day]
    calendar.require(calendar.cutoffs, bounds, now)
    return Range(first or parse_key(cutoffs[0]), last or parse_key(cutoffs[-1]))


def plan_stage(
    stage: Stage,
    defs: dg.Definitions,
    calendar: Calendar,
    present: Callable[[dg.AssetKey], set[str]],
    now: dt.datetime,
    wanted: Range | None = None,
) -> list[Batch]:
    """The runs that a stage needs.

    Args:
        stage: The stage.
        defs: The code location.
        calendar: Where partitions lie.
        present: The materialized partitions of an asset; `{""}` for one without partitions.
        now: Decides which partitions exist.
        wanted: Partitions to make even where they are present; None for only what is missing.
    """
    graph = defs.resolve_asset_graph()
    selected = stage.selection.resolve(graph)
    partitioned = sorted(key for key in selected if graph.get(key).is_partitioned)
    needed: dict[dg.AssetKey, list[str]] = {}
    for asset in partitioned:
        definition = graph.get(asset).partitions_def
        assert isinstance(definition, dg.TimeWindowPartitionsDefinition)
        existing = definition.get_partition_keys(current_time=now)
        have = present(asset)
        needed[asset] = [
            key for key in existing if _is_needed(calendar, definition, key, key in have, wanted)
        ]
    order = sorted({key for keys in needed.values() for key in keys})
    batches = []
    for keys in calendar.contiguous(order):
        assets = {asset for asset, missing in needed.items() if set(keys) & set(missing)}
        # Outputs that one step writes together are materialized together.
        together = {k for asset in assets for k in graph.get(asset).execution_set_asset_keys}
        batches.append(Batch(stage, tuple(sorted(assets | together)), keys))
    unpartitioned = selected - set(partitioned)
    if unpartitioned and (order or any(not present(asset) for asset in unpartitioned)):
        batches.append(Batch(stage, tuple(sorted(unpartitioned)), ()))
    return batches


def _is_needed(
    calendar: Calendar,
    definition: dg.TimeWindowPartitionsDefinition,
    key: str,
    is_present: bool,
    wanted: Range | None,
) -> bool:
    if wanted is None:
        return not is_present
    day = parse_key(key)
    if definition == calendar.slices:
        # Labels of the range look beyond its last cutoff, and features before its first.
        return not is_present
    if wanted.first <= day <= wanted.last:
        return True
    oldest = calendar.shift(wanted.first, -(2 * calendar.lag + calendar.training_cutoffs - 1))
    return oldest <= day < wanted.first and not is_present


def run_batch(
    batch: Batch,
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    on_step: Callable[[str, str], None],
) -> None:
    """Run one batch in this process and report every step as it starts, succeeds or fails.

    Raises:
        BackfillFailed: The run failed.
    """
    job = defs.resolve_job_def(batch.stage.name)
    tags = {"churn/started_by": "churn backfill"}
    if batch.keys:
        tags |= {RANGE_START: batch.keys[0], RANGE_END: batch.keys[-1]}
    run_id = str(uuid.uuid4())
    done = threading.Event()
    reporter = threading.Thread(target=_report, args=(instance, run_id, done, on_step), daemon=True)
    reporter.start()
    try:
        result = job.execute_in_process(
            instance=instance,
            run_id=run_id,
            tags=tags,
            asset_selection=list(batch.assets),
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
        )
    finally:
        done.set()
        reporter.join()
    if not result.success:
        raise BackfillFailed(_failure(batch, result))


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
    cursor: str | None = None
    last_look = False
    while True:
        connection = instance.get_records_for_run(run_id, cursor, set(names))
        cursor = connection.cursor
        for record in connection.records:
            event = record.event_log_entry.dagster_event
            if event is not None and event.step_key:
                on_step(event.step_key, names[event.event_type])
        if last_look:
            return
        last_look = done.is_set()
        if not last_look:
            time.sleep(0.2)


def _failure(batch: Batch, result: dg.ExecuteInProcessResult) -> str:
    """What failed, for which partitions, and why: the innermost error of each failed step."""
    lines = []
    for event in result.all_events:
        if event.event_type != dg.DagsterEventType.STEP_FAILURE:
            continue
        error = event.step_failure_data.error
        while error is not None and error.cause is not None:
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


def stages(names: Sequence[str] | None) -> list[Stage]:
    """The stages of the given names, in order; all where none is given."""
    return [stage for stage in STAGES if not names or stage.name in names]
