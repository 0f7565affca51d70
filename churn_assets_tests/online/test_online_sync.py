"""The online sync and its parity check, as Dagster runs on the real graph and a real server.

Prevents the simplification of believing that what was sent is what is served.
"""

import datetime as dt
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.compute as pc
import pytest

from churn_assets.definitions import build_definitions
from churn_assets.online import publishing
from churn_assets.online import sync as assets
from churn_assets.online.io_manager import OnlineIOManager
from churn_assets.online.rows import OnlineStoreError
from churn_assets.online.server import redis_url, stop
from churn_assets.online.store import OnlineStore, read_version
from churn_assets.operations import contract_checks
from churn_assets.operations.installation import offline_store
from churn_assets.operations.jobs import RANGE_END, RANGE_START
from churn_assets.settings import Settings
from churn_assets.stores.identity import AnotherInstallation
from churn_assets.stores.partitions import Query
from churn_assets_tests.conftest import GROUPS, make_settings, of_now, online, utc_connection

ONLINE = assets.online_table(GROUPS)

ARROW = {
    "BIGINT": "int64",
    "INTEGER": "int32",
    "DOUBLE": "double",
    "VARCHAR": "string",
    "BOOLEAN": "bool",
    "DATE": "date32[day]",
}
CHECK = dg.AssetCheckKey(dg.AssetKey("online_features"), "online_equals_offline")


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """Three scored cutoffs, offline only, with NULLs in every feature."""
    settings = make_settings(tmp_path, source="synthetic", start="2025-01-01", end="2025-08-01")
    store = offline_store(settings)
    cutoffs = ["2025-06-01", "2025-07-01", "2025-08-01"]
    for table in (store.tables[name] for name in assets.online_sources(GROUPS)):
        values = ", ".join(
            f"CASE WHEN (i + {n}) % 5 > 0 THEN CAST(hash(i, cutoff, {n}) % 100 AS {column.dtype}) "
            f"END AS {column.name}"
            if column.name in ONLINE.column_names
            else f"NULL AS {column.name}"
            for n, column in enumerate(table.columns[2:])
        )
        rows = (
            f"SELECT 'C' || i AS customer_id, cutoff, {values} FROM range(50) AS customers(i), "
            f"(SELECT unnest({cutoffs})::DATE AS cutoff)"
        )
        with store.connect() as connection:
            store.publish(connection, table, Query(rows), cutoffs, of_now(settings, table.name))
        with dg.DagsterInstance.ephemeral() as instance:
            for key in cutoffs:
                contract_checks.accept(
                    store, settings.calendar(), table.name, key, "Made up.", instance
                )
    yield settings
    stop(settings.home)


def sync_job(settings: Settings, target: dg.AssetSelection) -> dg.JobDefinition:
    """A job of the graph, of what the target selects."""
    job = dg.define_asset_job("sync", target)
    defs = dg.Definitions.merge(build_definitions(settings), dg.Definitions(jobs=[job]))
    return defs.resolve_job_def("sync")


SYNC = dg.AssetSelection.assets("online_features")
OF_AUGUST = {RANGE_START: "2025-08-01", RANGE_END: "2025-08-01"}


def run(settings: Settings, first: str, last: str, *, sync: bool = True) -> dg.AssetCheckEvaluation:
    """The evaluation of the check after a sync, or without one."""
    target = SYNC if sync else dg.AssetSelection.checks(CHECK)
    result = sync_job(settings, target).execute_in_process(
        tags={RANGE_START: first, RANGE_END: last}, raise_on_error=False
    )
    (evaluation,) = result.get_asset_check_evaluations()
    assert result.success is evaluation.passed
    return evaluation


def test_what_is_served_equals_the_offline_rows(settings: Settings) -> None:
    evaluation = run(settings, "2025-06-01", "2025-08-01")
    assert evaluation.passed
    assert evaluation.metadata["rows"].value == 50
    live = OnlineStore(online(settings)).live()
    assert live
    assert str(live.cutoff) == "2025-08-01"
    declared = [(column.name, ARROW[column.dtype]) for column in ONLINE.columns]
    assert [(column.name, column.dtype) for column in live.codec.columns] == declared[2:]

    older = run(settings, "2025-07-01", "2025-07-01")
    assert older.passed
    assert older.description == "Another cutoff is live, so nothing of this one is served."


