"""What tests share: settings that ignore the developer's machine, real runs, and reading back.

Prevents the simplification of testing against whatever `CHURN_*` variables happen to be set.
"""

import fcntl
import gc
import os
import random
import sqlite3
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest
import sqlalchemy
from alembic.config import Config
from alembic.script import ScriptDirectory
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.pool import QueuePool

# Before the package is imported: `definitions` reads the settings when it loads.
for name in [n for n in os.environ if n.startswith("CHURN_")]:
    del os.environ[name]
for name in ("REDIS_URL", "MLFLOW_TRACKING_URI"):
    os.environ.pop(name, None)

# pytest-xdist has a test on every core already. A pool of processes for the few rows of a test
# takes seconds to start, and threads of OpenMP that wait for each other spin.
os.environ["LOKY_MAX_CPU_COUNT"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

from churn_assets.cutoffs import Calendar
from churn_assets.definitions import build_definitions
from churn_assets.features import feature_groups
from churn_assets.models.kinds import ESTIMATORS
from churn_assets.models.runs import ModelRuns
from churn_assets.online.io_manager import open_to_read
from churn_assets.online.versions import Namespace
from churn_assets.operations.installation import tables
from churn_assets.operations.jobs import RANGE_END, RANGE_START
from churn_assets.settings import Settings
from churn_assets.sources.review_texts import review_text
from churn_assets.stores import figures
from churn_assets.stores.catalog import Catalog
from churn_assets.stores.identity import identify
from churn_assets.stores.offline import UNIX_MICROS, OfflineStore
from churn_assets.stores.staging import staged
from churn_assets.stores.tracking import Tracking

Row = dict[str, Any]

# As they are without review vectors.
GROUPS = feature_groups()
TABLES = tables(Settings(_env_file=None))


@event.listens_for(Engine, "connect")
def need_not_survive_power_loss(connection: Any, _: Any) -> None:
    """Dagster and MLflow wait for the disk after every event; for a test that is most of the time.

    A process that is killed loses nothing by it.
    """
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


class KeptPool(QueuePool):
    """Keeps its connections when an engine is told to let them go."""

    def dispose(self) -> None:
        pass

    def recreate(self) -> "KeptPool":
        return self


class KeptEngines:
    """The engines that Dagster's event log has used last.

    Dagster opens a database anew for each event and each question, 7 of the 10 ms that an event
    takes. An engine is of a file, not of a path: one that was deleted and made again is another.
    """

    MOST = 12

    def __init__(self) -> None:
        self._engines: OrderedDict[tuple[str, int], Engine] = OrderedDict()

    def __call__(self, url: str, **options: Any) -> Engine:
        path = Path(sqlalchemy.make_url(url).database or "")
        if not path.exists():
            return sqlalchemy.create_engine(url, **options)
        key = (url, path.stat().st_ino)
        engine = self._engines.pop(key, None)
        if engine is None:
            engine = sqlalchemy.create_engine(url, **(options | {"poolclass": KeptPool}))
        self._engines[key] = engine
        while len(self._engines) > self.MOST:
            _, oldest = self._engines.popitem(last=False)
            QueuePool.dispose(oldest.pool)  # type: ignore[arg-type]
        return engine

    def close(self) -> None:
        """Let go of every file, for a test that takes its file system away."""
        for engine in self._engines.values():
            QueuePool.dispose(engine.pool)  # type: ignore[arg-type]
        self._engines.clear()


KEPT_ENGINES = KeptEngines()
vars(sqlite_event_log)["create_engine"] = KEPT_ENGINES

# Each run has a database of its own, and stamping it reads 40 scripts: a third of a run that does
# nothing. They are the same each time.
_read_scripts = ScriptDirectory.from_config


@cache
def _scripts_in(location: str) -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", location)
    return _read_scripts(config)


def _scripts_of(config: Config) -> ScriptDirectory:
    return _scripts_in(config.get_main_option("script_location") or "")


ScriptDirectory.from_config = staticmethod(_scripts_of)  # type: ignore[method-assign, assignment]

# MLflow makes its schema by 40 migrations, a second and a half. Only test_tracking sees them.
make_mlflow_database = Tracking._make_database


@cache
def _empty_mlflow_database() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        runs = model_runs(Path(folder))
        make_mlflow_database(runs)
        return (runs.home / "mlflow.db").read_bytes()


def _copied_database(tracking: Tracking) -> None:
    database = tracking.home / "mlflow.db"
    if not database.exists():
        with staged(tracking.home) as made:
            made.write_bytes(_empty_mlflow_database())
            made.replace(database)


Tracking._make_database = _copied_database  # type: ignore[assignment, method-assign]

# These begin first, so that the workers end together.
LONGEST = (
    "test_automation",
    "test_changes",
    "test_faults",
    "test_erasure",
    "test_journey",
    "test_pruning",
    "test_places",
    "test_cli",
    "test_tracking",
    "test_offline",
    "test_sequences",
    "test_serving",
    "test_serving_damaged_model",
    "test_upgrade",
    "test_graph",
    "test_predictions",
    "test_extending",
    "test_refresh",
)


# Each looks through the many objects that the libraries have loaded, and finds nothing there.
gc.set_threshold(50_000, 20, 50)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.stem
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)


# Of pools of processes and of threads that share a forest.
SEVERAL_CORES = ("test_sentiment", "test_models", "test_tuning")


