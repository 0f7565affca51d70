"""Prevents: a graph that is only tested asset by asset, a dependency that changes unnoticed, and a
backfill that needs a person to know what to run next.
"""

import datetime as dt
import json
from pathlib import Path

import dagster as dg
import pytest

from churn_assets.definitions import build_definitions
from churn_assets.monitoring.inventory import inventory
from churn_assets.monitoring.refresh_log import refresh_log
from churn_assets.operations.backfill import run_batch
from churn_assets.operations.installation import offline_store
from churn_assets.operations.plans import Range, backfill_batches, stages, wanted_range
from churn_assets.settings import Settings
from churn_assets_tests.conftest import TABLES, make_settings, stored

SNAPSHOT = Path(__file__).parent / "graph.json"
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def small_shop(folder: Path, **overrides: object) -> Settings:
    values: dict[str, object] = {
        "source": "synthetic",
        "synthetic_customers": 400,
        "start": dt.date(2025, 1, 1),
        "end": dt.datetime(2025, 8, 1, tzinfo=dt.UTC),
    }
    return make_settings(folder, **(values | overrides))


def backfill(
    settings: Settings,
    instance: dg.DagsterInstance,
    wanted: Range | None = None,
    names: tuple[str, ...] = (),
) -> list[str]:
    """Run these stages, or every stage, and return what ran."""
    defs, calendar = build_definitions(settings), settings.calendar()
    store = offline_store(settings)
    ran = []
    for batch in backfill_batches(stages(names), defs, store, calendar, instance, NOW, wanted):
        run_batch(batch, defs, instance, lambda step, what: None)
        ran.append(batch.label)
    return ran


@pytest.mark.usefixtures("quick_evaluation")
def test_a_shop_goes_through_the_whole_graph_once(tmp_path: Path) -> None:
    settings, instance = small_shop(tmp_path), dg.DagsterInstance.local_temp(str(tmp_path))
    ran = backfill(settings, instance)
    assert ran[0] == "ingest 2025-01-01 … 2025-07-01"
    assert backfill(settings, instance) == []

    rows = inventory(
        build_definitions(settings), offline_store(settings), settings.calendar(), instance, NOW
    )
    assert not any(row.missing or row.failed or row.stale for row in rows)

    population = {(r["customer_id"], r["cutoff"]) for r in stored(settings, "churn_labels")}
    dataset = stored(settings, "training_dataset")
    assert {(r["customer_id"], r["cutoff"]) for r in dataset} == population
    assert len(dataset) == len(population) > 0
    assert all(row["total_events"] > 0 for row in dataset)
    assert 0.4 < sum(row["churned"] for row in dataset) / len(dataset) < 0.95

    log = refresh_log(instance).to_pylist()
    assert {row["status"] for row in log} == {"SUCCESS"}
    assert sum(r["rows"] for r in log if r["asset"] == "training_dataset") == len(dataset)

    # A partition that is lost is made again, and nothing else.
    store = offline_store(settings)
    store.path(store.tables["churn_labels"], "2025-05-01").unlink()
    assert backfill(settings, instance) == ["training_data 2025-05-01"]

    # A range is made again even where it is present.
    calendar = settings.calendar()
    wanted = wanted_range(
        calendar.cutoffs, calendar, dt.date(2025, 5, 1), dt.date(2025, 6, 1), None, NOW
    )
    assert [label for label in backfill(settings, instance, wanted) if label != "features"] == [
        "features 2025-05-01 … 2025-06-01",
        "training_data 2025-05-01 … 2025-06-01",
        "models 2025-06-01",
        "drift 2025-06-01",
        "realised_performance 2025-06-01",
        "realised_performance",
    ]


def test_a_shop_without_a_cutoff_yet_is_ingested_once(tmp_path: Path) -> None:
    """Its reviews wait for the topic model, and nothing is asked for that cannot be made."""
    settings = small_shop(tmp_path, end=dt.datetime(2025, 3, 1, tzinfo=dt.UTC))
    instance = dg.DagsterInstance.local_temp(str(tmp_path))
    assert backfill(settings, instance)[0] == "ingest 2025-01-01 … 2025-02-01"
    assert backfill(settings, instance) == []


