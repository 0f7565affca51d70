"""Prevents: a customer who asked to be forgotten and is still somewhere, or comes back.

One small state is made once, from files with UUIDs as ids. Each test erases somebody from a copy.
"""

import datetime as dt
import json
import random
import re
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.compute as pc
import pytest
from click.testing import CliRunner, Result
from hypothesis import example, given, settings
from hypothesis import strategies as st

from churn_assets.cli import churn
from churn_assets.history.text_scores import scores_table
from churn_assets.online.io_manager import open_to_publish
from churn_assets.online.publishing import damage_of, publish, roll_back
from churn_assets.online.server import stop
from churn_assets.online.store import read_version
from churn_assets.operations import erasure
from churn_assets.operations.backfill import BackfillFailed
from churn_assets.operations.traces import erase_audit, erase_snapshots, masks
from churn_assets.serving.audit import AuditLog, audit_query
from churn_assets.stores.erased import FILE, Erased
from churn_assets.stores.identity import identify
from churn_assets_tests.conftest import query, review_texts
from churn_assets_tests.operations.test_changes import State

pytestmark = pytest.mark.usefixtures("one_kind_of_model")

CUSTOMERS = [str(uuid.UUID(int=random.Random(i).getrandbits(128))) for i in range(40)]
GONE = CUSTOMERS[0]
BEGIN, END = (dt.datetime(2025, month, 10, tzinfo=dt.UTC) for month in (1, 6))
SHOP: dict[str, Any] = {"source": "files", "end": END}


def deliver(folder: Path, customers: list[str]) -> None:
    """The files of a shop with these customers; the rows of one do not depend on the others."""
    events, profiles, reviews, bad = [], [], [], []
    texts = review_texts(len(CUSTOMERS))
    for number, customer in enumerate(CUSTOMERS):
        if customer not in customers:
            continue
        rng = random.Random(customer)
        for i in range(12):
            at = BEGIN + rng.random() * (END - BEGIN)
            kind = rng.choice(["purchase", "page_view"])
            events.append(f"{number}-{i},{customer},{at:%Y-%m-%d %H:%M:%S},{kind},{number + i}")
        profiles.append(f"{customer},2025-01-12 00:00:00,female,1990-01-01")
        day = f"2025-0{1 + number % 5}-15 12:00:00"
        reviews.append(f'{number},{customer},{day},{1 + number % 5},"{texts[number]}"')
        if number == 0:
            bad += [f"x,{customer},no time,purchase,5", f"y,{customer},2025-03-03,purchase,5,6,7,8"]
    folder.mkdir(parents=True, exist_ok=True)
    for name, header, lines in (
        ("events", "event_id,customer_id,event_timestamp,event_type,amount", events + bad),
        ("customers", "customer_id,updated_at,gender,birth_date", profiles),
        ("reviews", "review_id,customer_id,review_timestamp,rating,text", reviews),
    ):
        (folder / f"{name}.csv").write_text("\n".join([header, *lines, ""]))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    state = State(tmp_path_factory.mktemp("base") / "state", **SHOP)
    deliver(Path(state.settings.input_folder), CUSTOMERS)
    identify(state.settings)
    state.backfill("ingest")
    state.backfill("topics")
    state.backfill()
    yield state
    stop(state.settings.home)


