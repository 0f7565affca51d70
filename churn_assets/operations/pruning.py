"""Pruning: partitions outside history, and runs of Dagster that tell nothing that is still true.

A run is superseded when everything that it made, failed to make or checked was made or checked
again by a later one. As long as one partition's latest attempt is its own, it stays: Dagster knows
by it what is there. What goes with a run are its events, its log and its entry in `refresh_log`.

Models, MLflow's runs and the audit log are not pruned.
"""

import datetime as dt
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.storage.dagster_run import FINISHED_STATUSES

from churn_assets.operations.forgetting import foreign_partitions, forget, sql_storage
from churn_assets.stores.offline import OfflineStore

# A run whose outcome was looked for and is as old as this is not looked for any more.
KEPT_DAYS = 30


@dataclass(frozen=True)
class Prunable:
    """What can be removed without anything that is true being lost.

    Args:
        foreign: The partitions that do not exist, by asset.
        runs: The superseded runs, oldest first.
    """

    foreign: Mapping[str, set[str]]
    runs: list[str]


def prunable(
    store: OfflineStore,
    instance: dg.DagsterInstance,
    now: dt.datetime,
    kept_days: int = KEPT_DAYS,
) -> Prunable:
    """What `prune` removes.

    Args:
        store: Where files are, and the catalog.
        instance: Dagster's records.
        now: Decides which partitions exist, and how old a run is.
        kept_days: Runs that ended later than so many days before `now` stay.
    """
    before = dg.RunsFilter(
        statuses=FINISHED_STATUSES, updated_before=now - dt.timedelta(days=kept_days)
    )
    needed = runs_to_keep(instance)
    runs = [
        record.dagster_run.run_id for record in instance.get_run_records(before, ascending=True)
    ]
    return Prunable(
        foreign_partitions(store, instance, now),
        [run_id for run_id in runs if run_id not in needed],
    )


def prune(store: OfflineStore, instance: dg.DagsterInstance, found: Prunable) -> None:
    """Remove what can be removed. A call that was killed can be repeated."""
    forget(store, instance, found.foreign)
    for run_id in found.runs:
        delete_run(instance, run_id)


def runs_to_keep(instance: dg.DagsterInstance) -> set[str]:
    """The runs that made, tried or checked some partition last."""
    import sqlalchemy as db
    from dagster._core.storage.event_log.schema import (
        AssetCheckExecutionsTable,
        AssetKeyTable,
        SqlEventLogStorageTable,
    )

    events, checks = SqlEventLogStorageTable.c, AssetCheckExecutionsTable.c
    # An attempt counts as well as what came of it: a partition that failed last shows as failed.
    kinds = (
        dg.DagsterEventType.ASSET_MATERIALIZATION.value,
        dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED.value,
    )
    newest: list[Any] = [
        db.select(db.func.max(events.id))
        .where(events.dagster_event_type == kind)
        .group_by(events.asset_key, events.partition)
        for kind in kinds
    ]
    newest_checks = db.select(db.func.max(checks.id)).group_by(
        checks.asset_key, checks.check_name, checks.partition
    )
    queries = [
        *(db.select(events.run_id).where(events.id.in_(ids)) for ids in newest),
        db.select(checks.run_id).where(checks.id.in_(newest_checks)),
        db.select(AssetKeyTable.c.last_run_id),
    ]
    with sql_storage(instance).index_connection() as connection:
        return {row[0] for query in queries for row in connection.execute(query) if row[0]}


def delete_run(instance: dg.DagsterInstance, run_id: str) -> None:
    """Delete a run with its events and logs; Dagster leaves an empty database file of it behind."""
    from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage

    with suppress(FileNotFoundError):
        instance.compute_log_manager.delete_logs(prefix=[run_id])
    instance.delete_run(run_id)
    storage = instance.event_log_storage
    if isinstance(storage, SqliteEventLogStorage):
        shard = Path(storage.path_for_shard(run_id))
        for path in (shard, *shard.parent.glob(f"{shard.name}-*")):
            path.unlink(missing_ok=True)
