"""Prevents: a check that only paints a page red, a hold that is forgotten with the run that found
it, a file replaced by hand that nobody looks at, and a partition that can never pass again.
"""

import datetime as dt
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner

from churn_assets.cli import churn
from churn_assets.definitions import build_definitions
from churn_assets.operations import contract_checks, gate
from churn_assets.operations.contract_checks import CONTRACT
from churn_assets.operations.contracts import Rule, rules_of
from churn_assets.operations.gate import HeldBack, audit
from churn_assets.operations.installation import offline_store
from churn_assets.operations.jobs import RANGE_END, RANGE_START
from churn_assets.settings import Settings
from churn_assets.stores.digests import file_digest
from churn_assets.stores.parquet import UnreadableFile
from churn_assets.stores.verdicts import read_verdict, verdict_path
from churn_assets_tests.conftest import (
    evaluate_quickly,
    ingest_run,
    make_settings,
    materialize,
    utc_connection,
)

SLICE, CUTOFF, SCORED = "2025-05-01", "2025-05-01", "2025-06-01"


def shop(folder: Path) -> Settings:
    return make_settings(
        folder,
        source="synthetic",
        synthetic_customers=300,
        start=dt.date(2025, 1, 1),
        end=dt.datetime(2025, 6, 10, tzinfo=dt.UTC),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop with everything up to the predictions of one cutoff."""
    folder = tmp_path_factory.mktemp("checks")
    settings = shop(folder)
    with pytest.MonkeyPatch.context() as patch:
        evaluate_quickly(patch)
        ingest_run(settings, "2025-01-01", "2025-06-01")
        materialize(settings, "features", "2025-04-01", SCORED)
        materialize(settings, "training_data", "2025-04-01", "2025-05-01")
        materialize(settings, "models", SCORED, SCORED)
    return folder


@pytest.fixture
def settings(made: Path, tmp_path: Path) -> Settings:
    """A copy of that shop, to be spoilt."""
    shutil.copytree(made / "state", tmp_path / "state", ignore=shutil.ignore_patterns("*.sock"))
    return shop(tmp_path)


def spoil(settings: Settings, table: str, key: str, sql: str) -> None:
    """Replace the rows of a partition by those of a query over `good`."""
    store = offline_store(settings)
    path = store.path(store.tables[table], key)
    with utc_connection() as connection:
        connection.execute(
            f"CREATE TABLE good AS FROM read_parquet('{path}', hive_partitioning = false)"
        )
        connection.execute(f"COPY ({sql}) TO '{path}' (FORMAT parquet)")


def run(
    settings: Settings, job: str, key: str, assets: list[str], instance: dg.DagsterInstance
) -> dg.ExecuteInProcessResult:
    return (
        build_definitions(settings)
        .resolve_job_def(job)
        .execute_in_process(
            instance=instance,
            tags={RANGE_START: key, RANGE_END: key},
            asset_selection=[dg.AssetKey(asset) for asset in assets],
            raise_on_error=False,
        )
    )


def errors(result: dg.ExecuteInProcessResult) -> str:
    """The messages of all failed steps, causes included."""
    told = []
    for event in result.filter_events(lambda e: e.is_step_failure):
        error = event.step_failure_data.error
        while error:
            told.append(error.message)
            error = error.cause
    return "\n".join(told)


ROLLUPS = ("ingest", ["daily_activity", "daily_orders", "daily_products"])
FEATURES = ("features", ["customer_rfm_features", "customer_trend_features"])
TRAINING = ("training_data", ["training_dataset"])
MODELS = ("models", ["logistic_regression_model"])
ONLINE = ("models", ["online_features"])
KINDS = {
    "a second delivery of rows": (
        "raw_events", SLICE, "FROM good UNION ALL FROM good", "primary_key", ROLLUPS, SLICE,
    ),
    "an event of after the slice": (
        "raw_events", SLICE,
        "SELECT * REPLACE (event_timestamp + INTERVAL 40 DAY AS event_timestamp) FROM good",
        "no_future_data", ROLLUPS, SLICE,
    ),
    "a lost column": (
        "raw_events", SLICE, "SELECT * EXCLUDE (amount) FROM good",
        "schema_as_declared", ROLLUPS, SLICE,
    ),
    "a rollup row without a customer": (
        "daily_orders", SLICE,
        "SELECT * REPLACE (NULLIF(customer_id, (SELECT min(customer_id) FROM good)) "
        "AS customer_id) FROM good",
        "primary_key", FEATURES, SCORED,
    ),
    "a rollup row of the future": (
        "daily_activity", SLICE,
        "SELECT * REPLACE (last_event_us + 86400000000 * 60 AS last_event_us) FROM good",
        "no_future_data", FEATURES, SCORED,
    ),
    "a review scored twice": (
        "scored_reviews", SLICE, "FROM good UNION ALL (FROM good LIMIT 1)",
        "primary_key", ("features", ["customer_review_features"]), SCORED,
    ),
    "a profile version of the future": (
        "raw_customers", SLICE,
        "SELECT * REPLACE (updated_at + INTERVAL 99 DAY AS updated_at) FROM good",
        "no_future_data", ("features", ["customer_profile_features"]), SCORED,
    ),
    "a customer without features": (
        "customer_rfm_features", CUTOFF,
        "FROM good WHERE customer_id <> (SELECT min(customer_id) FROM good)",
        "rows_equal_population", TRAINING, CUTOFF,
    ),
    "features of a stranger": (
        "customer_trend_features", CUTOFF,
        "FROM good UNION ALL (SELECT * REPLACE ('nobody' AS customer_id) FROM good LIMIT 1)",
        "rows_equal_population", TRAINING, CUTOFF,
    ),
    "a number that is none": (
        "customer_behavior_features", CUTOFF,
        "SELECT * REPLACE ('inf'::DOUBLE AS avg_order_value) FROM good", "values", TRAINING, CUTOFF,
    ),
    "a purchase of after the cutoff": (
        "customer_rfm_features", CUTOFF, "SELECT * REPLACE (-3 AS recency_days) FROM good",
        "values", TRAINING, CUTOFF,
    ),
    "labels as text": (
        "churn_labels", CUTOFF, "SELECT * REPLACE (churned::VARCHAR AS churned) FROM good",
        "schema_as_declared", TRAINING, CUTOFF,
    ),
    "labels of another cutoff": (
        "churn_labels", CUTOFF, "SELECT * REPLACE (DATE '2025-04-01' AS cutoff) FROM good",
        "primary_key", TRAINING, CUTOFF,
    ),
    "half a training set": (
        "training_dataset", CUTOFF, "FROM good LIMIT 50", "rows_equal_population", MODELS, SCORED,
    ),
    "a probability above 1": (
        "churn_predictions", SCORED,
        "SELECT * REPLACE (CAST(1.5 AS DOUBLE) AS churn_probability) FROM good",
        "values", ONLINE, SCORED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_made_from_bad_data(kind: str, settings: Settings, tmp_path: Path) -> None:
    table, key, sql, rule, (job, assets), partition = KINDS[kind]
    spoil(settings, table, key, sql)
    before = contents(settings)
    with dg.DagsterInstance.ephemeral() as instance:
        result = run(settings, job, partition, assets, instance)
    assert not result.success
    told = errors(result)
    assert f"{table} {key} is held back" in told
    assert rule in told
    assert contents(settings) == before
    assert result.get_asset_materialization_events() == []


def contents(settings: Settings) -> dict[Path, str]:
    """Every table and model, by the digest of its file."""
    folders = (settings.home / "offline_store", settings.home / "models")
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    return {file: file_digest(file) for file in files}


def test_every_rule_is_seen_to_fail() -> None:
    seen = {rule for _, _, _, rule, _, _ in KINDS.values()} | {"quarantine_rate", "label_balance"}
    store = offline_store(make_settings(Path("nowhere")))
    assert seen == {rule.name for table in store.tables.values() for rule in rules_of(table)}


# A hold, and what ends it


def bad_source(folder: Path, bad: int) -> Settings:
    """A shop of 100 events in January, `bad` of which lack a customer."""
    (folder / "input").mkdir(exist_ok=True)
    lines = ["customer_id,event_timestamp,event_type"] + [
        f"{'' if i < bad else f'c{i}'},2025-01-{1 + i % 28:02d}T12:00:00Z,page_view"
        for i in range(100)
    ]
    (folder / "input" / "events.csv").write_text("\n".join(lines))
    return make_settings(
        folder, start=dt.date(2025, 1, 1), end=dt.datetime(2025, 2, 1, tzinfo=dt.UTC)
    )


def ingest(
    settings: Settings, instance: dg.DagsterInstance, assets: list[str] | None = None
) -> dg.ExecuteInProcessResult:
    raw = ["raw_events", "raw_customers", "raw_reviews", "raw_satisfaction", "quarantined_rows"]
    return run(settings, "ingest", "2025-01-01", assets or [*raw, *ROLLUPS[1]], instance)


def evaluations(instance: dg.DagsterInstance, table: str) -> list[Any]:
    """What Dagster knows of a table's check, newest first."""
    records = instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(dg.AssetKey(table), CONTRACT), limit=10
    )
    return [record.event.asset_check_evaluation for record in records if record.event]


