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
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from churn_assets.estimators import inputs
from churn_assets.stores.models import Manifest, ModelStore
from churn_assets.stores.staging import staged

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

    from churn_assets.evaluation import Evaluation

EXPERIMENT = "churn"
REGISTERED_MODEL = "churn"
CHAMPION = "champion"
CHALLENGER = "challenger"

ASSET_TAG = "churn.asset"
PARTITION_TAG = "churn.partition"
VERSION_TAG = "churn.model_version"
DAGSTER_RUN_TAG = "dagster.run_id"

# Where `make mlflow` and `make dev` serve, for links from one to the other.
LOCAL_SERVER = "http://localhost:5000"
DAGSTER_SERVER = "http://localhost:3000"


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
                _mlflow().MlflowClient(f"sqlite:///{made}").search_experiments()
                made.replace(database)

    def record(
        self,
        manifest: Manifest,
        params: Mapping[str, object],
        dagster_run_id: str = "",
        evaluation: "Evaluation | None" = None,
        example: "pd.DataFrame | None" = None,
    ) -> str:
        """Log a model as the one run of its asset and partition, and give the run's id.

        Args:
            manifest: What the model is.
            params: How it was fitted.
            dagster_run_id: The Dagster run that made it.
            evaluation: Its plots, report and importance, where it was just made.
            example: A few rows of its input.

        Raises:
            TimeoutError: Another process keeps the SQLite file locked.
        """
        mlflow = _mlflow()
        from mlflow.entities import Metric, Param, RunTag

        now = time.time_ns() // 1_000_000
        tags = {
            VERSION_TAG: manifest.version,
            DAGSTER_RUN_TAG: dagster_run_id,
            "dagster.run_url": f"{DAGSTER_SERVER}/runs/{dagster_run_id}",
            "churn.holdout": manifest.holdout,
            "churn.training_cutoffs": " ".join(manifest.training_cutoffs),
            "churn.fallback": manifest.fallback or "no",
        }
        with self._only_run(manifest.model, manifest.cutoff, tags) as run_id:
            self.client.log_batch(
                run_id,
                metrics=[
                    Metric(key, value, now, 0)
                    for key, value in _metrics(manifest, evaluation).items()
                ],
                params=[Param(key, str(value)[:500]) for key, value in params.items()],
                tags=[RunTag("mlflow.source.name", "churn_assets")],
            )
            self.client.log_inputs(run_id, [_dataset(manifest)])
            if evaluation:
                self._log_evaluation(run_id, evaluation)
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
                    input_example=None if example is None else inputs(example, manifest.columns),
                )
        return run_id

    @contextmanager
    def _only_run(self, asset: str, partition: str, tags: Mapping[str, str]) -> Iterator[str]:
        """The id of a new run, which replaces the others of its asset and partition at the end.

        One at a time: two Dagster runs of a partition would each leave one, not knowing of the
        other's.
        """
        client = self.client  # Opened first: that takes the lock too.
        with self._locked():
            replaced = self._runs(asset, partition)
            run = client.create_run(
                self.experiment_id,
                run_name=f"{asset} {partition}".strip(),
                tags={ASSET_TAG: asset, PARTITION_TAG: partition, **tags},
            )
            run_id = str(run.info.run_id)
            try:
                yield run_id
            except BaseException:
                with suppress(_mlflow().MlflowException):  # it fails for the same reason
                    client.set_terminated(run_id, "FAILED")
                raise
            for old in replaced:
                client.delete_run(old)

    def _log_evaluation(self, run_id: str, evaluation: "Evaluation") -> None:
        """Plots, classification report and feature importance as files of the run."""
        with TemporaryDirectory() as folder:
            for name, image in evaluation.plots.items():
                (Path(folder) / f"{name}.png").write_bytes(image)
            self.client.log_artifacts(run_id, folder, "plots")
        self.client.log_text(run_id, evaluation.report, "classification_report.txt")
        self.client.log_dict(run_id, dict(evaluation.importance), "feature_importance.json")

    def record_topics(
        self,
        version: str,
        texts: int,
        words: Sequence[Sequence[str]],
        folder: Path,
        dagster_run_id: str = "",
    ) -> str:
        """Log the topic model with its top words as the one run of its asset; give the run's id."""
        from mlflow.entities import Param

        tags = {VERSION_TAG: version, DAGSTER_RUN_TAG: dagster_run_id}
        with self._only_run("review_topic_model", "", tags) as run_id:
            self.client.log_batch(run_id, params=[Param("texts", str(texts))])
            named = {f"topic_{i}": list(top) for i, top in enumerate(words)}
            self.client.log_dict(run_id, named, "top_words.json")
            self.client.log_artifacts(run_id, str(folder), "topic_model")
            self.client.set_terminated(run_id)
        return run_id

    def run_url(self, run_id: str) -> str:
        """Where the run can be looked at: on the server, or on that of `make mlflow`."""
        server = self.uri if self.uri and self.uri.startswith("http") else LOCAL_SERVER
        return f"{server.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{run_id}"

    def move_aliases(self, cutoff: str, aliases: Mapping[str, Manifest | None]) -> bool:
        """Point `champion` and `challenger` at the models of a decision, and say whether they were.

        They belong to the newest cutoff decided so far: a backfill of older ones leaves them.

        Args:
            cutoff: The cutoff of the decision, which may have kept an older model.
            aliases: The model of each alias; None where there is none.
        """
        client = self.client  # Opened first: that takes the lock too.
        for model in filter(None, aliases.values()):
            if not self._finished(model):  # MLflow was emptied or moved since it was trained
                self.record(model, {})
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
        run_id = self._finished(manifest)[0]
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

    def _finished(self, manifest: Manifest) -> list[str]:
        """The runs that have logged a model to the end, newest first."""
        return self._runs(manifest.model, manifest.cutoff, "AND attributes.status = 'FINISHED'")

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
        """One process of this installation at a time.

        Raises:
            TimeoutError: A process of another kind, such as a database browser, locks SQLite.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "mlflow.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            except _mlflow().MlflowException as error:
                if "database is locked" not in str(error):
                    raise
                raise TimeoutError(
                    f"{self.tracking_uri} is locked by another process, for longer than MLflow "
                    "waits. End what writes to it (`fuser` and the path name it), and run again: "
                    "what was recorded of this partition is replaced."
                ) from error


def _mlflow() -> Any:
    """MLflow, imported with telemetry off: it decides that once, while it is imported."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    import mlflow

    # It announces every step of making its schema.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow


def _metrics(manifest: Manifest, evaluation: "Evaluation | None") -> dict[str, float]:
    """Metrics, their intervals, and those of the baselines and of a random split."""
    found = dict(manifest.metrics)
    if evaluation is None:
        return found
    for name, (low, high) in evaluation.intervals.items():
        found |= {f"{name}_low": low, f"{name}_high": high}
    others = {**evaluation.baselines, "random_split": evaluation.random_split}
    for other, metrics in others.items():
        found |= {f"{other}.{name}": value for name, value in metrics.items()}
    return found


def _dataset(manifest: Manifest) -> "DatasetInput":
    """What the model was trained on: its rows by digest, the files they came from, the features."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = {"table": "training_dataset", "cutoffs": manifest.training_cutoffs}
    dataset = Dataset(
        name="training_dataset",
        digest=manifest.rows_digest[:16],
        source_type="churn_assets",
        source=json.dumps({**source, **manifest.provenance}),
        profile=json.dumps({"rows": manifest.rows, "features": len(manifest.columns)}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


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
