"""The refresh log: every attempt to materialize a partition, read from Dagster's own event log.

Grain: one row per asset, partition and run. Columns: asset, partition, run_id, status, started,
seconds, rows, started_by. There is no second bookkeeping: the log is as complete as Dagster's.
"""

from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    import pyarrow as pa

# Tags in which Dagster and its front ends say who or what started a run.
STARTED_BY = (
    "churn/started_by",
    "dagster/schedule_name",
    "dagster/sensor_name",
    "dagster/backfill",
)
PAGE = 1_000


def refresh_log(instance: dg.DagsterInstance) -> "pa.Table":
    """The log of an instance, newest run first."""
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
    rows = []
    for record in instance.get_run_records():
        run = record.dagster_run
        planned, done = _events(instance, run.run_id)
        started_by = next((run.tags[tag] for tag in STARTED_BY if tag in run.tags), "user")
        started = record.start_time or record.create_timestamp.timestamp()
        for asset, partition in sorted(
            {*planned, *done}, key=lambda target: (target[0].path, target[1] or "")
        ):
            metadata = done.get((asset, partition))
            row_count = metadata and metadata.get("dagster/row_count")
            own_seconds = metadata and metadata.get("seconds")
            rows.append(
                {
                    "asset": asset.path[-1],
                    "partition": partition,
                    "run_id": run.run_id,
                    "status": "SUCCESS" if metadata is not None else _unfinished(run.status),
                    "started": int(started * 1e6),
                    # A range takes one step, so the run's duration says little of a partition.
                    "seconds": own_seconds.value if own_seconds else None,
                    "rows": row_count.value if row_count else None,
                    "started_by": started_by,
                }
            )
    return pa.Table.from_pylist(rows, schema=schema)


def _unfinished(status: dg.DagsterRunStatus) -> str:
    """The status of a planned partition that was not materialized."""
    over = status in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE)
    return "FAILURE" if over else status.value


def _events(instance: dg.DagsterInstance, run_id: str):  # type: ignore[no-untyped-def]
    """The partitions that a run planned, and the metadata of those that it materialized."""
    planned: set[tuple[dg.AssetKey, str | None]] = set()
    done: dict[tuple[dg.AssetKey, str | None], dict[str, dg.MetadataValue]] = {}
    types = {
        dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
        dg.DagsterEventType.ASSET_MATERIALIZATION,
    }
    cursor, more = None, True
    while more:
        page = instance.get_records_for_run(run_id, cursor, types, limit=PAGE)
        cursor, more = page.cursor, page.has_more
        for record in page.records:
            event = record.event_log_entry.dagster_event
            if event is None or event.asset_key is None:
                continue
            if event.event_type == dg.DagsterEventType.ASSET_MATERIALIZATION:
                materialization = event.step_materialization_data.materialization
                done[event.asset_key, event.partition] = dict(materialization.metadata)
            else:
                data = event.asset_materialization_planned_data
                subset = data.partitions_subset
                keys = subset.get_partition_keys() if subset else [data.partition]
                planned |= {(event.asset_key, key) for key in keys}
    return planned, done
