"""Backfills without a daemon: the stages in order, one Dagster run per stage and range.

Without a range, a stage makes everything that it lacks. With one, it makes the range, and first
what the range needs and lacks: every slice, and the training data that its models learn from.
A refresh makes the stale partitions again and no others.
"""

import datetime as dt
import getpass
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import dagster as dg

from churn_assets.cutoffs import Calendar, parse_key
from churn_assets.history.quarantine import QUARANTINED_ROWS
from churn_assets.history.scored_reviews import SCORED_REVIEWS
from churn_assets.history.topic_model import slices_of_topics
from churn_assets.monitoring.inventory import AssetInventory
from churn_assets.operations.instance import storage_error
from churn_assets.operations.jobs import RANGE_END, RANGE_START, STAGES, Stage
from churn_assets.operations.killed_runs import running
from churn_assets.operations.runs import interrupts_kept, run_job
from churn_assets.sources.tables import RAW_TABLES

RAW_ASSETS = {
    dg.AssetKey(table.name) for table in (*(r.table for r in RAW_TABLES), QUARANTINED_ROWS)
}

SCORED = dg.AssetKey(SCORED_REVIEWS)


class BackfillFailed(Exception):
    """A run of a backfill failed; the message names the asset, its partitions and the error."""


@dataclass(frozen=True)
class Batch:
    """One Dagster run: assets of a stage for contiguous partitions (none: unpartitioned)."""

    stage: Stage
    assets: tuple[dg.AssetKey, ...]
    keys: tuple[str, ...]

    @property
    def steps(self) -> int:
        """How many steps the run has: one per asset, raw tables being made by one together."""
        raw = [asset for asset in self.assets if asset in RAW_ASSETS]
        return len(self.assets) - len(raw) + bool(raw)

    @property
    def label(self) -> str:
        if not self.keys:
            return self.stage.name
        first, last = self.keys[0], self.keys[-1]
        return f"{self.stage.name} {first}" + ("" if first == last else f" … {last}")


@dataclass(frozen=True)
class Range:
    """The partitions that a backfill is for.

    Args:
        first: The first cutoff, or slice where only slices are made.
        last: The last one, included.
        again: Whether partitions of the range are made even where they are present.
    """

    first: dt.date
    last: dt.date
    again: bool


def wanted_range(
    partitions: dg.TimeWindowPartitionsDefinition,
    calendar: Calendar,
    first: dt.date | None,
    last: dt.date | None,
    newest: int | None,
    now: dt.datetime,
) -> Range | None:
    """The range that options name: bounds to make again, or the newest keys to complete.

    Args:
        partitions: What the bounds are keys of: cutoffs, or slices where only these are made.
        calendar: Explains a bound that does not exist.
        first: First key to make again.
        last: Last key to make again.
        newest: Complete so many of the newest keys.
        now: Decides which partitions exist.

    Returns:
        None where no option is given: then everything that is missing is made.

    Raises:
        ValueError: A bound is no partition, there are none, or both forms are given.
    """
    if newest is None and first is None and last is None:
        return None
    if newest is not None and (first or last):
        raise ValueError("Give either --last N or --from and --to, not both.")
    keys = calendar.keys(partitions, now)
    if not keys:
        raise ValueError(
            f"There is no cutoff yet: the first is {calendar.first_cutoff}, "
            f"{calendar.lookback_days} days after CHURN_START ({calendar.start}) or later."
        )
    if newest is not None:
        return Range(parse_key(keys[-newest:][0]), parse_key(keys[-1]), again=False)
    calendar.require(partitions, [day.isoformat() for day in (first, last) if day], now)
    first, last = first or parse_key(keys[0]), last or parse_key(keys[-1])
    if first > last:
        raise ValueError(f"--from {first} is after --to {last}.")
    return Range(first, last, again=True)


