"""Prevents: a reset that leaves something behind, that deletes what is not the project's, or that
takes the state away from a run that goes on.
"""

import datetime as dt
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner, Result

from churn_assets import cli
from churn_assets.definitions import build_definitions
from churn_assets.online.server import open_client, redis_url, stop
from churn_assets.operations.instance import dagster_instance
from churn_assets.operations.reset import delete_online, made, reset
from churn_assets.operations.with_settings import DAGSTER_YAML
from churn_assets.serving.audit import AuditLog
from churn_assets.serving.rows import Rows
from churn_assets.settings import Settings
from churn_assets.stores.digests import file_digest
from churn_assets.stores.identity import FILE, find_identity, identify
from churn_assets_tests.conftest import make_settings
from churn_assets_tests.faults import SHOP


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A state folder that does not exist yet."""
    yield tmp_path / "state"
    if (tmp_path / "state").exists():
        stop(tmp_path / "state")


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command in this process, on that folder."""
    monkeypatch.setenv("CHURN_HOME", str(home))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.chdir(home.parent)

    def invoke(*arguments: str, **variables: str) -> Result:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            result = CliRunner().invoke(cli.churn, arguments)
        monkeypatch.delenv("DAGSTER_HOME", raising=False)  # set by a command that used Dagster
        return result

    return invoke


def state(home: Path, **overrides: Any) -> Settings:
    """A state folder with a file of each kind, without the work of making them."""
    settings = make_settings(home.parent, source="synthetic", **overrides)
    identify(settings)
    for path in (
        "offline_store/raw_events/slice=2025-01-01/part-0.parquet",
        "offline_store/feature_registry/part-0.parquet",
        "models/champion_model/cutoff=2025-01-01/manifest.json",
        "models/review_topic_model/manifest.json",
        "models/review_topic_model/0123456789abcdef/manifest.json",
        "verdicts/raw_events/2025-01-01.json",
        "mlflow.db",
        "mlartifacts/1/model.pkl",
        "serving/audit/2025-01-01.jsonl",
    ):
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text("something")
    return settings


def files(folder: Path) -> dict[Path, str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): file_digest(path) for path in found}


