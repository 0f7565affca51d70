"""The tracking store: MLflow, with one run per asset and partition.

Everything is written to `MLFLOW_TRACKING_URI`, or to SQLite at `<home>/mlflow.db`. Artifacts lie
under `<home>/mlartifacts` unless the setting names a server, which has a place of its own. A run
is found again by the tags `churn.asset` and `churn.partition`; a re-run replaces it, so exactly one
active run of a partition remains.

The experiment and the registered model are called `churn-<name>`, after the installation
(`stores.identity`), so several installations may share a server. To a server that others may use,
only a state folder at its home writes: a copy would replace the runs of the original.

MLflow is an output. Nothing in the project decides by what is in it, so a backfill cannot meet a
model from its future there, and deleting it loses no more than the view.

Telemetry is off. Replaced runs stay in MLflow's bin until `mlflow gc`.
"""

import fcntl
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from churn_assets.settings import without_credentials, without_secrets
from churn_assets.stores.identity import Identity
from churn_assets.stores.staging import staged

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

INSTALLATION_TAG = "churn.installation"
ASSET_TAG = "churn.asset"
PARTITION_TAG = "churn.partition"
VERSION_TAG = "churn.model_version"
DAGSTER_RUN_TAG = "dagster.run_id"

# Where `make mlflow` serves, for links from Dagster.
LOCAL_SERVER = "http://localhost:5000"


class TrackingError(RuntimeError):
    """The tracking store cannot be used; the message shows no password."""


