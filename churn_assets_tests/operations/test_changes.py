"""Prevents: a state that goes on after a setting changed as if it had always been so.

One small state is made once. Each test copies it, changes something, runs the commands that the
messages name, and compares every row with a state that was made with that setting from the start.
"""

import datetime as dt
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from churn_assets.definitions import build_definitions
from churn_assets.models.artefacts import ModelStore
from churn_assets.models.champion import newest_champion, previous_champion
from churn_assets.models.runs import ModelRuns
from churn_assets.monitoring.inventory import AssetInventory, inventory, with_catalog
from churn_assets.monitoring.report import cutoff_reports, rows_per_table
from churn_assets.online.io_manager import open_to_publish
from churn_assets.online.publishing import roll_back
from churn_assets.online.server import stop
from churn_assets.online.store import read_version
from churn_assets.operations import remarks
from churn_assets.operations.automation import slices_to_read
from churn_assets.operations.backfill import BackfillFailed, run_batch
from churn_assets.operations.forgetting import (
    foreign_partitions,
    forget,
    forget_what_is_to_come,
)
from churn_assets.operations.installation import offline_store
from churn_assets.operations.plans import Batch, Range, backfill_batches, refresh_batches, stages
from churn_assets.operations.with_settings import DAGSTER_YAML
from churn_assets.sources.tables import RAW_TABLES
from churn_assets.stores.catalog import OtherDefinitions
from churn_assets.stores.identity import identify
from churn_assets.stores.views import create_views
from churn_assets_tests.conftest import GROUPS, MadeOnce, make_settings, online

pytestmark = pytest.mark.usefixtures("one_kind_of_model")

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
# Five cutoffs with features, four with labels, two with models; the last slice is half.
BASE: dict[str, Any] = {
    "source": "synthetic",
    "synthetic_customers": 80,
    "start": dt.date(2025, 1, 10),
    "end": dt.datetime(2025, 8, 20, tzinfo=dt.UTC),
    "lookback_days": 60,
    "training_cutoffs": 3,
}
# When it was made, and what it is made from; not what it is.
NOT_COMPARED = {"asset_inventory"}


class State:
    """A state folder under some settings, and what commands do to it."""

    def __init__(self, home: Path, **changed: Any) -> None:
        self.settings = make_settings(home.parent, home=home, **(BASE | changed))
        self.calendar = self.settings.calendar()
        self.defs = build_definitions(self.settings)
        self.store = with_catalog(offline_store(self.settings), self.defs, self.calendar)
        self.settings.dagster_home.mkdir(parents=True, exist_ok=True)
        shutil.copy(DAGSTER_YAML, self.settings.dagster_home)
        self.instance = dg.DagsterInstance.from_config(str(self.settings.dagster_home))

    def copy(self, home: Path, **changed: Any) -> "State":
        shutil.copytree(
            self.settings.home, home, ignore=shutil.ignore_patterns("online_store", "*.lock")
        )
        return State(home, **changed)

    def _run(self, batches: Iterator[Batch]) -> list[tuple[str, str]]:
        made = []
        for batch in batches:
            run_batch(batch, self.defs, self.instance, lambda step, what: None)
            made += [(a.path[-1], key) for a in batch.assets for key in batch.keys or [""]]
        return made

    def backfill(
        self, *names: str, now: dt.datetime = NOW, wanted: Range | None = None
    ) -> list[tuple[str, str]]:
        """`churn backfill`, and what it made."""
        return self._run(
            backfill_batches(
                stages(names), self.defs, self.store, self.calendar, self.instance, now, wanted
            )
        )

    def refresh(self, now: dt.datetime = NOW) -> list[tuple[str, str]]:
        """`churn backfill --stale`, and what it made."""
        return self._run(refresh_batches(self.defs, self.store, self.calendar, self.instance, now))

    def inventory(self, now: dt.datetime = NOW) -> dict[str, AssetInventory]:
        rows = inventory(self.defs, self.store, self.calendar, self.instance, now)
        return {row.asset.path[-1]: row for row in rows}

    def stale(self) -> dict[str, frozenset[str]]:
        return {name: row.stale for name, row in self.inventory().items() if row.stale}

    def rows(self) -> dict[tuple[str, str | None], pa.Table]:
        """Every partition that belongs to history, without what only its file says."""
        found = {}
        for name, table in self.store.tables.items():
            if name in NOT_COMPARED:
                continue
            for key in self.store.present(name):
                rows = pq.read_table(self.store.path(table, key), partitioning=None)
                found[name, key] = rows.replace_schema_metadata(None)
        return found


