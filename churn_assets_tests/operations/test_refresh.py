"""Prevents: late rows that nobody follows up, a refresh that makes everything again or has to be
run until it settles, and topics that change because an old review arrived.
"""

import datetime as dt
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from churn_assets.cli import churn
from churn_assets.definitions import build_definitions
from churn_assets.history.topic_model import find_topics
from churn_assets.models.artefacts import ModelStore
from churn_assets.models.kinds import ESTIMATORS
from churn_assets.monitoring.inventory import AssetInventory, inventory
from churn_assets.online.server import stop
from churn_assets.operations.installation import offline_store
from churn_assets.operations.jobs import RANGE_END, RANGE_START, STAGES
from churn_assets.operations.plans import plan_refresh
from churn_assets.settings import Settings
from churn_assets.stores.digests import file_digest
from churn_assets_tests.conftest import make_settings, review_texts

START, END = dt.datetime(2025, 1, 1, tzinfo=dt.UTC), dt.datetime(2025, 7, 1, tzinfo=dt.UTC)
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
Targets = set[tuple[str, str]]


def write_shop(settings: Settings) -> None:
    """Two events a day, of 40 customers."""
    rng = random.Random(1)
    days = [START + dt.timedelta(hours=12 * i) for i in range(2 * (END - START).days)]
    write_events(settings, "all", days, [rng.choice(["purchase", "page_view"]) for _ in days])


def write_events(
    settings: Settings, name: str, instants: list[dt.datetime], types: list[str]
) -> None:
    rng = random.Random(name)
    rows = {
        "event_id": [f"{name}{i}" for i in range(len(instants))],
        "customer_id": [f"c{rng.randrange(40)}" for _ in instants],
        "event_timestamp": instants,
        "event_type": types,
        "amount": [float(rng.randrange(1, 50)) for _ in instants],
    }
    pq.write_table(pa.table(rows), input_folder(settings) / f"events_{name}.parquet")


def write_reviews(settings: Settings, name: str, instants: list[dt.datetime]) -> None:
    rows = {
        "review_id": [f"{name}{i}" for i in range(len(instants))],
        "customer_id": [f"c{i % 40}" for i in range(len(instants))],
        "review_timestamp": instants,
        "rating": [float(1 + i % 5) for i in range(len(instants))],
        "text": review_texts(len(instants)),
    }
    pq.write_table(pa.table(rows), input_folder(settings) / f"reviews_{name}.parquet")


