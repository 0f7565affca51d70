"""Plans: which runs a backfill needs, stage by stage, one Dagster run per stage and range.

Without a range, a stage makes everything that it lacks. With one, it makes the range, and first
what the range needs and lacks: every slice, and the training data that its models learn from. In
both cases it makes first what that needs and is redefined (`monitoring.staleness`), because it
would be refused, and reads raw slices again that are half or held back, because their source may be
mended. A refresh makes the stale partitions again and no others. Pruned models that a plan reads
are made again first.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import dagster as dg

from churn_assets.cutoffs import Calendar, parse_key
from churn_assets.history.quarantine import QUARANTINED_ROWS
from churn_assets.history.scored_reviews import SCORED_REVIEWS
from churn_assets.history.topic_model import slices_of_topics
from churn_assets.models.artefacts import ModelStore
from churn_assets.models.champion import CHAMPION_MODEL
from churn_assets.models.training_rows import nobody_to_learn_from
from churn_assets.monitoring.inventory import (
    AssetInventory,
    inventory,
    present_partitions,
    with_catalog,
)
from churn_assets.operations.jobs import INGEST, STAGES, Stage
from churn_assets.operations.models_in_use import pruned_inputs
from churn_assets.operations.redefinition import made_first, survey
from churn_assets.sources.tables import RAW_TABLES
from churn_assets.stores.catalog import WHOLE
from churn_assets.stores.offline import OfflineStore

RAW_ASSETS = {
    dg.AssetKey(table.name) for table in (*(r.table for r in RAW_TABLES), QUARANTINED_ROWS)
}

SCORED = dg.AssetKey(SCORED_REVIEWS)


@dataclass(frozen=True)
class Batch:
    """One Dagster run: assets of a stage for contiguous partitions (none: unpartitioned)."""

    stage: Stage
    assets: tuple[dg.AssetKey, ...]
    keys: tuple[str, ...]

    @property
    def steps(self) -> int:
        """How many steps the run has: one per asset, raw tables being made by one together."""
        raw = [asset for asset in self.assets if asset in RAW_ASSETS]
        return len(self.assets) - len(raw) + bool(raw)

    @property
    def label(self) -> str:
        if not self.keys:
            return self.stage.name
        first, last = self.keys[0], self.keys[-1]
        return f"{self.stage.name} {first}" + ("" if first == last else f" … {last}")


@dataclass(frozen=True)
class Range:
    """The partitions that a backfill is for.

    Args:
        first: The first cutoff, or slice where only slices are made.
        last: The last one, included.
        again: Whether partitions of the range are made even where they are present.
    """

    first: dt.date
    last: dt.date
    again: bool


def wanted_range(
    partitions: dg.TimeWindowPartitionsDefinition,
    calendar: Calendar,
    first: dt.date | None,
    last: dt.date | None,
    newest: int | None,
    now: dt.datetime,
) -> Range | None:
    """The range that options name: bounds to make again, or the newest keys to complete.

    Args:
        partitions: What the bounds are keys of: cutoffs, or slices where only these are made.
        calendar: Explains a bound that does not exist.
        first: First key to make again.
        last: Last key to make again.
        newest: Complete so many of the newest keys.
        now: Decides which partitions exist.

    Returns:
        None where no option is given: then everything that is missing is made.

    Raises:
        ValueError: A bound is no partition, there are none, or both forms are given.
    """
    if newest is None and first is None and last is None:
        return None
    if newest is not None and (first or last):
        raise ValueError("Give either --last N or --from and --to, not both.")
    keys = calendar.keys(partitions, now)
    if not keys:
        raise ValueError(
            f"There is no cutoff yet: the first is {calendar.first_cutoff}, "
            f"{calendar.lookback_days} days after CHURN_START ({calendar.start}) or later."
        )
    if newest is not None:
        return Range(parse_key(keys[-newest:][0]), parse_key(keys[-1]), again=False)
    calendar.require(partitions, [day.isoformat() for day in (first, last) if day], now)
    first, last = first or parse_key(keys[0]), last or parse_key(keys[-1])
    if first > last:
        raise ValueError(f"--from {first} is after --to {last}.")
    return Range(first, last, again=True)


def plan_stage(
    stage: Stage,
    defs: dg.Definitions,
    calendar: Calendar,
    present: Callable[[dg.AssetKey], set[str]],
    now: dt.datetime,
    wanted: Range | None = None,
    slices_only: bool = False,
    without: Collection[str] = (),
    again: Mapping[str, Collection[str]] | None = None,
    models: ModelStore | None = None,
) -> list[Batch]:
    """The runs that a stage needs.

    Args:
        stage: The stage.
        defs: The code location.
        calendar: Where partitions lie.
        present: The materialized partitions of an asset; `{""}` for one without partitions.
        now: Decides which partitions exist.
        wanted: The range; None for everything that is missing.
        slices_only: Whether `wanted` is a range of slices.
        without: Scored cutoffs that no model can be made for, because nobody is there to learn
            from. With them in it, the run of a range would fail for all.
        again: Partitions that are made though they are present.
        models: Which models were pruned; None where none were.
    """
    graph = defs.resolve_asset_graph()
    selected = defs.resolve_job_def(stage.name).asset_layer.selected_asset_keys
    needed: dict[dg.AssetKey, list[str]] = {}
    for asset in sorted(key for key in selected if graph.get(key).is_partitioned):
        definition = graph.get(asset).partitions_def
        assert isinstance(definition, dg.TimeWindowPartitionsDefinition)
        existing = calendar.keys(definition, now)
        if asset == SCORED and not set(slices_of_topics(calendar)) <= set(existing):
            continue  # its topic model is fitted on slices that are still to come
        have, repeated = present(asset), (again or {}).get(asset.path[-1], ())
        needed[asset] = [
            key
            for key in existing
            if _is_needed(calendar, definition, key, key in have, wanted, slices_only)
            or key in repeated
            if not (key in without and _is_scored(calendar, definition))
        ]
    pruned = _pruned_inputs(models, calendar, defs, selected, needed)
    batches = ranges(stage, calendar, pruned) + ranges(stage, calendar, needed)
    unpartitioned = {key for key in selected if not graph.get(key).is_partitioned}
    missing = any(not present(asset) for asset in unpartitioned)
    if unpartitioned and (batches or missing or stage.on_demand):
        batches.append(Batch(stage, tuple(sorted(unpartitioned)), ()))
    return batches


def plan_refresh(
    stage: Stage,
    defs: dg.Definitions,
    calendar: Calendar,
    rows: Sequence[AssetInventory],
    models: ModelStore | None = None,
) -> list[Batch]:
    """The runs that make the stale partitions of a stage again, and no others.

    Args:
        stage: The stage.
        defs: The code location.
        calendar: Where partitions lie.
        rows: The inventory after the stages before have run: what they refreshed made more stale.
        models: Which models were pruned; None where none were.
    """
    graph = defs.resolve_asset_graph()
    selected = defs.resolve_job_def(stage.name).asset_layer.selected_asset_keys
    stale = {row.asset: row.stale for row in rows if row.asset in selected and row.stale}
    whole = tuple(sorted(asset for asset in stale if not graph.get(asset).is_partitioned))
    needed = {asset: keys for asset, keys in stale.items() if asset not in whole}
    pruned = _pruned_inputs(models, calendar, defs, selected, needed)
    batches = ranges(stage, calendar, pruned) + ranges(stage, calendar, needed)
    return batches + ([Batch(stage, whole, ())] if whole else [])


def _pruned_inputs(
    models: ModelStore | None,
    calendar: Calendar,
    defs: dg.Definitions,
    selected: Collection[dg.AssetKey],
    needed: Mapping[dg.AssetKey, Collection[str]],
) -> Mapping[dg.AssetKey, Collection[str]]:
    """The pruned models that a stage reads. They have runs of their own, before all others.

    Predictions depend on the decision, not on the model, so that in one run they might come first.
    """
    if models is None:
        return {}
    graph = defs.resolve_asset_graph()
    kinds = {key.path[-1] for key in selected if graph.get(key).group_name == "models"}
    return pruned_inputs(models, calendar, kinds - {CHAMPION_MODEL.name}, needed)


def backfill_batches(
    stages: Sequence[Stage],
    defs: dg.Definitions,
    store: OfflineStore,
    calendar: Calendar,
    instance: dg.DagsterInstance,
    now: dt.datetime,
    wanted: Range | None = None,
    slices_only: bool = False,
) -> Iterator[Batch]:
    """The runs of a backfill. Each stage is planned when the runs of those before it are over.

    Args:
        stages: The stages, in order.
        defs: The code location.
        store: Where files are.
        calendar: Where partitions lie.
        instance: Knows what was made.
        now: Decides which partitions exist.
        wanted: The range; None for everything that is missing.
        slices_only: Whether `wanted` is a range of slices.
    """
    store = with_catalog(store, defs, calendar)

    def present(asset: dg.AssetKey) -> set[str]:
        return present_partitions(defs, store, instance, asset)

    def planned(stage: Stage, again: Mapping[str, Collection[str]]) -> list[Batch]:
        without = nobody_to_learn_from(store, calendar, calendar.keys(calendar.scored_cutoffs, now))
        return plan_stage(
            stage,
            defs,
            calendar,
            present,
            now,
            wanted,
            slices_only,
            without,
            again,
            ModelStore(store.home),
        )

    targets: dict[str, set[str]] = defaultdict(set)
    for batch in [batch for stage in stages for batch in planned(stage, {})]:
        for asset in batch.assets:
            targets[asset.path[-1]] |= set(batch.keys or [WHOLE])
    found = survey(defs, store, instance, now)
    if any(stage.name == INGEST for stage in stages):
        slices = set().union(*found.to_read.values())
        for asset in defs.resolve_job_def(INGEST).asset_layer.selected_asset_keys:
            targets[asset.path[-1]] |= slices & found.present[asset.path[-1]]
    starts = {n: {*found.redefined[n], *found.to_read.get(n, ())} for n in found.present}
    again = made_first(found, starts, targets)
    for stage in stages:
        yield from planned(stage, again)


def refresh_batches(
    defs: dg.Definitions,
    store: OfflineStore,
    calendar: Calendar,
    instance: dg.DagsterInstance,
    now: dt.datetime,
) -> Iterator[Batch]:
    """The runs that make everything that is stale again, in data order.

    What a person alone makes again is left. For the arguments see `backfill_batches`.
    """
    rows = inventory(defs, store, calendar, instance, now)
    for stage in stages(()):
        if batches := plan_refresh(stage, defs, calendar, rows, ModelStore(store.home)):
            yield from batches
            rows = inventory(defs, store, calendar, instance, now)  # these made more stale


def ranges(
    stage: Stage, calendar: Calendar, needed: Mapping[dg.AssetKey, Collection[str]]
) -> list[Batch]:
    """Runs of contiguous partitions that need the same assets, in the order of partitions.

    Within a stage an asset depends on the same partition of others, or on an earlier one.
    """
    together = {
        key: frozenset(asset for asset, keys in needed.items() if key in keys)
        for key in sorted({key for keys in needed.values() for key in keys})
    }
    return [
        Batch(stage, tuple(sorted(assets)), keys)
        for assets, same in groupby(together, together.__getitem__)
        for keys in calendar.contiguous(list(same))
    ]


def _is_needed(
    calendar: Calendar,
    definition: dg.TimeWindowPartitionsDefinition,
    key: str,
    is_present: bool,
    wanted: Range | None,
    slices_only: bool,
) -> bool:
    if wanted is None:
        return not is_present
    day = parse_key(key)
    in_range = wanted.first <= day <= wanted.last
    if definition == calendar.slices and not slices_only:
        # Features of the range look back for ever, and its labels ahead.
        return not is_present
    if in_range:
        return wanted.again or not is_present
    if is_present or _is_scored(calendar, definition):
        return False
    # Models of the range learn from these.
    return calendar.first_training_cutoff(wanted.first) <= day < wanted.first


def _is_scored(calendar: Calendar, definition: dg.TimeWindowPartitionsDefinition) -> bool:
    return definition in (calendar.scored_cutoffs, calendar.realised_cutoffs)


def stages(names: Sequence[str]) -> list[Stage]:
    """The stages of the given names, in order; all that need no name where none is given.

    Raises:
        ValueError: There is no stage of a name.
    """
    known = [stage.name for stage in STAGES]
    for name in names:
        if name not in known:
            raise ValueError(f"There is no stage {name!r}. Stages are {', '.join(known)}.")
    return [s for s in STAGES if (s.name in names if names else not s.on_demand)]
