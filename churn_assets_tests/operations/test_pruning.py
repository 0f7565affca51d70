"""Prevents: pruning that takes what somebody reads, changes what is true, or gives nothing back.

"Older than so many days" is not "not needed": each guard is asked about the model that only it
keeps. One small state is made once, and each test prunes a copy.
"""

import datetime as dt
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import TickData, TickStatus
from mlflow.entities import ViewType

from churn_assets.cli.state import prune as prune_command
from churn_assets.models import champion as champions
from churn_assets.models.artefacts import Manifest, ModelStore, versioned
from churn_assets.models.champion import CHAMPION_MODEL, Champion, find_champion
from churn_assets.models.incumbent import ModelIdentity
from churn_assets.models.kinds import ESTIMATORS
from churn_assets.models.old_runs import delete_runs, old_runs
from churn_assets.models.runs import CHAMPION, ModelRuns
from churn_assets.monitoring.inventory import AssetInventory
from churn_assets.monitoring.refresh_log import refresh_log
from churn_assets.online.server import stop
from churn_assets.operations import old_records, pruning
from churn_assets.operations.backfill import BackfillFailed, run_batch
from churn_assets.operations.disk_space import compact, free_bytes, size
from churn_assets.operations.models_in_use import prunable_models
from churn_assets.operations.plans import Batch, Range, stages
from churn_assets.operations.reset import kept
from churn_assets.serving.audit import folder as audit_folder
from churn_assets.serving.audit import old_days
from churn_assets.serving.live_champion import LiveChampion
from churn_assets.stores.artefacts import MANIFEST, PRUNED, PrunedArtefact
from churn_assets.stores.tracking import ASSET_TAG, PARTITION_TAG
from churn_assets_tests.conftest import GROUPS, make_settings, model_runs
from churn_assets_tests.models.test_tracking import made
from churn_assets_tests.operations.test_changes import NOW, State

pytestmark = pytest.mark.usefixtures("one_kind_of_model")

# Six cutoffs with models; the last one's outcomes are not known.
SCORED = [f"2025-{month:02}-01" for month in range(6, 12)]
END = dt.datetime(2025, 11, 20, tzinfo=dt.UTC)
LATER = NOW + dt.timedelta(days=10_000)  # every record is older
MODEL = ESTIMATORS[0].name


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> State:
    state = State(tmp_path_factory.mktemp("base") / "state", end=END)
    state.backfill()
    stop(state.settings.home)
    return state


@pytest.fixture
def state(base: State, tmp_path: Path) -> Iterator[State]:
    """A copy of the state, with what is online."""
    ignored = shutil.ignore_patterns("*.sock", "*.lock")
    shutil.copytree(base.settings.home, tmp_path / "state", ignore=ignored)
    copied = State(tmp_path / "state", end=END)
    yield copied
    stop(copied.settings.home)


def found(state: State, kept_cutoffs: int = 1, kept_days: int = 400) -> list[pruning.Prunable]:
    return pruning.prunable(
        state.settings, state.defs, state.instance, NOW, kept_cutoffs, kept_days
    )


def facts(state: State) -> dict[str, Any]:
    return {
        name: (row.present, row.missing, row.failed, row.stale)
        for name, row in state.inventory().items()
    }


def again(cutoff: str) -> Range:
    day = dt.date.fromisoformat(cutoff)
    return Range(day, day, again=True)


def test_a_pruned_model_counts_as_made_and_comes_back_as_it_was(state: State) -> None:
    store = ModelStore(state.settings.home)
    before, rows = facts(state), state.rows()
    decisions = {cutoff: find_champion(store, dt.date.fromisoformat(cutoff)) for cutoff in SCORED}
    manifests = {cutoff: store.manifest(MODEL, cutoff) for cutoff in SCORED}

    pruning.prune(state.settings, found(state))
    gone = [cutoff for cutoff in SCORED if not store.is_whole(MODEL, cutoff)]
    assert len(gone) >= 3
    assert SCORED[-1] not in gone
    for cutoff in gone:
        names = {path.name for path in store.folder(MODEL, cutoff).iterdir()}
        assert names == {MANIFEST, PRUNED}
    assert {cutoff: store.manifest(MODEL, cutoff) for cutoff in SCORED} == manifests
    assert facts(state) == before
    assert state.backfill() == []
    assert state.refresh() == []
    assert found(state) == []
    assert kept(state.settings.home) == [], "`churn reset` knows the mark"

    # The second: what its decision was made against is pruned too.
    cutoff = gone[1]
    command = f"`churn backfill --stage models --from {cutoff} --to {cutoff}`"
    with pytest.raises(PrunedArtefact, match=command):
        store.load(manifests[cutoff], manifests[cutoff].feature_versions)
    state.backfill("models", wanted=again(cutoff))
    assert store.is_whole(MODEL, cutoff)
    assert not (store.folder(MODEL, cutoff) / PRUNED).exists()
    assert {c: find_champion(store, dt.date.fromisoformat(c)) for c in SCORED} == decisions
    assert facts(state) == before
    after = state.rows()
    assert all(after[target].equals(rows[target]) for target in rows)


