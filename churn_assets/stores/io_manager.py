"""The IO manager of the offline store: Dagster's way in and out of its tables.

An asset receives a `Scan` of its upstream partitions and returns a `Query`; no rows pass through
Python. What is made carries its provenance, and its partition's page the counts.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack

import dagster as dg

from churn_assets.stores.offline import OfflineStore, Query, Scan
from churn_assets.stores.provenance import provenances


class OfflineIOManager(dg.IOManager):
    """Hands assets a `Scan` of their upstream partitions and publishes the `Query` they return.

    Args:
        store: Where files are.
        identify: Called before something is written: it writes whose state the folder is where it
            is new, and raises where it is that of other settings.
    """

    def __init__(self, store: OfflineStore, identify: Callable[[], object]) -> None:
        self.store = store
        self.identify = identify

    def load_input(self, context: dg.InputContext) -> Scan:
        table = self.store.tables[context.asset_key.path[-1]]
        if not context.has_asset_partitions:
            return self.store.scan(table)
        return self.store.scan(table, sorted(context.asset_partition_keys))

    def handle_output(self, context: dg.OutputContext, obj: Query) -> None:
        self.identify()
        table = self.store.tables[context.asset_key.path[-1]]
        keys: list[str | None] = (
            [*context.asset_partition_keys] if context.has_asset_partitions else [None]
        )

        provenance = provenances(self.store, table.name)
        began = time.monotonic()
        with ExitStack() as stack:
            connection = obj.connection or stack.enter_context(self.store.connect())
            written = self.store.publish(connection, table, obj.selects, keys, provenance)
            seconds = time.monotonic() - began
            for key, partition in written.items():
                shown = Scan(table, (partition.path,))
                metadata = {
                    "dagster/row_count": partition.rows,
                    "bytes": partition.bytes,
                    "seconds": round(seconds / len(written), 4),
                    "path": dg.MetadataValue.path(str(partition.path)),
                    **(obj.describe(connection, shown) if obj.describe else {}),
                }
                context.step_context.add_asset_metadata(metadata, context.asset_key, key)
        rows = sum(partition.rows for partition in written.values())
        context.log.info(f"{table.name}: {rows:,} rows in {len(written)} partitions")
