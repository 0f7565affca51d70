"""Remarks on a state, for people: what a command leaves as it is, why, and what mends it."""

import datetime as dt
from collections.abc import Collection, Sequence
from pathlib import Path

import dagster as dg

from churn_assets.cutoffs import Calendar
from churn_assets.models.training_rows import nobody_to_learn_from
from churn_assets.monitoring.inventory import AssetInventory
from churn_assets.operations.inspection import too_short
from churn_assets.operations.redefinition import survey
from churn_assets.settings import Settings
from churn_assets.stores.catalog import ON_DEMAND, RAW
from churn_assets.stores.offline import OfflineStore


def after_backfill(
    defs: dg.Definitions,
    store: OfflineStore,
    calendar: Calendar,
    instance: dg.DagsterInstance,
    now: dt.datetime,
) -> list[str]:
    """What a backfill has not made, and what it has left under other definitions."""
    scored = calendar.keys(calendar.scored_cutoffs, now)
    said = too_short(calendar, now)
    if without := nobody_to_learn_from(store, calendar, scored):
        said.append(
            f"models of {min(without)} to {max(without)}: none, nobody was active in the "
            f"{calendar.lookback_days} days before any of their training cutoffs. If data begins "
            f"later than CHURN_START ({calendar.start}), set it to the first day; `churn inspect` "
            "shows it."
        )
    other = survey(defs, store, instance, now).redefined
    return said + _redefined({asset: keys for asset, keys in other.items() if keys})


def unread_input(settings: Settings) -> list[str]:
    """That files lie in the input folder of an installation whose rows come from elsewhere."""
    folder = Path(settings.input_folder)
    if settings.source != "synthetic" or not folder.is_dir():
        return []
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if not names:
        return []
    return [
        f"{folder} holds {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}, and "
        "nothing reads it: CHURN_SOURCE is synthetic. To use it, set CHURN_SOURCE=files, and "
        "CHURN_HOME to a folder of its own."
    ]


def of_status(rows: Sequence[AssetInventory]) -> list[str]:
    """What the counts of an inventory ask for, each with its command."""
    said = _redefined({row.asset.path[-1]: row.redefined for row in rows if row.redefined})
    stale = sum(len(row.stale) for row in rows if row.group not in (RAW, ON_DEMAND))
    raw = sum(len(row.stale) for row in rows if row.group == RAW)
    foreign = sum(len(row.foreign) for row in rows)
    if stale or raw:
        said.append(
            f"{stale + raw} stale: `churn backfill --stale` makes them again"
            + (", the source is read again for the raw ones." if raw else ".")
        )
    said += on_demand(rows)
    for row in rows:
        if row.held_back:
            name, first = row.asset.path[-1], min(row.held_back)
            stage = "--stage ingest " if row.group == "rollups" else ""
            again = (
                "`churn backfill` reads the source again"
                if row.group == RAW
                else f"`churn backfill {stage}--from {first} --to {first}` makes it again"
            )
            said.append(
                f"{name} {first}{_more(row.held_back)} held back: nothing is made from it. Once "
                f"what it is made from is mended, {again}; `churn accept {name} {first} --reason "
                "WHY` lets it pass as it is."
            )
    if foreign:
        said.append(
            f"{foreign} foreign: outside history as CHURN_START, CHURN_END and the clock have it. "
            "Nothing reads them; `churn prune` removes them."
        )
    return said


def on_demand(rows: Sequence[AssetInventory]) -> list[str]:
    """What is stale and made again by its own stage only."""
    return [
        f"{row.asset.path[-1]} was made from other inputs and is kept: only its own stage makes it "
        "anew, such as `churn backfill --stage topics`."
        for row in rows
        if row.stale and row.group == ON_DEMAND
    ]


def _redefined(found: dict[str, Collection[str]]) -> list[str]:
    if not found:
        return []
    count = sum(len(keys) for keys in found.values())
    asset, keys = next(iter(found.items()))
    first = f"{asset} {min(keys)}".strip()
    return [
        f"{count} of other definitions: made under other settings or features, the first is "
        f"{first}. Nothing is made from them. `churn backfill --stale` makes them again."
    ]


def _more(keys: Collection[str]) -> str:
    return f" and {len(keys) - 1} more are" if len(keys) > 1 else " is"