@dataclass(frozen=True)
class Tracking:
    """The tracking store of an installation.

    Args:
        home: The state folder (`CHURN_HOME`).
        uri: `MLFLOW_TRACKING_URI`; None for SQLite under `home`.
        identity: Who the installation is. It is asked when the store is opened, so that a code
            location that only loads writes nothing.
    """

    home: Path
    uri: str | None
    identity: Callable[[], Identity]

    @property
    def name(self) -> str:
        """What the experiment and the registered model are called."""
        return f"churn-{self.identity().name}"

    @property
    def tracking_uri(self) -> str:
        """As MLflow gets it: of an HTTP server without user and password, see `_account`."""
        if self.uri and self._account:
            account, _, rest = self.uri.partition("@")
            return f"{account.partition('://')[0]}://{rest}"
        return self.uri or f"sqlite:///{self.home / 'mlflow.db'}"

    @property
    def _account(self) -> tuple[str, str] | None:
        """User and password of an HTTP server, which MLflow takes from variables as well.

        It puts a URI into errors, tags and links.
        """
        # Signs that separate the parts of a URI are not in a part as they are.
        found = re.match("https?://([^:/?#@]+):([^:/?#@]+)@[^@]*$", self.uri or "")
        return (unquote(found[1]), unquote(found[2])) if found else None

    @property
    def client(self) -> "MlflowClient":
        return self._opened[0]

    @property
    def experiment_id(self) -> str:
        return self._opened[1]

    @cached_property
    def _opened(self) -> "tuple[MlflowClient, str]":
        """A client of the store, whose schema exists, and the experiment, made where it is new.

        MLflow creates its SQLite schema on first use, and two processes doing so at once fail.

        Raises:
            AnotherInstallation: There is no experiment yet, the state folder was moved or copied,
                and others may use the server.
        """
        mlflow = import_mlflow()
        if self._account:
            os.environ["MLFLOW_TRACKING_USERNAME"] = self._account[0]
            os.environ["MLFLOW_TRACKING_PASSWORD"] = self._account[1]
        with self.locked():
            if not self.uri:
                self._make_database()
            client: MlflowClient = mlflow.MlflowClient(
                self.tracking_uri, registry_uri=self.tracking_uri
            )
            experiment, place = self._find_experiment(client), self._artifacts
            if experiment is None:
                self.require_at_home()
                tags = {INSTALLATION_TAG: self.identity().name}
                return client, str(client.create_experiment(self.name, place, tags))
            if place and (not self.uri or self._at_home):
                self._move_artifacts(experiment, place)
            return client, str(experiment.experiment_id)

    def _find_experiment(self, client: "MlflowClient") -> "Experiment | None":
        """The experiment of the installation.

        In the database of the home everything belongs to the installation, also under another
        name: version 0.1 called it `churn`, and a copy gets its own name when it is adopted.
        """
        experiment = client.get_experiment_by_name(self.name)
        if experiment is not None or self.uri:
            return experiment
        for condition in ("name = 'churn'", f"tags.`{INSTALLATION_TAG}` LIKE '%'"):
            for other in client.search_experiments(filter_string=condition):
                # The model first: this begins anew where the experiment is not renamed yet.
                for model in client.search_registered_models(f"name = '{other.name}'"):
                    client.rename_registered_model(model.name, self.name)
                client.rename_experiment(other.experiment_id, self.name)
                return other
        return None

    @property
    def _artifacts(self) -> str | None:
        """Where artifacts go; None where a server decides that.

        A database decides nothing, and MLflow would put them into the working directory.
        """
        from mlflow.store.db.db_types import DATABASE_ENGINES

        scheme = self.tracking_uri.partition(":")[0].partition("+")[0]
        # Resolved, so that a folder with two names is one place.
        return (
            (self.home.resolve() / "mlartifacts").as_uri() if scheme in DATABASE_ENGINES else None
        )

    def _move_artifacts(self, experiment: "Experiment", place: str) -> None:
        """Find artifacts again in a folder that was moved or copied: MLflow keeps absolute places.

        The rows of other experiments stay, and so does a place that somebody else has chosen.
        """
        import sqlalchemy as sa

        before = experiment.artifact_location
        if before == place or not re.fullmatch("file:.*/mlartifacts", before):
            return
        ours, our_model = ("experiment_id", int(experiment.experiment_id)), ("name", self.name)
        with sa.create_engine(self.tracking_uri, poolclass=sa.NullPool).begin() as connection:
            for table, name, (key, value) in (
                ("runs", "artifact_uri", ours),
                ("logged_models", "artifact_location", ours),
                ("model_versions", "source", our_model),
                ("model_versions", "storage_location", our_model),
                ("experiments", "artifact_location", ours),
            ):
                kept = sa.column(name, sa.String)
                below = sa.func.substr(kept + "/", 1, len(before) + 1) == before + "/"
                moved = sa.literal(place) + sa.func.substr(kept, len(before) + 1)
                connection.execute(
                    sa.update(sa.table(table, kept))
                    .where(sa.column(key) == value, below)
                    .values({name: moved})
                )

    @property
    def _at_home(self) -> bool:
        return self.identity().path == str(self.home.resolve())

    def require_at_home(self) -> None:
        """Refuse to write to a server that others may use from a folder that may be a copy.

        Raises:
            AnotherInstallation: The state folder was moved or copied.
        """
        if self.uri:
            self.identity().require_at_home(self.home, "MLflow")

    def _make_database(self) -> None:
        """Make the SQLite file where there is none, whole: a schema half made is of no use."""
        database = self.home / "mlflow.db"
        if not database.exists():
            with staged(self.home) as made:
                import_mlflow().MlflowClient(f"sqlite:///{made}").search_experiments()
                made.replace(database)

    @contextmanager
    def only_run(self, asset: str, partition: str, tags: Mapping[str, str]) -> Iterator[str]:
        """The id of a new run, which replaces the others of its asset and partition at the end.

        One at a time: two Dagster runs of a partition would each leave one, not knowing of the
        other's.

        Raises:
            AnotherInstallation: The state folder was moved or copied, and others may use the
                server.
        """
        self.require_at_home()
        client = self.client  # Opened first: that takes the lock too.
        with self.locked():
            replaced = self.runs(asset, partition)
            run = client.create_run(
                self.experiment_id,
                run_name=f"{asset} {partition}".strip(),
                tags={
                    INSTALLATION_TAG: self.identity().name,
                    ASSET_TAG: asset,
                    PARTITION_TAG: partition,
                    **tags,
                },
            )
            run_id = str(run.info.run_id)
            try:
                yield run_id
            except BaseException:
                with suppress(import_mlflow().MlflowException):  # it fails for the same reason
                    client.set_terminated(run_id, "FAILED")
                raise
            for old in replaced:
                client.delete_run(old)

    def run_url(self, run_id: str) -> str:
        """Where the run can be looked at: on the server, or on that of `make mlflow`."""
        server = without_credentials(self.uri or "").partition("?")[0]
        server = server if server.startswith("http") else LOCAL_SERVER
        return f"{server.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{run_id}"

    def runs(self, asset: str, partition: str, condition: str = "") -> list[str]:
        """The active runs of an asset and partition, newest first."""
        found = self.client.search_runs(
            [self.experiment_id],
            f"tags.`{ASSET_TAG}` = '{asset}' AND tags.`{PARTITION_TAG}` = '{partition}' "
            f"{condition}",
            order_by=["attributes.start_time DESC"],
        )
        return [run.info.run_id for run in found]

    @contextmanager
    def as_default(self) -> Iterator[None]:
        """This store as the one that MLflow's fluent functions use.

        MLflow also puts it into the environment, where it would pass for a setting.
        """
        variable = "MLFLOW_TRACKING_URI"
        before = os.environ.get(variable)
        import_mlflow().set_tracking_uri(self.tracking_uri)
        try:
            yield
        finally:
            os.environ.pop(variable, None)
            if before is not None:
                os.environ[variable] = before

    @contextmanager
    def _told_safely(self) -> Iterator[None]:
        """Keep what the URI holds of secrets out of errors, with all that they were caused by."""
        try:
            yield
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None:
                if without_secrets(cause, self.uri) != str(cause):
                    raise TrackingError(
                        f"MLFLOW_TRACKING_URI={without_credentials(self.uri or '')} cannot be "
                        f"used: {without_secrets(error, self.uri)}"
                    ) from None
                cause = cause.__cause__ or cause.__context__
            raise

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process of this installation at a time.

        Raises:
            TimeoutError: A process of another kind, such as a database browser, locks SQLite.
            TrackingError: MLflow failed, and the reason would show a password.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "mlflow.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                with self._told_safely():
                    yield
            except import_mlflow().MlflowException as error:
                if "database is locked" not in str(error):
                    raise
                database = without_credentials(self.uri) if self.uri else self.home / "mlflow.db"
                raise TimeoutError(
                    f"{database} is locked by another process, for longer than MLflow "
                    "waits. End what writes to it (`fuser` and the path name it), and run again: "
                    "what was recorded of this partition is replaced."
                ) from error


def import_mlflow() -> Any:
    """MLflow, imported with telemetry off: it decides that once, while it is imported.

    Nor does it print where a run is: the page of a partition links to it.
    """
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    import mlflow

    # It announces every step of making its schema.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow
