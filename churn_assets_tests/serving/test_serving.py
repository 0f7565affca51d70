"""The service over HTTP, with a real Redis that is stopped and started.

They prevent these simplifications: answering from the store alone (an outage becomes 5xx) or from a
cache alone (answers become old without saying so), scoring with other numbers than training, and
replacing a model by restarting the service.
"""

import contextlib
import datetime as dt
import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pydantic import SecretStr

from churn_assets.features import feature_columns, feature_versions, sensitive_features
from churn_assets.models.artefacts import ModelStore
from churn_assets.models.estimators import Estimator, fit
from churn_assets.models.kinds import ESTIMATORS
from churn_assets.online.publishing import publish
from churn_assets.online.server import redis_url, stop
from churn_assets.predictions.churn_predictions import explainer
from churn_assets.serving import app as serving
from churn_assets.serving import rows as serving_rows
from churn_assets.serving import schemas
from churn_assets.serving.access import SCOPES, new_key
from churn_assets.serving.scoring import Scorer
from churn_assets_tests.conftest import GROUPS, stored
from churn_assets_tests.models.test_models import rows as made_up_rows
from churn_assets_tests.served_shop import (
    CUTOFF,
    Client,
    Shop,
    choose,
    decide,
    eventually,
    online_table,
    publish_rows,
    running,
)

COLUMNS = feature_columns(GROUPS)
SCHEMAS = schemas.feature_schemas(GROUPS)