@pytest.fixture
def state(base: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    """A copy of the state, which the command finds through the environment."""
    shutil.copytree(base.settings.input_folder, tmp_path / "input")
    state = base.copy(tmp_path / "state", **SHOP)
    made = state.settings
    for name, value in (
        ("HOME", made.home),
        ("SOURCE", "files"),
        ("INPUT_DIR", made.input_folder),
        ("START", made.start),
        ("END", END.date()),
        ("LOOKBACK_DAYS", made.lookback_days),
        ("TRAINING_CUTOFFS", made.training_cutoffs),
    ):
        monkeypatch.setenv(f"CHURN_{name}", str(value))
    yield state
    stop(made.home)


def erase(*arguments: str) -> Result:
    return CliRunner().invoke(churn, ["erase", *arguments, "--yes"])


def places_of(home: Path, text: str) -> list[str]:
    """Where a text stands below a folder: in the bytes of a file, or in what they decode to."""
    found = []
    for path in filter(Path.is_file, home.rglob("*")):
        content = path.read_bytes()
        decoded = [content]
        if path.suffix == ".parquet":
            rows = duckdb.sql(f"SELECT * FROM read_parquet('{path}', hive_partitioning = false)")
            decoded.append(str(rows and rows.fetchall()).encode())
        if content.startswith(b"SQLite format 3"):
            with closing(sqlite3.connect(path)) as connection:
                decoded += [line.encode() for line in connection.iterdump()]
        if any(text.encode() in each for each in decoded):
            found.append(str(path.relative_to(home)))
    return found


# What is made with models that learned from the customer, or tells of how it was made.
BY_MODELS = {
    "asset_inventory",
    "champion_model",
    "churn_predictions",
    "drift_report",
    "realised_performance",
    "walk_forward_report",
}


def rows_without_topics(state: State) -> dict[tuple[str, str | None], Any]:
    return {
        target: rows.drop_columns([n for n in rows.column_names if "topic" in n])
        for target, rows in state.rows().items()
        if target[0] not in BY_MODELS
    }


def namespace_of(state: State) -> Any:
    return open_to_publish(state.settings.home, None, identify(state.settings))


def test_nothing_is_left_of_who_is_erased(state: State, tmp_path: Path) -> None:
    home = state.settings.home
    state.backfill()  # a copy has nothing online
    table = read_version(namespace_of(state), namespace_of(state).retained()[0])
    fewer = table.filter(pc.not_equal(table["customer_id"], CUSTOMERS[2]))
    newest = dt.date(2025, 6, 1)
    publish(namespace_of(state), fewer, newest, newest=newest)
    before = namespace_of(state).retained()
    assert all(before)
    half_sent = namespace_of(state)
    half_sent.client.hset(half_sent.key("2025-06-01-0123456789ab-9", 0), GONE, "row")
    audit = AuditLog(home)
    read = [(GONE, True), (CUSTOMERS[1], True)]
    audit.record("shop", "r", "c", "features", False, "redis", newest, read)
    audit.record("shop", "r", "c", "sql", False, "offline", None, [], query=f"SELECT '{GONE}'")
    (home / "serving").mkdir(exist_ok=True)
    leftover = home / "staging" / "of-a-killed-run"
    leftover.parent.mkdir(exist_ok=True)
    leftover.write_text(GONE)
    tables_of_another = [p for p in places_of(home, CUSTOMERS[1]) if p.endswith(".parquet")]
    assert "offline_store/raw_events/slice=2025-01-01/part-0.parquet" in places_of(home, GONE)

    result = erase(GONE)

    assert result.exit_code == 0, result.output
    assert places_of(home, GONE) == []
    assert set(tables_of_another) <= set(places_of(home, CUSTOMERS[1]))
    assert not any(row.missing or row.stale for row in state.inventory().values())
    assert "logistic_regression_model learned from them: 2025-06-01" in result.output
    assert "review_topic_model learned from them: whole" in result.output
    read_since = query(audit_query(home))
    masked = "*" * len(GONE)
    assert [row["customer_id"] for row in read_since] == [masked, CUSTOMERS[1], None]
    assert read_since[-1]["query"] == f"SELECT '{masked}'"

    # Both online versions are whole without the customer.
    namespace = namespace_of(state)
    assert namespace.retained()[1] == before[0]
    for version in namespace.retained():
        assert not damage_of(namespace, version)
        assert GONE not in read_version(namespace, version)["customer_id"].to_pylist()
    roll_back(namespace)

    # Nobody who is still in the source comes back, and nothing is other than without them.
    rows = state.rows()
    state.backfill("ingest", wanted=None)
    shutil.rmtree(home / "offline_store" / "raw_events")
    state.backfill("ingest")
    assert state.rows().keys() == rows.keys()
    assert all(rows[target].equals(found) for target, found in state.rows().items())
    assert places_of(home, GONE) == []

    without = State(tmp_path / "without" / "state", **SHOP)
    deliver(Path(without.settings.input_folder), CUSTOMERS[1:])
    try:
        without.backfill("ingest")
        without.backfill("topics")
        without.backfill("features", "training_data")
        ours, theirs = rows_without_topics(state), rows_without_topics(without)
        assert ours.keys() == theirs.keys()
        assert [target for target in ours if not ours[target].equals(theirs[target])] == []
    finally:
        stop(without.settings.home)


def test_an_erasure_that_broke_off_goes_on(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """The customer is gone even so, and models are not taken for stale afterwards."""

    def fails(*_: Any) -> None:
        raise BackfillFailed("features failed.")

    with monkeypatch.context() as patch:
        patch.setattr("churn_assets.operations.backfill.run_batch", fails)
        result = erase(GONE)
    assert result.exit_code == 1
    assert "give the same command again" in result.output
    assert places_of(state.settings.home, GONE) == []
    assert any(row.stale for row in state.inventory().values())

    assert erase(GONE).exit_code == 0
    assert not any(row.stale for row in state.inventory().values())
    assert Erased.read(state.settings.home).unfinished is None


def test_models_are_trained_anew_where_that_is_asked_for(state: State) -> None:
    state.backfill()
    result = erase(GONE, "--retrain")
    assert result.exit_code == 0, result.output
    stale = state.stale()
    assert {"logistic_regression_model", "churn_predictions", "online_features"} <= set(stale)
    assert not {"training_dataset", "customer_rfm_features", "churn_labels"} & set(stale)
    assert "`churn backfill --stale` makes them again" in result.output


def test_what_was_stale_before_stays_so(base: State, state: State) -> None:
    """It is the operator's to decide; models of before are then not taken for models of now."""
    changed = State(state.settings.home, **SHOP, horizon_days=14)
    before = changed.stale()
    rows = list(changed.inventory().values())
    erased = erasure.begin(changed.store, [GONE], rows)
    erasure.erase_rows(changed.store, erased)
    remaking = erasure.Remaking(
        changed.defs,
        changed.store,
        changed.calendar,
        changed.instance,
        dt.datetime.now(dt.UTC),
        False,
    )
    made = changed._run(remaking.batches())
    assert made
    assert changed.stale() == before


def test_nothing_is_erased_without_a_yes(state: State) -> None:
    result = CliRunner().invoke(churn, ["erase", GONE])
    assert result.exit_code == 1
    assert "Nothing was erased" in result.output
    assert not (state.settings.home / FILE).exists()


def test_a_damaged_list_stops_the_ingestion(state: State) -> None:
    """Else everybody who was erased comes back."""
    (state.settings.home / FILE).write_text("{")
    shutil.rmtree(state.settings.home / "offline_store" / "raw_events")
    with pytest.raises(BackfillFailed, match="says who was erased, and cannot be read"):
        state.backfill("ingest")


def test_a_reset_keeps_the_list(state: State) -> None:
    erasure.begin(state.store, [GONE], [])
    CliRunner().invoke(churn, ["reset", "--yes"])
    assert Erased.read(state.settings.home).customers


def test_a_short_id_is_no_number_of_a_record() -> None:
    assert masks(["7"]) == {"| 7 |": "| * |"}
    assert masks(['a"b-12345']) == {'a"b-12345': "*" * 9, 'a\\"b-12345': "*" * 10}


QUERIES = {
    f"FROM raw_events WHERE customer_id = '{GONE}'": "FROM raw_events WHERE *_id = '*'",
    "SELECT 7, '7', 17, x7": "SELECT *, '*', 17, x7",
    'a\nnabc-1234 "nabc-1234" \\n': 'a\n* "*" \\n',
    "SELECT 'O''Hara and sons', 'ü-ü-ü-ü-ü'": "SELECT '*', '*'",
    '{"customer_id":"7","query":"7"}': '{"*_id":"*","query":"*"}',
}


def test_an_id_in_a_query_of_the_audit_log_is_overwritten(tmp_path: Path) -> None:
    """And nothing else is: a line that cannot be read any more is no record."""
    customers = [GONE, "7", "nabc-1234", "O'Hara and sons", "ü-ü-ü-ü-ü", "customer"]
    audit = AuditLog(tmp_path)
    for text in QUERIES:
        audit.record("s", "r", "cli:7", "sql", True, "offline", None, [("7", True)], query=text)
    (file,) = (tmp_path / "serving" / "audit").iterdir()
    size = file.stat().st_size
    erase_audit(tmp_path, customers)
    assert file.stat().st_size == size
    rows = query(audit_query(tmp_path))
    assert [re.sub(r"\*+", "*", row["query"]) for row in rows] == list(QUERIES.values())
    assert {(row["customer_id"], row["caller"]) for row in rows} == {("*", "cli:7")}


def test_scores_of_their_texts_are_forgotten(base: State, state: State) -> None:
    def hashes() -> set[str]:
        files = str(state.settings.home / "text_scores" / "*" / "*.parquet")
        return {row["text_hash"] for row in query(f"FROM read_parquet('{files}')")}

    assert scores_table("none").key == ("text_hash",)
    of_gone = f"SELECT sha256(text) AS h FROM '{state.store.root}/raw_reviews/*/*.parquet'"
    theirs = {row["h"] for row in query(f"{of_gone} WHERE customer_id = '{GONE}'")}
    before = hashes()
    assert theirs and theirs < before
    erasure.erase_rows(state.store, erasure.begin(state.store, [GONE], []))
    assert hashes() == before - theirs


def test_a_snapshot_that_has_them_is_deleted(tmp_path: Path) -> None:
    from pyarrow import feather, table

    folder = tmp_path / "serving"
    folder.mkdir()
    for name, ids in (("with", [GONE, "b"]), ("without", ["b"])):
        path = str(folder / f"{name}.arrow")
        feather.write_feather(table({"customer_id": ids}), path, compression="uncompressed")
    assert erase_snapshots(tmp_path, [GONE]) == 1
    assert [path.name for path in folder.iterdir()] == ["without.arrow"]


IDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


@settings(deadline=None)
@given(IDS, st.lists(IDS, max_size=4))
@example("Doe, John", ["a"])
@example("o'hara", [])
@example("ü 1", ["ü"])
def test_an_id_is_found_as_a_value_and_nobody_else_is(customer: str, others: list[str]) -> None:
    erased = Erased("k")
    erased = Erased("k", frozenset([erased.hash_of(customer)]))
    others = [other for other in others if other != customer]
    with duckdb.connect() as connection:
        for id_ in (customer, *others):
            [(found,)] = connection.execute(
                f"SELECT {erased.has('id')} FROM (SELECT ? AS id)", [id_]
            ).fetchall()
            assert found == (id_ == customer)
        row = json.dumps({"a": 1, "customer": customer}, ensure_ascii=False)
        [(found,)] = connection.execute(
            f"SELECT {erased.is_in('line')} FROM (SELECT ? AS line)", [row]
        ).fetchall()
        assert found or "\\" in row
