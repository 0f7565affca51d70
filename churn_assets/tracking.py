"""MLflow: one run per model asset and partition, and the registered model `churn`.

Everything is written to `MLFLOW_TRACKING_URI`, or to SQLite at `<home>/mlflow.db` with artifacts
under `<home>/mlartifacts`. A run is found again by the tags `churn.asset` and `churn.partition`; a
re-run replaces it, so exactly one active run of a partition remains. The model that is logged is
the artefact folder itself, opened by `churn_assets.stores.models`: the same bytes that predict.

MLflow is an output. Nothing in the project decides by what is in it, so a backfill cannot meet a
model from its future there, and deleting it loses no more than the view.

Telemetry is off. Replaced runs stay in MLflow's bin until `mlflow gc`.
"""

import fcntl
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from churn_assets.stores.models import Manifest, ModelStore

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "churn"
REGISTERED_MODEL = "churn"
CHAMPION = "champion"
CHALLENGER = "challenger"

ASSET_TAG = "churn.asset"
PARTITION_TAG = "churn.partition"
VERSION_TAG = "churn.model_version"
DAGSTER_RUN_TAG = "dagster.run_id"


@dataclass(frozen=True)
class Tracking:
    """The tracking store and registry of an installation.

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
        mlflow = _mlflow()
        with self._locked():
            client: MlflowClient = mlflow.MlflowClient(
                self.tracking_uri, registry_uri=self.tracking_uri
            )
            experiment = client.get_experiment_by_name(EXPERIMENT)
            if experiment is not None:
                return client, str(experiment.experiment_id)
            local = None if self.uri else (self.home / "mlartifacts").as_uri()
            return client, str(client.create_experiment(EXPERIMENT, artifact_location=local))

    def record(
        self, manifest: Manifest, params: Mapping[str, object], dagster_run_id: str = ""
    ) -> str:
        """Log a model as the one run of its asset and partition, and give the run's id."""
        mlflow = _mlflow()
        from mlflow.entities import Metric, Param, RunTag

        now = time.time_ns() // 1_000_000
        replaced = self._runs(manifest.model, manifest.cutoff)
        tags = {
            ASSET_TAG: manifest.model,
            PARTITION_TAG: manifest.cutoff,
            VERSION_TAG: manifest.version,
            DAGSTER_RUN_TAG: dagster_run_id,
            "churn.holdout": manifest.holdout,
            "churn.training_cutoffs": " ".join(manifest.training_cutoffs),
            "churn.fallback": manifest.fallback or "no",
        }
        name = f"{manifest.model} {manifest.cutoff}"
        run = self.client.create_run(self.experiment_id, run_name=name, tags=tags)
        run_id = str(run.info.run_id)
        try:
            self.client.log_batch(
                run_id,
                metrics=[Metric(key, value, now, 0) for key, value in manifest.metrics.items()],
                params=[Param(key, str(value)[:500]) for key, value in params.items()],
                tags=[RunTag("mlflow.source.name", "churn_assets")],
            )
            with (
                self._as_default(),
                mlflow.start_run(run_id=run_id),
                warnings.catch_warnings(),
            ):
                # The signature is declared, so no example is needed to infer one.
                warnings.filterwarnings("ignore", message=".*input example")
                mlflow.pyfunc.log_model(
                    name=manifest.model,
                    loader_module="churn_assets.stores.models",
                    data_path=str(ModelStore(self.home).artefact(manifest)),
                    # Without a list MLflow opens the model in a new process to find one: 4 s.
                    pip_requirements=[f"{k}=={v}" for k, v in manifest.libraries.items()],
                    signature=_signature(manifest),
                )
        except BaseException:
            self.client.set_terminated(run_id, "FAILED")
            raise
        for old in replaced:
            self.client.delete_run(old)
        return run_id

    def run_url(self, run_id: str) -> str | None:
        """Where the run can be looked at; None where no server is known."""
        if not (self.uri or "").startswith("http"):
            return None
        return f"{self.uri}/#/experiments/{self.experiment_id}/runs/{run_id}"

    def move_aliases(self, cutoff: str, aliases: Mapping[str, Manifest | None]) -> bool:
        """Point `champion` and `challenger` at the models of a decision, and say whether they were.

        They belong to the newest cutoff decided so far: a backfill of older ones leaves them.

        Args:
            cutoff: The cutoff of the decision, which may have kept an older model.
            aliases: The model of each alias; None where there is none.
        """
        client = self.client  # Opened first: that takes the lock too.
        # MLflow looks a logged model up in its default store, whatever the client's is.
        with self._locked(), self._as_default():
            registered = client.search_registered_models(f"name = '{REGISTERED_MODEL}'")
            if not registered:
                client.create_registered_model(REGISTERED_MODEL)
            elif registered[0].tags.get(PARTITION_TAG, "") > cutoff:
                return False
            for alias, manifest in aliases.items():
                if manifest is None:
                    client.delete_registered_model_alias(REGISTERED_MODEL, alias)
                else:
                    version = self._registered_version(manifest)
                    client.set_registered_model_alias(REGISTERED_MODEL, alias, version)
            client.set_registered_model_tag(REGISTERED_MODEL, PARTITION_TAG, cutoff)
        return True

    def _registered_version(self, manifest: Manifest) -> str:
        """The registry's number of a model, registered where it is new."""
        tags = {
            ASSET_TAG: manifest.model,
            PARTITION_TAG: manifest.cutoff,
            VERSION_TAG: manifest.version,
        }
        for known in self.client.search_model_versions(f"name = '{REGISTERED_MODEL}'"):
            if {name: known.tags.get(name) for name in tags} == tags:
                return str(known.version)
        runs = self._runs(manifest.model, manifest.cutoff, "AND attributes.status = 'FINISHED'")
        # Without a run, MLflow was emptied or moved since the model was trained.
        run_id = runs[0] if runs else self.record(manifest, {})
        outputs: Any = self.client.get_run(run_id).outputs
        model_id = outputs.model_outputs[0].model_id
        created = self.client.create_model_version(
            REGISTERED_MODEL,
            source=f"models:/{model_id}",
            run_id=run_id,
            model_id=model_id,
            tags=tags,
        )
        return str(created.version)

    def _runs(self, asset: str, partition: str, condition: str = "") -> list[str]:
        """The active runs of an asset and partition, newest first."""
        found = self.client.search_runs(
            [self.experiment_id],
            f"tags.`{ASSET_TAG}` = '{asset}' AND tags.`{PARTITION_TAG}` = '{partition}' "
            f"{condition}",
            order_by=["attributes.start_time DESC"],
        )
        return [run.info.run_id for run in found]

    @contextmanager
    def _as_default(self) -> Iterator[None]:
        """This store as the one that MLflow's fluent functions use.

        MLflow also puts it into the environment, where it would pass for a setting.
        """
        variable = "MLFLOW_TRACKING_URI"
        before = os.environ.get(variable)
        _mlflow().set_tracking_uri(self.tracking_uri)
        try:
            yield
        finally:
            os.environ.pop(variable, None)
            if before is not None:
                os.environ[variable] = before

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process of this installation at a time."""
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "mlflow.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _mlflow() -> Any:
    """MLflow, imported with telemetry off: it decides that once, while it is imported."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    import mlflow

    # It announces every step of making its schema.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow


def _signature(manifest: Manifest) -> Any:
    """Features in, P(churn) out. Everything may be missing, so nothing is required."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    columns: list[Any] = [
        ColSpec(
            DataType.string if column.dtype == "VARCHAR" else DataType.double,
            column.name,
            required=False,
        )
        for column in manifest.columns
    ]
    return ModelSignature(Schema(columns), Schema([ColSpec(DataType.double)]))