@pytest.fixture(autouse=True, scope="module")
def quick_and_patient() -> Iterator[None]:
    """A watcher that tests need not wait for, and no outage because the machine is busy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "WATCH_SECONDS", 0.05)
        patch.setattr(serving_rows, "READ_SECONDS", 30)
        yield


@pytest.fixture(scope="module")
def client(shop: Shop) -> Iterator[Client]:
    """A service that tests leave as it is."""
    with running(shop.settings) as client:
        yield client


@pytest.fixture(scope="module")
def rows(shop: Shop) -> list[dict[str, Any]]:
    return online_table(shop).to_pylist()


@contextlib.contextmanager
def published_with(shop: Shop, column: str, values: Any) -> Iterator[None]:
    """The rows of the shop with other values in one column, until the test is over."""
    table = online_table(shop)
    index = table.column_names.index(column)
    publish(shop.online, table.set_column(index, column, values), CUTOFF, newest=CUTOFF)
    try:
        yield
    finally:
        publish_rows(shop)


# --------------------------------------------------------------------------- what is answered


def test_features_are_those_of_the_offline_store(client: Client, rows: list[dict[str, Any]]):
    withheld = sensitive_features(GROUPS)
    for row in rows[:20]:
        status, answer = client.get(f"/features/{row['customer_id']}")
        assert status == 200
        SCHEMAS.customer_features.model_validate(answer)
        plain = {c.name: row[c.name] for c in COLUMNS if c.name not in withheld}
        assert answer["features"] == plain
        assert set(answer["withheld"]) == withheld
        published = {"churn_probability", "prediction", "model_version"}
        assert answer["published"] == {name: row[name] for name in published}
        assert (answer["cutoff"], answer["source"], answer["stale"]) == (
            CUTOFF.isoformat(),
            "redis",
            False,
        )


def test_reasons_are_given_where_they_are_asked_for(
    client: Client, shop: Shop, rows: list[dict[str, Any]]
):
    models = ModelStore(shop.settings.home)
    manifest = models.manifest("xgboost_model", CUTOFF.isoformat())
    explains = explainer(GROUPS, manifest, models.load(manifest, feature_versions(GROUPS)), 90)
    for row in rows[:5]:
        _, answer = client.post(f"/predict/{row['customer_id']}")
        assert answer.get("reasons") is None
        status, answer = client.post(f"/predict/{row['customer_id']}?explain=true")
        at_risk = np.array([row["prediction"] == "CHURN RISK"])
        [told] = explains.reasons(pd.DataFrame([row]), at_risk)
        assert (status, answer["reasons"]) == (200, [reason for reason in told if reason])


def test_a_live_prediction_is_the_published_one(client: Client, rows: list[dict[str, Any]]):
    for row in rows[:20]:
        status, answer = client.post(f"/predict/{row['customer_id']}")
        assert status == 200
        schemas.CustomerPrediction.model_validate(answer)
        for name in ("churn_probability", "prediction", "model_version"):
            assert answer[name] == row[name]
        assert answer["churn_probability"] + answer["purchase_probability"] == 1


def test_a_batch_keeps_the_order_and_names_who_is_missing(
    client: Client, rows: list[dict[str, Any]]
):
    ids = [row["customer_id"] for row in rows[:9]][::-1]
    body = {"customer_ids": [*ids[:4], "nobody", *ids[4:]]}
    for path, schema in (
        ("/features:batch", SCHEMAS.feature_batch),
        ("/predict", schemas.Predictions),
    ):
        status, answer = client.post(path, body)
        assert status == 200
        schema.model_validate(answer)
        assert [row["customer_id"] for row in answer["rows"]] == ids
        assert answer["missing"] == ["nobody"]
        assert answer["cutoff"] == CUTOFF.isoformat()


def test_raw_features_are_scored_as_published_ones_are(client: Client, rows: list[dict[str, Any]]):
    withheld = sensitive_features(GROUPS)
    features = [{c.name: row[c.name] for c in COLUMNS if c.name not in withheld} for row in rows]
    status, answer = client.post("/predict", {"rows": features})
    assert status == 200
    schemas.Predictions.model_validate(answer)
    predicted = [row["churn_probability"] for row in answer["rows"]]
    assert predicted == [row["churn_probability"] for row in rows]


def test_an_unknown_customer_is_not_found(client: Client):
    for method, path in (("GET", "features"), ("POST", "predict"), ("POST", "refresh")):
        assert client.ask(method, f"/{path}/nobody")[0] == 404


@pytest.mark.parametrize("id_", ["a/b", "../health", "ü ✓", "a?b#c%2F", "' OR 1=1 --", ":batch"])
def test_any_text_may_be_an_id(shop: Shop, client: Client, id_: str):
    known = online_table(shop)["customer_id"]
    ids = pc.if_else(pa.array([i == 0 for i in range(len(known))]), id_, known)
    with published_with(shop, "customer_id", ids):
        status, answer = client.get(f"/features/{urllib.parse.quote(id_, safe='')}")
        assert (status, answer["customer_id"]) == (200, id_)


def test_a_refresh_finds_what_differs_and_writes_nothing(shop: Shop, client: Client):
    table = online_table(shop)
    customer = table["customer_id"][0].as_py()
    status, answer = client.post(f"/refresh/{customer}")
    assert status == 200
    SCHEMAS.refreshed.model_validate(answer)
    assert answer["differences"] == []
    assert answer["features"] == client.get(f"/features/{customer}")[1]["features"]

    before = stored(shop.settings, "customer_rfm_features")
    wrong = pc.add(table["lifetime_orders"], 1)
    with published_with(shop, "lifetime_orders", wrong):
        _, answer = client.post(f"/refresh/{customer}")
        right = table["lifetime_orders"][0].as_py()
        difference = {"feature": "lifetime_orders", "online": right + 1, "recomputed": right}
        assert answer["differences"] == [difference]
        assert client.get(f"/features/{customer}")[1]["features"]["lifetime_orders"] == right + 1
        assert stored(shop.settings, "customer_rfm_features") == before


def test_a_refresh_withholds_what_the_caller_may_not_see(shop: Shop):
    table = online_table(shop)
    customer = table["customer_id"][0].as_py()
    wrong = pa.array(["another"] * len(table))
    plain, plain_entry = new_key("plain", ["refresh"])
    full, full_entry = new_key("full", ["refresh", "sensitive"])
    with (
        published_with(shop, "gender", wrong),
        running(shop.settings, api_keys=SecretStr(f"{plain_entry},{full_entry}")) as client,
    ):
        _, answer = client.post(f"/refresh/{customer}", token=full)
        differences = [(d["feature"], d["online"]) for d in answer["differences"]]
        assert differences == [("gender", "another")]
        _, answer = client.post(f"/refresh/{customer}", token=plain)
        assert answer["differences"] == []
        assert sensitive_features(GROUPS).isdisjoint(answer["features"])


def test_the_short_way_answers_as_the_long_one_does(shop: Shop, rows: list[dict[str, Any]]):
    key, entry = new_key("ann", ["features"])
    with running(shop.settings, api_keys=SecretStr(entry)) as client:
        for method, path in (("GET", "features"), ("POST", "predict")):
            for customer in (rows[0]["customer_id"], "nobody", "a/b", "x" * 300, "a%0Ab", ""):
                for token in (key, "wrong", ""):
                    short = client.ask(method, f"/{path}/{customer}", token=token)
                    # What has a query goes the long way.
                    long = client.ask(method, f"/{path}/{customer}?further", token=token)
                    assert short == long


def test_the_schema_tells_what_every_feature_is(client: Client):
    _, schema = client.get("/openapi.json")
    declared = schema["components"]["schemas"]["Features"]["properties"]
    assert list(declared) == [column.name for column in COLUMNS]
    for column in COLUMNS:
        assert declared[column.name]["description"] == column.description
        assert declared[column.name]["x-unit"] == column.unit


# --------------------------------------------------------------------------- native scoring


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: e.name)
def test_native_scores_are_those_of_the_pipeline(estimator: Estimator):
    rows = made_up_rows(600, seed=1)
    model = fit(estimator, COLUMNS, rows, seed=7, rounds=30)
    features = made_up_rows(100, seed=2).features
    category = next(column.name for column in COLUMNS if column.dtype == "VARCHAR")
    number = next(column.name for column in COLUMNS if column.dtype == "DOUBLE")
    features.loc[0, category] = "never seen"
    features.loc[1, number] = np.inf
    features.loc[2] = None
    records: Any = features.astype(object).where(features.notna(), None).to_dict("records")
    expected = model.probabilities(features)
    scorer = Scorer(model)
    # Logistic regression sums over columns, which a batch does in another order than a row.
    rounding = 1e-15 if estimator.name == "logistic_regression_model" else 0
    assert scorer.probabilities(records) == pytest.approx(expected, abs=rounding, rel=0)
    one_by_one = [scorer.probabilities([record])[0] for record in records]
    assert one_by_one == pytest.approx(expected, abs=rounding, rel=0)
    assert len(scorer.probabilities([])) == 0


def test_the_base_rate_scores_too():
    rows = made_up_rows(5, seed=1)
    model = fit(ESTIMATORS[0], COLUMNS, rows, seed=7, rounds=1)
    assert model.fallback
    assert Scorer(model).probabilities([{}, {}]).tolist() == [
        *model.probabilities(rows.features.head(2))
    ]


# --------------------------------------------------------------------------- what may fail


@contextlib.contextmanager
def load(ask: Callable[[], tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    """Four clients that ask without pause; their answers so far."""
    answers: list[tuple[int, Any]] = []
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            answers.append(ask())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_an_outage_is_no_error_and_ends_by_itself(shop: Shop, rows: list[dict[str, Any]]):
    known = itertools.cycle(rows[:50])
    with running(shop.settings, rate_limit=0) as client:

        def ask() -> tuple[int, Any]:
            id_ = next(known)["customer_id"]
            status, answer = client.get(f"/features/{id_}")
            assert answer["customer_id"] == id_
            return client.post(f"/predict/{id_}") if answer["stale"] else (status, answer)

        with load(ask) as answers:
            eventually(lambda: len(answers) > 50)
            stop(shop.redis_home)
            eventually(lambda: sum(answer["stale"] for _, answer in answers) > 50)
            assert client.get("/features/nobody")[0] == 404
            status, ready = client.get("/ready")
            assert (status, ready["ready"]) == (200, True)
            assert "away" in ready["checks"]["online store"]
            eventually(lambda: "churn_online_store_up 0.0" in client.get("/metrics")[1])
            redis_url(shop.redis_home)
            eventually(lambda: not answers[-1][1]["stale"])
        assert {status for status, _ in answers} == {200}
        assert {answer["source"] for _, answer in answers} == {"redis", "snapshot"}
        snapshot = {row["customer_id"]: row for row in rows}
        for _, answer in answers:
            if "features" in answer:
                row = snapshot[answer["customer_id"]]
                assert answer["features"] == {name: row[name] for name in answer["features"]}


def test_a_server_that_hangs_is_away(
    shop: Shop, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(serving_rows, "READ_SECONDS", 0.5)
    pid = int((shop.redis_home / "online_store" / "server.pid").read_text())
    with running(shop.settings) as client:
        path = f"/features/{rows[0]['customer_id']}"
        eventually(lambda: not client.get(path)[1]["stale"])
        os.kill(pid, signal.SIGSTOP)
        try:
            status, answer = client.get(path)
            assert (status, answer["stale"]) == (200, True)
        finally:
            os.kill(pid, signal.SIGCONT)
        eventually(lambda: not client.get(path)[1]["stale"])


def test_a_store_that_was_emptied_is_answered_for(shop: Shop, rows: list[dict[str, Any]]):
    with running(shop.settings) as client:
        shop.online.client.flushall()
        try:
            status, answer = client.get(f"/features/{rows[0]['customer_id']}")
            assert (status, answer["source"], answer["stale"]) == (200, "snapshot", True)
        finally:
            publish_rows(shop)
        assert client.get(f"/features/{rows[0]['customer_id']}")[1]["source"] == "redis"


def test_rows_that_the_store_lost_are_answered_for(shop: Shop, rows: list[dict[str, Any]]):
    with running(shop.settings) as client:
        live = client.service.rows.snapshot
        assert live
        online = shop.online
        for key in online.client.scan_iter(online.key(live.version, "[0-9]*")):
            online.client.delete(key)
        ids = [row["customer_id"] for row in rows[:3]]
        try:
            _, answer = client.post("/features:batch", {"customer_ids": [*ids, "nobody"]})
            assert [row["customer_id"] for row in answer["rows"]] == ids
            assert (answer["source"], answer["missing"]) == ("snapshot", ["nobody"])
        finally:
            shop.online.client.flushall()
            publish_rows(shop)


def test_a_start_during_an_outage_serves_the_last_version(shop: Shop, rows: list[dict[str, Any]]):
    with running(shop.settings):
        pass
    with running(shop.settings, redis_url="redis://:hunter2@127.0.0.1:1/0") as client:
        status, answer = client.get(f"/features/{rows[0]['customer_id']}")
        assert (status, answer["stale"]) == (200, True)
        assert "hunter2" not in json.dumps(client.get("/ready")[1])


def test_readiness_says_what_is_lacking(tmp_path: Path, shop: Shop):
    nowhere = {"home": tmp_path, "redis_url": "redis://127.0.0.1:1"}
    with running(shop.settings, **nowhere) as client:
        status, ready = client.get("/ready")
        assert (status, ready["ready"]) == (503, False)
        assert "no version" in ready["checks"]["features"]
        assert "no champion" in ready["checks"]["model"]
        assert client.get("/health")[0] == 200
        assert client.get("/features/c1")[0] == 503
        assert client.post("/predict", {"rows": [{}]})[0] == 503


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 64 KB in the place of a folder."""
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_makes_the_service_not_ready_until_it_has_space(
    shop: Shop, rows: list[dict[str, Any]]
):
    """A balancer asks a service that is not ready for nothing, so it has to find out by itself."""
    folder = shop.settings.home / "serving" / "audit"
    path = f"/features/{rows[0]['customer_id']}"
    with running(shop.settings) as client, small_disk(folder):
        eventually(lambda: client.get("/ready")[0] == 200)
        with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        assert client.get(path)[0] == 503
        status, ready = client.get("/ready")
        assert (status, ready["ready"]) == (503, False)
        said = "it cannot be written: No space left on device"
        assert ready["checks"]["audit log"] == said
        client.service.watch()
        assert client.get("/ready")[0] == 503
        (folder / "filler").unlink()
        eventually(lambda: client.get("/ready")[0] == 200)
        assert client.get("/ready")[1]["checks"]["audit log"] == "ok"
        assert client.get(path)[0] == 200


