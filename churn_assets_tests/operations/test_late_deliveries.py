"""Prevents: a late file that nobody reads, one that changes a cutoff which had not known it, and a
backfill that finds the same delivery again and again.
"""

import datetime as dt
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import Any

import dagster as dg
import pytest

from churn_assets.cutoffs import day_number, utc_now
from churn_assets.definitions import build_definitions
from churn_assets.history.raw import publish_slices
from churn_assets.history.readings import notice_deliveries
from churn_assets.monitoring.inventory import inventory, with_catalog
from churn_assets.monitoring.performance import outcomes_changed
from churn_assets.operations.backfill import BackfillFailed, run_batch
from churn_assets.operations.installation import offline_store
from churn_assets.operations.jobs import RANGE_START
from churn_assets.operations.plans import backfill_batches, stages
from churn_assets.settings import Settings
from churn_assets.sources import open_source
from churn_assets.sources.manifest import record
from churn_assets.stores.offline import OfflineStore
from churn_assets_tests.conftest import make_settings, query, stored

STAGES = ("ingest", "features", "training_data")
NOW = utc_now()
# Slices that are over, whenever this is run.
START = (NOW.date().replace(day=1) - dt.timedelta(days=190)).replace(day=1)


@dataclass
class Shop:
    settings: Settings
    instance: dg.DagsterInstance

    @property
    def store(self) -> OfflineStore:
        defs = build_definitions(self.settings)
        return with_catalog(offline_store(self.settings), defs, self.settings.calendar())

    def deliver(self, name: str, days: list[int], amount: int = 1, customers: str = "ab") -> None:
        """Purchases of customers on days since START."""
        folder = Path(self.settings.input_folder)
        folder.mkdir(parents=True, exist_ok=True)
        lines = ["event_id,customer_id,event_timestamp,event_type,amount"]
        for day in days:
            for customer in customers:
                at = START + dt.timedelta(days=day)
                lines.append(f"{name}{day}{customer},{customer},{at}T12:00:00Z,purchase,{amount}")
        (folder / name).write_text("\n".join(lines) + "\n")

    def backfill(self) -> list[tuple[str, tuple[str, ...]]]:
        """The runs of `churn backfill`: their stage and partitions."""
        store, calendar = self.store, self.settings.calendar()
        defs, made = build_definitions(self.settings), []
        notice_deliveries(open_source(self.settings), store, calendar, utc_now())
        for batch in backfill_batches(
            stages(STAGES), defs, store, calendar, self.instance, utc_now()
        ):
            run_batch(batch, defs, self.instance, lambda step, what: None)
            made.append((batch.stage.name, batch.keys))
        return made

    def files(self, *tables: str) -> dict[str, bytes]:
        root = self.settings.home / "offline_store"
        found = (path for table in tables for path in (root / table).glob("*/part-0.parquet"))
        return {str(path.relative_to(root)): path.read_bytes() for path in found}

    def stale(self) -> dict[str, list[str]]:
        rows = inventory(
            build_definitions(self.settings), self.store, self.settings.calendar(),
            self.instance, utc_now(),
        )  # fmt: skip
        return {row.asset.path[-1]: list(row.stale) for row in rows if row.stale}


