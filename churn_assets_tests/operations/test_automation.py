"""Prevents: a graph that forgets what became due during an outage, makes a partition twice, or
makes one before its inputs are there.
"""

import datetime as dt
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from churn_assets.cutoffs import Cadence
from churn_assets.definitions import build_definitions
from churn_assets.features.group import FeatureGroup
from churn_assets.models.artefacts import ModelStore
from churn_assets.models.kinds import ESTIMATORS
from churn_assets.monitoring.inventory import AssetInventory, inventory, with_catalog
from churn_assets.online.server import stop
from churn_assets.operations import remaking
from churn_assets.operations.backfill import run_batch
from churn_assets.operations.installation import offline_store
from churn_assets.operations.jobs import RANGE_END, RANGE_START, STAGES
from churn_assets.operations.plans import Batch, backfill_batches, refresh_batches, stages
from churn_assets.settings import Settings
from churn_assets_tests.conftest import GROUPS, make_settings

# Ticks of the sensor after which a test gives up waiting for it to fall silent.
MOST_TICKS = 20


class Clock:
    """A deployment in simulated time: its schedule, its sensor, and a log of what was requested."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.use(settings)
        folder.mkdir(exist_ok=True)
        self.instance = dg.DagsterInstance.local_temp(str(folder))
        self.requested: list[tuple[str, str]] = []

    def copy(self, folder: Path) -> "Clock":
        """A deployment that goes on from here, in a folder that does not exist yet."""
        ignored = shutil.ignore_patterns("online_store")
        shutil.copytree(self.settings.home.parent, folder, ignore=ignored)
        return Clock(self.settings.model_copy(update={"home": folder / "state"}), folder)

    def use(self, settings: Settings) -> None:
        """Deploy the code location with settings, as a restart does."""
        self.settings = settings
        self.defs, self.calendar = build_definitions(settings), settings.calendar()
        self.store = with_catalog(offline_store(settings), self.defs, self.calendar)
        self.cursor: Any = None

    def run(self, assets: list[dg.AssetKey], keys: list[str]) -> None:
        tags = {RANGE_START: keys[0], RANGE_END: keys[-1]} if keys else {}
        self.defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance, asset_selection=assets, tags=tags
        )
        self.requested += [(asset.to_user_string(), key) for asset in assets for key in keys]

    def schedule(self, now: dt.datetime) -> None:
        """A tick of the ingestion schedule, and the runs that it requests."""
        schedule = self.defs.resolve_schedule_def("ingest_missing_slices")
        with dg.build_schedule_context(
            instance=self.instance,
            scheduled_execution_time=now,
            repository_def=self.defs.get_repository_def(),
        ) as context:
            tick = schedule.evaluate_tick(context)
        raw = sorted(self.defs.resolve_asset_graph().asset_keys_for_group("raw"))
        calendar_keys = self.defs.resolve_asset_graph().get(raw[0]).partitions_def
        assert calendar_keys is not None
        for request in tick.run_requests or []:
            bounds = request.tags[RANGE_START], request.tags[RANGE_END]
            keys = calendar_keys.get_partition_keys_in_range(dg.PartitionKeyRange(*bounds))
            self.run(raw, list(keys))

    def sense(self, now: dt.datetime) -> int:
        """A tick of the sensor, and the runs that it requests; returns how many partitions."""
        result = dg.evaluate_automation_conditions(
            self.defs, self.instance, cursor=self.cursor, evaluation_time=now
        )
        self.cursor = result.cursor
        graph = self.defs.resolve_asset_graph()
        together: dict[tuple[str, ...], list[dg.AssetKey]] = {}
        for asset in graph.toposorted_asset_keys:
            requested = result.get_requested_partitions(asset)
            if requested:
                partitions = repr(graph.get(asset).partitions_def)
                keys = sorted(key for key in requested if key)
                together.setdefault((partitions, *keys), []).append(asset)
        for (_, *keys), assets in together.items():
            self.run(assets, keys)
        return result.total_requested

    def advance(self, now: dt.datetime) -> None:
        """A day: the schedule, then the sensor until it has nothing to ask for."""
        self.schedule(now)
        self.settle(now)

    def settle(self, now: dt.datetime) -> None:
        """The sensor until it has nothing to ask for."""
        for _ in range(MOST_TICKS):
            if not self.sense(now):
                return
        raise AssertionError(f"The sensor never fell silent on {now}.")

    def remake(self, now: dt.datetime) -> None:
        """The sensor of what a change redefined, until it has nothing to ask for."""
        jobs = [self.defs.resolve_job_def(stage.name) for stage in STAGES]
        sensor = remaking.sensor(lambda: self.defs, self.store, self.calendar, jobs, lambda: now)
        for _ in range(MOST_TICKS):
            with dg.build_sensor_context(
                instance=self.instance, repository_def=self.defs.get_repository_def()
            ) as context:
                requests = sensor.evaluate_tick(context).run_requests or []
            for request in requests:
                self.defs.resolve_job_def(str(request.job_name)).execute_in_process(
                    instance=self.instance,
                    asset_selection=list(request.asset_selection or []),
                    tags=request.tags,
                )
            if not requests:
                return
            self.settle(now)
        raise AssertionError(f"The sensor never fell silent on {now}.")

    def inventory(self, settings: Settings, now: dt.datetime) -> dict[str, AssetInventory]:
        rows = inventory(self.defs, self.store, settings.calendar(), self.instance, now)
        return {row.asset.path[-1]: row for row in rows}

    def rows(self, table: str, key: str | None) -> pa.Table:
        """A partition, without what only its file says."""
        path = self.store.path(self.store.tables[table], key)
        return pq.read_table(path, partitioning=None).replace_schema_metadata(None)

    def version(self, cutoff: str) -> str:
        """Of the model that learned at a cutoff: a digest of what it is."""
        return ModelStore(self.store.home).manifest(ESTIMATORS[0].name, cutoff).version

    def backfill(self, settings: Settings, now: dt.datetime) -> None:
        """What a person did before the automation was switched on."""
        store = offline_store(settings)
        self._make(
            backfill_batches(stages(()), self.defs, store, settings.calendar(), self.instance, now)
        )

    def refresh(self, now: dt.datetime) -> None:
        """What a person does afterwards, with `--stale`."""
        self._make(refresh_batches(self.defs, self.store, self.calendar, self.instance, now))

    def _make(self, batches: Iterator[Batch]) -> None:
        for batch in batches:
            run_batch(batch, self.defs, self.instance, lambda step, what: None)

    def present(self, now: dt.datetime) -> dict[str, tuple[set[str], set[str]]]:
        """Per partitioned asset, what exists and what was materialized."""
        graph = self.defs.resolve_asset_graph()
        return {
            key.to_user_string(): (
                set(definition.get_partition_keys(current_time=now)),
                set(self.instance.get_materialized_partitions(key)),
            )
            for key in graph.materializable_asset_keys
            if (definition := graph.get(key).partitions_def) is not None
        }


@pytest.mark.usefixtures("one_kind_of_model")
@pytest.mark.parametrize(
    ("cadence", "lookback", "start", "first", "days", "every", "outage"),
    [
        (Cadence.MONTHLY, 60, dt.date(2024, 9, 1), dt.date(2025, 1, 20), 165, 15, (30, 125)),
        (Cadence.WEEKLY, 30, dt.date(2024, 11, 18), dt.date(2025, 1, 23), 35, 6, (8, 30)),
    ],
)
def test_arrivals_with_an_outage_of_three_periods(
    tmp_path: Path,
    cadence: Cadence,
    lookback: int,
    start: dt.date,
    first: dt.date,
    days: int,
    every: int,
    outage: tuple[int, int],
) -> None:
    settings = make_settings(
        tmp_path,
        source="synthetic",
        synthetic_customers=60,
        start=start,
        cadence=cadence,
        lookback_days=lookback,
        horizon_days=14,
    )
    clock = Clock(settings, tmp_path)
    morning = dt.datetime(first.year, first.month, first.day, 2, 30, tzinfo=dt.UTC)
    clock.backfill(settings, morning)
    assert clock.sense(morning) == 0, "what a person has made is not made again"

    for day in range(0, days, every):
        if outage[0] <= day < outage[1]:
            continue
        clock.advance(morning + dt.timedelta(days=day))
    end = morning + dt.timedelta(days=days)
    clock.advance(end)

    for asset, (existing, materialized) in clock.present(end).items():
        assert materialized == existing, asset
    repeated = [target for target, count in Counter(clock.requested).items() if count > 1]
    assert repeated == []

    # In order: nothing is asked for before what it is made from.
    graph = clock.defs.resolve_asset_graph()
    made = {target: position for position, target in enumerate(clock.requested)}
    for (asset, key), position in made.items():
        for parent in graph.get(dg.AssetKey(asset)).parent_keys:
            # Of a parent with the same cutoff, not of slices or of labels that are long mature.
            mapping = graph.get_partition_mapping(dg.AssetKey(asset), parent)
            same = mapping == settings.calendar().same_cutoff
            same &= graph.get(parent).partitions_def != settings.calendar().slices
            earlier = made.get((parent.to_user_string(), key), -1)
            assert not same or earlier < position, (asset, key, parent)


def test_history_waits_for_a_person(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, source="synthetic", synthetic_customers=60)
    clock = Clock(settings, tmp_path)
    now = dt.datetime(2025, 8, 20, tzinfo=dt.UTC)
    clock.settle(now)
    assert clock.requested == []  # of all that is partitioned
    (made,) = clock.instance.fetch_materializations(dg.AssetKey("feature_registry"), 10).records
    assert made


def redefine_frequency(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a release does that counts purchases otherwise, in one feature of one group."""

    def redefined(group: FeatureGroup) -> FeatureGroup:
        features = tuple(
            replace(feature, sql=f"2 * ({feature.sql})") if feature.name == "frequency" else feature
            for feature in group.features
        )
        return replace(group, features=features)

    groups = tuple(redefined(group) for group in GROUPS)
    assert groups != GROUPS
    for module in ("definitions", "operations.installation"):
        monkeypatch.setattr(f"churn_assets.{module}.feature_groups", lambda *_: groups)