def serves(client: Client, cutoff: dt.date) -> bool:
    return client.service.rows.cutoff == cutoff


def test_a_new_version_gets_a_snapshot_and_two_are_kept(shop: Shop):
    table = online_table(shop)
    folder = shop.settings.home / "serving"
    with running(shop.settings) as client:
        for days in (1, 2, 3):
            cutoff = CUTOFF + dt.timedelta(days=days)
            publish(shop.online, table, cutoff, newest=cutoff)
            eventually(functools.partial(serves, client, cutoff))
        kept = sorted(path.name[:10] for path in folder.glob("*.arrow"))
        assert kept == ["2025-06-03", "2025-06-04"]
    shop.online.client.flushall()
    publish_rows(shop)


def test_a_torn_snapshot_is_written_anew(shop: Shop):
    with running(shop.settings):
        pass
    for path in (shop.settings.home / "serving").glob("*.arrow"):
        path.write_bytes(path.read_bytes()[:100])
    with running(shop.settings) as client:
        assert client.service.rows.snapshot


def test_a_new_champion_takes_over_without_a_dropped_request(
    shop: Shop, rows: list[dict[str, Any]]
):
    later = dt.date(2025, 7, 1)
    until = dt.datetime(2025, 7, 10, tzinfo=dt.UTC)
    path = f"/predict/{rows[0]['customer_id']}"
    with running(shop.settings, rate_limit=0, end=until) as client:
        with load(lambda: client.post(path)) as answers:
            eventually(lambda: len(answers) > 20)
            new = choose(shop, "logistic_regression_model", later)
            eventually(lambda: answers[-1][1]["model_version"] == new.version)
        try:
            assert {status for status, _ in answers} == {200}
            by_version = {a["model_version"]: a["churn_probability"] for _, a in answers}
            assert len(by_version) == len({(*a.values(),) for _, a in answers}) == 2
            decide(shop, later, "xgboost_model", CUTOFF.isoformat(), "0" * 16)
            eventually(lambda: "trained anew" in client.get("/ready")[1]["checks"]["model"])
            status, answer = client.post(path)
            assert (status, answer["model_version"]) == (200, new.version)
            assert client.get("/ready")[0] == 200
            assert f'version="{new.version}"}} 1.0' in client.get("/metrics")[1]
        finally:
            shutil.rmtree(shop.settings.home / "models" / "champion_model" / f"cutoff={later}")


def test_the_champion_of_a_home_that_was_replaced_is_gone(
    shop: Shop, rows: list[dict[str, Any]], tmp_path: Path
):
    home, path = tmp_path / "state", f"/predict/{rows[0]['customer_id']}"
    without = shutil.ignore_patterns("models", "online_store", "dagster")
    shutil.copytree(shop.settings.home, home)
    with running(shop.settings, home=home) as client:
        assert client.post(path)[0] == 200
        version = client.post(path)[1]["model_version"]
        home.rename(tmp_path / "old")
        shutil.copytree(shop.settings.home, tmp_path / "new", ignore=without)
        (tmp_path / "new").rename(home)
        eventually(lambda: client.post(path)[0] == 503)
        eventually(lambda: client.get(f"/features/{rows[0]['customer_id']}")[0] == 200)
        assert client.post(path)[0] == 503
        assert f'version="{version}"}} 0.0' in client.get("/metrics")[1]
        shutil.copytree(shop.settings.home / "models", home / "models")
        eventually(lambda: client.post(path)[0] == 200)


# --------------------------------------------------------------------------- people and operators


def test_metrics_tell_hits_latency_age_and_model(client: Client, rows: list[dict[str, Any]]):
    client.get(f"/features/{rows[0]['customer_id']}")
    client.get("/features/nobody")
    status, text = client.get("/metrics")
    assert status == 200
    for sample in (
        'churn_customer_reads_total{source="redis"}',
        'churn_customer_reads_total{source="missing"}',
        'churn_request_seconds_count{route="/features/{customer_id:path}",status="200"}',
        "churn_served_cutoff_age_seconds",
        'churn_model_info{model="xgboost_model"',
    ):
        assert sample in text
    assert f'"{rows[0]["customer_id"]}"' not in text


