"""The refresh log: every attempt to materialize a partition, read from Dagster's own event log.

Grain: one row per asset, partition and run. Columns: asset, partition, run_id, status, started,
seconds, rows, started_by. There is no second bookkeeping: the log is as complete as Dagster's.

Status is SUCCESS where the partition was made, FAILURE where its step failed, SKIPPED where the
step was not run because one before it failed, or had nothing to make, and CANCELED where somebody
ended the run before. While a run lasts it is that of the run. A process that was killed reports no
end, so its run stays STARTED until Dagster's run monitoring gives it up (`max_runtime_seconds` in
dagster.yaml); then it is FAILURE.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    import pyarrow as pa

# Tags in which Dagster and its front ends say who or what started a run, and how it is shown.
STARTED_BY = {
    "churn/started_by": "{}",
    "dagster/schedule_name": "schedule {}",
    "dagster/sensor_name": "sensor {}",
    "dagster/backfill": "backfill {}",
    "user": "user {}",
}
OVER = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE)
Target = tuple[dg.AssetKey, str | None]
"""An asset and one of its partitions; None where it has none."""
PAGE = 1_000


def empty_log() -> "pa.Table":
    """The log of an instance without runs, which costs nothing to read."""
    import pyarrow as pa

    schema = pa.schema(
        [
            ("asset", pa.string()),
            ("partition", pa.string()),
            ("run_id", pa.string()),
            ("status", pa.string()),
            ("started", pa.timestamp("us", tz="UTC")),
            ("seconds", pa.float64()),
            ("rows", pa.int64()),
            ("started_by", pa.string()),
        ]
    )
    return schema.empty_table()


def refresh_log(instance: dg.DagsterInstance) -> "pa.Table":
    """The log of an instance, newest run first. It reads the events of every run."""
    import pyarrow as pa

    rows = []
    for record in instance.get_run_records():
        run = record.dagster_run
        started = record.start_time or record.create_timestamp.timestamp()
        attempted = attempts(instance, run)
        for asset, partition in sorted(attempted, key=lambda t: (t[0].path, t[1] or "")):
            status, metadata = attempted[asset, partition]
            row_count = metadata.get("dagster/row_count")
            own_seconds = metadata.get("seconds")
            rows.append(
                {
                    "asset": asset.path[-1],
                    "partition": partition,
                    "run_id": run.run_id,
                    "status": status,
                    "started": int(started * 1e6),
                    # A range takes one step, so the run's duration says little of a partition.
                    "seconds": own_seconds.value if own_seconds else None,
                    "rows": row_count.value if row_count else None,
                    "started_by": started_by(run),
                }
            )
    return pa.Table.from_pylist(rows, schema=empty_log().schema)


def started_by(run: dg.DagsterRun) -> str:
    """Who or what started a run, as far as Dagster knows: the open-source UI has no users."""
    said = [text.format(run.tags[tag]) for tag, text in STARTED_BY.items() if tag in run.tags]
    return ", ".join(said) or ("web UI" if run.remote_job_origin else "command line")


def attempts(
    instance: dg.DagsterInstance, run: dg.DagsterRun
) -> dict[Target, tuple[str, Mapping[str, dg.MetadataValue]]]:
    """The status of everything that a run was to make, and the metadata of what it made."""
    planned: dict[Target, str] = {}
    made: dict[Target, Mapping[str, dg.MetadataValue]] = {}
    started: set[str] = set()
    succeeded: set[str] = set()
    failed: dict[str, bool] = {}  # and whether it was interrupted
    for event in _events(instance, run.run_id):
        step = event.step_key or ""
        if event.event_type == dg.DagsterEventType.STEP_START:
            started.add(step)
        elif event.event_type == dg.DagsterEventType.STEP_SUCCESS:
            succeeded.add(step)
        elif event.event_type == dg.DagsterEventType.STEP_FAILURE:
            source = event.step_failure_data.error_source
            failed[step] = source is not None and source.name == "INTERRUPT"
        elif event.asset_key is None:
            continue
        elif event.event_type == dg.DagsterEventType.ASSET_MATERIALIZATION:
            materialization = event.step_materialization_data.materialization
            made[event.asset_key, event.partition] = materialization.metadata
        else:
            data = event.asset_materialization_planned_data
            subset = data.partitions_subset
            keys = subset.get_partition_keys() if subset else [data.partition]
            planned |= {(event.asset_key, key): step for key in keys}

    def unmade(step: str) -> str:
        if step in failed:
            return "CANCELED" if failed[step] and run.status not in OVER else "FAILURE"
        if step in succeeded:
            return "SKIPPED"
        if run.status not in OVER:
            return run.status.value
        # With no failed step, the run failed as a whole: it did not begin, or was given up.
        whole = run.status == dg.DagsterRunStatus.FAILURE and (step in started or not failed)
        return "FAILURE" if whole else "SKIPPED"

    return {target: (unmade(step), {}) for target, step in planned.items()} | {
        target: ("SUCCESS", metadata) for target, metadata in made.items()
    }


def _events(instance: dg.DagsterInstance, run_id: str) -> Iterator[dg.DagsterEvent]:
    """The events of a run that say what it was to make and made, and how its steps went."""
    types = {
        dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
        dg.DagsterEventType.ASSET_MATERIALIZATION,
        dg.DagsterEventType.STEP_START,
        dg.DagsterEventType.STEP_SUCCESS,
        dg.DagsterEventType.STEP_FAILURE,
    }
    cursor, more = None, True
    while more:
        page = instance.get_records_for_run(run_id, cursor, types, limit=PAGE)
        cursor, more = page.cursor, page.has_more
        for record in page.records:
            if event := record.event_log_entry.dagster_event:
                yield event