def test_a_slice_that_is_mostly_quarantined_goes_no_further(tmp_path: Path) -> None:
    settings = bad_source(tmp_path, bad=60)
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        same_run = ingest(settings, instance)
        assert not same_run.success
        assert "quarantine_rate (rows in quarantine: 60.0 %)" in errors(same_run)
        store = offline_store(settings)
        assert store.keys(store.tables["daily_activity"]) == []

        # A later run has forgotten nothing.
        later = ingest(settings, instance, ROLLUPS[1])
        assert not later.success
        assert "raw_events 2025-01-01 is held back" in errors(later)

        # The source is mended: the slice passes, and all that waits for it can be made.
        bad_source(tmp_path, bad=0)
        assert ingest(settings, instance).success
        assert store.keys(store.tables["daily_activity"]) == ["2025-01-01"]
        assert evaluations(instance, "raw_events")[0].passed


def test_a_person_may_accept_what_is_held_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = bad_source(tmp_path, bad=60)
    for name, value in {
        "HOME": settings.home, "INPUT_DIR": settings.input_dir, "SOURCE": "files",
        "START": "2025-01-01", "END": "2025-02-01",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"CHURN_{name}", str(value))
    monkeypatch.setenv("DAGSTER_HOME", str(settings.home / "dagster"))
    (settings.home / "dagster").mkdir(parents=True)
    command = ["accept", "raw_events", "2025-01-01", "--reason", "guests are expected"]
    with dg.DagsterInstance.get() as instance:
        assert not ingest(settings, instance).success
        refused = CliRunner().invoke(
            churn, ["accept", "daily_orders", "2025-01-01", "--reason", "x"]
        )
        assert refused.exit_code == 1
        assert "lacks" in refused.output
        assert CliRunner().invoke(churn, command).exit_code == 0
        assert ingest(settings, instance, ROLLUPS[1]).success

        # Said in Dagster too, with who and why.
        evaluation = evaluations(instance, "raw_events")[0]
        assert evaluation.passed
        assert evaluation.partition == "2025-01-01"
        assert evaluation.metadata["accepted reason"].value == "guests are expected"
        assert evaluation.metadata["accepted by"].value

        # Another content is another question; the same one stays accepted when checked again.
        store, calendar = offline_store(settings), settings.calendar()
        table = store.tables["raw_events"]
        assert not audit(store, calendar, table, ["2025-01-01"])["2025-01-01"].holds_back
        spoil(settings, "raw_events", "2025-01-01", "FROM good LIMIT 30")
        with pytest.raises(HeldBack, match="churn accept raw_events 2025-01-01"):
            store.scan(table, ["2025-01-01"])
    assert "nothing to accept" in CliRunner().invoke(
        churn, ["accept", "raw_customers", "2025-01-01", "--reason", "x"]
    ).output  # fmt: skip