def test_generated_requests_meet_the_schema(shop: Shop, tmp_path: Path):
    key, entry = new_key("generator", list(SCOPES))
    with running(shop.settings, api_keys=SecretStr(entry), rate_limit=0) as client:
        run = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", "--max-examples", "5"),
                *("--phases", "coverage,fuzzing", "--generation-database", "none"),
                *("-H", f"Authorization: Bearer {key}"),
                f"http://127.0.0.1:{client.port}/openapi.json",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    assert run.returncode == 0, run.stdout


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on PATH")
def test_the_page_shows_a_customer(client: Client, rows: list[dict[str, Any]], tmp_path: Path):
    def page(customer: str) -> str:
        options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
        return subprocess.run(
            [
                *(str(CHROMIUM), *options.split(), "--disable-background-networking"),
                f"--user-data-dir={tmp_path}",
                "--virtual-time-budget=10000",
                "--dump-dom",
                f"http://127.0.0.1:{client.port}/#{customer}",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    row = next(row for row in rows if row["frequency"])
    shown = page(row["customer_id"])
    assert f"{100 * row['churn_probability']:.1f} %" in shown
    assert row["prediction"] in shown
    assert f"What was known on {CUTOFF}" in shown
    assert f"{row['recency_days']} days" in shown
    assert "withheld" in shown
    assert "no such customer" in page("nobody")
