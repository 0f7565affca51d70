"""What Dagster and MLflow show of a trained model: grades, plots and parameters."""

from typing import Any

import dagster as dg

from churn_assets.models.artefacts import Manifest
from churn_assets.models.estimators import FittedModel
from churn_assets.models.evaluation import Evaluation
from churn_assets.models.metrics import Economics
from churn_assets.models.runs import ModelRuns
from churn_assets.models.tuning import describe
from churn_assets.stores.pages import markdown


def parameters(manifest: Manifest, model: FittedModel, threshold: float) -> dict[str, object]:
    """What MLflow shows as parameters: how the model was fitted, and what its metrics assume."""
    classifier = model.pipeline if model.is_base_rate else model.pipeline["classifier"]
    chosen = {k: v for k, v in classifier.get_params().items() if v is not None}
    return chosen | {
        "rounds": manifest.rounds,
        "rows": manifest.rows,
        "seed": manifest.seed,
        "threshold": threshold,
        "tuned": describe(manifest.tuned),
    }


def model_metadata(
    manifest: Manifest,
    evaluation: Evaluation,
    economics: Economics,
    tracking: ModelRuns,
    run_id: str,
) -> dict[str, Any]:
    """What Dagster shows of a model; floats are plotted over cutoffs."""
    from churn_assets.stores.pages import markdown_image

    pictures = {
        f"plot/{name}": dg.MetadataValue.md(markdown_image(image, name))
        for name, image in evaluation.plots.items()
    }
    return {
        **evaluation.metrics,
        "grades": dg.MetadataValue.md(grades_table(evaluation)),
        "report": dg.MetadataValue.md(f"```\n{evaluation.report}\n```"),
        **pictures,
        "threshold": economics.threshold,
        "training_rows": manifest.rows,
        "rounds": manifest.rounds,
        "hyperparameters": describe(manifest.tuned),
        "training_cutoffs": ", ".join(manifest.training_cutoffs),
        "holdout": manifest.holdout,
        "model_version": manifest.version,
        "fallback": manifest.fallback or "no",
        "mlflow_run": dg.MetadataValue.url(tracking.run_url(run_id)),
    }


def grades_table(evaluation: Evaluation) -> str:
    """Metrics on the hold-out with their intervals, beside the baselines and a random split."""
    others = {**evaluation.baselines, "random split": evaluation.random_split}
    rows = []
    for name, value in evaluation.metrics.items():
        low, high = evaluation.intervals[name]
        cells = [f"{other[name]:.4f}" if name in other else "" for other in others.values()]
        rows.append([name, f"{value:.4f}", f"{low:.4f} to {high:.4f}", *cells])
    return markdown(["metric", "hold-out", "95 % interval", *others], rows)
