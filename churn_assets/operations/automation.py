"""How the graph runs itself: a schedule brings raw slices in, conditions do everything after that.

When a period ends, the schedule ingests every slice that is missing. From there each asset waits
for what it depends on: rollups, then features of the new cutoff, labels and training data of the
cutoff that has just matured, then models, predictions and the online sync. Each partition is
requested once; one that failed is left for a person to look at. The inventory is taken every hour.

History from before the automation was switched on is not requested: `churn backfill` or a backfill
from the UI makes it.
"""

import dagster as dg

from churn_assets.cutoffs import Calendar
from churn_assets.operations.jobs import RANGE_END, RANGE_START
from churn_assets.sources.tables import EVENTS

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


def with_conditions(assets: list[dg.AssetsDefinition]) -> list[dg.AssetsDefinition]:
    """The assets, with the condition on all but the raw ones, which only the schedule triggers."""

    def automate(spec: dg.AssetSpec) -> dg.AssetSpec:
        if spec.group_name == "raw":
            return spec
        condition = CONDITIONS.get(spec.key.path[-1], ON_MISSING)
        return spec.replace_attributes(automation_condition=condition)

    return [dg.map_asset_specs(automate, [asset])[0] for asset in assets]


def ingestion_schedule(
    calendar: Calendar, raw_assets: list[dg.AssetsDefinition]
) -> dg.ScheduleDefinition:
    """Requests every slice that has ended and is missing, contiguous ones in one run."""
    selection = [key for asset in raw_assets for key in asset.keys]

    @dg.schedule(
        name="ingest_missing_slices",
        cron_schedule=INGEST_CRON,
        target=dg.AssetSelection.assets(*selection),
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Ingests every slice that has ended and is missing.",
    )
    def ingest_missing_slices(
        context: dg.ScheduleEvaluationContext,
    ) -> list[dg.RunRequest] | dg.SkipReason:
        now = context.scheduled_execution_time
        present = set(context.instance.get_materialized_partitions(dg.AssetKey(EVENTS.table.name)))
        ended = calendar.keys(calendar.slices, now)
        missing = [key for key in ended if key not in present]
        if not missing:
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
