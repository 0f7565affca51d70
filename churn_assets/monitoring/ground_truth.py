"""What the best possible model would say: the synthetic shop's true churn probabilities.

Grain: one row per customer of the population and cutoff. The probability of no purchase within the
horizon follows in closed form from the customer's true rates and the time since the last event
(`sources.true_churn`). It is for evaluation only: no feature, label or model may depend
on it, and no other source has it.
"""

import datetime as dt
from collections.abc import Iterator
from importlib.util import find_spec, module_from_spec
from types import ModuleType

import dagster as dg

from churn_assets.cutoffs import DAY_US, Calendar, day_number, parse_key
from churn_assets.features.queries import ANY_CUTOFF
from churn_assets.history.known import in_window
from churn_assets.sources.synthetic import Synthetic
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.partitions import Query
from churn_assets.stores.provenance import code_digest
from churn_assets.stores.tables import Column, cutoff_table, sql_version

SYNTHETIC_TRUTH = cutoff_table(
    "synthetic_truth",
    [
        Column(
            "best_churn_probability",
            "DOUBLE",
            "P(no purchase within the horizon), given the true rates and the last event",
        )
    ],
)


def rates_query(cutoff: dt.date, activity: str, lookback_days: int) -> str:
    """The true rates of the population of a cutoff, and the days since the last event.

    Args:
        cutoff: The cutoff.
        activity: A relation of `daily_activity`.
        lookback_days: Who was active within so many days is in the population.
    """
    day = day_number(cutoff)
    return f"""
        SELECT customer_id, DATE '{cutoff}' AS cutoff,
            any_value(purchase_rate) AS purchase_rate,
            any_value(dropout_rate) AS dropout_rate,
            any_value(activity_rate) AS activity_rate,
            {day} - max(last_event_us) / {DAY_US} AS quiet_days
        FROM {activity} AS activity
        JOIN rates USING (customer_id)
        WHERE {in_window(lookback_days, day)}
        GROUP BY customer_id"""


def _unrun(module: str) -> ModuleType:
    """A module that can be digested without running it: these import numpy and pyarrow."""
    spec = find_spec(f"churn_assets.sources.{module}")
    assert spec is not None
    return module_from_spec(spec)


def assets(calendar: Calendar, source: Synthetic, store: OfflineStore) -> list[dg.AssetsDefinition]:
    """The truth of each cutoff."""

    @dg.asset(
        description=__doc__,
        deps=[
            dg.AssetDep(
                "daily_activity", partition_mapping=calendar.slices_before(calendar.lookback_days)
            )
        ],
        partitions_def=calendar.cutoffs,
        backfill_policy=dg.BackfillPolicy.single_run(),
        code_version=sql_version(
            rates_query(ANY_CUTOFF, "daily_activity", calendar.lookback_days),
            code_digest(_unrun("true_churn"), _unrun("shop"), _unrun("arrays")),
            f"{source} {calendar.horizon_days}",
        ),
        group_name="ground_truth",
        kinds={"numpy", "parquet"},
        owners=["team:ml"],
        tags={"layer": "monitoring"},
        metadata={"dagster/column_schema": SYNTHETIC_TRUTH.as_dagster()},
    )
    def synthetic_truth(context: dg.AssetExecutionContext) -> Iterator[dg.Output[Query]]:
        import pyarrow as pa

        from churn_assets.sources.true_churn import churn_probability

        cutoffs = [parse_key(key) for key in context.partition_keys]
        activity = store.scan(store.tables["daily_activity"]).sql
        with store.connect() as connection:
            connection.register("rates", source.shop().truth(max(cutoffs)))
            table = connection.sql(
                " UNION ALL ".join(
                    rates_query(cutoff, activity, calendar.lookback_days) for cutoff in cutoffs
                )
            ).to_arrow_table()
            best = churn_probability(
                table["purchase_rate"].to_numpy(),
                table["dropout_rate"].to_numpy(),
                table["activity_rate"].to_numpy(),
                table["quiet_days"].to_numpy(),
                calendar.horizon_days,
            )
            connection.register(
                "best", table.append_column("best_churn_probability", pa.array(best))
            )
            yield dg.Output(Query("SELECT * FROM best", connection))

    return [synthetic_truth]
