"""Prevents: a state that reaches beyond its own folder and its own name.

Two installations share a Redis and an MLflow server, and a copy goes on where its original is gone.
"""

import datetime as dt
import shutil
import string
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from churn_assets.cli import churn
from churn_assets.models.runs import ModelRuns
from churn_assets.online.server import open_client, redis_url, stop
from churn_assets.operations import erasure
from churn_assets.operations.plans import Range
from churn_assets.operations.reset import reset
from churn_assets.serving import app as serving
from churn_assets.stores.erased import Erased
from churn_assets.stores.identity import adopt, identify
from churn_assets.stores.views import create_views
from churn_assets_tests.conftest import make_settings
from churn_assets_tests.operations.test_changes import State
from churn_assets_tests.served_shop import eventually, running

pytestmark = pytest.mark.usefixtures("one_kind_of_model")

# Two cutoffs with models.
SHOP: dict[str, Any] = {"synthetic_customers": 60, "training_cutoffs": 2}
NEWEST = dt.date(2025, 8, 1)

# What this process opens, while a test listens. A hook cannot be taken out again.
heard: list[str] | None = None


def listen(event: str, arguments: tuple[Any, ...]) -> None:
    if heard is not None and event.startswith(("open", "sqlite3.connect", "os.", "shutil.")):
        heard.extend(str(each) for each in arguments)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Redis server that belongs to nobody here, and a database of MLflow."""
    folder = tmp_path_factory.mktemp("servers")
    yield {"redis_url": redis_url(folder), "mlflow_tracking_uri": f"sqlite:///{folder}/mlflow.db"}
    stop(folder)


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory, servers: dict[str, str]) -> State:
    state = State(tmp_path_factory.mktemp("left") / "state", installation="left", **SHOP, **servers)
    identify(state.settings)
    state.backfill()
    return state


def keys_of(state: State) -> dict[bytes, Any]:
    """Everything on the server that begins with the name of an installation."""
    assert state.settings.redis_url
    client = open_client(state.settings.redis_url)
    name = identify(state.settings).name
    return {key: client.dump(key) for key in client.scan_iter(match=f"churn:{name}:*")}


def runs_of(state: State) -> Any:
    """Every run and registered version of an installation."""
    runs = ModelRuns(
        state.settings.home,
        state.settings.mlflow_tracking_uri,
        partial(identify, state.settings),
    )
    found = runs.client.search_runs([runs.experiment_id])
    versions = runs.client.search_model_versions(f"name = '{runs.name}'")
    return (
        {run.info.run_id: (run.info.status, run.data.tags) for run in found},
        {(version.version, version.run_id) for version in versions},
        runs.client.get_registered_model(runs.name).aliases,
    )


def test_two_installations_on_the_same_servers_never_meet(
    left: State, servers: dict[str, str], tmp_path: Path
) -> None:
    right = left.copy(tmp_path / "state", installation="right", **SHOP, **servers)
    adopt(right.settings, copied=True)
    again = Range(NEWEST, NEWEST, again=True)

    before = keys_of(left), runs_of(left)
    assert all(before)
    right.backfill("models", wanted=again)
    assert (keys_of(left), runs_of(left)) == before
    of_right = keys_of(right), runs_of(right)
    assert of_right[0].keys().isdisjoint(before[0])
    assert of_right[1][0].keys().isdisjoint(before[1][0])

    # Also while both are at it, and where one erases and resets.
    left.backfill("models", wanted=again)
    assert (keys_of(right), runs_of(right)) == of_right
    before = keys_of(left), runs_of(left)
    table = right.store.scan(right.store.tables["churn_predictions"], [str(NEWEST)])
    with right.store.connect() as connection:
        [(somebody,)] = connection.sql(f"SELECT min(customer_id) FROM {table.sql}").fetchall()
    assert erasure.erase_online(right.settings, [somebody]) == 1
    assert not Erased.read(left.settings.home).customers
    reset(right.settings, "right")
    assert not keys_of(right)
    assert (keys_of(left), runs_of(left)) == before


def test_a_copy_goes_on_without_its_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backfill, serve, roll back and look: nothing of the old place is opened, or made again."""
    global heard
    original = State(tmp_path / "original" / "state", **SHOP)
    identify(original.settings)
    original.backfill()
    stop(original.settings.home)
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    (tmp_path / "original").rename(tmp_path / "put away")
    old = str(tmp_path / "original")

    sys.addaudithook(listen)
    heard = []
    later = {"end": dt.datetime(2025, 9, 10, tzinfo=dt.UTC)}
    copy = State(tmp_path / "copy" / "state", **SHOP, **later)
    settings = copy.settings
    try:
        copy.backfill()
        copy.refresh()
        for name, value in (
            ("HOME", settings.home),
            ("START", settings.start),
            ("END", later["end"].date()),
            ("LOOKBACK_DAYS", settings.lookback_days),
            ("TRAINING_CUTOFFS", settings.training_cutoffs),
            ("SYNTHETIC_CUSTOMERS", settings.synthetic_customers),
        ):
            monkeypatch.setenv(f"CHURN_{name}", str(value))
        for command in (
            ("sql", "SELECT count(*) FROM churn_predictions"),
            ("status",),
            ("online", "rollback"),
        ):
            result = CliRunner().invoke(churn, command)
            assert result.exit_code == 0, result.output
        monkeypatch.setattr(serving, "WATCH_SECONDS", 0.05)
        with running(settings) as client:
            eventually(lambda: client.get("/ready")[0] == 200)
        assert any(str(settings.home) in each for each in heard)
        assert [each for each in heard if old in each] == []
        assert not Path(old).exists()
    finally:
        heard = None
        stop(settings.home)


def test_a_home_of_any_name_is_opened_or_refused(tmp_path: Path) -> None:
    """Issue: DuckDB and Dagster's storage took ? and %20 of a path for something else."""
    parts = {*string.punctuation, " ", "ö", "\n", "%20", "%4g"} - {"/"}
    opened = ""
    for part in sorted(parts):
        try:
            opened += make_settings(tmp_path, home=tmp_path / f"x{part}z").home.name
        except ValidationError as error:
            assert "name another folder" in str(error)
    assert {part for part in parts if part not in opened} == {*"?*[]\\", "%20"}

    state = State(tmp_path / opened / "state", synthetic_customers=10)
    state.backfill("ingest", "features", now=dt.datetime(2025, 3, 1, tzinfo=dt.UTC))
    with state.store.connect() as connection:
        create_views(connection, state.store)
        [[events]] = connection.sql("SELECT count(*) FROM raw_events").fetchall()
    assert events > 0
    assert [path.name for path in tmp_path.iterdir()] == [opened]