Rows = dict[tuple[str, str | None], pa.Table]


def assert_equal(state: State, expected: State) -> None:
    """Every row and type of two states."""
    assert_equal_rows(state.rows(), expected.rows())


def assert_equal_rows(ours: Rows, theirs: Rows) -> None:
    assert ours.keys() == theirs.keys()
    different = [target for target in ours if not ours[target].equals(theirs[target])]
    assert not different


def make_state(folder: Path) -> None:
    """A state of BASE, of which tests change copies."""
    state = State(folder / "state")
    state.backfill()
    stop(state.settings.home)


@pytest.fixture(scope="module")
def base(made_once: MadeOnce) -> State:
    return State(made_once("state", make_state) / "state")


@pytest.fixture(scope="module")
def from_the_start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], State]]:
    """The state that was made after a change from the start."""
    made: dict[str, State] = {}

    def from_the_start(change: str) -> State:
        if change not in made:
            home = tmp_path_factory.mktemp("fresh") / "state"
            made[change] = State(home, **CHANGES[change][0])
            made[change].backfill()
        return made[change]

    yield from_the_start
    for state in made.values():
        stop(state.settings.home)


@pytest.fixture
def states(tmp_path: Path) -> Iterator[list[State]]:
    """States whose servers are stopped in the end."""
    made: list[State] = []
    yield made
    for state in made:
        stop(state.settings.home)


ROLLUPS = {"daily_activity", "daily_orders", "daily_products", "scored_reviews"}
RAW = {"raw_events", "raw_customers", "raw_reviews", "raw_satisfaction", "quarantined_rows"}
MODELS = {"logistic_regression_model", "champion_model", "churn_predictions", "online_features"}
AFTER_MODELS = {"drift_report", "realised_performance", "walk_forward_report"}
AFTER_LABELS = {"churn_labels", "satisfaction_churn_labels", "training_dataset", *MODELS}
GROUP_NAMES = {group.name for group in GROUPS}

# What changes, and which assets may then have stale partitions.
CHANGES: dict[str, tuple[dict[str, Any], set[str] | None]] = {
    "horizon": ({"horizon_days": 14}, {"synthetic_truth", *AFTER_LABELS, *AFTER_MODELS}),
    "lookback": (
        {"lookback_days": 45},
        # The first cutoff moves, up to which the topic model is fitted.
        {
            *("synthetic_truth", "feature_registry", "review_topic_model"),
            *(GROUP_NAMES | AFTER_LABELS | AFTER_MODELS),
        },
    ),
    "training cutoffs": ({"training_cutoffs": 1}, {*MODELS, *AFTER_MODELS}),
    "economics": (
        {"customer_value": 20.0, "contact_cost": 9.0},
        {"churn_predictions", "online_features", *AFTER_MODELS},
    ),
    "later end": ({"end": dt.datetime(2025, 9, 10, tzinfo=dt.UTC)}, None),
    "earlier end": ({"end": dt.datetime(2025, 7, 20, tzinfo=dt.UTC)}, None),
    "later start in the slice": ({"start": dt.date(2025, 1, 20)}, None),
    "earlier start": ({"start": dt.date(2024, 12, 20)}, None),
    "later start": ({"start": dt.date(2025, 2, 5)}, None),
}


# Each makes a whole state anew: all of them with TEST_CHANGES=all.
ALL = bool(os.environ.get("TEST_CHANGES"))
USUALLY = ["horizon", "later end"]


@pytest.mark.parametrize("change", CHANGES)
def test_status_shows_exactly_what_depends_on_a_change(
    base: State, states: list[State], tmp_path: Path, change: str
) -> None:
    changed, expected = CHANGES[change]
    state = base.copy(tmp_path / "changed", **changed)
    states.append(state)
    stale = state.stale()
    if expected is not None:
        assert set(stale) == expected
    # Nothing is silent: either something is missing or stale, and the message says what to run.
    said = " ".join(remarks.of_status(list(state.inventory().values())))
    assert "churn backfill --stale" in said or not stale


@pytest.mark.parametrize("change", CHANGES if ALL else USUALLY)
def test_a_change_ends_in_the_state_that_it_would_have_been_from_the_start(
    base: State,
    states: list[State],
    from_the_start: Callable[[str], State],
    tmp_path: Path,
    change: str,
) -> None:
    changed, _ = CHANGES[change]
    state = base.copy(tmp_path / "changed", **changed)
    fresh = from_the_start(change)
    states.append(state)
    assert_ends_as(state, fresh)


