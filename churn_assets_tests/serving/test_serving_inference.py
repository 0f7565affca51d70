"""Prevents: finding out what a caller may not see, by asking which value explains a prediction."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from pydantic import SecretStr

from churn_assets.features import feature_columns, learned_columns, sensitive_features
from churn_assets.serving.access import SCOPES, new_key
from churn_assets.serving.audit import audit_query
from churn_assets_tests.conftest import GROUPS, query
from churn_assets_tests.served_shop import (
    CUTOFF,
    Client,
    Shop,
    choose,
    online_table,
    publish_rows,
    running,
)

SENSITIVE = sensitive_features(GROUPS)
RIGHTS = {"all": [*SCOPES], "plain": ["features", "predict"], "reader": ["features"]}
KEYS = {name: new_key(name, scopes) for name, scopes in RIGHTS.items()}
TOKENS = {name: key for name, (key, _) in KEYS.items()}
CUSTOMERS = 40


@pytest.fixture(scope="module", params=[True, False], ids=["older model", "model"])
def is_older(request: pytest.FixtureRequest, shop: Shop) -> bool:
    """Whether the champion has learned from sensitive features, as those of version 0.1 have."""
    columns = feature_columns(GROUPS) if request.param else learned_columns(GROUPS)
    choose(shop, "xgboost_model", CUTOFF, columns)
    publish_rows(shop)
    # Every column counts in it, also in so small a shop.
    choose(shop, "logistic_regression_model", CUTOFF, columns)
    return bool(request.param)


@pytest.fixture(scope="module")
def client(shop: Shop, is_older: bool) -> Iterator[Client]:
    entries = ",".join(entry for _, entry in KEYS.values())
    with running(shop.settings, api_keys=SecretStr(entries), rate_limit=0) as client:
        yield client


@pytest.fixture(scope="module")
def rows(shop: Shop, is_older: bool) -> list[dict[str, Any]]:
    return online_table(shop).to_pylist()[:CUSTOMERS]


def known(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The features of a row that are not sensitive, and those of these names."""
    wanted = [column.name for column in feature_columns(GROUPS)]
    return {name: row[name] for name in wanted if name not in SENSITIVE or name in names}


def pinned(client: Client, token: str, rows: list[dict[str, Any]], name: str) -> int:
    """Of how many customers the attack finds out a sensitive feature.

    Of all else the attacker knows everything. What explains the customer's probability to the last
    digit, and alone does, is taken for the customer's.
    """
    values = sorted({row[name] for row in rows} - {None})
    found = 0
    for row in rows:
        _, told = client.post(f"/predict/{row['customer_id']}", token=token)
        others = {n: row[n] for n in SENSITIVE - {name}} if token == TOKENS["all"] else {}
        guesses = [{**known(row), **others, name: value} for value in values]
        status, answer = client.post("/predict", {"rows": guesses}, token=token)
        if status == 200:
            guessed = [each["churn_probability"] for each in answer["rows"]]
            fitting = [
                value
                for value, probability in zip(values, guessed, strict=True)
                if probability == told["churn_probability"]
            ]
            found += fitting == [row[name]]
    return found


def test_the_attack_works_where_nothing_stands_against_it(
    client: Client, rows: list[dict[str, Any]], is_older: bool
):
    """It pins customers down for a caller with all rights, if the model has learned from it."""
    found = sum(pinned(client, TOKENS["all"], rows, name) for name in sorted(SENSITIVE))
    assert (found > 0) is is_older


def test_the_attack_learns_nothing_without_the_right(client: Client, rows: list[dict[str, Any]]):
    for name in sorted(SENSITIVE):
        assert pinned(client, TOKENS["plain"], rows, name) == 0


def test_a_prediction_depends_on_nothing_that_the_caller_may_not_see(
    client: Client, rows: list[dict[str, Any]]
):
    """So whatever a caller makes of predictions, plain features alone say as much."""
    body = {"rows": [known(row) for row in rows]}
    _, raw = client.post("/predict", body, token=TOKENS["plain"])
    ids = {"customer_ids": [row["customer_id"] for row in rows]}
    _, batch = client.post("/predict", ids, token=TOKENS["plain"])
    for row, scored, one in zip(rows, raw["rows"], batch["rows"], strict=True):
        _, told = client.post(f"/predict/{row['customer_id']}?explain=true", token=TOKENS["plain"])
        # A linear model sums over columns, which a batch does in another order than a row.
        probability = pytest.approx(told["churn_probability"], abs=1e-15, rel=0)
        assert scored["churn_probability"] == probability == one["churn_probability"]


@pytest.mark.parametrize("name", sorted(SENSITIVE))
def test_a_sensitive_feature_in_a_request_needs_the_right(client: Client, name: str):
    body = {"rows": [{}, {name: 30 if name == "age" else "x"}]}
    status, answer = client.post("/predict", body, token=TOKENS["plain"])
    assert (status, name in answer["detail"]) == (403, True)
    assert client.post("/predict", body, token=TOKENS["all"])[0] == 200
    assert client.post("/predict", {"rows": [{name: None}]}, token=TOKENS["plain"])[0] == 200


def test_a_published_prediction_is_a_prediction(
    client: Client, rows: list[dict[str, Any]], is_older: bool
):
    row = rows[0]
    expected = {n: row[n] for n in ("churn_probability", "prediction", "model_version")}
    seen = {"all": expected, "plain": None if is_older else expected, "reader": None}
    for name, published in seen.items():
        _, answer = client.get(f"/features/{row['customer_id']}", token=TOKENS[name])
        assert answer["published"] == published
        body = {"customer_ids": [row["customer_id"]]}
        _, answer = client.post("/features:batch", body, token=TOKENS[name])
        assert answer["rows"][0]["published"] == published


def test_raw_scoring_is_recorded_and_paid_for(shop: Shop, rows: list[dict[str, Any]]):
    body = {"rows": [known(row) for row in rows]}
    entry = KEYS["plain"][1]
    with running(shop.settings, api_keys=SecretStr(entry), rate_limit=1) as client:
        assert client.post("/predict", body, token=TOKENS["plain"])[0] == 200
        request_id = client.headers["X-Request-ID"]
        statuses = {client.post("/predict", body, token=TOKENS["plain"])[0] for _ in range(30)}
    assert 429 in statuses
    log = query(audit_query(shop.settings.home))
    [line] = [line for line in log if line["request_id"] == request_id]
    told = {n: line[n] for n in ("caller", "action", "source", "rows", "customer_id", "sensitive")}
    assert told == {
        "caller": "plain",
        "action": "predict",
        "source": "request",
        "rows": len(rows),
        "customer_id": None,
        "sensitive": False,
    }
