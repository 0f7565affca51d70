"""Source `synthetic`: the shop of `shop`, generated for the slices that are asked for.

A slice has the same rows whatever is generated before or with it. The true rates of the customers,
which nobody knows in a real shop, are not a source table: only evaluation reads them.
"""

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING

from churn_assets.sources.source import SourceTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duckdb import DuckDBPyConnection

    from churn_assets.sources.input_files import InputFile
    from churn_assets.sources.shop import Shop
    from churn_assets.sources.tables import RawTable


@dataclass(frozen=True)
class Synthetic:
    """A shop of a size and seed whose first day is `start`."""

    customers: int
    seed: int
    start: dt.date

    def shop(self) -> "Shop":
        from churn_assets.sources.shop import Shop

        return Shop(self.customers, self.seed, self.start)

    def looked_at(self) -> "Synthetic":
        return self

    def input_files(self, table: "RawTable") -> "Sequence[InputFile]":
        return ()

    def read(
        self,
        connection: "DuckDBPyConnection",
        table: "RawTable",
        begin: dt.datetime,
        end: dt.datetime,
        only: "Sequence[InputFile] | None" = None,
    ) -> SourceTable | None:
        shop = self.shop()
        generate = {
            "events": shop.events,
            "customers": shop.customer_versions,
            "reviews": shop.reviews,
            "satisfaction": shop.satisfaction,
        }[table.source_name]
        # A shop generates whole days; `raw` sets aside what lies past the end of history.
        last_day = (end - dt.timedelta(microseconds=1)).date() + dt.timedelta(days=1)
        rows = generate(max(begin.date(), self.start), last_day)
        relation = f"synthetic_{table.source_name}"
        connection.register(relation, rows)
        return SourceTable(relation, {name: f'"{name}"' for name in rows.column_names})
