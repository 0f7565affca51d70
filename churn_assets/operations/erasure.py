"""Erasing customers: no byte of them stays, and everything else is as if they had never been there.

First their rows go from every table, their row from every online version, and their id from what is
no table (`operations.traces`), so that they are gone even where a later step fails. Then whatever
was made from a table that changed is made again, because the scores and sums of others depended on
them. Models are not: they are listed, and what they say they were made from is brought up to date,
so that they are not stale. What was stale before stays so.

Every step can be repeated. An erasure that was broken off goes on when the same command is given
again.
"""

import datetime as dt
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import dagster as dg

from churn_assets.cutoffs import Calendar
from churn_assets.history.quarantine import QUARANTINED_ROWS
from churn_assets.history.text_scores import forget_scores
from churn_assets.models.artefacts import ModelStore
from churn_assets.monitoring.inventory import KEEP_ARTEFACTS, AssetInventory, inventory
from churn_assets.online.erasing import compact, erase
from churn_assets.online.io_manager import open_to_publish
from churn_assets.online.server import ServerError
from churn_assets.operations.plans import Batch, plan_refresh, stages
from churn_assets.settings import Settings, without_secrets
from churn_assets.stores.artefacts import ArtefactStore
from churn_assets.stores.digests import file_digest
from churn_assets.stores.erased import Erased
from churn_assets.stores.identity import identify
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.parquet import OF_READING, copy_to, footer
from churn_assets.stores.provenance import provenances
from churn_assets.stores.staging import publish, staged
from churn_assets.stores.tables import Table
from churn_assets.stores.verdicts import read_verdict, write_verdict

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def stale_partitions(rows: Sequence[AssetInventory]) -> dict[str, list[str]]:
    """The stale partitions of an inventory, by asset."""
    return {row.asset.path[-1]: sorted(row.stale) for row in rows if row.stale}


def begin(
    store: OfflineStore, customers: Collection[str], rows: Sequence[AssetInventory]
) -> Erased:
    """Put customers on the list of the erased, so that no run brings them back, and give the list.

    Args:
        store: Where files are.
        customers: Their ids.
        rows: The inventory before anything was erased.
    """
    erased = Erased.read(store.home)
    before = stale_partitions(rows) if erased.unfinished is None else erased.unfinished
    hashes = erased.customers | {erased.hash_of(customer) for customer in customers}
    erased = replace(erased, customers=hashes, unfinished=before)
    erased.write(store.home)
    return erased


def finish(store: OfflineStore) -> None:
    """Record that nothing is left to do."""
    replace(Erased.read(store.home), unfinished=None).write(store.home)


def erase_rows(store: OfflineStore, erased: Erased) -> dict[str, int]:
    """Delete the rows of the erased from every table, and give how many went, by table.

    Also from partitions outside history. What a file says that it was made from stays, and so does
    what the checks found of it.
    """
    counts = dict[str, int]()
    with store.connect() as connection:
        forget_scores(connection, store, erased.has("customer_id"))
        for table in store.tables.values():
            if table == QUARANTINED_ROWS:
                theirs = erased.is_in('"row"')
            elif "customer_id" in table.column_names:
                theirs = erased.has("customer_id")
            else:
                continue
            keys = store.on_disk(table.name) if table.partitioned_by else [None]
            for key in keys:
                if count := _erase_from(connection, store, table, key, theirs):
                    counts[table.name] = counts.get(table.name, 0) + count
    return counts


def erase_online(settings: Settings, customers: Collection[str]) -> int:
    """Delete the rows of customers from every online version, and give how many there were.

    A private server also writes its file anew. What another server keeps on disk is its own matter.

    Raises:
        ServerError: There is no server, or it does not answer.
        AnotherInstallation: The state was moved, and may not write to the server of its original.
    """
    import redis

    if not settings.redis_url and not (settings.home / "online_store").exists():
        return 0
    namespace = open_to_publish(settings.home, settings.redis_url, identify(settings))
    with closing(namespace.client):
        try:
            erased = erase(namespace, customers)
            if not settings.redis_url:
                compact(namespace.client)
        except redis.RedisError as error:
            why = without_secrets(error, settings.redis_url)
            raise ServerError(
                f"Erasing rows online broke off: {why} See that the server runs, and give the same "
                "command again."
            ) from None
    return erased