def input_folder(settings: Settings) -> Path:
    folder = Path(settings.input_folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Half a year of files; the command finds them through the environment."""
    settings = make_settings(tmp_path, start=START.date(), end=END)
    write_shop(settings)
    for name, value in (
        ("CHURN_HOME", settings.home),
        ("CHURN_SOURCE", "files"),
        ("CHURN_INPUT_DIR", settings.input_dir),
        ("CHURN_START", START.date()),
        ("CHURN_END", END.date()),
        ("DAGSTER_HOME", settings.dagster_home),
    ):
        monkeypatch.setenv(name, str(value))
    # What runs when does not depend on how many kinds of model there are.
    monkeypatch.setattr("churn_assets.definitions.ESTIMATORS", ESTIMATORS[:1])
    yield settings
    stop(settings.home)


@pytest.fixture
def run() -> Callable[..., str]:
    """The `churn` command, in this process; gives what it prints."""

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(churn, arguments)
        assert result.exit_code == 0, result.output
        return result.output

    return run


def stale(settings: Settings, instance: dg.DagsterInstance) -> Targets:
    rows = inventory(
        build_definitions(settings), offline_store(settings), settings.calendar(), instance, NOW
    )
    return {(row.asset.path[-1], key) for row in rows for key in row.stale}


def materialized(instance: dg.DagsterInstance, after: set[str]) -> list[tuple[str, str]]:
    """What runs other than the given ones made."""
    return [
        (event.asset_key.path[-1], event.partition or "")
        for record in instance.get_run_records()
        if record.dagster_run.run_id not in after
        for event in (
            entry.dagster_event
            for entry in instance.all_logs(
                record.dagster_run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION
            )
        )
        if event is not None and event.asset_key is not None
    ]


def run_ids(instance: dg.DagsterInstance) -> set[str]:
    return {record.dagster_run.run_id for record in instance.get_run_records()}


def digests(settings: Settings) -> dict[tuple[str, str], tuple[str, int]]:
    """Content and time of every file of a table or model, by asset and partition."""
    files = [
        *(settings.home / "offline_store").rglob("part-0.parquet"),
        *(settings.home / "models").glob("*/*/manifest.json"),
    ]
    return {
        (
            file.relative_to(settings.home).parts[1],
            file.parent.name.partition("=")[2],
        ): (file_digest(file), file.stat().st_mtime_ns)
        for file in files
    }


ROLLUPS = ("daily_activity", "daily_orders", "daily_products")
# Profiles have no part in it: every group reads the activity of the lookback, its population.
GROUPS = ("activity", "behavior", "profile", "recent", "review", "rfm", "trend")
OF_JULY = ("logistic_regression_model", "champion_model", "churn_predictions", "online_features")
MADE_FROM_EVENTS_OF_JUNE: Targets = {
    *((rollup, "2025-06-01") for rollup in ROLLUPS),
    *((f"customer_{group}_features", "2025-07-01") for group in GROUPS),
    ("churn_labels", "2025-06-01"),
    ("training_dataset", "2025-06-01"),
    *((asset, "2025-07-01") for asset in OF_JULY),
    ("drift_report", "2025-07-01"),
    ("realised_performance", "2025-06-01"),
    ("walk_forward_report", ""),
}


@pytest.mark.usefixtures("quick_evaluation")
def test_late_rows_are_followed_up_exactly(shop: Settings, run: Callable[..., str]) -> None:
    run("backfill")
    late = [dt.datetime(2025, 6, 20, hour, tzinfo=dt.UTC) for hour in range(12)]
    write_events(shop, "late", late, ["purchase"] * len(late))
    defs = build_definitions(shop)
    with dg.DagsterInstance.from_config(str(shop.dagster_home)) as instance:
        assert stale(shop, instance) == set(), "the source is read when a slice is ingested"
        defs.resolve_job_def("ingest").execute_in_process(
            instance=instance,
            asset_selection=[*defs.resolve_asset_graph().asset_keys_for_group("raw")],
            tags={RANGE_START: "2025-06-01", RANGE_END: "2025-06-01"},
        )
        assert stale(shop, instance) == MADE_FROM_EVENTS_OF_JUNE
        before, earlier = digests(shop), run_ids(instance)

        run("backfill", "--stale")

        assert stale(shop, instance) == set()
        made = materialized(instance, earlier)
        assert len(made) == len(MADE_FROM_EVENTS_OF_JUNE), "each once"
        assert set(made) == MADE_FROM_EVENTS_OF_JUNE
        after = digests(shop)
        assert before.keys() == after.keys()
        rewritten = {target for target in after if after[target] != before[target]}
        assert rewritten == MADE_FROM_EVENTS_OF_JUNE & after.keys()

        # `churn status` says so too, and a second refresh has nothing to do.
        cells = [line.split("\u2502") for line in run("status").splitlines() if "\u2502" in line]
        assert {row[6].strip() for row in cells} == {"0"}
        assert "Nothing is stale." in run("backfill", "--stale")
        assert len(materialized(instance, earlier)) == len(made)


def test_an_old_review_that_arrives_late_changes_no_topics(
    shop: Settings, run: Callable[..., str]
) -> None:
    write_reviews(shop, "first", [START + dt.timedelta(days=day) for day in range(0, 180, 5)])
    run("backfill", "--stage", "ingest", "--stage", "features")
    topics = find_topics(ModelStore(shop.home))
    write_reviews(shop, "late", [START])
    run("backfill", "--stage", "ingest", "--from", "2025-01-01", "--to", "2025-01-01")
    with dg.DagsterInstance.from_config(str(shop.dagster_home)) as instance:
        cutoffs = ("2025-04-01", "2025-05-01", "2025-06-01", "2025-07-01")
        assert stale(shop, instance) == {
            ("review_topic_model", ""),
            *(("customer_review_features", cutoff) for cutoff in cutoffs),
        }
        said = run("backfill", "--stale")
        assert "review_topic_model" in said
        assert "--stage topics" in said
        assert find_topics(ModelStore(shop.home)) == topics
        assert stale(shop, instance) == {("review_topic_model", "")}


def test_a_refresh_runs_what_is_stale_together_in_ranges(shop: Settings) -> None:
    defs, calendar = build_definitions(shop), shop.calendar()
    features = next(stage for stage in STAGES if stage.name == "features")
    keys = ("2025-04-01", "2025-05-01", "2025-06-01", "2025-07-01")

    def row(asset: str, *stale: str) -> AssetInventory:
        present, none = frozenset(keys), frozenset[str]()
        return AssetInventory(dg.AssetKey(asset), "features", keys, present, none, frozenset(stale))

    batches = plan_refresh(
        features,
        defs,
        calendar,
        [
            row("customer_activity_features", *keys[:2]),
            row("customer_rfm_features", *keys[:2], keys[3]),
            row("customer_trend_features"),
            row("churn_labels", keys[0]),  # of another stage
        ],
    )
    assert [([asset.path[-1] for asset in batch.assets], batch.keys) for batch in batches] == [
        (["customer_activity_features", "customer_rfm_features"], keys[:2]),
        (["customer_rfm_features"], keys[3:]),
    ]


def test_a_refresh_takes_no_range(shop: Settings) -> None:
    result = CliRunner().invoke(churn, ["backfill", "--stale", "--last", "1"])
    assert "--stale goes alone" in str(result.exception)
