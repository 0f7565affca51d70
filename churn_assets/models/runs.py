"""The runs of models in MLflow, and the registered model with its aliases.

Grain: one run per model asset and partition (`stores.tracking`). The registered model is called
`churn-<name>`, after the installation. The model that is logged is the
artefact folder itself, opened by `models.pyfunc`: the same bytes that predict. No input example
goes with it, because a row of the training data is a customer's; the signature says what goes in.
"""

import json
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from churn_assets.models import pyfunc
from churn_assets.models.artefacts import Manifest, ModelStore
from churn_assets.stores.tracking import (
    ASSET_TAG,
    DAGSTER_RUN_TAG,
    PARTITION_TAG,
    VERSION_TAG,
    Tracking,
    import_mlflow,
)

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

    from churn_assets.models.evaluation import Evaluation

CHAMPION = "champion"
CHALLENGER = "challenger"

# Where `make dev` serves, for links from MLflow.
DAGSTER_SERVER = "http://localhost:3000"


class ModelRuns(Tracking):
    """The runs of models, and their registry."""

    def record(
        self,
        manifest: Manifest,
        params: Mapping[str, object],
        dagster_run_id: str = "",
        evaluation: "Evaluation | None" = None,
    ) -> str:
        """Log a model as the one run of its asset and partition, and give the run's id.

        Args:
            manifest: What the model is.
            params: How it was fitted.
            dagster_run_id: The Dagster run that made it.
            evaluation: Its plots, report and importance, where it was just made.

        Raises:
            TimeoutError: Another process keeps the SQLite file locked.
        """
        mlflow = import_mlflow()
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
        with self.only_run(manifest.model, manifest.cutoff, tags) as run_id:
            self.client.log_batch(
                run_id,
                params=[Param(key, str(value)[:500]) for key, value in params.items()],
                tags=[RunTag("mlflow.source.name", "churn_assets")],
            )
            self.client.log_inputs(run_id, [_dataset(manifest)])
            if evaluation:
                self._log_evaluation(run_id, evaluation)
            with (
                self.as_default(),
                mlflow.start_run(run_id=run_id),
                warnings.catch_warnings(),
            ):
                # The signature is declared, and MLflow would load the model to try an example.
                warnings.filterwarnings("ignore", message=".*input example")
                model = mlflow.pyfunc.log_model(
                    name=manifest.model,
                    loader_module=pyfunc.__name__,
                    data_path=str(ModelStore(self.home).artefact(manifest)),
                    # Without a list MLflow opens the model in a new process to find one: 4 s.
                    pip_requirements=[f"{k}=={v}" for k, v in manifest.libraries.items()],
                    signature=_signature(manifest),
                )
            # Of run and model at once. Of a run that has metrics, MLflow reads each one's history.
            self.client.log_batch(
                run_id,
                metrics=[
                    Metric(key, value, now, 0, model_id=model.model_id, run_id=run_id)
                    for key, value in _metrics(manifest, evaluation).items()
                ],
            )
        return run_id

    def _log_evaluation(self, run_id: str, evaluation: "Evaluation") -> None:
        """Plots, classification report and feature importance as files of the run."""
        with TemporaryDirectory() as folder:
            for name, image in evaluation.plots.items():
                (Path(folder) / f"{name}.png").write_bytes(image)
            self.client.log_artifacts(run_id, folder, "plots")
        self.client.log_text(run_id, evaluation.report, "classification_report.txt")
        self.client.log_dict(run_id, dict(evaluation.importance), "feature_importance.json")

    def move_aliases(
        self, cutoff: str, aliases: Mapping[str, Manifest | None], newest: str
    ) -> bool:
        """Point `champion` and `challenger` at the models of a decision, and say whether they were.

        They belong to the newest cutoff decided so far: a backfill of older ones leaves them. A
        cutoff that does not exist, decided while a clock was ahead, holds them from nobody.

        Args:
            cutoff: The cutoff of the decision, which may have kept an older model.
            aliases: The model of each alias; None where there is none.
            newest: The newest cutoff that exists.

        Raises:
            AnotherInstallation: The state folder was moved or copied, and others may use the
                server.
        """
        self.require_at_home()
        client = self.client  # Opened first: that takes the lock too.
        for model in filter(None, aliases.values()):
            if not self._finished(model):  # MLflow was emptied or moved since it was trained
                self.record(model, {})
        # MLflow looks a logged model up in its default store, whatever the client's is.
        with self.locked(), self.as_default():
            registered = client.search_registered_models(f"name = '{self.name}'")
            if not registered:
                client.create_registered_model(self.name)
            elif cutoff < registered[0].tags.get(PARTITION_TAG, "") <= newest:
                return False
            for alias, manifest in aliases.items():
                if manifest is None:
                    client.delete_registered_model_alias(self.name, alias)
                else:
                    version = self._registered_version(manifest)
                    client.set_registered_model_alias(self.name, alias, version)
            client.set_registered_model_tag(self.name, PARTITION_TAG, cutoff)
        return True

    def _registered_version(self, manifest: Manifest) -> str:
        """The registry's number of a model, registered where it is new."""
        tags = {
            ASSET_TAG: manifest.model,
            PARTITION_TAG: manifest.cutoff,
            VERSION_TAG: manifest.version,
        }
        for known in self.client.search_model_versions(f"name = '{self.name}'"):
            if {name: known.tags.get(name) for name in tags} == tags:
                return str(known.version)
        run_id = self._finished(manifest)[0]
        outputs: Any = self.client.get_run(run_id).outputs
        model_id = outputs.model_outputs[0].model_id
        created = self.client.create_model_version(
            self.name,
            source=f"models:/{model_id}",
            run_id=run_id,
            model_id=model_id,
            tags=tags,
        )
        return str(created.version)

    def _finished(self, manifest: Manifest) -> list[str]:
        """The runs that have logged a model to the end, newest first."""
        return self.runs(manifest.model, manifest.cutoff, "AND attributes.status = 'FINISHED'")


def _metrics(manifest: Manifest, evaluation: "Evaluation | None") -> dict[str, float]:
    """Metrics, their intervals, and those of the baselines and of a random split."""
    if evaluation is None:
        return dict(manifest.metrics)
    found = dict(evaluation.metrics)
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