FEATURES = ("customer_rfm_features", "customer_trend_features", "churn_labels", "training_dataset")


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a shop that has read two files. Tests go on from a copy."""
    folder = tmp_path_factory.mktemp("delivered")
    with opened(folder) as shop:
        shop.deliver("events-1.csv", list(range(0, 180, 3)))
        shop.deliver("events-2.csv", [60], customers="z")
        shop.backfill()
    return folder


@contextmanager
def opened(folder: Path) -> Iterator[Shop]:
    (folder / "dagster").mkdir(exist_ok=True)
    with dg.DagsterInstance.local_temp(str(folder / "dagster")) as instance:
        yield Shop(make_settings(folder, start=START), instance)


@pytest.fixture
def shop(delivered: Path, tmp_path: Path) -> Iterator[Shop]:
    copytree(delivered, tmp_path, dirs_exist_ok=True)
    with opened(tmp_path) as shop:
        yield shop


def test_a_late_file_is_read_by_itself_and_changes_no_cutoff_before_it(shop: Shop) -> None:
    assert shop.backfill() == []
    assert not shop.stale()
    before = shop.files(*FEATURES)
    assert len(before) > 8

    shop.deliver("events-0.csv", [40, 41], amount=100)
    [(stage, keys)] = shop.backfill()
    late_slice = (START + dt.timedelta(days=40)).replace(day=1).isoformat()
    assert (stage, keys) == ("ingest", (late_slice,))
    late = [row for row in stored(shop.settings, "raw_events") if row["amount"] == 100]
    assert len(late) == 4
    assert {row["known_at"].date() for row in late} == {utc_now().date()}
    day = day_number(START) + 40
    versions = query(
        f"FROM read_parquet('{shop.settings.home}/offline_store/daily_orders/*/part-0.parquet') "
        f"WHERE customer_id = 'a' AND day IN ({day}, {day - 1}) ORDER BY day, known_day"
    )
    assert [(v["day"] - day, v["known_day"] > v["day"]) for v in versions] == [
        (-1, False), (0, True)
    ]  # fmt: skip
    assert shop.files(*FEATURES) == before
    assert not shop.stale()
    assert shop.backfill() == []


def test_a_file_that_changed_withdraws_what_it_no_longer_has(shop: Shop) -> None:
    before = shop.files(*FEATURES)
    days = [day for day in range(0, 180, 3) if day != 42]
    shop.deliver("events-1.csv", [*days, 43])
    keys = {key for _, keys in shop.backfill() for key in keys}
    assert (START + dt.timedelta(days=42)).replace(day=1).isoformat() in keys
    rows = stored(shop.settings, "raw_events")
    gone = {row["event_id"] for row in rows if row["withdrawn_at"] is not None}
    assert gone == {"events-1.csv42a", "events-1.csv42b"}
    assert shop.files(*FEATURES) == before
    assert not shop.stale()
    assert shop.backfill() == []


def test_what_late_rows_have_made_of_outcomes_is_counted(shop: Shop) -> None:
    calendar = shop.settings.calendar()
    cutoff = calendar.first_cutoff.isoformat()
    labels = {
        row["customer_id"]: row["churned"]
        for row in stored(shop.settings, "churn_labels")
        if row["cutoff"] == calendar.first_cutoff
    }
    assert labels == {"a": 0, "b": 0, "z": 1}
    assert outcomes_changed(shop.store, calendar, cutoff) == 0
    shop.deliver("events-3.csv", [(calendar.first_cutoff - START).days + 5], customers="z")
    shop.backfill()
    assert outcomes_changed(shop.store, calendar, cutoff) == 1


def test_a_touched_file_is_no_delivery_and_one_that_is_gone_changes_nothing(shop: Shop) -> None:
    path = Path(shop.settings.input_folder) / "events-1.csv"
    os.utime(path, (1_900_000_000, 1_900_000_000))
    assert shop.backfill() == []
    (path.parent / "events-2.csv").unlink()
    assert shop.backfill() == []


def test_the_nightly_run_finds_them_too(shop: Shop) -> None:
    schedule = build_definitions(shop.settings).resolve_schedule_def("ingest_missing_slices")

    def requested() -> list[str]:
        context = dg.build_schedule_context(shop.instance, scheduled_execution_time=utc_now())
        found = schedule.evaluate_tick(context).run_requests
        return [request.tags[RANGE_START] for request in found or ()]

    assert requested() == []
    shop.deliver("events-0.csv", [40])
    assert requested() == [(START + dt.timedelta(days=40)).replace(day=1).isoformat()]


class Killed(BaseException):
    """The end of a process."""


@pytest.mark.parametrize("after", ["look", "record", 0, 1, 2, 3, 5])
def test_a_reading_that_is_killed_anywhere_loses_nothing_and_reads_nothing_twice(
    shop: Shop, delivered: Path, tmp_path_factory: pytest.TempPathFactory, after: str | int
) -> None:
    """Killed before or after the manifest is written, or after so many partitions are published.

    The next run ends in the state of a run that nobody killed; before it, old rows are readable.
    """
    with opened(copytree(delivered, tmp_path_factory.mktemp("whole") / "shop")) as whole:
        late_and_grown(whole)
        whole.backfill()
    late_and_grown(shop)
    with pytest.MonkeyPatch.context() as patch:
        left = [0 if isinstance(after, str) else after]

        def killed_after(works: Any) -> Any:
            def work(*arguments: Any, **named: Any) -> Any:
                if not left[0]:
                    raise Killed
                left[0] -= 1
                return works(*arguments, **named)

            return work

        if after == "look":
            patch.setattr("churn_assets.history.raw.record", killed_after(record))
        elif after == "record":
            works = killed_after(publish_slices)
            patch.setattr("churn_assets.history.raw.publish_slices", works)
        else:
            publish = OfflineStore._publish_partition
            patch.setattr(OfflineStore, "_publish_partition", killed_after(publish))
        with pytest.raises((Killed, BackfillFailed)):
            shop.backfill()
    assert stored(shop.settings, "raw_events")
    shop.backfill()
    assert rows_of(shop) == rows_of(whole)
    assert shop.files(*FEATURES) == whole.files(*FEATURES)
    assert shop.backfill() == []
    assert not shop.stale()


def late_and_grown(shop: Shop) -> None:
    shop.deliver("events-0.csv", [40, 41], amount=100)
    path = Path(shop.settings.input_folder) / "events-1.csv"
    path.write_text(
        path.read_text() + f"more,a,{START + dt.timedelta(days=70)}T01:00:00Z,search,\n"
    )


def rows_of(shop: Shop) -> list[tuple[object, ...]]:
    """Rows with the days on which they became known: the moment is that of the first look."""
    rows = stored(shop.settings, "raw_events") + stored(shop.settings, "quarantined_rows")
    days = ("known_at", "withdrawn_at")
    return sorted(
        tuple(
            (name, str(value.date() if name in days and value else value))
            for name, value in row.items()
        )
        for row in rows
    )
