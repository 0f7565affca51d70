"""The IO manager of the offline store: Dagster's way in and out of its tables.

An asset receives a `Scan` of its upstream partitions and returns a `Query`; no rows pass through
Python. What is made carries its provenance, and its partition's page the counts.
"""

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import dagster as dg

from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.partitions import Describe, Partition, Query, Scan
from churn_assets.stores.provenance import provenances
from churn_assets.stores.tables import Table

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def shown(
    connection: "DuckDBPyConnection",
    table: Table,
    partition: Partition,
    seconds: float,
    describe: Describe | None = None,
) -> dict[str, Any]:
    """What Dagster shows of a partition that was published.

    Args:
        connection: For `describe`.
        table: Its table.
        partition: The partition.
        seconds: How long it took.
        describe: See `Query`.
    """
    return {
        "dagster/row_count": partition.rows,
        "bytes": partition.bytes,
        "seconds": round(seconds, 4),
        "path": dg.MetadataValue.path(str(partition.path)),
        **(describe(connection, Scan(table, (partition.path,))) if describe else {}),
    }


class OfflineIOManager(dg.IOManager):
    """Hands assets a `Scan` of their upstream partitions and publishes the `Query` they return.

    Args:
        store: Where files are.
    """

    def __init__(self, store: OfflineStore) -> None:
        self.store = store

    def load_input(self, context: dg.InputContext) -> Scan:
        table = self.store.tables[context.asset_key.path[-1]]
        if not context.has_asset_partitions:
            return self.store.scan(table)
        return self.store.scan(table, sorted(context.asset_partition_keys))

    def handle_output(self, context: dg.OutputContext, obj: Query) -> None:
        table = self.store.tables[context.asset_key.path[-1]]
        keys: list[str | None] = (
            [*context.asset_partition_keys] if context.has_asset_partitions else [None]
        )

        provenance = provenances(self.store, table.name)
        began = time.monotonic()
        with ExitStack() as stack:
            connection = obj.connection or stack.enter_context(self.store.connect())
            written = self.store.publish(connection, table, obj, keys, provenance)
            seconds = (time.monotonic() - began) / len(written)
            for key, partition in written.items():
                metadata = shown(connection, table, partition, seconds, obj.describe)
                context.step_context.add_asset_metadata(metadata, context.asset_key, key)
        rows = sum(partition.rows for partition in written.values())
        context.log.info(f"{table.name}: {rows:,} rows in {len(written)} partitions")
