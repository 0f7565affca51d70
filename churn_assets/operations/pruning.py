"""Pruning: what can be removed from a state folder without anything that is true being lost.

Foreign partitions, files of models that nobody reads any more, runs in MLflow of such models and
those that were replaced, and Dagster's records of long ago. Each kind says in its own module what
stays. A call that was killed can be repeated: whatever it has left is found again.
"""

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import dagster as dg

from churn_assets.models.artefacts import ModelStore
from churn_assets.models.old_runs import delete_runs, old_runs
from churn_assets.models.runs import ModelRuns
from churn_assets.monitoring.inventory import AssetInventory, inventory, with_catalog
from churn_assets.online.io_manager import open_to_read
from churn_assets.online.sync import ONLINE_FEATURES
from churn_assets.operations import old_records
from churn_assets.operations.disk_space import LEAST_FREE, compact, free_bytes, size
from churn_assets.operations.forgetting import files_of, foreign_partitions, forget
from churn_assets.operations.installation import offline_store
from churn_assets.operations.models_in_use import prunable_models
from churn_assets.operations.with_settings import dagster_home
from churn_assets.settings import Settings
from churn_assets.stores.artefacts import is_pruned
from churn_assets.stores.identity import identify

# Cutoffs whose models stay, whether somebody reads them or not.
KEPT_CUTOFFS = 12
# Runs that ended within so many days stay, and so do ticks. A day takes 2 MB.
KEPT_DAYS = 14
# Runs whose every partition was made again since, as by the hourly inventory: 3 MB a day.
KEPT_DAYS_SUPERSEDED = 2
# In the 4 KB pages that SQLite takes by itself, an event of 2 to 6 KB leaves 45 % empty.
PAGE_BYTES_OF_INDEX = 16_384


@dataclass(frozen=True)
class Prunable:
    """One kind of what can be removed.

    Args:
        what: In words.
        count: How many there are.
        bytes: What they take on this disk, as far as files and texts tell.
        remove: Removes them.
    """

    what: str
    count: int
    bytes: int
    remove: Callable[[], None]


def prunable(
    settings: Settings,
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    now: dt.datetime,
    kept_cutoffs: int = KEPT_CUTOFFS,
    kept_days: int = KEPT_DAYS,
) -> list[Prunable]:
    """What `prune` removes, by kind, in the order in which it is to be removed.

    Args:
        settings: The settings.
        defs: The code location.
        instance: Dagster's records.
        now: Decides which partitions exist, and how old a record is.
        kept_cutoffs: Models of so many of the newest cutoffs stay.
        kept_days: Records of so many days before `now` stay.

    Raises:
        ServerError: The online store does not answer, so nobody knows which models it needs.
    """
    calendar = settings.calendar()
    store, models = with_catalog(offline_store(settings), defs, calendar), ModelStore(settings.home)
    rows = inventory(defs, store, calendar, instance, now)
    foreign = foreign_partitions(store, instance, now)
    old = prunable_models(models, calendar, rows, retained_online(settings, rows), kept_cutoffs)
    gone = set(old)

    def is_gone(model: str, cutoff: str) -> bool:
        manifest = models.find(model, cutoff) if model and cutoff else None
        return (model, cutoff) in gone or (
            manifest is not None and is_pruned(models.artefact(manifest))
        )

    tracking = ModelRuns(settings.home, settings.mlflow_tracking_uri, partial(identify, settings))
    recorded = old_runs(tracking, is_gone)
    before = now - dt.timedelta(days=kept_days)
    superseded = now - dt.timedelta(days=min(kept_days, KEPT_DAYS_SUPERSEDED))
    runs = old_records.old_runs(instance, before, superseded)
    ticks = old_records.old_ticks(instance, before)

    def prune_models() -> None:
        for model in old:
            models.prune(*model)

    whose = (
        "of pruned models: they go to the server's bin, which `mlflow gc` there empties"
        if settings.mlflow_tracking_uri
        else "of pruned models, or replaced by later ones"
    )
    found = [
        Prunable(
            f"partitions outside history, of {', '.join(foreign)}",
            sum(map(len, foreign.values())),
            size(*files_of(store, foreign)),
            lambda: forget(store, instance, foreign),
        ),
        Prunable(
            f"models, none of the newest {kept_cutoffs} cutoffs and none in use",
            len(old),
            size(*(path for model in old for path in models.versions(*model))),
            prune_models,
        ),
        Prunable(
            f"runs in MLflow {whose}",
            len(recorded),
            sum(run.bytes for run in recorded),
            lambda: delete_runs(tracking, recorded),
        ),
        Prunable(
            f"runs of Dagster, older than {kept_days} days or superseded",
            len(runs),
            old_records.bytes_of_runs(instance, runs),
            lambda: old_records.delete_runs(instance, runs, before),
        ),
        Prunable(
            f"ticks of schedules and sensors from before {before:%Y-%m-%d}",
            ticks.count,
            ticks.bytes,
            lambda: old_records.delete_ticks(instance, before),
        ),
    ]
    return [kind for kind in found if kind.count]


def retained_online(settings: Settings, rows: Sequence[AssetInventory]) -> tuple[str, ...]:
    """The versions that the online store has, live and before; none where nothing was published."""
    published = any(row.present for row in rows if row.asset.path[-1] == ONLINE_FEATURES)
    if not published:
        return ()
    return open_to_read(settings.home, settings.redis_url, identify(settings)).retained()


def databases(settings: Settings) -> list[Path]:
    """The SQLite files of Dagster and MLflow that are there."""
    history = dagster_home(settings) / "history"
    schedules = dagster_home(settings) / "schedules" / "schedules.db"
    known = (history / "runs" / "index.db", history / "runs.db", schedules)
    return [path for path in (*known, settings.home / "mlflow.db") if path.exists()]


def reclaimable(settings: Settings) -> int:
    """Bytes in databases that hold nothing and are worth giving back."""
    free = (free_bytes(path) for path in databases(settings))
    return sum(count for count in free if count >= LEAST_FREE)


def prune(settings: Settings, found: Sequence[Prunable]) -> list[str]:
    """Remove what can be removed, give the space back, and say where that was not possible."""
    for kind in found:
        kind.remove()
    pages = {"index.db": PAGE_BYTES_OF_INDEX}
    return [why for path in databases(settings) if (why := compact(path, pages.get(path.name)))]