def plan_stage(
    stage: Stage,
    defs: dg.Definitions,
    calendar: Calendar,
    present: Callable[[dg.AssetKey], set[str]],
    now: dt.datetime,
    wanted: Range | None = None,
    slices_only: bool = False,
    without: Collection[str] = (),
) -> list[Batch]:
    """The runs that a stage needs.

    Args:
        stage: The stage.
        defs: The code location.
        calendar: Where partitions lie.
        present: The materialized partitions of an asset; `{""}` for one without partitions.
        now: Decides which partitions exist.
        wanted: The range; None for everything that is missing.
        slices_only: Whether `wanted` is a range of slices.
        without: Scored cutoffs that no model can be made for, because nobody is there to learn
            from. With them in it, the run of a range would fail for all.
    """
    graph = defs.resolve_asset_graph()
    selected = defs.resolve_job_def(stage.name).asset_layer.selected_asset_keys
    partitioned = sorted(key for key in selected if graph.get(key).is_partitioned)
    needed: dict[dg.AssetKey, list[str]] = {}
    for asset in partitioned:
        definition = graph.get(asset).partitions_def
        assert isinstance(definition, dg.TimeWindowPartitionsDefinition)
        existing = calendar.keys(definition, now)
        if asset == SCORED and not set(slices_of_topics(calendar)) <= set(existing):
            continue  # its topic model is fitted on slices that are still to come
        have = present(asset)
        needed[asset] = [
            key
            for key in existing
            if _is_needed(calendar, definition, key, key in have, wanted, slices_only)
            and not (key in without and _is_scored(calendar, definition))
        ]
    batches = _batches(stage, calendar, needed)
    unpartitioned = selected - set(partitioned)
    missing = any(not present(asset) for asset in unpartitioned)
    if unpartitioned and (batches or missing or stage.on_demand):
        batches.append(Batch(stage, tuple(sorted(unpartitioned)), ()))
    return batches


def plan_refresh(
    stage: Stage, defs: dg.Definitions, calendar: Calendar, rows: Sequence[AssetInventory]
) -> list[Batch]:
    """The runs that make the stale partitions of a stage again, and no others.

    Args:
        stage: The stage.
        defs: The code location.
        calendar: Where partitions lie.
        rows: The inventory after the stages before have run: what they refreshed made more stale.
    """
    graph = defs.resolve_asset_graph()
    selected = defs.resolve_job_def(stage.name).asset_layer.selected_asset_keys
    stale = {row.asset: row.stale for row in rows if row.asset in selected and row.stale}
    whole = tuple(sorted(asset for asset in stale if not graph.get(asset).is_partitioned))
    needed = {asset: keys for asset, keys in stale.items() if asset not in whole}
    return _batches(stage, calendar, needed) + ([Batch(stage, whole, ())] if whole else [])


def _batches(
    stage: Stage, calendar: Calendar, needed: Mapping[dg.AssetKey, Collection[str]]
) -> list[Batch]:
    """Runs of contiguous partitions that need the same assets, in the order of partitions.

    Within a stage an asset depends on the same partition of others, or on an earlier one.
    """
    together = {
        key: frozenset(asset for asset, keys in needed.items() if key in keys)
        for key in sorted({key for keys in needed.values() for key in keys})
    }
    return [
        Batch(stage, tuple(sorted(assets)), keys)
        for assets, same in groupby(together, together.__getitem__)
        for keys in calendar.contiguous(list(same))
    ]


def _is_needed(
    calendar: Calendar,
    definition: dg.TimeWindowPartitionsDefinition,
    key: str,
    is_present: bool,
    wanted: Range | None,
    slices_only: bool,
) -> bool:
    if wanted is None:
        return not is_present
    day = parse_key(key)
    in_range = wanted.first <= day <= wanted.last
    if definition == calendar.slices and not slices_only:
        # Features of the range look back for ever, and its labels ahead.
        return not is_present
    if in_range:
        return wanted.again or not is_present
    if is_present or _is_scored(calendar, definition):
        return False
    # Models of the range learn from these.
    return calendar.first_training_cutoff(wanted.first) <= day < wanted.first


def _is_scored(calendar: Calendar, definition: dg.TimeWindowPartitionsDefinition) -> bool:
    return definition in (calendar.scored_cutoffs, calendar.realised_cutoffs)


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
        last_look = done.is_set()
        if not last_look:
            time.sleep(0.2)
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


def stages(names: Sequence[str]) -> list[Stage]:
    """The stages of the given names, in order; all that need no name where none is given.

    Raises:
        ValueError: There is no stage of a name.
    """
    known = [stage.name for stage in STAGES]
    for name in names:
        if name not in known:
            raise ValueError(f"There is no stage {name!r}. Stages are {', '.join(known)}.")
    return [s for s in STAGES if (s.name in names if names else not s.on_demand)]
