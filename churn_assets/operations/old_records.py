"""Dagster's records of long ago: what goes, and what stays because it is still true.

Of an old run go its record, events, logs and its entry in `refresh_log`. Where no later run has
made a partition, the event that says it was made stays, without pictures: by it Dagster knows what
is there. Of the checks the latest of each stays, and of each partition where it failed. A run that
has failed stays while some partition shows as failed because of it.

A tick stays where it is the latest of its schedule or sensor.
"""

import datetime as dt
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.storage.dagster_run import FINISHED_STATUSES

from churn_assets.operations.disk_space import size
from churn_assets.operations.forgetting import sql_storage

RUNS_AT_ONCE = 100
PICTURES_AT_ONCE = 100
PICTURE = "data:image/"


def old_runs(
    instance: dg.DagsterInstance, before: dt.datetime, superseded_before: dt.datetime
) -> list[str]:
    """The runs that go, oldest first; none whose failure still shows.

    Args:
        instance: Dagster's records.
        before: Runs that ended earlier go.
        superseded_before: Those that ended earlier and succeeded go as well, where all that they
            made was made again since. The inventory is taken every hour.
    """
    import sqlalchemy as db
    from dagster._core.storage.event_log.schema import AssetKeyTable, SqlEventLogStorageTable

    events: Any = SqlEventLogStorageTable.c

    def runs_of(kind: dg.DagsterEventType) -> Any:
        return db.select(events.run_id).where(events.id.in_(_newest_events(kind)))

    with sql_storage(instance).index_connection() as connection:
        made, tried, last = (
            {row[0] for row in connection.execute(query)}
            for query in (
                runs_of(dg.DagsterEventType.ASSET_MATERIALIZATION),
                runs_of(dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED),
                db.select(AssetKeyTable.c.last_run_id),
            )
        )

    def ended(before: dt.datetime) -> list[dg.DagsterRun]:
        filters = dg.RunsFilter(statuses=FINISHED_STATUSES, updated_before=before)
        return [record.dagster_run for record in instance.get_run_records(filters, ascending=True)]

    shown = tried | last
    old = {run.run_id for run in ended(before) if not (run.is_failure and run.run_id in shown)}
    superseded = {
        run.run_id
        for run in ended(superseded_before)
        if run.is_success and run.run_id not in made | shown
    }
    return [
        run.run_id
        for run in ended(max(before, superseded_before))
        if run.run_id in old | superseded
    ]


def files_of_run(instance: dg.DagsterInstance, run_id: str) -> list[Path]:
    """What Dagster keeps of a run beside its databases: its logs, and in SQLite its events."""
    from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage

    folder = Path(instance.storage_directory()) / run_id
    storage = instance.event_log_storage
    if not isinstance(storage, SqliteEventLogStorage):
        return [folder]
    shard = Path(storage.path_for_shard(run_id))
    return [folder, shard, *shard.parent.glob(f"{shard.name}-*")]


def bytes_of_runs(instance: dg.DagsterInstance, runs: Sequence[str]) -> int:
    """Bytes of the files of runs."""
    return sum(size(path) for run_id in runs for path in files_of_run(instance, run_id))


def delete_runs(instance: dg.DagsterInstance, runs: Sequence[str], before: dt.datetime) -> None:
    """Delete runs; a call that was killed can be repeated, because a run's record goes last.

    Args:
        instance: Dagster's records.
        runs: The runs.
        before: What earlier runs, deleted long ago, said of partitions that were made again since
            goes too where it is older.
    """
    for start in range(0, len(runs), RUNS_AT_ONCE):
        some = runs[start : start + RUNS_AT_ONCE]
        _drop_pictures(instance, some)
        _forget_events(instance, some, before)
        for run_id in some:
            with suppress(FileNotFoundError):
                instance.compute_log_manager.delete_logs(prefix=[run_id])
            for path in files_of_run(instance, run_id):
                if path.is_file():
                    path.unlink()
            instance.run_storage.delete_run(run_id)


def _newest_events(kind: dg.DagsterEventType) -> Any:
    """The ids of the newest events of a kind, one for each partition of each asset."""
    import sqlalchemy as db
    from dagster._core.storage.event_log.schema import SqlEventLogStorageTable

    events: Any = SqlEventLogStorageTable.c
    newest = (
        db.select(db.func.max(events.id).label("id"))
        .where(events.dagster_event_type == kind.value)
        .group_by(events.asset_key, events.partition)
        .subquery()
    )
    return db.select(newest.c.id)