@pytest.fixture(autouse=True, scope="module")
def several_cores(request: pytest.FixtureRequest) -> Iterator[None]:
    """Modules whose subject is work on several cores get them."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.stem in SEVERAL_CORES:
            patch.setenv("LOKY_MAX_CPU_COUNT", "2")
        yield


MadeOnce = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Makes a folder of some name once, in the process that needs it first; the others wait.

    Whoever gets it leaves it as it is, and changes a copy.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of all workers of this run

    def made_once(name: str, make: Callable[[Path], None]) -> Path:
        folder, whole = shared / "made_once" / name, shared / "made_once" / f"{name}.whole"
        folder.mkdir(parents=True, exist_ok=True)
        with (shared / "made_once" / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not whole.exists():
                make(folder)
                whole.touch()
        return folder

    return made_once


def make_settings(folder: Path, **overrides: Any) -> Settings:
    """Settings of an installation in `folder`, with defaults for everything not given."""
    values: dict[str, Any] = {
        "home": folder / "state",
        "input_dir": folder / "input",
        "source": "files",
    }
    return Settings(_env_file=None, **(values | overrides))


def cataloged(
    store: OfflineStore,
    calendar: Calendar,
    make: Callable[[OfflineStore], Sequence[dg.AssetsDefinition]],
) -> tuple[OfflineStore, list[dg.AssetsDefinition]]:
    """A store that knows the assets which are made with it, and these; others it takes as given."""
    made: list[dg.AssetsDefinition] = []
    catalog = cache(lambda: Catalog.of(calendar, [spec for asset in made for spec in asset.specs]))
    known = replace(store, catalog=catalog)
    made.extend(make(known))
    return known, made


def model_runs(home: Path, uri: str | None = None) -> ModelRuns:
    """The runs of an installation in MLflow."""
    return ModelRuns(home, uri, partial(identify, make_settings(home.parent, home=home)))


def of_now(settings: Settings, table: str) -> Callable[[str | None], dict[str, str]]:
    """The provenance of made-up partitions: of the definitions of the settings."""
    specs = build_definitions(settings).resolve_all_asset_specs()
    definition = Catalog.of(settings.calendar(), specs).definitions[table]
    return lambda _: {"definition": definition}


def ingest_run(
    settings: Settings, first: str, last: str | None = None, raise_on_error: bool = True
) -> dg.ExecuteInProcessResult:
    """One Dagster run of job `ingest` for the slices from `first` to `last`."""
    return (
        build_definitions(settings)
        .resolve_job_def("ingest")
        .execute_in_process(
            tags={RANGE_START: first, RANGE_END: last or first}, raise_on_error=raise_on_error
        )
    )


def review_texts(count: int, seed: int = 0) -> list[str]:
    """Reviews of customers in all moods."""
    rng = random.Random(seed)
    return [review_text(rng, product, rng.gauss(0, 1)) for product in range(count)]


def utc_connection() -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB connection in UTC, as the offline store opens them."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(UNIX_MICROS)
    return connection


def query(sql: str, connection: duckdb.DuckDBPyConnection | None = None) -> list[Row]:
    """The rows of a query as dictionaries; instants are UTC."""
    if connection is not None:
        rows: list[Row] = connection.sql(sql).to_arrow_table().to_pylist()
        return rows
    with utc_connection() as own:
        return query(sql, own)


def stored(settings: Settings, table: str) -> list[Row]:
    """All rows of a table of the offline store, in the order of its files."""
    files = settings.home / "offline_store" / table / "**" / "part-0.parquet"
    return query(f"FROM read_parquet('{files}', hive_partitioning = false)")


def online(settings: Settings) -> Namespace:
    """What an installation has online."""
    return open_to_read(settings.home, settings.redis_url, identify(settings))


def materialize(
    settings: Settings,
    job: str,
    first: str,
    last: str,
    instance: dg.DagsterInstance | None = None,
) -> dg.ExecuteInProcessResult:
    """One successful Dagster run of a job for the partitions from `first` to `last`."""
    return (
        build_definitions(settings)
        .resolve_job_def(job)
        .execute_in_process(instance=instance, tags={RANGE_START: first, RANGE_END: last})
    )


def evaluate_quickly(patch: pytest.MonkeyPatch) -> None:
    """As fixture `quick_evaluation`, for fixtures of a wider scope."""
    patch.setattr("churn_assets.definitions.ESTIMATORS", (ESTIMATORS[0], ESTIMATORS[-1]))
    patch.setattr("joblib.cpu_count", lambda **_: 1)  # workers would not see the patches
    for name in ("baselines", "random_split", "importance", "pictures"):
        patch.setattr(f"churn_assets.models.evaluation.{name}", lambda *_: {})
    for drawn in (
        "history.review_pages.sentiment_histogram",
        "history.sentiment_picture.sentiment_histogram",
        "monitoring.drift.drift_figure",
    ):
        patch.setattr(f"churn_assets.{drawn}", lambda *_: None)
    draw = figures.png
    for place in ("history.review_pages", "monitoring.drift", "stores.figures"):
        patch.setattr(f"churn_assets.{place}.png", lambda figure: draw(figure) if figure else b"")


@pytest.fixture(scope="module")
def one_kind_of_model() -> Iterator[None]:
    """One kind is trained, quickly: what runs when does not depend on how many there are."""
    with pytest.MonkeyPatch.context() as patch:
        evaluate_quickly(patch)
        patch.setattr("churn_assets.definitions.ESTIMATORS", ESTIMATORS[:1])
        yield


@pytest.fixture
def quick_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kinds of model are trained and graded, without pictures and comparisons beside the grade.

    For tests of what runs when: test_evaluation, test_drift and the journey see all of it.
    """
    evaluate_quickly(monkeypatch)