def test_a_failure_names_the_asset_and_is_kept_in_the_log(tmp_path: Path) -> None:
    settings = small_shop(tmp_path)
    instance = dg.DagsterInstance.local_temp(str(tmp_path))
    (tmp_path / "state" / "offline_store").mkdir(parents=True)
    # A file where the folder of a table should be.
    (tmp_path / "state" / "offline_store" / "daily_orders").touch()
    with pytest.raises(Exception, match=r"daily_orders \[2025-01-01 … 2025-07-01\]"):
        backfill(settings, instance)
    log = refresh_log(instance).to_pylist()
    failed = {row["asset"] for row in log if row["status"] == "FAILURE"}
    assert "daily_orders" in failed
    assert "raw_events" not in failed
    (tmp_path / "state" / "offline_store" / "daily_orders").unlink()
    rows = inventory(
        build_definitions(settings), offline_store(settings), settings.calendar(), instance, NOW
    )
    orders = next(row for row in rows if row.asset.path[-1] == "daily_orders")
    assert len(orders.failed) == len(orders.missing) == 7
    assert backfill(settings, instance, names=("ingest",)) == ["ingest 2025-01-01 … 2025-07-01"]


def graph_snapshot(settings: Settings) -> dict[str, object]:
    graph = build_definitions(settings).resolve_asset_graph()
    return {
        key.to_user_string(): {
            "group": graph.get(key).group_name,
            "partitions": str(graph.get(key).partitions_def),
            "upstream": sorted(
                f"{parent.to_user_string()}: {_offsets(graph.get_partition_mapping(key, parent))}"
                for parent in graph.get(key).parent_keys
            ),
            "owners": sorted(graph.get(key).owners),
            "kinds": sorted(graph.get(key).kinds),
            "columns": [
                column.name for column in graph.get(key).metadata["dagster/column_schema"].columns
            ]
            if "dagster/column_schema" in graph.get(key).metadata
            else [],
        }
        for key in sorted(graph.materializable_asset_keys)
    }


def _offsets(mapping: dg.PartitionMapping) -> str:
    if isinstance(mapping, dg.TimeWindowPartitionMapping):
        return f"{mapping.start_offset} to {mapping.end_offset}"
    return type(mapping).__name__


def test_the_graph_is_the_one_that_was_reviewed(tmp_path: Path) -> None:
    """After a wanted change, delete graph.json, run this test and review the new file."""
    snapshot = graph_snapshot(small_shop(tmp_path, end=None))
    if not SNAPSHOT.exists():
        SNAPSHOT.write_text(json.dumps(snapshot, indent=1, ensure_ascii=False) + "\n")
    assert snapshot == json.loads(SNAPSHOT.read_text())


def test_a_code_location_loads(tmp_path: Path) -> None:
    """What a code server does, and a run in a test does not: hold all definitions together."""
    build_definitions(small_shop(tmp_path)).get_repository_def().load_all_definitions()


def test_every_asset_is_described_owned_and_runs_as_one_range(tmp_path: Path) -> None:
    graph = build_definitions(small_shop(tmp_path)).resolve_asset_graph()
    for key in graph.materializable_asset_keys:
        node = graph.get(key)
        assert node.description, key
        assert node.owners, key
        assert node.kinds, key
        assert "layer" in node.tags, key
        if node.is_partitioned:
            assert node.backfill_policy == dg.BackfillPolicy.single_run(), key
        if key.path[-1] not in TABLES and key.path[-1] != "online_features":
            continue
        schema = node.metadata["dagster/column_schema"]
        assert all(column.description for column in schema.columns), key


def test_only_raw_assets_read_the_source(tmp_path: Path) -> None:
    graph = build_definitions(small_shop(tmp_path)).resolve_asset_graph()
    roots = {key.to_user_string() for key in graph.root_materializable_asset_keys}
    assert roots == {
        "raw_events",
        "raw_customers",
        "raw_reviews",
        "raw_satisfaction",
        "quarantined_rows",
        "asset_inventory",  # reads what Dagster knows
    }


def test_no_feature_depends_on_a_label(tmp_path: Path) -> None:
    graph = build_definitions(small_shop(tmp_path)).resolve_asset_graph()
    for key in graph.asset_keys_for_group("features"):
        ancestors = {graph.get(a).group_name for a in graph.get_ancestor_asset_keys(key)}
        assert ancestors <= {"raw", "topics", "rollups", "features"}, key
