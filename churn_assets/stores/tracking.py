"""The tracking store: MLflow, with one run per asset and partition.

Everything is written to `MLFLOW_TRACKING_URI`, or to SQLite at `<home>/mlflow.db` with artifacts
under `<home>/mlartifacts`. A run is found again by the tags `churn.asset` and `churn.partition`; a
re-run replaces it, so exactly one active run of a partition remains.

MLflow is an output. Nothing in the project decides by what is in it, so a backfill cannot meet a
model from its future there, and deleting it loses no more than the view.

Telemetry is off. Replaced runs stay in MLflow's bin until `mlflow gc`.
"""

import fcntl
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from churn_assets.stores.staging import staged

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "churn"

ASSET_TAG = "churn.asset"
PARTITION_TAG = "churn.partition"
VERSION_TAG = "churn.model_version"
DAGSTER_RUN_TAG = "dagster.run_id"

# Where `make mlflow` serves, for links from Dagster.
LOCAL_SERVER = "http://localhost:5000"


@dataclass(frozen=True)
class Tracking:
    """The tracking store of an installation.

    Args:
        home: The state folder (`CHURN_HOME`).
        uri: `MLFLOW_TRACKING_URI`; None for SQLite under `home`.
    """

    home: Path
    uri: str | None = None

    @property
    def tracking_uri(self) -> str:
        return self.uri or f"sqlite:///{self.home / 'mlflow.db'}"

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
        """
        mlflow = import_mlflow()
        with self.locked():
            if not self.uri:
                self._make_database()
            client: MlflowClient = mlflow.MlflowClient(
                self.tracking_uri, registry_uri=self.tracking_uri
            )
            experiment = client.get_experiment_by_name(EXPERIMENT)
            if experiment is not None:
                return client, str(experiment.experiment_id)
            local = None if self.uri else (self.home / "mlartifacts").as_uri()
            return client, str(client.create_experiment(EXPERIMENT, artifact_location=local))

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
        """
        client = self.client  # Opened first: that takes the lock too.
        with self.locked():
            replaced = self.runs(asset, partition)
            run = client.create_run(
                self.experiment_id,
                run_name=f"{asset} {partition}".strip(),
                tags={ASSET_TAG: asset, PARTITION_TAG: partition, **tags},
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
        server = self.uri if self.uri and self.uri.startswith("http") else LOCAL_SERVER
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
    def locked(self) -> Iterator[None]:
        """One process of this installation at a time.

        Raises:
            TimeoutError: A process of another kind, such as a database browser, locks SQLite.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "mlflow.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            except import_mlflow().MlflowException as error:
                if "database is locked" not in str(error):
                    raise
                raise TimeoutError(
                    f"{self.tracking_uri} is locked by another process, for longer than MLflow "
                    "waits. End what writes to it (`fuser` and the path name it), and run again: "
                    "what was recorded of this partition is replaced."
                ) from error


def import_mlflow() -> Any:
    """MLflow, imported with telemetry off: it decides that once, while it is imported."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    import mlflow

    # It announces every step of making its schema.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow
