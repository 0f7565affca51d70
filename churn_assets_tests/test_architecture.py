"""Prevents: a layer that reaches upwards, a module that nobody can overlook, a setting that is read
at import, a library that each process loads, and an asset or group that cannot be launched alone.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

import churn_assets
from churn_assets.definitions import build_definitions
from churn_assets.settings import Settings, SettingsError
from churn_assets_tests.conftest import RANGE_END, RANGE_START, make_settings, stored

PACKAGE = Path(churn_assets.__file__).parent
ROOT = PACKAGE.parent
LINTER = Path(sys.executable).with_name("lint-imports")
MOST_ENTRIES, MOST_LINES = 16, 400


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(LINTER), "--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    return subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("module", "upwards"),
    [
        ("sources/source.py", "from churn_assets.history.raw import ingest"),
        ("stores/offline.py", "from churn_assets.sources.tables import EVENTS"),
        ("stores/tables.py", "from churn_assets.stores.offline import OfflineStore"),
        ("monitoring/alerts.py", "from churn_assets.operations.gate import Gate"),
    ],
)
def test_an_import_upwards_or_in_a_circle_is_refused(
    tmp_path: Path, module: str, upwards: str
) -> None:
    shutil.copytree(PACKAGE, tmp_path / "churn_assets")
    assert lint(tmp_path).returncode == 0
    file = tmp_path / "churn_assets" / module
    # Also where only types need it.
    text = f"\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {upwards}\n"
    file.write_text(file.read_text() + text)
    refused = lint(tmp_path)
    assert refused.returncode == 1
    assert "BROKEN" in refused.stdout


def test_the_house_can_be_overlooked() -> None:
    entries = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        reason = re.search(r"over 400 lines", ast.get_docstring(ast.parse(text)) or "")
        assert len(text.splitlines()) <= MOST_LINES or reason, path


def test_the_map_names_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rooms = [p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()]
    assert all(f"`{room}/`" in page for room in rooms)
    for folder, file in re.findall(r"`(\w+)/(\w+\.py)`", page):
        assert (PACKAGE / folder / file).exists()


def test_only_the_code_location_reads_settings_at_import() -> None:
    code = (
        "import pkgutil, importlib, churn_assets, churn_assets.settings as s\n"
        "def refuse(cls): raise AssertionError('settings were read at import')\n"
        "s.Settings.read = classmethod(refuse)\n"
        "for m in pkgutil.walk_packages(churn_assets.__path__, 'churn_assets.'):\n"
        "    if m.name != 'churn_assets.definitions': importlib.import_module(m.name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_code_location_loads_no_library_that_only_runs_need(tmp_path: Path) -> None:
    """Every process of Dagster loads it first: each step of a run, each tick, each command."""
    code = (
        "import sys, dagster; before = {*sys.modules}\n"
        "import churn_assets.definitions; print(*{*sys.modules} - before)"
    )
    command = [sys.executable, "-c", code]
    env = {**os.environ, "CHURN_HOME": str(tmp_path)}
    shown = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    modules = set(shown.stdout.split())
    assert {name.partition(".")[0] for name in modules} - sys.stdlib_module_names <= {
        *("churn_assets", "dagster", "pydantic", "pydantic_settings", "dotenv"),
        "vaderSentiment",  # has the lexicon, which is in a version
    }
    ours = {name.removeprefix("churn_assets.") for name in modules}
    assert "definitions" in ours
    assert not ours & {"cli", "serving", "sources.files", "online.publishing", "operations.plans"}


def test_the_example_of_settings_names_them_all() -> None:
    named = set(re.findall(r"^# (\w+)=", (ROOT / ".env.example").read_text(), re.M))
    servers = {"redis_url", "mlflow_tracking_uri"}
    expected = {
        field.upper() if field in servers else f"CHURN_{field.upper()}"
        for field in Settings.model_fields
    }
    assert named == expected


def test_every_group_can_be_launched_alone(tmp_path: Path) -> None:
    """Assets of different partitions cannot share a run, so a group has partitions of one kind."""
    defs = build_definitions(make_settings(tmp_path, source="synthetic"))
    kinds: dict[str, set[str]] = {}
    for spec in defs.resolve_all_asset_specs():
        kinds.setdefault(str(spec.group_name), set()).add(repr(spec.partitions_def))
    assert {group: len(found) for group, found in kinds.items()} == dict.fromkeys(kinds, 1)


def run(settings: Settings, *assets: str) -> dg.ExecuteInProcessResult:
    job = build_definitions(settings).resolve_implicit_global_asset_job_def()
    return job.execute_in_process(
        asset_selection=[dg.AssetKey(asset) for asset in assets],
        tags={RANGE_START: "2025-01-01", RANGE_END: "2025-01-01"},
    )


def test_a_raw_table_alone_brings_its_quarantine_and_leaves_that_of_others(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, end="2025-03-01")
    folder = Path(settings.input_folder)
    folder.mkdir(parents=True)
    events = "customer_id,event_timestamp,event_type\n"
    (folder / "events.csv").write_text(f"{events}a,2025-01-05,search\n,2025-01-06,search\n")
    (folder / "reviews.csv").write_text("customer_id,review_timestamp\n,2025-01-07\na,2025-01-08\n")

    def rejected() -> list[str]:
        return sorted(row["source"] for row in stored(settings, "quarantined_rows"))

    run(settings, "raw_events")
    assert rejected() == ["events"]
    assert not (settings.home / "offline_store" / "raw_reviews").exists()
    result = run(settings, "raw_reviews")
    assert rejected() == ["events", "reviews"]
    made = {
        event.materialization.asset_key.path[-1]: event.materialization.metadata
        for event in result.get_asset_materialization_events()
    }
    assert made.keys() == {"raw_reviews", "quarantined_rows"}
    assert made["quarantined_rows"]["quarantine_rate"].value == pytest.approx(2 / 4)

    # The quarantine alone brings the tables: a row is in one of them, whatever was asked for.
    (folder / "events.csv").write_text(f"{events}a,2025-01-05,search\nb,2025-01-06,search\n")
    run(settings, "quarantined_rows")
    assert rejected() == ["reviews"]
    assert [row["customer_id"] for row in stored(settings, "raw_events")] == ["a", "b"]


def test_pages_lead_to_declarations_and_tell_where_tables_are(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, source="synthetic")
    specs = {
        spec.key.path[-1]: spec for spec in build_definitions(settings).resolve_all_asset_specs()
    }

    def declared(asset: str) -> str:
        [reference] = specs[asset].metadata["dagster/code_references"].code_references
        file, line = Path(reference.file_path), reference.line_number
        assert f'"{asset}"' in file.read_text().splitlines()[line - 1]
        return str(file.relative_to(PACKAGE))

    assert declared("customer_rfm_features") == "features/rfm.py"
    assert declared("daily_orders") == "history/rollups.py"
    assert declared("xgboost_model") == "models/kinds.py"
    rfm = specs["customer_rfm_features"].metadata
    assert rfm["dagster/table_name"] == "offline_store.customer_rfm_features"
    table = settings.home / "offline_store" / "customer_rfm_features"
    assert rfm["dagster/uri"].value == table.as_uri()


def test_what_is_served_must_be_fresh_while_history_goes_on(tmp_path: Path) -> None:
    def policies(**overrides: object) -> set[str]:
        settings = make_settings(tmp_path, source="synthetic", **overrides)
        specs = build_definitions(settings).resolve_all_asset_specs()
        return {spec.key.path[-1] for spec in specs if spec.freshness_policy}

    assert {"online_features", "churn_predictions", "raw_events", "asset_inventory"} <= policies()
    assert policies(end="2025-03-01") == set()


@pytest.mark.parametrize("name", ["CHURN_INPUT_DIR", "CHURN_HOME", "CHURN_DUCKDB_TEMP_DIRECTORY"])
def test_object_storage_is_refused_where_a_folder_is_meant(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, "s3://bucket/events")
    with pytest.raises(SettingsError, match=f"{name}='s3://bucket/events'.*Mount the bucket"):
        Settings.read()
    assert list(tmp_path.iterdir()) == []