BETWEEN_TWO_CUTOFFS = dt.datetime(2025, 3, 20, 2, 30, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def before(one_kind_of_model: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clock]:
    """A deployment of four cutoffs, two of them with a model, before something changes."""
    folder = tmp_path_factory.mktemp("before")
    settings = make_settings(
        folder,
        source="synthetic",
        synthetic_customers=60,
        start=dt.date(2024, 10, 1),
        lookback_days=60,
        training_cutoffs=2,
    )
    clock = Clock(settings, folder)
    clock.backfill(settings, BETWEEN_TWO_CUTOFFS)
    yield clock
    stop(settings.home)


@pytest.mark.parametrize("change", ["horizon", "feature"])
def test_a_change_is_followed_by_itself(
    before: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Deployed between two cutoffs, by a daemon's work alone: no mixed model in between."""
    clock, now = before.copy(tmp_path / "changed"), BETWEEN_TWO_CUTOFFS
    settings = {"horizon_days": 14} if change == "horizon" else {}
    if change == "feature":
        redefine_frequency(monkeypatch)
    after = clock.settings.model_copy(update=settings)
    clock.use(after)
    asked = clock.inventory(after, now)["training_dataset"].redefined
    assert asked, "the change has redefined what models learn from"
    clock.advance(now)
    clock.remake(now)
    older = {
        key: set(row.redefined) for key, row in clock.inventory(after, now).items() if row.redefined
    }
    newest = "2025-03-01"
    assert older, "what nothing reads any more is a person's to make again"
    assert all(newest not in keys for keys in older.values()), older
    # The next cutoff comes by itself, and everything that it is served with is of one definition.
    later = dt.datetime(2025, 4, 2, 2, 30, tzinfo=dt.UTC)
    clock.advance(later)
    clock.remake(later)
    rows = clock.inventory(after, later)
    assert "2025-04-01" in rows["online_features"].present
    for name, row in rows.items():
        assert "2025-04-01" not in row.redefined | row.failed, name
    failed = clock.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
    assert failed == []

    # As in a deployment that never knew anything else, but for the champion: it defends itself
    # against none of the time before the change.
    fresh = Clock(after.model_copy(update={"home": tmp_path / "fresh"}), tmp_path / "other")
    fresh.backfill(fresh.settings, later)
    for group in GROUPS:
        assert clock.rows(group.name, "2025-04-01").equals(fresh.rows(group.name, "2025-04-01"))
    assert clock.version("2025-04-01") == fresh.version("2025-04-01")

    clock.refresh(later)
    assert not any(row.stale for row in clock.inventory(after, later).values())
    for name in ("training_dataset", "churn_predictions"):
        for key in fresh.store.present(name):
            assert clock.rows(name, key).equals(fresh.rows(name, key)), (name, key)


@pytest.mark.parametrize(
    ("outcomes", "asks"), [("", True), ("F", True), ("FF", False), ("FFS", True), ("FR", False)]
)
def test_what_failed_twice_is_left_to_a_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcomes: str, asks: bool
) -> None:
    settings = make_settings(tmp_path, source="synthetic")
    defs, store = build_definitions(settings), offline_store(settings)
    stage = next(stage for stage in STAGES if stage.name == "features")
    job = defs.resolve_job_def(stage.name)
    batch = Batch(stage, (dg.AssetKey("customer_rfm_features"),), ("2025-05-01", "2025-06-01"))
    monkeypatch.setattr(remaking, "next_to_remake", lambda *_: (batch, "rfm under 1"))
    sensor = remaking.sensor(lambda: defs, store, settings.calendar(), [job])
    status = {
        "F": dg.DagsterRunStatus.FAILURE,
        "S": dg.DagsterRunStatus.SUCCESS,
        "R": dg.DagsterRunStatus.STARTED,
    }
    with dg.DagsterInstance.ephemeral() as instance:
        tags = {**remaking.STARTED_BY, remaking.REMAKES: "rfm under 1"}
        for outcome in outcomes:
            instance.create_run_for_job(job, status=status[outcome], tags=tags)
        with dg.build_sensor_context(
            instance=instance, repository_def=defs.get_repository_def()
        ) as context:
            tick = sensor.evaluate_tick(context)
    requests = tick.run_requests or []
    assert [request.job_name for request in requests] == ["features"] * asks
    if asks:
        # Another key than those before, which the daemon would take for done.
        assert requests[0].run_key == f"rfm under 1, run {len(outcomes) + 1}"
        assert requests[0].tags[RANGE_END] == "2025-06-01"