def assert_ends_as(state: State, expected: State) -> None:
    """The commands that messages name make of a state what another one is."""
    state.backfill()
    state.refresh()
    if "review_topic_model" in state.stale():  # which only its own stage makes anew
        state.backfill("topics")
        state.refresh()
    assert state.stale() == {}
    assert_equal(state, expected)
    assert read_version(online(state.settings)).equals(read_version(online(expected.settings)))
    assert state.backfill() == []


@pytest.mark.skipif(not ALL, reason="makes three whole states: with TEST_CHANGES=all")
@pytest.mark.parametrize(
    "changed",
    [
        {"start": dt.date(2025, 1, 10)},
        {"start": dt.date(2024, 12, 20)},
        {"start": dt.date(2025, 2, 5), "end": dt.datetime(2025, 7, 20, tzinfo=dt.UTC)},
    ],
    ids=["earlier in the slice", "earlier", "later, and an earlier end"],
)
def test_another_start_of_files_ends_as_if_it_had_been_so_from_the_start(
    base: State, states: list[State], tmp_path: Path, changed: dict[str, Any]
) -> None:
    """Unlike the synthetic shop, files are the same whatever START is, and have rows before it."""
    folder = tmp_path / "files"
    folder.mkdir()
    with base.store.connect() as connection:
        for raw_table in RAW_TABLES:
            rows = base.store.unchecked(raw_table.table).sql
            connection.execute(
                f"COPY (SELECT * EXCLUDE (slice) FROM {rows}) "
                f"TO '{folder / raw_table.source_name}.csv' (HEADER)"
            )
    files = {"source": "files", "input_dir": folder, "start": dt.date(2025, 1, 20)}
    before = State(tmp_path / "before", **files)
    before.backfill()
    state = before.copy(tmp_path / "changed", **(files | changed))
    fresh = State(tmp_path / "fresh", **(files | changed))
    states += [before, state, fresh]
    fresh.backfill()
    assert_ends_as(state, fresh)


def test_nothing_is_made_from_two_definitions(
    base: State, states: list[State], tmp_path: Path
) -> None:
    """Issue: a new cutoff and a changed horizon gave a model of labels of both."""
    state = base.copy(tmp_path / "state", horizon_days=14)
    states.append(state)
    table = state.store.tables["training_dataset"]
    with pytest.raises(OtherDefinitions, match="churn backfill --stale"):
        state.store.scan(table, ["2025-05-01"])

    later = State(tmp_path / "state", horizon_days=14, end=dt.datetime(2025, 9, 10, tzinfo=dt.UTC))
    made = later.backfill()
    assert ("logistic_regression_model", "2025-09-01") in made
    # First what the new model needs, and no more.
    assert ("training_dataset", "2025-06-01") in made
    assert ("logistic_regression_model", "2025-06-01") not in made
    for name, row in later.inventory().items():
        newest = max(row.present, default="")
        assert newest not in row.redefined, name


def test_with_another_start_the_synthetic_shop_is_another_shop(
    base: State, states: list[State], tmp_path: Path
) -> None:
    """It opens on that day. Of files, only the slice that the day lies in has other rows."""
    shop = base.copy(tmp_path / "shop", start=dt.date(2025, 1, 20))
    states.append(shop)
    raw = shop.inventory()["raw_events"]
    assert raw.redefined == {*raw.existing} == raw.present

    before, after = (
        State(tmp_path / f"files{day}", source="files", start=dt.date(2025, 1, day)).store.declared
        for day in (10, 20)
    )
    differ = [
        key
        for key in raw.existing
        if before.reading("raw_events", key) != after.reading("raw_events", key)
    ]
    assert differ == ["2025-01-01"]


def test_a_slice_that_was_half_is_read_again(
    base: State, states: list[State], tmp_path: Path
) -> None:
    later = base.copy(tmp_path / "state", end=dt.datetime(2025, 9, 10, tzinfo=dt.UTC))
    states.append(later)
    half = later.inventory()["raw_events"]
    assert half.redefined == {"2025-08-01"}
    made = later.backfill("ingest")
    assert {("raw_events", "2025-08-01"), ("daily_orders", "2025-08-01")} <= set(made)
    assert ("raw_events", "2025-07-01") not in made
    inventory = later.inventory()
    assert not inventory["raw_events"].stale
    assert not inventory["daily_orders"].stale