def _forget_events(instance: dg.DagsterInstance, runs: Sequence[str], before: dt.datetime) -> None:
    """Delete what the index of all runs has of some, but for what stays; see `delete_runs`."""
    import sqlalchemy as db
    from dagster._core.storage.event_log.schema import (
        AssetCheckExecutionsTable,
        AssetEventTagsTable,
        SqlEventLogStorageTable,
    )

    events, checks = SqlEventLogStorageTable.c, AssetCheckExecutionsTable.c
    made: Any = _newest_events(dg.DagsterEventType.ASSET_MATERIALIZATION)
    kind = dg.DagsterEventType.ASSET_MATERIALIZATION.value
    is_old = db.and_(events.dagster_event_type == kind, events.timestamp < before)
    gone: Any = db.and_(db.or_(events.run_id.in_(runs), is_old), events.id.not_in(made))
    ids = db.select(db.select(events.id).where(gone).subquery().c.id)

    def newest_checks(*by: Any) -> Any:
        ended = checks.execution_status.in_(("SUCCEEDED", "FAILED"))
        newest = db.select(db.func.max(checks.id).label("id")).where(ended).group_by(*by)
        return db.select(newest.subquery().c.id)

    latest = newest_checks(checks.asset_key, checks.check_name)
    of_partition = newest_checks(checks.asset_key, checks.check_name, checks.partition)
    told = db.or_(
        checks.id.in_(latest),
        db.and_(checks.execution_status == "FAILED", checks.id.in_(of_partition)),
    )
    stays = db.select(db.select(checks.id).where(told).subquery().c.id)
    with sql_storage(instance).index_transaction() as connection:
        connection.execute(
            AssetEventTagsTable.delete().where(AssetEventTagsTable.c.event_id.in_(ids))
        )
        connection.execute(SqlEventLogStorageTable.delete().where(gone))
        connection.execute(
            AssetCheckExecutionsTable.delete().where(
                checks.run_id.in_(runs), checks.id.not_in(stays)
            )
        )


def _drop_pictures(instance: dg.DagsterInstance, runs: Sequence[str]) -> None:
    """Take the pictures out of what runs tell of the partitions that they made."""
    import sqlalchemy as db
    from dagster._core.storage.event_log.schema import SqlEventLogStorageTable

    table, storage, last = SqlEventLogStorageTable, sql_storage(instance), 0
    kind = dg.DagsterEventType.ASSET_MATERIALIZATION.value
    pictured = (
        db.select(table.c.id, table.c.event)
        .where(table.c.run_id.in_(runs), table.c.dagster_event_type == kind)
        .where(table.c.event.contains(PICTURE))
        .order_by(table.c.id)
        .limit(PICTURES_AT_ONCE)
    )
    while True:
        with storage.index_transaction() as connection:
            found = connection.execute(pictured.where(table.c.id > last)).fetchall()
            for last, event in found:
                told = without_pictures(event)
                connection.execute(table.update().where(table.c.id == last).values(event=told))
        if not found:
            return


def without_pictures(event: str) -> str:
    """A materialization, as Dagster stores it, without the metadata that holds pictures."""
    content = json.loads(event)
    made = content["dagster_event"]["event_specific_data"]["materialization"]
    entries = made["metadata_entries"]
    made["metadata_entries"] = [entry for entry in entries if PICTURE not in json.dumps(entry)]
    return json.dumps(content)


@dataclass(frozen=True)
class Ticks:
    """Ticks of schedules and sensors: how many, and what of them is stored."""

    count: int
    bytes: int


def old_ticks(instance: dg.DagsterInstance, before: dt.datetime) -> Ticks:
    """The ticks from before an instant that are not the latest of their schedule or sensor."""
    import sqlalchemy as db
    from dagster._core.storage.schedules.schema import JobTickTable

    sizes = db.func.sum(db.func.length(JobTickTable.c.tick_body))
    with _schedule_connection(instance) as connection:
        query = db.select(db.func.count(), sizes).where(_is_old(before))
        count, total = connection.execute(query).one()
    return Ticks(count, total or 0)


def delete_ticks(instance: dg.DagsterInstance, before: dt.datetime) -> None:
    """Delete the `old_ticks`."""
    from dagster._core.storage.schedules.schema import JobTickTable

    with _schedule_connection(instance) as connection:
        connection.execute(JobTickTable.delete().where(_is_old(before)))


def _is_old(before: dt.datetime) -> Any:
    import sqlalchemy as db
    from dagster._core.storage.schedules.schema import JobTickTable

    ticks: Any = JobTickTable.c
    latest = db.select(db.func.max(ticks.id).label("id")).group_by(
        ticks.job_origin_id, ticks.selector_id
    )
    is_latest = ticks.id.in_(db.select(latest.subquery().c.id))
    return db.and_(ticks.timestamp < before, db.not_(is_latest))


@contextmanager
def _schedule_connection(instance: dg.DagsterInstance) -> Iterator[Any]:
    from dagster._core.storage.schedules.sql_schedule_storage import SqlScheduleStorage

    storage = instance.schedule_storage
    if not isinstance(storage, SqlScheduleStorage):
        raise TypeError("Dagster's schedules are not in a database of their own.")
    with storage.connect() as connection:
        yield connection