@pytest.mark.parametrize("damaged", [None, "", '{"content": ', "[]", "null", '{"rules": []}'])
def test_a_content_that_nobody_has_looked_at_is_looked_at(
    settings: Settings, damaged: str | None
) -> None:
    """A damaged verdict, as a power failure leaves one, is as good as none."""
    store = offline_store(settings)
    table = store.tables["churn_labels"]
    shutil.rmtree(settings.home / "verdicts")
    if damaged is not None:
        path = verdict_path(settings.home, "churn_labels", CUTOFF)
        path.parent.mkdir(parents=True)
        path.write_text(damaged)
    store.scan(table, [CUTOFF])
    verdict = read_verdict(settings.home, "churn_labels", CUTOFF)
    assert verdict is not None
    assert verdict.rules == tuple(rule.name for rule in rules_of(table))
    assert not verdict.holds_back


def test_a_verdict_is_kept_until_the_content_or_the_rules_change(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = offline_store(settings)
    table = store.tables["churn_labels"]
    store.scan(table, [CUTOFF])
    asked = []

    def counted(*args: Any) -> Any:
        asked.append(args)
        return audit(*args)

    monkeypatch.setattr(gate, "audit", counted)
    store.scan(table, [CUTOFF])
    assert asked == []
    known = rules_of(table)
    another = Rule("another", "Anything.", None)
    monkeypatch.setattr(gate, "rules_of", lambda _: [*known, another])
    store.scan(table, [CUTOFF])
    assert len(asked) == 1


def test_one_sided_labels_are_worth_a_look_and_hold_nothing_back(settings: Settings) -> None:
    spoil(settings, "churn_labels", CUTOFF, "SELECT * REPLACE (1::INTEGER AS churned) FROM good")
    store = offline_store(settings)
    table = store.tables["churn_labels"]
    store.scan(table, [CUTOFF])
    verdict = read_verdict(settings.home, "churn_labels", CUTOFF)
    assert verdict is not None
    assert verdict.warnings == {"label_balance": "customers who churned: 100.0 %"}
    evaluation = contract_checks.evaluation(table, CUTOFF, verdict)
    assert not evaluation.passed
    assert evaluation.severity == dg.AssetCheckSeverity.WARN


def test_a_file_that_cannot_be_read_is_named(settings: Settings) -> None:
    store = offline_store(settings)
    table = store.tables["churn_labels"]
    path = store.path(table, CUTOFF)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnreadableFile, match=f"{path} cannot be read"):
        store.scan(table, [CUTOFF])


def test_a_range_records_an_evaluation_for_each_partition(tmp_path: Path, made: Path) -> None:
    shutil.copytree(made / "state", tmp_path / "state", ignore=shutil.ignore_patterns("*.sock"))
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        materialize(shop(tmp_path), "training_data", "2025-04-01", "2025-05-01", instance)
        for asset in ("churn_labels", "training_dataset"):
            key = dg.AssetCheckKey(dg.AssetKey(asset), CONTRACT)
            found = instance.event_log_storage.get_asset_check_partition_info([key])
            assert {info.partition_key for info in found} == {"2025-04-01", "2025-05-01"}
            for info in found:
                assert info.latest_execution_status.value == "SUCCEEDED"
                # About what was just written: one from before it would count as out of date.
                assert info.latest_check_event_storage_id is not None
                assert info.latest_materialization_storage_id is not None
                assert info.latest_check_event_storage_id > info.latest_materialization_storage_id
