"""Remaking: under automation, what a change of settings or code redefined is made again by itself.

Only what is served, and what is still to be graded: features, models and predictions of the cutoffs
whose outcomes are still to come, and the training data that their models learn from, stage by stage
in the order of the data. Raw slices are never read again by it, and older history is left to
`churn backfill --stale`. A run that failed is tried once more; then a person has to look, an alert
says so, and what is live stays live.

What the newest cutoff lacks because a run met other definitions is made here too: the conditions of
`operations.automation` request each partition once.
"""

import datetime as dt
import hashlib
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

from churn_assets.cutoffs import Calendar, utc_now
from churn_assets.monitoring.inventory import failed_partitions, outcomes
from churn_assets.operations.jobs import RANGE_END, RANGE_START
from churn_assets.stores.catalog import WHOLE
from churn_assets.stores.offline import OfflineStore

if TYPE_CHECKING:
    from churn_assets.operations.plans import Batch
    from churn_assets.operations.redefinition import Survey

SENSOR = "remake_what_was_redefined"
STARTED_BY = {"churn/started_by": SENSOR}
# What a run remakes, and under which definitions: a change of them is tried anew.
REMAKES = "churn/remakes"
MOST_FAILURES = 2


def next_to_remake(
    defs: dg.Definitions,
    store: OfflineStore,
    calendar: Calendar,
    instance: dg.DagsterInstance,
    now: dt.datetime,
) -> "tuple[Batch, str] | None":
    """The first run of the earliest stage that has something to remake, and its tag `REMAKES`.

    One at a time, because the champion of a cutoff is the incumbent of the next.
    """
    from churn_assets.operations.plans import ranges, stages
    from churn_assets.operations.redefinition import made_first, survey

    scored = calendar.keys(calendar.scored_cutoffs, now)
    if not scored:
        return None
    # Those whose outcomes are still to come: they will be graded under the present definitions.
    open_cutoffs = set(scored) - set(calendar.keys(calendar.realised_cutoffs, now))
    found = survey(defs, store, instance, now)
    partitions = {name: found.catalog.specs[name].partitions_def for name in found.present}
    served = [n for n in found.present if partitions[n] == calendar.scored_cutoffs]
    known = [n for n in found.present if partitions[n] == calendar.cutoffs]
    starts = {n: keys for n, keys in found.redefined.items() if not found.catalog.is_raw(n)}
    again = made_first(found, starts, dict.fromkeys([*known, *served], open_cutoffs))
    if not again:
        again = _lacking(found, instance, served, scored[-1])
    for stage in stages(()):
        selected = defs.resolve_job_def(stage.name).asset_layer.selected_asset_keys
        needed = {
            asset: again[asset.path[-1]] - {WHOLE}
            for asset in sorted(selected)
            if again.get(asset.path[-1], set()) - {WHOLE}
        }
        if batches := ranges(stage, calendar, needed):
            return batches[0], _tag(found, batches[0])
    return None


def _lacking(
    found: "Survey", instance: dg.DagsterInstance, served: list[str], newest: str
) -> dict[str, set[str]]:
    """What is missing of the newest cutoff and will not be requested again: it failed, or waits.

    Nothing of it is requested as long as nothing failed: it is on its way.
    """
    of_run = cache(partial(outcomes, instance))
    missing = [name for name in served if newest not in found.present[name]]
    failed = any(
        newest in failed_partitions(instance, dg.AssetKey(name), of_run) for name in missing
    )
    return {name: {newest} for name in missing} if failed else {}


def _tag(found: "Survey", batch: "Batch") -> str:
    definitions = [found.catalog.definitions[asset.path[-1]] for asset in batch.assets]
    names = [asset.path[-1] for asset in batch.assets]
    digest = hashlib.sha256(" ".join([*names, *definitions]).encode()).hexdigest()[:8]
    return f"{batch.label} under {digest}"


def sensor(
    definitions: Callable[[], dg.Definitions],
    store: OfflineStore,
    calendar: Calendar,
    jobs: Sequence[Any],
    now: Callable[[], dt.datetime] = utc_now,
) -> dg.SensorDefinition:
    """Requests one run at a time, and the next when it is over.

    Args:
        definitions: Gives the code location, which the sensor is part of.
        store: Where files are.
        calendar: Where partitions lie.
        jobs: One for each stage: assets of different partitions cannot share a job.
        now: Decides which partitions exist.
    """

    @dg.sensor(
        name=SENSOR,
        jobs=jobs,
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Makes again what a change of settings or code redefined, for what is served.",
    )
    def remake_what_was_redefined(
        context: dg.SensorEvaluationContext,
    ) -> dg.RunRequest | dg.SkipReason:
        instance = context.instance
        if instance.get_runs(
            dg.RunsFilter(tags=STARTED_BY, statuses=NOT_FINISHED_STATUSES), limit=1
        ):
            return dg.SkipReason("A run is still going on.")
        found = next_to_remake(definitions(), store, calendar, instance, now())
        if found is None:
            return dg.SkipReason("Everything that is served is of the present definitions.")
        batch, tag = found
        newest = instance.get_runs(dg.RunsFilter(tags={REMAKES: tag}), limit=MOST_FAILURES)
        failed = [run for run in newest if run.status == dg.DagsterRunStatus.FAILURE]
        if len(failed) == MOST_FAILURES:
            return dg.SkipReason(
                f"{tag} failed {MOST_FAILURES} times and is left to a person: what was live stays "
                "live. See its run; `churn backfill --stale` makes everything again."
            )
        made = instance.get_runs_count(dg.RunsFilter(tags={REMAKES: tag}))
        return dg.RunRequest(
            run_key=f"{tag}, run {made + 1}",
            job_name=batch.stage.name,
            asset_selection=list(batch.assets),
            tags={
                **STARTED_BY,
                REMAKES: tag,
                RANGE_START: batch.keys[0],
                RANGE_END: batch.keys[-1],
            },
        )

    return remake_what_was_redefined
