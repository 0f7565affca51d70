"""Prevents: an inventory that is guessed, one that nobody takes, and one that asks for itself."""

import datetime as dt
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner

from churn_assets.cli import churn
from churn_assets.definitions import build_definitions
from churn_assets.monitoring.inventory import inventory
from churn_assets.operations.installation import offline_store
from churn_assets.operations.jobs import RANGE_END, RANGE_START
from churn_assets.settings import Settings
from churn_assets_tests.conftest import make_settings, stored

START, END = "2025-01-01", "2025-06-01"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A shop of which some is made, one partition failed, and one was made from a lost file."""
    settings = make_settings(
        tmp_path,
        source="synthetic",
        synthetic_customers=60,
        start=dt.date.fromisoformat(START),
        end=dt.datetime(2025, 6, 1, tzinfo=dt.UTC),
    )
    for name, value in (
        ("CHURN_HOME", settings.home),
        ("CHURN_SYNTHETIC_CUSTOMERS", 60),
        ("CHURN_START", START),
        ("CHURN_END", END),
        ("DAGSTER_HOME", settings.dagster_home),
    ):
        monkeypatch.setenv(name, str(value))
    settings.dagster_home.mkdir(parents=True)
    return settings


def materialize(
    settings: Settings, instance: dg.DagsterInstance, *assets: str, keys: tuple[str, ...] = ()
) -> dg.ExecuteInProcessResult:
    """A run of assets, which may fail."""
    return (
        build_definitions(settings)
        .resolve_implicit_global_asset_job_def()
        .execute_in_process(
            instance=instance,
            asset_selection=[dg.AssetKey(asset) for asset in assets],
            tags={RANGE_START: keys[0], RANGE_END: keys[-1]} if keys else {},
            raise_on_error=False,
        )
    )


RAW = ("raw_events", "raw_customers", "raw_reviews", "raw_satisfaction", "quarantined_rows")


def test_counts_are_exact_and_shown_everywhere(shop: Settings) -> None:
    with dg.DagsterInstance.from_config(str(shop.dagster_home)) as instance:
        materialize(shop, instance, *RAW, keys=("2025-01-01", "2025-03-01"))
        materialize(shop, instance, "daily_orders", keys=("2025-01-01", "2025-02-01"))
        # April's slice is not there to roll up.
        failed = materialize(shop, instance, "daily_orders", keys=("2025-04-01",))
        assert not failed.success
        store = offline_store(shop)
        store.path(store.tables["raw_events"], "2025-01-01").unlink()
        result = materialize(shop, instance, "asset_inventory")
        [event] = result.asset_materializations_for_node("asset_inventory")

    rows = {row.pop("asset"): row for row in stored(shop, "asset_inventory")}
    assert rows["daily_orders"] == {
        "position": rows["daily_orders"]["position"],
        "asset_group": "rollups",
        "existing": 5,
        "present": 2,
        "missing": 3,
        "failed": 1,
        "stale": 1,
        "first_gap": "2025-01-01",
        "held_back": 0,
        "foreign_partitions": 0,
    }
    assert (rows["raw_events"]["present"], rows["raw_events"]["first_gap"]) == (2, "2025-01-01")
    assert rows["raw_customers"]["present"] == 3
    assert rows["feature_registry"]["missing"] == rows["feature_registry"]["existing"] == 1
    assert rows["raw_events"]["position"] < rows["daily_orders"]["position"]
    assert "asset_inventory" not in rows

    for name in ("missing", "failed", "stale"):
        assert event.metadata[name].value == sum(row[name] for row in rows.values())
    assert "| daily_orders | rollups | 5 | 2 | 3 | 1 | 1 | 2025-01-01 | 0 | 0 |" in str(
        event.metadata["inventory"].value
    )
    status = CliRunner().invoke(churn, ["status"]).output
    lines = {
        cells[1]: cells[2:]
        for line in status.splitlines()
        if "│" in line and (cells := [cell.strip() for cell in line.strip("│").split("│")])
    }
    assert lines.keys() == rows.keys()
    for asset, row in rows.items():
        numbers = [str(row[name]) for name in ("missing", "failed", "stale")]
        assert lines[asset][:4] == [f"{row['present']}/{row['existing']}", *numbers]


def test_what_was_skipped_did_not_fail(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, end=dt.datetime(2025, 6, 1, tzinfo=dt.UTC))
    defs = build_definitions(settings)
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        # There is no input, so no raw table can be made, and no rollup is tried.
        defs.resolve_job_def("ingest").execute_in_process(
            instance=instance,
            tags={RANGE_START: "2025-01-01", RANGE_END: "2025-02-01"},
            raise_on_error=False,
        )
        now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        rows = inventory(defs, offline_store(settings), settings.calendar(), instance, now)
        failed = {row.asset.path[-1]: sorted(row.failed) for row in rows if row.failed}
    assert failed == {asset: ["2025-01-01", "2025-02-01"] for asset in RAW}


def test_it_is_taken_once_an_hour(shop: Settings) -> None:
    asset = dg.AssetKey("asset_inventory")
    with dg.DagsterInstance.from_config(str(shop.dagster_home)) as instance:
        defs, cursor, requested = build_definitions(shop), None, []
        start = dt.datetime(2026, 1, 1, 10, 50, tzinfo=dt.UTC)
        for minutes in range(0, 100, 5):
            result = dg.evaluate_automation_conditions(
                defs,
                instance,
                asset_selection=dg.AssetSelection.assets(asset),
                cursor=cursor,
                evaluation_time=start + dt.timedelta(minutes=minutes),
            )
            cursor = result.cursor
            if result.total_requested:
                requested.append(minutes)
                materialize(shop, instance, "asset_inventory")
        assert requested == [10, 70], "at 11:00 and 12:00"
