"""Which models somebody still reads, or would read: `churn prune` leaves them.

What a missing partition reads is in use. What a stale one reads is in use too, unless the model is
stale itself: then it is made again before it is read. A model that only tells of the past is not in
use: of it, its manifest is enough. Where a pruned model is to be read all the same, because an old
cutoff is made again, a plan makes the model first.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import dagster as dg

from churn_assets.cutoffs import Calendar, parse_key
from churn_assets.models.artefacts import ModelStore
from churn_assets.models.champion import CHAMPION_MODEL, find_champion, newest_champion
from churn_assets.monitoring.inventory import AssetInventory
from churn_assets.monitoring.performance import REALISED_PERFORMANCE
from churn_assets.predictions.churn_predictions import CHURN_PREDICTIONS
from churn_assets.stores.artefacts import is_pruned

Model = tuple[str, str]
"""The kind of a model and its cutoff."""


def prunable_models(
    model_store: ModelStore,
    calendar: Calendar,
    rows: Sequence[AssetInventory],
    online: Iterable[str],
    kept: int,
) -> list[Model]:
    """The models that have files which nobody reads, oldest first.

    Args:
        model_store: Has the models and decisions.
        calendar: The cutoffs.
        rows: The inventory.
        online: The versions that the online store retains.
        kept: Models of so many of the newest cutoffs stay.
    """
    existing = set(_row(rows, CHAMPION_MODEL.name).existing)
    there = {
        (asset, cutoff)
        for asset, cutoff in model_store.folders()
        if cutoff in existing
        and model_store.versions(asset, cutoff)
        and model_store.find(asset, cutoff)
    }
    newest = set(sorted({cutoff for _, cutoff in there})[-kept:])
    old = {model for model in there if model[1] not in newest}
    in_use = models_in_use(model_store, calendar, rows, online)
    return sorted(old - in_use, key=lambda model: (model[1], model[0]))


def models_in_use(
    model_store: ModelStore,
    calendar: Calendar,
    rows: Sequence[AssetInventory],
    online: Iterable[str],
) -> set[Model]:
    """The models that somebody reads or would read; see `prunable_models`."""
    decisions, predictions = (_row(rows, t.name) for t in (CHAMPION_MODEL, CHURN_PREDICTIONS))
    realised = _row(rows, REALISED_PERFORMANCE.name)
    kinds = [row.asset.path[-1] for row in rows if row.group == decisions.group]
    stale = {(row.asset.path[-1], key) for row in rows for key in row.stale}

    served = {version[:10] for version in online if version}
    waiting = predictions.present - realised.present
    in_use = chosen_at(model_store, served | waiting)
    in_use |= read_by(model_store, calendar, kinds, decisions.missing, predictions.missing)
    in_use |= read_by(model_store, calendar, kinds, decisions.stale, predictions.stale) - stale
    if newest := newest_champion(calendar, model_store):
        in_use.add((newest.model, newest.model_cutoff))
        if against := newest.incumbent_identity:
            in_use.add((against.model, against.model_cutoff))
    return in_use


def read_by(
    model_store: ModelStore,
    calendar: Calendar,
    kinds: Collection[str],
    decisions: Collection[str],
    predictions: Collection[str],
) -> set[Model]:
    """The models that are read where decisions and predictions of some cutoffs are made.

    A decision grades the candidates of its cutoff, and the champion of the one before.
    """
    before = [calendar.shift(parse_key(cutoff), -1).isoformat() for cutoff in decisions]
    candidates = {(kind, cutoff) for kind in kinds for cutoff in decisions}
    return candidates | chosen_at(model_store, [*before, *predictions])


def chosen_at(model_store: ModelStore, cutoffs: Iterable[str]) -> set[Model]:
    """The champions of some cutoffs, as far as they were decided."""
    found = (find_champion(model_store, parse_key(cutoff)) for cutoff in cutoffs)
    return {(champion.model, champion.model_cutoff) for champion in found if champion}


def pruned_inputs(
    model_store: ModelStore,
    calendar: Calendar,
    kinds: Collection[str],
    needed: Mapping[dg.AssetKey, Collection[str]],
) -> dict[dg.AssetKey, list[str]]:
    """The pruned models that are read where something is made, and are not made with it.

    Args:
        model_store: Has the models and decisions.
        calendar: The cutoffs.
        kinds: The kinds of model that can be made.
        needed: The partitions to make, by asset.
    """
    decisions, predictions = (
        needed.get(dg.AssetKey(table.name), ()) for table in (CHAMPION_MODEL, CHURN_PREDICTIONS)
    )
    found: dict[dg.AssetKey, list[str]] = {}
    for kind, cutoff in sorted(read_by(model_store, calendar, kinds, decisions, predictions)):
        asset, manifest = dg.AssetKey(kind), model_store.find(kind, cutoff)
        if kind not in kinds or manifest is None or cutoff in needed.get(asset, ()):
            continue
        if is_pruned(model_store.artefact(manifest)):
            found.setdefault(asset, []).append(cutoff)
    return found


def _row(rows: Sequence[AssetInventory], asset: str) -> AssetInventory:
    return next(row for row in rows if row.asset.path[-1] == asset)