def _erase_from(
    connection: "DuckDBPyConnection",
    store: OfflineStore,
    table: Table,
    key: str | None,
    theirs: str,
) -> int:
    if not store.has(table, key):
        return 0
    file = store.unchecked(table, [key] if key else None).sql
    [(count,)] = connection.execute(f"SELECT count(*) FROM {file} WHERE {theirs}").fetchall()
    if count:
        before = file_digest(store.path(table, key))
        _rewrite(connection, store, table, key, store.made_from(table.name, key) or {}, theirs)
        verdict = read_verdict(store.home, table.name, key)
        if verdict and verdict.content == before:
            content = file_digest(store.path(table, key))
            write_verdict(store.home, table.name, key, replace(verdict, content=content))
    return int(count)


def _rewrite(
    connection: "DuckDBPyConnection",
    store: OfflineStore,
    table: Table,
    key: str | None,
    made_from: Mapping[str, str],
    without: str = "false",
) -> None:
    """Replace the file of a partition by one without some rows, or with another provenance."""
    rows = f"SELECT * FROM {store.unchecked(table, [key] if key else None).sql}"
    kept = f"{rows} WHERE NOT ({without}) ORDER BY {', '.join(table.key)}"
    notes = footer(store.path(table, key)).notes
    how_read = {name: notes[name] for name in OF_READING if name in notes}
    with staged(store.home) as path:
        connection.execute(copy_to(path, kept, {**made_from, **how_read}))
        publish(path, store.path(table, key))


class Remaking:
    """The runs that make again what was made from tables that had rows of the erased.

    No model is among them. With `retrain`, models that learned from the erased stay stale, and so
    does all that is made from models.

    Args:
        defs: The code location.
        store: Where files are, and the catalog.
        calendar: Where partitions lie.
        instance: Knows what was made.
        now: Decides which partitions exist.
        retrain: Whether models that learned from them are to be trained anew.
    """

    def __init__(
        self,
        defs: dg.Definitions,
        store: OfflineStore,
        calendar: Calendar,
        instance: dg.DagsterInstance,
        now: dt.datetime,
        retrain: bool,
    ) -> None:
        self._defs = defs
        self._store = store
        self._calendar = calendar
        self._instance = instance
        self._now = now
        self._retrain = retrain
        self._before = Erased.read(store.home).unfinished or {}
        self.learned = dict[str, list[str]]()

    def batches(self) -> Iterator[Batch]:
        """The runs. `learned` fills with the models that learned from the erased, by asset."""
        for stage in stages(()):
            if KEEP_ARTEFACTS & {*stage.groups}:
                self._look_at_models()  # once all that they are made from is as it will be
                if self._retrain:
                    return
            models = ModelStore(self._store.home)
            yield from plan_refresh(stage, self._defs, self._calendar, self._became_stale(), models)

    def left(self) -> dict[str, list[str]]:
        """What is stale now and was not before, by asset."""
        return stale_partitions(self._became_stale())

    def _became_stale(self) -> list[AssetInventory]:
        rows = inventory(self._defs, self._store, self._calendar, self._instance, self._now)
        return [
            replace(row, stale=row.stale - {*self._before.get(row.asset.path[-1], ())})
            for row in rows
        ]

    def _look_at_models(self) -> None:
        """Find the models whose inputs changed, and have them say what they are made from now."""
        catalog, artefacts = self._store.declared, ArtefactStore(self._store.home)
        for name, spec in catalog.specs.items():
            if spec.group_name not in KEEP_ARTEFACTS:
                continue
            made_from = provenances(self._store, name)
            for key in {*catalog.existing(name, self._now)} - {*self._before.get(name, ())}:
                said, now = self._store.made_from(name, key or None), made_from(key or None)
                if said is None or said == now:
                    continue
                self.learned.setdefault(name, []).append(key)
                if self._retrain:
                    continue
                artefacts.restamp(name, key or None, now)
                if (table := self._store.tables.get(name)) is not None:
                    with self._store.connect() as connection:
                        _rewrite(connection, self._store, table, key or None, now)
