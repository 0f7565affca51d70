"""Forgetting partitions: files, models, verdicts, and Dagster's record that they were made.

Only partitions that do not exist are forgotten: those outside history, and those of a time that is
still to come, which a clock that was ahead has made. A slice that was read before it began would
count as read once it is over, so these are forgotten as soon as somebody looks.
"""

import datetime as dt
import logging
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from churn_assets.stores.artefacts import ArtefactStore
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.verdicts import verdict_path

log = logging.getLogger(__name__)


def foreign_partitions(
    store: OfflineStore, instance: dg.DagsterInstance, now: dt.datetime
) -> dict[str, set[str]]:
    """The partitions that are there, on disk or in Dagster's record, and do not exist at `now`."""
    found = {}
    for name, spec in store.declared.specs.items():
        there = {*instance.get_materialized_partitions(spec.key), *store.on_disk(name)}
        if other := there - set(store.declared.existing(name, now)):
            found[name] = other
    return found


def files_of(store: OfflineStore, partitions: Mapping[str, Collection[str]]) -> list[Path]:
    """The folders and files of partitions, by asset, whether they are there or not."""
    found = []
    for name, keys in partitions.items():
        table = store.tables.get(name)
        for key in sorted(keys):
            if table is not None:
                found.append(store.path(table, key).parent)
                found.append(verdict_path(store.home, name, key))
            found.append(ArtefactStore(store.home).folder(name, key))
    return found


def forget(
    store: OfflineStore, instance: dg.DagsterInstance, partitions: Mapping[str, Collection[str]]
) -> None:
    """Remove partitions, by asset: what is on disk first, so that a killed call can be repeated."""
    for name, keys in partitions.items():
        for path in files_of(store, {name: keys}):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        _forget_records(instance, dg.AssetKey(name), sorted(keys))


def forget_what_is_to_come(
    store: OfflineStore, instance: dg.DagsterInstance, now: dt.datetime
) -> dict[str, set[str]]:
    """Forget everything that was made while a clock was ahead, and give it, by asset.

    That a clock was ahead shows in slices that are not over yet. What else does not exist may do so
    because a setting changed, and stays.
    """
    catalog = store.declared
    if catalog.calendar.end is not None:
        return {}
    found = {
        name: later
        for name, keys in foreign_partitions(store, instance, now).items()
        if (later := {key for key in keys if catalog.belongs(name, key)})
    }
    if not any(map(catalog.is_raw, found)):
        return {}
    log.warning(
        "%s partitions were made for a time that is still to come, by a clock that was ahead: they "
        "are removed. The first is %s of %s.",
        sum(map(len, found.values())),
        *min((min(keys), name) for name, keys in found.items()),
    )
    forget(store, instance, found)
    return found


def _forget_records(instance: dg.DagsterInstance, asset: dg.AssetKey, keys: list[str]) -> None:
    """Dagster's own storage can wipe whole assets only, so the rows of its index are deleted here.

    The log of the run that made a partition stays what it was.
    """
    from dagster._core.storage.event_log.schema import (
        AssetCheckExecutionsTable,
        SqlEventLogStorageTable,
    )

    storage = sql_storage(instance)
    with storage.index_transaction() as connection:
        for table in (SqlEventLogStorageTable, AssetCheckExecutionsTable):
            connection.execute(
                table.delete().where(
                    table.c.asset_key == asset.to_string(), table.c.partition.in_(keys)
                )
            )
    storage.wipe_asset_cached_status(asset)


def sql_storage(instance: dg.DagsterInstance) -> Any:
    """Dagster's event log where it is a database.

    Raises:
        TypeError: It is none, as on Dagster+, which prunes by itself.
    """
    from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        raise TypeError(
            "Dagster's records are not in a database of their own, so nothing is pruned."
        )
    return storage