def test_a_version_without_customers_is_never_served(settings: Settings) -> None:
    run(settings, "2025-07-01", "2025-07-01")
    store = offline_store(settings)
    for name in assets.online_sources(GROUPS):
        table = store.tables[name]
        with store.connect() as connection:
            store.publish(
                connection, table, Query(table.empty()), ["2025-08-01"], of_now(settings, name)
            )
    job = sync_job(settings, SYNC)
    with pytest.raises(OnlineStoreError, match="nobody to serve at 2025-08-01"):
        job.execute_in_process(tags=OF_AUGUST)
    live = OnlineStore(online(settings)).live()
    assert live and str(live.cutoff) == "2025-07-01"


def test_rows_that_differ_fail_the_run(settings: Settings) -> None:
    run(settings, "2025-08-01", "2025-08-01")
    table = read_version(online(settings))
    doubled = pc.multiply(table["total_events"], 2)
    wrong = table.set_column(table.column_names.index("total_events"), "total_events", doubled)
    cutoff = table["cutoff"][0].as_py()
    publishing.publish(online(settings), wrong.slice(1), cutoff, newest=cutoff)
    evaluation = run(settings, "2025-08-01", "2025-08-01", sync=False)
    assert not evaluation.passed
    assert evaluation.blocking
    differ: Any = evaluation.metadata["customers_that_differ"].value
    assert differ["customer_id"] == 1
    assert 30 < differ["total_events"] < 50
    assert set(differ) == {"customer_id", "total_events"}
    assert run(settings, "2025-08-01", "2025-08-01").passed


def test_a_clock_that_was_ahead_blocks_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_end = settings.model_copy(update={"end": None})

    def live() -> str:
        version = OnlineStore(online(settings)).live()
        return str(version and version.cutoff)

    def july() -> dt.datetime:
        return dt.datetime(2025, 7, 15, tzinfo=dt.UTC)

    run(without_end, "2025-08-01", "2025-08-01")
    assert run(without_end, "2025-07-01", "2025-07-01").passed
    assert live() == "2025-08-01"
    with monkeypatch.context() as right:
        now = partial(OnlineIOManager, now=july)
        right.setattr("churn_assets.definitions.OnlineIOManager", now)
        assert run(without_end, "2025-07-01", "2025-07-01").passed
        assert live() == "2025-07-01"
        run(without_end, "2025-06-01", "2025-06-01")
        assert live() == "2025-07-01"
    run(without_end, "2025-08-01", "2025-08-01")
    assert live() == "2025-08-01"
    earlier = settings.model_copy(update={"end": july()})
    run(earlier, "2025-07-01", "2025-07-01")
    assert live() == "2025-07-01"


@pytest.mark.parametrize(
    ("online_value", "offline_value", "found"),
    [
        ("NULL", "NULL", {}),
        ("0.0", "NULL", {"monetary": 1}),
        ("NULL", "0.0", {"monetary": 1}),
        ("0.1", "0.1", {}),
        ("'NaN'", "'NaN'", {}),
    ],
)
def test_null_equals_null_only(
    online_value: str, offline_value: str, found: dict[str, int]
) -> None:
    with utc_connection() as connection:
        online_row = connection.sql(row(online_value)).to_arrow_table()
        assert assets.differences(connection, online_row, f"({row(offline_value)})") == found


def row(monetary: str) -> str:
    """A customer of whom nothing else is known."""
    values = {"customer_id": "'a'", "monetary": monetary}
    names = ONLINE.column_names
    columns = ", ".join(f"{values.get(name, 'NULL')} AS {name}" for name in names)
    return ONLINE.typed(f"SELECT {columns}")


def test_an_external_server_is_left_alone_by_a_home_that_was_moved(
    settings: Settings, tmp_path: Path
) -> None:
    try:
        served = settings.model_copy(update={"redis_url": redis_url(tmp_path / "redis")})
        assert run(served, "2025-07-01", "2025-07-01").passed
        home = tmp_path / "moved"
        served.home.rename(home)
        moved = served.model_copy(update={"home": home})
        job = sync_job(moved, SYNC)
        with pytest.raises(AnotherInstallation, match="churn adopt --moved"):
            job.execute_in_process(tags=OF_AUGUST)
        live = OnlineStore(online(moved)).live()
        assert live and str(live.cutoff) == "2025-07-01"
        assert run(moved, "2025-07-01", "2025-07-01", sync=False).passed
    finally:
        stop(tmp_path / "redis")


def test_to_load_the_code_location_writes_no_identity(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, source="synthetic")
    build_definitions(settings)
    assert not settings.home.exists()