def test_what_is_gone_or_damaged_is_missing_and_comes_back(
    base: State, states: list[State], tmp_path: Path
) -> None:
    """A copy has nothing online, as after a server that lost everything."""
    state = base.copy(tmp_path / "state")
    states.append(state)
    models = state.settings.home / "models"
    shutil.rmtree(models / "logistic_regression_model" / "cutoff=2025-07-01")
    decision = models / "champion_model" / "cutoff=2025-07-01" / "manifest.json"
    decision.write_text(decision.read_text()[:-20])
    [pipeline] = (models / "logistic_regression_model" / "cutoff=2025-08-01").glob("*/*.skops")
    pipeline.write_bytes(pipeline.read_bytes()[:-1])
    table = state.store.tables["customer_rfm_features"]
    rfm = state.store.path(table, "2025-06-01")
    rfm.write_bytes(rfm.read_bytes()[:-100])

    missing = {name: row.missing for name, row in state.inventory().items() if row.missing}
    assert missing == {
        "customer_rfm_features": ["2025-06-01"],
        "logistic_regression_model": ["2025-07-01", "2025-08-01"],
        "champion_model": ["2025-07-01"],
        "online_features": ["2025-08-01"],
    }
    state.backfill()
    assert not any(row.missing for row in state.inventory().values())
    assert_equal(state, base)
    assert state.backfill() == []


def test_a_file_that_somebody_else_wrote_is_shown_and_made_again(
    base: State, states: list[State], tmp_path: Path
) -> None:
    """The record of the file that it replaced is not about it."""
    state = base.copy(tmp_path / "state")
    states.append(state)
    path = state.store.path(state.store.tables["churn_labels"], "2025-05-01")
    pq.write_table(pq.read_table(path, partitioning=None).replace_schema_metadata(None), path)
    assert state.inventory()["churn_labels"].redefined == {"2025-05-01"}
    state.backfill()  # what went online is in no copy
    state.refresh()
    assert state.stale() == {}
    assert_equal(state, base)


def test_partitions_outside_history_are_read_by_nothing(
    base: State, states: list[State], tmp_path: Path
) -> None:
    """After a later START and an earlier END; a forgotten partition is gone from Dagster too."""
    changed = {"start": dt.date(2025, 2, 5), "end": dt.datetime(2025, 7, 20, tzinfo=dt.UTC)}
    state = base.copy(tmp_path / "state", **changed)
    states.append(state)
    foreign = {name: row.foreign for name, row in state.inventory().items() if row.foreign}
    assert foreign["raw_events"] == {"2025-01-01", "2025-08-01"}
    assert "2025-08-01" in foreign["champion_model"]
    assert "2025-01-01" not in state.store.keys(state.store.tables["raw_events"])
    with state.store.connect() as connection:
        create_views(connection, state.store)
        first, last = connection.sql("SELECT min(slice), max(slice) FROM raw_events").fetchall()[0]
    assert (str(first), str(last)) == ("2025-02-01", "2025-07-01")
    said = " ".join(remarks.of_status(list(state.inventory().values())))
    assert "foreign" in said

    # Neither what comes before the first decision of history, nor what comes after the last.
    assert state.store.declared.previous("champion_model", "2025-07-01") is None
    assert state.inventory()["online_features"].missing == ["2025-07-01"]
    models = ModelStore(state.settings.home)
    assert previous_champion(state.calendar, models, dt.date(2025, 7, 1)) is None
    newest = newest_champion(state.calendar, models)
    assert newest is not None and newest.cutoff == "2025-07-01"
    reports = cutoff_reports(state.store, state.calendar)
    assert [report.cutoff for report in reports] == [dt.date(2025, 7, 1)]
    assert rows_per_table(state.store)["champion_model"][0] == 1

    gone = foreign_partitions(state.store, state.instance, NOW)
    assert {name: gone[name] for name in foreign} == foreign
    forget(state.store, state.instance, gone)
    assert not any(row.foreign for row in state.inventory().values())
    assert not list(state.settings.home.glob("offline_store/*/slice=2025-01-01"))
    kept = state.instance.get_materialized_partitions(dg.AssetKey("raw_events"))
    assert min(kept) == "2025-02-01"


