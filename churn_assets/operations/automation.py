"""How the graph runs itself: a schedule brings raw slices in, conditions do everything after that.

Every night the schedule ingests each slice that is missing, and again those that were read before
they were over, are held back, or have rows in files that were delivered since. From there each
asset waits for what it depends on: rollups, then features of the new cutoff, labels and training
data of the cutoff that has just matured, then models, predictions and the online sync. Rollups
follow a slice that is read again; what was made for earlier cutoffs does not change. A partition is
requested once; one that failed is left for a person to look at. The inventory is taken every hour.

History from before the automation was switched on is not requested: `churn backfill` or a backfill
from the UI makes it.
"""

import datetime as dt
from collections.abc import Callable

import dagster as dg

from churn_assets.cutoffs import Calendar, utc_now
from churn_assets.history.readings import notice_deliveries
from churn_assets.history.topic_model import TOPIC_MODEL
from churn_assets.operations.forgetting import forget_what_is_to_come
from churn_assets.operations.jobs import RANGE_END, RANGE_START
from churn_assets.sources.source import Source
from churn_assets.stores.offline import OfflineStore

# Minutes after midnight UTC: late rows of the last day have arrived, people are still asleep.
INGEST_CRON = "30 2 * * *"

# Dagster's own `on_missing` looks at the latest partition only, so it forgets what became due while
# the daemon was down.
ON_MISSING = (
    dg.AutomationCondition.missing().newly_true().since_last_handled()
    & ~dg.AutomationCondition.any_deps_missing()
).with_label("on_missing_partition")

# A page over all partitions is made again when one of them is.
ON_UPDATE = (
    dg.AutomationCondition.any_deps_updated().since_last_handled()
    & ~dg.AutomationCondition.any_deps_in_progress()
).with_label("on_updated_partition")

# A slice that is read again has other rows. A topic model is another only if a person says so.
ON_DELIVERY = (
    (
        dg.AutomationCondition.missing().newly_true()
        | dg.AutomationCondition.any_deps_updated().ignore(dg.AssetSelection.assets(TOPIC_MODEL))
    ).since_last_handled()
    & ~dg.AutomationCondition.any_deps_missing()
    & ~dg.AutomationCondition.any_deps_in_progress()
).with_label("on_missing_or_delivered_partition")

# Time alone makes partitions missing, and a deployed change makes them stale.
HOURLY = dg.AutomationCondition.on_cron("0 * * * *")

# What tells only what the code declares does not wait for data.
AT_ONCE = (
    dg.AutomationCondition.missing()
    & ~dg.AutomationCondition.in_progress()
    & ~dg.AutomationCondition.execution_failed()
).with_label("at_once")

CONDITIONS = {
    "walk_forward_report": ON_UPDATE,
    "asset_inventory": HOURLY,
    "feature_registry": AT_ONCE,
}


def condition_of(spec: dg.AssetSpec) -> dg.AutomationCondition | None:
    """The condition of an asset; none of a raw one, which only the schedule triggers."""
    if spec.group_name == "raw":
        return None
    otherwise = ON_DELIVERY if spec.group_name == "rollups" else ON_MISSING
    return CONDITIONS.get(spec.key.path[-1], otherwise)


def slices_to_read(
    store: OfflineStore, calendar: Calendar, instance: dg.DagsterInstance, now: dt.datetime
) -> list[str]:
    """The slices that have ended and are to be read, in order.

    Those of which a raw table is missing, and those that are to be read again.
    """
    from churn_assets.operations.redefinition import slices_to_read_again

    ended = set(calendar.keys(calendar.slices, now))
    wanted = set[str]()
    for name in filter(store.declared.is_raw, store.tables):
        table = store.tables[name]
        recorded = instance.get_materialized_partitions(dg.AssetKey(name))
        have = {key for key in ended & set(recorded) if store.has(table, key)}
        wanted |= ended - have
        wanted |= slices_to_read_again(store, name, have)
    return sorted(wanted)


def ingestion_schedule(
    calendar: Calendar,
    store: OfflineStore,
    raw_assets: list[dg.AssetsDefinition],
    source: Source,
    clock: Callable[[], dt.datetime] = utc_now,
) -> dg.ScheduleDefinition:
    """Requests every slice that has ended and is to be read, contiguous ones in one run.

    Args:
        calendar: Where partitions lie.
        store: Where files are, and the catalog.
        raw_assets: What it requests.
        source: Where files are delivered.
        clock: Tells what is still to come; a tick may be evaluated later than it was due.
    """
    selection = [key for asset in raw_assets for key in asset.keys]

    @dg.schedule(
        name="ingest_missing_slices",
        cron_schedule=INGEST_CRON,
        target=dg.AssetSelection.assets(*selection),
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Ingests every slice that is missing, half, held back, or has late rows.",
    )
    def ingest_missing_slices(
        context: dg.ScheduleEvaluationContext,
    ) -> list[dg.RunRequest] | dg.SkipReason:
        now, instance = context.scheduled_execution_time, context.instance
        forget_what_is_to_come(store, instance, clock())
        notice_deliveries(source, store, calendar, clock())
        missing = slices_to_read(store, calendar, instance, now)
        if not missing:
            ended = calendar.keys(calendar.slices, now)
            return dg.SkipReason(f"Every slice up to {ended[-1] if ended else 'now'} is present.")
        return [
            dg.RunRequest(
                run_key=f"{now:%Y-%m-%d} {block[0]}",
                tags={
                    RANGE_START: block[0],
                    RANGE_END: block[-1],
                },
            )
            for block in calendar.contiguous(missing)
        ]

    return ingest_missing_slices


def condition_sensor() -> dg.AutomationConditionSensorDefinition:
    """Evaluates the conditions of all assets."""
    return dg.AutomationConditionSensorDefinition(
        "materialize_what_became_due",
        target=dg.AssetSelection.all(),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=30,
        description="Requests each partition once, when it exists and its inputs are there.",
    )