@pytest.mark.usefixtures("one_kind_of_model")
def test_nothing_is_left_of_a_full_state_and_the_next_backfill_begins_anew(
    home: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (SHOP | {"synthetic_customers": 60}).items():
        monkeypatch.setenv(f"CHURN_{name.upper()}", str(value))

    def said_by(*arguments: str, code: int = 0) -> str:
        result = run(*arguments)
        assert result.exit_code == code, result.output
        return f"{result.output}{result.exception or ''}"

    said_by("backfill")
    said_by("sql", "FROM refresh_log")
    rows = Rows(home, None, find_identity(home), "")
    rows.watch()
    rows.close()
    log = AuditLog(home)
    log.record(
        "shop", "1", "somebody", "features", False, "redis", dt.date(2025, 6, 1), [("c", True)]
    )
    log.close()
    (home / "notes.txt").write_text("mine")

    before = files(home / "offline_store")
    said = said_by("reset", code=1)
    assert f"none of ours: {home / 'notes.txt'}" in said
    assert "`churn reset --yes` deletes it" in said
    for name in ("offline_store", "models", "mlartifacts", "online_store", "dagster", FILE):
        assert f"  {name} " in said
    assert files(home / "offline_store") == before

    said_by("reset", "--yes")
    assert [*home.rglob("*")] == [home / "notes.txt"]
    assert "✓ ingest 2025-01-01" in said_by("backfill", "--stage=ingest")
    (home / "notes.txt").unlink()
    said_by("reset", "--yes")
    assert not home.exists()


@pytest.mark.parametrize(
    "own",
    [
        "notes.txt",
        "input/events.csv",
        "models/mine.pkl",
        "models/mine/model.pkl",
        "reports/mine.html",
        "offline_store/mine/rows.parquet",
        "offline_store/raw_events/slice=2025-01-01/copy.parquet",
        "serving/page.html",
    ],
)
def test_what_is_somebodys_own_stays_and_is_named(home: Path, run: Any, own: str) -> None:
    state(home)
    (home / own).parent.mkdir(parents=True, exist_ok=True)
    (home / own).write_text("mine")
    said = run("reset", "--yes")
    assert said.exit_code == 0, said.output
    assert str(home / own) in said.output
    assert [*files(home)] == [Path(own)]


def test_a_changed_configuration_of_dagster_stays(home: Path, run: Any) -> None:
    settings = state(home)
    settings.dagster_home.mkdir()
    (settings.dagster_home / "dagster.yaml").write_text(DAGSTER_YAML.read_text() + "# mine\n")
    assert run("reset", "--yes").exit_code == 0
    assert [*files(home)] == [Path("dagster", "dagster.yaml")]


def test_a_folder_that_is_no_state_folder_is_left_alone(home: Path, run: Any) -> None:
    for name in ("mlflow.db", "staging/thesis.tex", "models/m/manifest.json"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("mine")
    before = files(home)
    assert "nothing to delete" in run("reset", "--yes").output
    assert files(home) == before


@pytest.mark.parametrize("text", ["", "{", '{"name": "*"}'])
def test_a_damaged_identity_is_no_obstacle(home: Path, run: Any, text: str) -> None:
    state(home)
    (home / FILE).write_text(text)
    assert run("reset", "--yes").exit_code == 0
    assert not home.exists()


def test_the_state_of_other_settings_is_no_obstacle(home: Path, run: Any) -> None:
    state(home)
    assert run("reset", "--yes", CHURN_CADENCE="weekly", CHURN_SEED="9").exit_code == 0
    assert not home.exists()


def test_a_reset_that_is_killed_anywhere_is_run_again(
    home: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = state(home)
    unlink = Path.unlink

    for survived in range(len(made(home))):
        state(home)
        left = iter(range(survived))

        def die(path: Path, missing_ok: bool = False, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            unlink(path, missing_ok)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Path, "unlink", die)
            patch.setattr("shutil.rmtree", lambda path: die(path / "no", missing_ok=True))
            reset(settings, None)
        assert (home / FILE).exists(), "what the folder is known by goes last"
        assert run("reset", "--yes").exit_code == 0
        assert not home.exists()


def started(settings: Settings) -> dg.DagsterRun:
    with dagster_instance(settings) as instance:
        job = build_definitions(settings).resolve_job_def("ingest")
        return instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)


def test_a_run_that_goes_on_keeps_its_state(
    home: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    settings = state(home)
    going = started(settings)
    refused = run("reset", "--yes")
    assert refused.exit_code == 1
    assert going.run_id in str(refused.exception)
    assert (home / FILE).exists()
    command = str(refused.exception).split("`")[1]
    environment = os.environ | {"DAGSTER_HOME": str(settings.dagster_home)}
    folder = Path(sys.executable).parent
    subprocess.run([folder / "dagster", *command.split()[1:]], env=environment, check=True)
    assert run("reset", "--yes").exit_code == 0
    assert not home.exists()


def test_a_backfill_that_was_killed_is_no_run_that_goes_on(
    home: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    settings = state(home)
    killed = started(settings)
    (settings.dagster_home / "backfills").mkdir()
    (settings.dagster_home / "backfills" / killed.run_id).touch()
    assert run("reset", "--yes").exit_code == 0


def test_records_elsewhere_are_named_and_stay(home: Path, run: Any, tmp_path: Path) -> None:
    state(home)
    (tmp_path / "dagster").mkdir()
    said = run(
        *("reset", "--yes"),
        DAGSTER_HOME=str(tmp_path / "dagster"),
        MLFLOW_TRACKING_URI="http://user:hunter2@localhost:1",
    )
    assert said.exit_code == 0
    assert f"DAGSTER_HOME={tmp_path / 'dagster'}" in said.output
    assert "MLflow" in said.output
    assert "hunter2" not in said.output
    assert (tmp_path / "dagster").exists()


def test_an_installation_deletes_its_own_keys_on_a_shared_server(
    home: Path, run: Any, tmp_path: Path
) -> None:
    url = redis_url(tmp_path / "server")
    try:
        with open_client(url) as client:
            for name in ("a", "ab", "b"):
                client.mset({f"churn:{name}:{i}": i for i in range(2_500)})
            client.set("churn:pointer", "of version 0.1")
            state(home, installation="a")
            assert run("reset", "--yes", REDIS_URL=url).exit_code == 0
            left = [key.decode() for key in client.scan_iter(count=10_000)]
            assert not any(key.startswith("churn:a:") for key in left)
            assert len(left) == 5_001
            for name in ("*", "?", "[ab]", "\\"):
                assert delete_online(home, url, name) == 0
        # With a name that cannot be known, the keys stay.
        state(home, installation="b")
        (home / FILE).write_text("")
        said = run("reset", "--yes", REDIS_URL=url)
        assert "Stays: the keys" in said.output
        with open_client(url) as client:
            assert client.exists("churn:b:1")
    finally:
        stop(tmp_path / "server")


def test_a_server_that_is_away_keeps_the_state(home: Path, run: Any) -> None:
    state(home)
    refused = run("reset", "--yes", REDIS_URL="redis://user:hunter2@127.0.0.1:1")
    assert refused.exit_code == 1
    assert "unset REDIS_URL" in str(refused.exception)
    assert "hunter2" not in str(refused.exception)
    assert (home / FILE).exists()