def test_what_a_clock_that_was_ahead_has_made_is_made_again(
    states: list[State], tmp_path: Path
) -> None:
    """Without CHURN_END: slices were read before they began, and would count as read for good."""
    state = State(tmp_path / "state", end=None, start=dt.date(2025, 1, 10))
    states.append(state)
    now, ahead = (dt.datetime(2025, m, 15, tzinfo=dt.UTC) for m in (6, 8))
    state.backfill("ingest", "features", "training_data", now=ahead)
    made_at_once = state.rows()
    assert state.inventory(now)["raw_events"].foreign == {"2025-06-01", "2025-07-01"}

    removed = forget_what_is_to_come(state.store, state.instance, now)
    assert removed["raw_events"] == {"2025-06-01", "2025-07-01"}
    assert removed["training_dataset"] >= {"2025-06-01"}
    assert not any(row.foreign for row in state.inventory(now).values())
    assert not forget_what_is_to_come(state.store, state.instance, now)
    state.backfill("ingest", "features", "training_data", now=ahead)
    assert_equal_rows(state.rows(), made_at_once)


def test_a_slice_that_is_held_back_is_read_again_once_its_source_is_mended(
    states: list[State], tmp_path: Path
) -> None:
    def deliver(customer: str) -> None:
        lines = [f"{customer},2025-02-{day:02} 10:00:00,purchase" for day in range(1, 20)]
        lines += [f"c{day},2025-01-{day:02} 10:00:00,purchase" for day in range(11, 30)]
        lines += [f"c{day},2025-02-{day:02} 11:00:00,purchase" for day in range(1, 5)]
        source = Path(state.settings.input_folder) / "events.csv"
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text("\n".join(["customer_id,event_timestamp,event_type", *lines]))

    end = dt.datetime(2025, 3, 1, tzinfo=dt.UTC)
    state = State(tmp_path / "state", source="files", end=end)
    states.append(state)
    deliver("")
    with pytest.raises(BackfillFailed, match="quarantine"):
        state.backfill("ingest")
    held = {name: row.held_back for name, row in state.inventory().items() if row.held_back}
    assert held == {"raw_events": {"2025-02-01"}}
    said = " ".join(remarks.of_status(list(state.inventory().values())))
    assert "raw_events 2025-02-01 is held back" in said
    assert "`churn backfill` reads the source again" in said
    known = with_catalog(offline_store(state.settings), state.defs, state.calendar)
    assert "2025-02-01" in slices_to_read(known, state.calendar, state.instance, NOW)

    deliver("c1")
    state.backfill("ingest")
    assert not any(row.held_back for row in state.inventory().values())
    assert slices_to_read(known, state.calendar, state.instance, NOW) == []


@pytest.mark.parametrize("table", sorted(RAW))
def test_the_schedule_misses_no_raw_table(
    base: State, states: list[State], tmp_path: Path, table: str
) -> None:
    """A run that failed in the middle left the other tables missing for ever."""
    state = base.copy(tmp_path / "state")
    states.append(state)
    assert slices_to_read(state.store, state.calendar, state.instance, NOW) == []
    state.store.path(state.store.tables[table], "2025-04-01").unlink()
    assert slices_to_read(state.store, state.calendar, state.instance, NOW) == ["2025-04-01"]


def test_a_state_that_was_moved_goes_on_as_if_it_had_not(
    base: State, states: list[State], from_the_start: Callable[[str], State], tmp_path: Path
) -> None:
    """Whatever is still looked for in the old place is not there, or is made there again."""
    before = base.copy(tmp_path / "before" / "state")
    before.backfill()
    stop(before.settings.home)
    (tmp_path / "before").rename(tmp_path / "after")
    moved = State(tmp_path / "after" / "state", **CHANGES["later end"][0])
    states.append(moved)

    moved.backfill()
    moved.refresh()
    assert_equal(moved, from_the_start("later end"))
    assert not (tmp_path / "before").exists()
    settings = moved.settings
    version = roll_back(open_to_publish(settings.home, None, identify(settings)))
    assert version.startswith("2025-08-01")
    runs = ModelRuns(settings.home, None, partial(identify, settings))
    found = runs.client.search_runs([runs.experiment_id])
    assert found
    places = {run.info.artifact_uri for run in found}
    assert all(str(settings.home.resolve()) in place for place in places)


def test_files_beside_a_synthetic_shop_are_told_of(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, source="synthetic")
    assert remarks.unread_input(settings) == []
    folder = Path(settings.input_folder)
    folder.mkdir()
    (folder / ".keep").touch()
    assert remarks.unread_input(settings) == []
    (folder / "orders.csv").touch()
    (folder / "events.csv").touch()
    [said] = remarks.unread_input(settings)
    assert "events.csv and 1 more" in said and "CHURN_SOURCE=files" in said
    assert remarks.unread_input(make_settings(tmp_path)) == []
