"""A real service for tests: a small shop, a Redis of its own, and an HTTP server in a thread."""

import contextlib
import datetime as dt
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copytree
from typing import Any

import pyarrow as pa
import uvicorn

from churn_assets.features import feature_columns, feature_versions, learned_columns
from churn_assets.models.artefacts import Manifest, ModelStore
from churn_assets.models.champion import Champion
from churn_assets.models.estimators import fit
from churn_assets.models.kinds import ESTIMATORS
from churn_assets.models.metrics import Economics
from churn_assets.models.training_rows import training_rows
from churn_assets.online.publishing import publish
from churn_assets.online.server import redis_url
from churn_assets.online.versions import Namespace
from churn_assets.operations.installation import offline_store
from churn_assets.predictions.churn_predictions import explainer, population_features, predict
from churn_assets.serving import app as serving
from churn_assets.serving.run import PROTOCOL
from churn_assets.serving.service import Service
from churn_assets.settings import Settings
from churn_assets.stores.artefacts import MANIFEST
from churn_assets.stores.identity import adopt
from churn_assets.stores.tables import Column
from churn_assets_tests.conftest import GROUPS, make_settings, materialize, online

CUTOFF = dt.date(2025, 6, 1)

PATIENCE_SECONDS = 180
TRAINING = ("2025-04-01", "2025-05-01")


@dataclass
class Shop:
    """An installation with features at CUTOFF, a champion, and its rows published."""

    settings: Settings
    redis_home: Path

    @property
    def online(self) -> Namespace:
        return online(self.settings)


def settings_of(folder: Path, **overrides: Any) -> Settings:
    return make_settings(
        folder,
        source="synthetic",
        synthetic_customers=250,
        start=dt.date(2025, 1, 1),
        end=dt.datetime(2025, 6, 10, tzinfo=dt.UTC),
        **overrides,
    )


def make_tables(folder: Path) -> None:
    """The shop's tables up to CUTOFF, of which `open_shop` makes installations."""
    settings = settings_of(folder)
    materialize(settings, "ingest", "2025-01-01", "2025-06-01")
    materialize(settings, "features", TRAINING[0], CUTOFF.isoformat())
    materialize(settings, "training_data", *TRAINING)


def open_shop(tables: Path, folder: Path) -> Shop:
    """An installation of its own with these tables."""
    redis_home = folder / "redis"
    settings = settings_of(folder, redis_url=redis_url(redis_home))
    copytree(settings_of(tables).home, settings.home)
    adopt(settings, copied=True)
    shop = Shop(settings, redis_home)
    choose(shop, "xgboost_model", CUTOFF)
    publish_rows(shop)
    return shop


def choose(
    shop: Shop,
    model: str,
    cutoff: dt.date,
    columns: Sequence[Column] = tuple(learned_columns(GROUPS)),
) -> Manifest:
    """Train a model and make it the champion of a cutoff, as a run of the models does."""
    (estimator,) = (estimator for estimator in ESTIMATORS if estimator.name == model)
    rows = training_rows(offline_store(shop.settings), [dt.date.fromisoformat(c) for c in TRAINING])
    manifest = Manifest(
        model=model,
        cutoff=cutoff.isoformat(),
        columns=tuple(columns),
        feature_versions=feature_versions(GROUPS),
        training_cutoffs=TRAINING,
        holdout=TRAINING[-1],
        metrics={},
        rounds=20,
        rows=len(rows),
        seed=7,
        fallback="",
    )
    store = ModelStore(shop.settings.home)
    manifest = store.write(manifest, fit(estimator, columns, rows, seed=7, rounds=20))
    decide(shop, cutoff, manifest.model, manifest.cutoff, manifest.version)
    return manifest


def decide(shop: Shop, cutoff: dt.date, model: str, model_cutoff: str, version: str) -> None:
    decision = Champion(
        cutoff=cutoff.isoformat(),
        model=model,
        model_cutoff=model_cutoff,
        model_version=version,
        promoted=True,
        reason="",
        challenger=None,
        holdout=TRAINING[-1],
        candidates={model: {}},
        incumbent={},
    )
    path = ModelStore(shop.settings.home).folder("champion_model", cutoff.isoformat()) / MANIFEST
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(".tmp")
    staged.write_text(json.dumps(asdict(decision)))
    staged.replace(path)


def online_table(shop: Shop) -> pa.Table:
    """What the online sync publishes at CUTOFF."""
    store, models = offline_store(shop.settings), ModelStore(shop.settings.home)
    manifest = models.manifest("xgboost_model", CUTOFF.isoformat())
    features = population_features(GROUPS, store, CUTOFF)
    model = models.load(manifest, feature_versions(GROUPS))
    explains = explainer(GROUPS, manifest, model, 90)
    threshold = Economics.of(shop.settings).threshold
    predictions = predict(manifest, model, explains, features, threshold)
    with store.connect() as connection:
        connection.register("predictions", predictions)
        joins = " ".join(
            f"JOIN (SELECT * EXCLUDE (cutoff) FROM {store.scan(g.table, [str(CUTOFF)]).sql}) "
            f"AS {g.name} USING (customer_id)"
            for g in GROUPS
        )
        names = ", ".join(f'"{column.name}"' for column in feature_columns(GROUPS))
        return connection.sql(
            f"SELECT customer_id, {names}, churn_probability, prediction, model_version "
            f"FROM predictions {joins} ORDER BY customer_id"
        ).to_arrow_table()


def publish_rows(shop: Shop) -> None:
    publish(shop.online, online_table(shop), CUTOFF, newest=CUTOFF)


@dataclass
class Client:
    """Asks a service; `token` goes along as a bearer token."""

    port: int
    service: Service
    token: str = ""

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        token: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any]:
        """Status and content, as JSON where it is JSON. `body` is sent as JSON, bytes as they are.

        Every answer is held to what holds for all: its headers.
        """
        token = self.token if token is None else token
        headers = {"Authorization": f"Bearer {token}"} if token else {} | (headers or {})
        if body is not None:
            headers["Content-Type"] = "application/json"
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port)) as connection:
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            text = response.read()
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            self.headers = response.headers
        if response.headers["Content-Type"] == "application/json":
            return response.status, json.loads(text)
        return response.status, text.decode()

    def get(self, path: str, **options: Any) -> tuple[int, Any]:
        return self.ask("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
        return self.ask("POST", path, body, **options)


@contextlib.contextmanager
def running(settings: Settings, **overrides: Any) -> Iterator[Client]:
    """A service with these settings, until the test is over."""
    app = serving.create_app(settings.model_copy(update=overrides))
    config = uvicorn.Config(app, port=0, log_config=None, server_header=False, http=PROTOCOL)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Client(port, app.state.service)
    finally:
        server.should_exit = True
        thread.join()


def eventually(condition: Callable[[], Any]) -> Any:
    """What the condition gives once it holds; fails if it never does."""
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        if outcome := condition():
            return outcome
        time.sleep(0.01)
    raise AssertionError("It never happened.")