def test_what_reads_a_pruned_model_makes_it_first(base: State, state: State) -> None:
    pruning.prune(state.settings, found(state))
    store = ModelStore(state.settings.home)
    rows, gone = state.rows(), [c for c in SCORED if not store.is_whole(MODEL, c)]
    state.store.path(state.store.tables["churn_predictions"], gone[0]).unlink()
    assert (MODEL, gone[0]) in state.backfill()
    after = state.rows()
    assert all(after[target].equals(rows[target]) for target in rows)

    dearer = State(state.settings.home, end=END, customer_value=90.0)
    assert SCORED[1] in dearer.stale()["churn_predictions"]
    dearer.refresh()
    assert not dearer.stale()


def test_a_decision_is_not_made_without_its_incumbent(state: State) -> None:
    """It would count as none, and the champion might change without a word."""
    pruning.prune(state.settings, found(state))
    store = ModelStore(state.settings.home)
    first, second = [cutoff for cutoff in SCORED if not store.is_whole(MODEL, cutoff)][:2]
    decision = find_champion(store, dt.date.fromisoformat(second))
    [stage] = stages(["models"])

    def run(asset: str) -> None:
        batch = Batch(stage, (dg.AssetKey(asset),), (second,))
        run_batch(batch, state.defs, state.instance, lambda step, what: None)

    run(MODEL)  # as from the web UI, where nobody plans
    with pytest.raises(BackfillFailed, match=f"--from {first} --to {first}"):
        run(CHAMPION_MODEL.name)
    assert find_champion(store, dt.date.fromisoformat(second)) == decision


def test_serving_says_that_a_model_was_pruned(state: State) -> None:
    store = ModelStore(state.settings.home)
    newest = champions.newest_champion(state.calendar, store)
    assert newest is not None
    store.prune(newest.model, newest.model_cutoff)
    live = LiveChampion(store, state.calendar, GROUPS, 0.5)
    live.watch()
    assert f"--from {newest.model_cutoff} --to {newest.model_cutoff}" in live.problem


# Which models are in use


def write_fit(folder: Path) -> None:
    (folder / "fit").write_bytes(b"fitted")


class Shop:
    """Tiny models of two kinds at each cutoff, decisions, and an inventory where all is well."""

    KINDS = ("a_model", "b_model")

    def __init__(self, home: Path) -> None:
        self.settings = make_settings(home, home=home, start=dt.date(2025, 1, 10), end=END)
        self.calendar, self.models = self.settings.calendar(), ModelStore(home)
        for cutoff in SCORED:
            for kind in self.KINDS:
                manifest = versioned(
                    Manifest(kind, cutoff, (), {}, ("2025-01-01",), "2025-01-01", {}, 0, 1, 7, "")
                )
                self.models.publish(
                    self.models.folder(kind, cutoff),
                    manifest.version,
                    json.dumps(asdict(manifest)),
                    write_fit,
                )
            self.decide(cutoff, cutoff)
        self.rows = {
            name: self.row(name, group)
            for name, group in (
                *((kind, "models") for kind in (*self.KINDS, CHAMPION_MODEL.name)),
                ("churn_predictions", "predictions"),
                ("realised_performance", "performance"),
                ("online_features", "online"),
            )
        }

    def row(self, name: str, group: str) -> AssetInventory:
        everything, none = frozenset(SCORED), frozenset[str]()
        return AssetInventory(dg.AssetKey(name), group, SCORED, everything, none, none)

    def decide(self, cutoff: str, model_cutoff: str, incumbent: str | None = None) -> None:
        """Choose kind `a_model` of a cutoff."""
        identity = ModelIdentity("a_model", incumbent, "x") if incumbent else None
        decision = Champion(
            cutoff, "a_model", model_cutoff, "x", True, "", None, "2025-01-01", {}, {}, identity
        )
        path = self.models.manifest_path(CHAMPION_MODEL.name, cutoff)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(decision)))

    def lacks(self, asset: str, cutoff: str) -> None:
        row = self.rows[asset]
        self.rows[asset] = replace(row, present=row.present - {cutoff})

    def is_stale(self, asset: str, cutoff: str) -> None:
        row = self.rows[asset]
        self.rows[asset] = replace(row, stale=row.stale | {cutoff})

    def kept(self, online: tuple[str, ...] = (), newest: int = 1) -> set[tuple[str, str]]:
        """The models that stay though they are not of the newest cutoffs."""
        rows = list(self.rows.values())
        gone = prunable_models(self.models, self.calendar, rows, online, newest)
        old = {(kind, cutoff) for kind in self.KINDS for cutoff in SCORED[:-newest]}
        assert set(gone) <= old
        return old - set(gone)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_what_nobody_reads_goes_oldest_first(shop: Shop) -> None:
    assert shop.kept() == set()
    rows = list(shop.rows.values())
    gone = prunable_models(shop.models, shop.calendar, rows, (), 3)
    assert [cutoff for _, cutoff in gone] == sorted([*SCORED[:-3], *SCORED[:-3]])


def test_the_champion_that_serves_stays(shop: Shop) -> None:
    shop.decide(SCORED[-1], SCORED[0])
    assert shop.kept() == {("a_model", SCORED[0])}


def test_the_incumbent_of_the_newest_decision_stays(shop: Shop) -> None:
    shop.decide(SCORED[-1], SCORED[-1], incumbent=SCORED[1])
    assert shop.kept() == {("a_model", SCORED[1])}


def test_models_of_what_is_online_stay(shop: Shop) -> None:
    shop.decide(SCORED[3], SCORED[2])
    assert shop.kept(online=(f"{SCORED[3]}-0011", "")) == {("a_model", SCORED[2])}


def test_a_model_whose_predictions_wait_for_outcomes_stays(shop: Shop) -> None:
    shop.decide(SCORED[3], SCORED[2])
    shop.lacks("realised_performance", SCORED[3])
    assert shop.kept() == {("a_model", SCORED[2])}


def test_what_missing_partitions_would_read_stays(shop: Shop) -> None:
    shop.lacks("churn_predictions", SCORED[1])
    assert shop.kept() == {("a_model", SCORED[1])}
    # A decision grades every candidate of its cutoff, and the champion of the one before.
    shop.lacks(CHAMPION_MODEL.name, SCORED[4])
    candidates = {(kind, SCORED[4]) for kind in shop.KINDS}
    assert shop.kept() == {("a_model", SCORED[1]), ("a_model", SCORED[3]), *candidates}


def test_what_stale_partitions_would_read_stays_unless_it_is_made_first(shop: Shop) -> None:
    shop.is_stale("churn_predictions", SCORED[1])
    shop.is_stale(CHAMPION_MODEL.name, SCORED[4])
    candidates = {(kind, SCORED[4]) for kind in shop.KINDS}
    assert shop.kept() == {("a_model", SCORED[1]), ("a_model", SCORED[3]), *candidates}
    shop.is_stale("a_model", SCORED[1])
    shop.is_stale("b_model", SCORED[4])
    assert shop.kept() == {("a_model", SCORED[3]), ("a_model", SCORED[4])}


def test_models_outside_history_do_not_count_among_the_newest(shop: Shop) -> None:
    for name, row in shop.rows.items():
        shop.rows[name] = replace(row, existing=SCORED[:-1], present=frozenset(SCORED[:-1]))
    shop.decide(SCORED[-1], SCORED[-2])
    gone = prunable_models(shop.models, shop.calendar, list(shop.rows.values()), (), 1)
    assert {cutoff for _, cutoff in gone} == set(SCORED[:-2])


def test_the_online_store_is_asked(state: State) -> None:
    rows = list(state.inventory().values())
    live, _ = pruning.retained_online(state.settings, rows)
    assert live.startswith(SCORED[-1])
    empty = [replace(row, present=frozenset()) for row in rows]
    assert pruning.retained_online(state.settings, empty) == ()


def test_a_prune_that_was_killed_is_repeated(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    [model, *_] = prunable_models(shop.models, shop.calendar, list(shop.rows.values()), (), 1)
    folder = shop.models.versions(*model)[0]
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda path: (path / "fit").unlink() or (1 / 0))
        with suppress(ZeroDivisionError):
            shop.models.prune(*model)
    assert folder.exists()
    assert shop.models.is_there(*model)
    assert not shop.models.is_whole(*model)
    assert model in prunable_models(shop.models, shop.calendar, [*shop.rows.values()], (), 1)
    shop.models.prune(*model)
    assert not folder.exists()


# Runs in MLflow


def all_runs(tracking: ModelRuns, view: int = ViewType.ALL) -> set[str]:
    runs = tracking.client.search_runs([tracking.experiment_id], run_view_type=view)
    return {run.info.run_id for run in runs}


def test_runs_of_pruned_models_are_gone_for_good(tmp_path: Path) -> None:
    tracking = model_runs(tmp_path)
    old, new = (made(tracking, ESTIMATORS[0], cutoff) for cutoff in ("2025-06-01", "2025-07-01"))
    gone = tracking.record(old, {})
    tracking.move_aliases("2025-06-01", {CHAMPION: old}, "2025-12-01")
    replaced = tracking.record(new, {"C": 1})
    stays = tracking.record(new, {"C": 2})
    tracking.move_aliases("2025-07-01", {CHAMPION: new}, "2025-12-01")
    other = tracking.client.create_experiment("of somebody else")
    tags = {ASSET_TAG: old.model, PARTITION_TAG: old.cutoff}
    foreign = tracking.client.create_run(other, tags=tags).info.run_id

    runs = old_runs(tracking, lambda _, cutoff: cutoff == "2025-06-01")
    assert {run.run_id for run in runs} == {gone, replaced}
    before = size(tmp_path / "mlartifacts")
    weight = sum(run.bytes for run in runs)
    delete_runs(tracking, runs)
    assert all_runs(tracking) == {stays}
    assert size(tmp_path / "mlartifacts") == before - weight > 0
    assert weight > 0
    models = tracking.client.search_logged_models([tracking.experiment_id])
    assert [model.source_run_id for model in models] == [stays]
    versions = tracking.client.search_model_versions(f"name = '{tracking.name}'")
    assert [version.run_id for version in versions] == [stays]
    assert tracking.client.get_run(foreign).info.lifecycle_stage == "active"
    assert old_runs(tracking, lambda _, cutoff: cutoff == "2025-06-01") == []


def test_what_an_alias_names_stays_in_mlflow(tmp_path: Path) -> None:
    tracking = model_runs(tmp_path)
    manifest = made(tracking, ESTIMATORS[0], "2025-06-01")
    run_id = tracking.record(manifest, {})
    tracking.move_aliases("2025-06-01", {CHAMPION: manifest}, "2025-12-01")
    assert old_runs(tracking, lambda *_: True) == []
    # Replaced, it goes to the bin; the registry still leads to it.
    tracking.record(manifest, {})
    assert run_id not in {run.run_id for run in old_runs(tracking, lambda *_: True)}


def test_a_server_has_its_own_bin(tmp_path: Path) -> None:
    tracking = model_runs(tmp_path / "home", f"sqlite:///{tmp_path / 'server.db'}")
    manifest = made(tracking, ESTIMATORS[0], "2025-06-01")
    run_id = tracking.record(manifest, {})
    runs = old_runs(tracking, lambda *_: True)
    delete_runs(tracking, runs)
    assert all_runs(tracking) == all_runs(tracking, ViewType.DELETED_ONLY) == {run_id}
    assert old_runs(tracking, lambda *_: True) == []


def test_deleting_runs_that_was_killed_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = model_runs(tmp_path)
    tracking.record(made(tracking, ESTIMATORS[0], "2025-06-01"), {})
    store = tracking.client._tracking_client.store
    for step in ("_hard_delete_logged_model", "_hard_delete_run"):
        with monkeypatch.context() as patch:
            patch.setattr(type(store), step, lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                delete_runs(tracking, old_runs(tracking, lambda *_: True))
    delete_runs(tracking, old_runs(tracking, lambda *_: True))
    assert all_runs(tracking) == set()
    assert not list((tmp_path / "mlartifacts").rglob("*.skops"))


def test_an_installation_without_mlflow_gets_no_database(tmp_path: Path) -> None:
    assert old_runs(model_runs(tmp_path), lambda *_: True) == []
    assert not (tmp_path / "mlflow.db").exists()


# Dagster's records


def delete_old_runs(state: State) -> None:
    runs = old_records.old_runs(state.instance, LATER, LATER)
    old_records.delete_runs(state.instance, runs, LATER)


def materializations(state: State) -> int:
    index = state.settings.dagster_home / "history/runs/index.db"
    with closing(sqlite3.connect(index)) as database:
        [[count]] = database.execute(
            "SELECT count(*) FROM event_logs WHERE dagster_event_type = 'ASSET_MATERIALIZATION'"
        )
    return int(count)


def test_what_deleted_runs_have_said_goes_once_it_is_superseded(state: State) -> None:
    """Or each time that all of history is made again would leave its events for ever."""
    delete_old_runs(state)
    before = materializations(state)
    state.backfill("drift", wanted=again(SCORED[0]))
    assert materializations(state) == before + 1
    delete_old_runs(state)
    assert materializations(state) == before


def test_old_runs_go_and_what_they_made_stays_known(state: State) -> None:

    def judged() -> set[str]:
        keys = list(state.defs.resolve_asset_graph().asset_check_keys)
        checks = state.instance.event_log_storage.get_asset_check_summary_records(keys)
        return {
            str(key)
            for key, record in checks.items()
            if record.last_completed_check_execution_record
        }

    before, checks = facts(state), judged()
    runs = old_records.old_runs(state.instance, LATER, LATER)
    assert runs
    assert checks
    yesterday = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    assert old_records.old_runs(state.instance, yesterday, yesterday) == []
    weight = old_records.bytes_of_runs(state.instance, runs)
    assert weight > 100_000 * len(runs)
    old_records.delete_runs(state.instance, runs, LATER)

    assert state.instance.get_run_records() == []
    assert refresh_log(state.instance).num_rows == 0
    home = state.settings.dagster_home
    assert not [path for path in home.rglob("*") if path.name.startswith(tuple(runs))]
    assert facts(state) == before
    assert judged() == checks
    assert state.backfill() == []


def test_pictures_of_old_runs_go_and_their_numbers_stay(state: State) -> None:
    """One picture for each of five models is most of what Dagster keeps of a cutoff."""
    table = "UPDATE event_logs SET event = replace(event, ?, ?) WHERE event LIKE '%model_version%'"
    index = state.settings.dagster_home / "history/runs/index.db"
    with closing(sqlite3.connect(index)) as database, database:
        database.execute(table, ('"promoted"', '"promoted data:image/png"'))

    def told() -> dict[str, Any]:
        wanted = dg.AssetRecordsFilter(dg.AssetKey(CHAMPION_MODEL.name), [SCORED[1]])
        [record] = state.instance.fetch_materializations(wanted, limit=1).records
        assert record.asset_materialization
        return dict(record.asset_materialization.metadata)

    before = told()
    assert "promoted data:image/png" in before
    runs = old_records.old_runs(state.instance, LATER, LATER)
    old_records.delete_runs(state.instance, runs, LATER)
    assert told() == {k: v for k, v in before.items() if k != "promoted data:image/png"}


def test_a_run_that_later_ones_have_superseded_goes_soon(state: State) -> None:
    """An inventory is taken every hour, and each run of it is 143 KB."""
    inventories = [dg.AssetKey("asset_inventory")]
    job = state.defs.resolve_implicit_global_asset_job_def()
    runs = [
        job.execute_in_process(instance=state.instance, asset_selection=inventories).run_id
        for _ in range(3)
    ]
    never = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
    gone = old_records.old_runs(state.instance, never, LATER)
    assert gone[-2:] == runs[:2]
    assert old_records.old_runs(state.instance, never, never) == []
    before = facts(state)
    old_records.delete_runs(state.instance, gone, never)
    assert facts(state) == before
    assert state.instance.has_run(runs[2])


def test_a_failure_that_shows_keeps_its_run(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(champions, "choose_champion", lambda *_: 1 / 0)
        with pytest.raises(BackfillFailed):
            state.backfill("models", wanted=again(SCORED[-1]))
    [failed] = state.instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
    failing = state.inventory()[CHAMPION_MODEL.name].failed
    assert failing == {SCORED[-1]}
    delete_old_runs(state)
    assert state.inventory()[CHAMPION_MODEL.name].failed == failing
    assert state.instance.has_run(failed.dagster_run.run_id)
    state.backfill("models", wanted=again(SCORED[-1]))
    delete_old_runs(state)
    assert not state.instance.has_run(failed.dagster_run.run_id)
    assert not state.inventory()[CHAMPION_MODEL.name].failed


def test_ticks_go_but_for_the_latest_of_each(tmp_path: Path) -> None:
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:

        def tick(name: str, days: int) -> None:
            at = (now - dt.timedelta(days=days)).timestamp()
            kind = InstigatorType.SENSOR
            instance.create_tick(
                TickData(name, name, kind, TickStatus.SUCCESS, at, ["run"], selector_id=name)
            )

        def ages(name: str) -> list[int]:
            ticks = instance.get_ticks(name, name)
            return sorted(round((now.timestamp() - tick.timestamp) / 86_400) for tick in ticks)

        for days in (90, 60, 31, 29, 1):
            tick("busy", days)
        for days in (90, 80):
            tick("idle", days)
        before = now - dt.timedelta(days=30)
        assert old_records.old_ticks(instance, before).count == 4
        assert old_records.old_ticks(instance, before).bytes > 0
        old_records.delete_ticks(instance, before)
        assert (ages("busy"), ages("idle")) == ([1, 29], [80])
        assert old_records.old_ticks(instance, before) == old_records.Ticks(0, 0)


# The audit log, and space on the disk


def test_the_audit_log_loses_whole_days_and_never_today(tmp_path: Path) -> None:
    folder, today = audit_folder(tmp_path), dt.date(2026, 1, 1)
    folder.mkdir(parents=True)
    for name in ("2024-01-01", "2025-12-30", "2025-12-31", "2026-01-01", "notes"):
        (folder / f"{name}.jsonl").write_text("{}")

    def names(kept_days: int) -> list[str]:
        return [path.stem for path in old_days(tmp_path, today, kept_days)]

    assert names(400) == ["2024-01-01"]
    assert names(1) == ["2024-01-01", "2025-12-30"]
    assert names(0) == names(-5) == ["2024-01-01", "2025-12-30", "2025-12-31"]


def test_space_is_given_back_but_not_from_under_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "some.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        with database:
            database.execute("CREATE TABLE t (x)")
            database.execute("INSERT INTO t VALUES (zeroblob(5000000))")
        with database:
            database.execute("DELETE FROM t")
    assert free_bytes(path) > 4_000_000
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT INTO t VALUES (1)")
        for page_bytes in (None, 16_384):
            said = compact(path, page_bytes, wait_seconds=0.1)
            assert "database is locked" in said
            assert "churn prune --yes" in said
        writer.commit()
    assert compact(path) == ""
    assert size(path) < 100_000
    assert free_bytes(path) == 0
    assert compact(path, 16_384) == ""
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM t").fetchone() == (1,)
        assert database.execute("PRAGMA page_size").fetchone() == (16_384,)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


# The command


@pytest.fixture
def command(state: State, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    settings = state.settings
    environment = {
        "CHURN_HOME": settings.home,
        "CHURN_SOURCE": settings.source,
        "CHURN_SYNTHETIC_CUSTOMERS": settings.synthetic_customers,
        "CHURN_START": settings.start,
        "CHURN_END": "2025-11-20",
        "CHURN_LOOKBACK_DAYS": settings.lookback_days,
        "CHURN_TRAINING_CUTOFFS": settings.training_cutoffs,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("DAGSTER_HOME", str(settings.dagster_home))
    monkeypatch.chdir(settings.home.parent)
    monkeypatch.setattr("churn_assets.cli.state.utc_now", lambda: NOW)

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(prune_command, list(arguments))
        return result.exit_code, result.output + str(result.exception or "")

    yield run


def test_nothing_is_removed_without_yes(state: State, command: Any) -> None:
    audit = audit_folder(state.settings.home) / "2024-01-01.jsonl"
    audit.parent.mkdir(parents=True, exist_ok=True)
    audit.write_text("{}")
    before = size(state.settings.home / "models", state.settings.home / "mlartifacts", audit)
    code, said = command("--models", "1")
    assert code == 0, said
    for kind in ("models, none of the newest 1", "runs in MLflow", "audit log", "MB"):
        assert kind in said
    assert "`churn prune --yes` removes it" in said
    paths = (state.settings.home / "models", state.settings.home / "mlartifacts", audit)
    assert size(*paths) == before

    code, said = command("--models", "1", "--yes")
    assert code == 0, said
    assert "Removed." in said
    assert size(*paths) < before / 2
    assert not audit.exists()
    assert command("--models", "1") == (0, "There is nothing to prune.\n")


def test_what_a_run_reads_now_is_not_removed(state: State, command: Any) -> None:
    run = dg.DagsterRun("models", run_id=dg._core.utils.make_new_run_id())
    state.instance.add_run(run.with_status(dg.DagsterRunStatus.STARTED))
    before = size(state.settings.home / "models")
    code, said = command("--models", "1", "--yes")
    assert code == 1
    assert "goes on" in said
    assert size(state.settings.home / "models") == before
