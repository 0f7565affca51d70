"""How much disk three years of daily cutoffs take beside the data, with and without `churn prune`.

    python -m benchmarks.bookkeeping [--customers 150] [--cutoffs 12]

A small shop with daily cutoffs lives through so many nights: each night the new cutoff is made, by
one Dagster run per stage, and the inventory is taken. Half way and at the end everything is pruned
that is beyond what is kept. What a night adds does not depend on how many were before it, so the
growth between the two, by kind, gives the size after 1,095 nights: **extrapolated**, and printed as
such. To the size with `churn prune` belong the newest cutoffs and days that it keeps whole. An
inventory is measured once a night and counted 24 times.

Bytes are those of the files. Rows of tables are data and not counted. Neither are ticks: no daemon
runs here.
"""

import argparse
import datetime as dt
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from churn_assets.definitions import build_definitions
from churn_assets.online.server import stop
from churn_assets.operations.backfill import run_batch
from churn_assets.operations.disk_space import size
from churn_assets.operations.installation import offline_store
from churn_assets.operations.instance import dagster_instance
from churn_assets.operations.plans import backfill_batches, stages
from churn_assets.operations.pruning import (
    KEPT_CUTOFFS,
    KEPT_DAYS,
    KEPT_DAYS_SUPERSEDED,
    prunable,
    prune,
)
from churn_assets.settings import Settings
from churn_assets.stores.identity import identify

NIGHTS = 1_095
INVENTORIES_PER_DAY = 24
KEPT_HERE = 2  # cutoffs, so that a short life has something to prune
# By kind, the paths below CHURN_HOME, and how many nights of it `churn prune` keeps whole.
KINDS = {
    "model files and records": (("models",), KEPT_CUTOFFS),
    "MLflow": (("mlflow.db*", "mlartifacts"), KEPT_CUTOFFS),
    "events of each run": (("dagster/history/runs/*-*.db*",), KEPT_DAYS),
    "index of all runs": (("dagster/history/runs/index.db*",), KEPT_DAYS),
    "records of runs": (("dagster/history/runs.db*",), KEPT_DAYS),
    "logs of steps": (("dagster/storage",), KEPT_DAYS),
    "schedules": (("dagster/schedules",), KEPT_DAYS),
    "verdicts": (("verdicts",), 0),
}
OF_MODELS = ("model files and records", "MLflow")
Sizes = dict[str, float]


def sizes(home: Path) -> Sizes:
    """Bytes by kind."""
    return {
        kind: size(*(path for pattern in patterns for path in home.glob(pattern)))
        for kind, (patterns, _) in KINDS.items()
    }


class Life:
    """A shop with daily cutoffs, and what people and the clock do to it."""

    def __init__(self, home: Path, customers: int, instance: dg.DagsterInstance) -> None:
        self.home, self.settings = home, settings_of(home, customers)
        self.instance = instance
        self.defs, self.calendar = build_definitions(self.settings), self.settings.calendar()
        self.store = offline_store(self.settings)
        self.nights = 0

    def now(self) -> dt.datetime:
        day = self.calendar.first_scored + dt.timedelta(days=self.nights)
        return dt.datetime.combine(day, dt.time(3), dt.UTC)

    def night(self) -> Sizes:
        """Make what became due and take the inventory; gives what that alone has added."""
        due = backfill_batches(
            stages(()), self.defs, self.store, self.calendar, self.instance, self.now()
        )
        for batch in due:
            run_batch(batch, self.defs, self.instance, lambda step, what: None)
        before = sizes(self.home)
        self.defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance,
            asset_selection=[dg.AssetKey("asset_inventory")],
            run_config={"loggers": {"console": {"config": {"log_level": "ERROR"}}}},
        )
        self.nights += 1
        return {kind: count - before[kind] for kind, count in sizes(self.home).items()}

    def prune(self) -> None:
        """`churn prune --yes`, with every record of Dagster's beyond the kept days."""
        days_ahead = (dt.datetime.now(dt.UTC) - self.now()).days + 1
        found = prunable(
            self.settings, self.defs, self.instance, self.now(), KEPT_HERE, -days_ahead
        )
        for kind in found:
            print(f"pruned: {kind.count:6} {kind.bytes / 1e6:8.2f} MB  {kind.what}")
        for why in prune(self.settings, found):
            print(why)


def settings_of(home: Path, customers: int) -> Settings:
    return Settings(
        _env_file=None,
        home=home,
        source="synthetic",
        synthetic_customers=customers,
        cadence="daily",
        horizon_days=7,
        lookback_days=30,
        training_cutoffs=4,
    )


@dataclass(frozen=True)
class Growth:
    """Bytes of one kind.

    Args:
        night: What a night adds, without inventories.
        inventories: What those of a day add.
        remains: What remains of a night when it is pruned.
        end: The size at the end, pruned.
    """

    night: float
    inventories: float
    remains: float
    end: float

    def unpruned(self, nights: int) -> float:
        """After so many more nights, without `churn prune`."""
        return self.end + (self.night + self.inventories) * nights

    def pruned(self, nights: int, kept: int) -> float:
        """The same with it, which keeps `kept` nights whole."""
        whole = self.night * kept + self.inventories * min(kept, KEPT_DAYS_SUPERSEDED)
        return self.end + self.remains * nights + whole


def live(life: Life, nights: int) -> dict[str, Growth]:
    """The growth of each kind, measured over half of the nights."""
    life.night()  # with all of history before it
    made = nights // 2
    for _ in range(made):
        life.night()
    life.prune()
    half = sizes(life.home)
    inventory = dict.fromkeys(KINDS, 0.0)
    for _ in range(made):
        began = time.perf_counter()
        added = life.night()
        inventory = {kind: inventory[kind] + added[kind] / made for kind in KINDS}
        print(f"night {life.nights}: {time.perf_counter() - began:.0f} s", flush=True)
    whole = sizes(life.home)
    life.prune()
    end = sizes(life.home)
    return {
        kind: Growth(
            (whole[kind] - half[kind]) / made - inventory[kind],
            INVENTORIES_PER_DAY * inventory[kind],
            (end[kind] - half[kind]) / made,
            end[kind],
        )
        for kind in KINDS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--customers", type=int, default=150)
    parser.add_argument("--cutoffs", type=int, default=12)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "state"
        settings = settings_of(home, arguments.customers)
        identify(settings)
        try:
            with dagster_instance(settings) as instance:
                life = Life(home, arguments.customers, instance)
                grown = live(life, arguments.cutoffs)
        finally:
            stop(home)
    nights = NIGHTS - life.nights
    print(f"\nmeasured over {arguments.cutoffs} cutoffs, extrapolated to {NIGHTS:,}:")
    print(f"{'':26} {'KB a day':>11} {'pruned KB':>11} {'MB of all':>11} {'MB pruned':>11}")
    total = dict.fromkeys(("all", "pruned", "without models"), 0.0)
    for kind, growth in grown.items():
        forever, pruned = growth.unpruned(nights), growth.pruned(nights, KINDS[kind][1])
        daily = (growth.night + growth.inventories, growth.remains)
        columns = [*(count / 1e3 for count in daily), forever / 1e6, pruned / 1e6]
        print(f"{kind:26} " + " ".join(f"{column:11,.1f}" for column in columns))
        total["all"] += forever
        total["pruned"] += pruned
        total["without models"] += 0 if kind in OF_MODELS else pruned
    for name, count in total.items():
        print(f"{name:26} {count / 1e6:11,.0f} MB")


if __name__ == "__main__":
    main()
