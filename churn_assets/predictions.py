"""Predictions: which model is the champion of a cutoff, and what it says of every customer.

Grain: one decision per scored cutoff `C`; one prediction per customer of the population and `C`. A
prediction at `C` reads the features of `C` and a model all of whose training labels were mature at
`C`, which is enforced. The incumbent is the champion of the previous scored cutoff, read from its
decision on disk and never from a registry, so a backfill cannot meet a model from its future.
"""

import datetime as dt
import inspect
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from churn_assets import promotion
from churn_assets.cutoffs import Calendar, parse_key
from churn_assets.estimators import FittedModel
from churn_assets.features import GROUPS, feature_columns
from churn_assets.metrics import Economics, grade
from churn_assets.models import (
    MODELS,
    feature_versions,
    mature_at,
    require_mature,
    training_rows,
)
from churn_assets.promotion import Decision, Graded, decide_promotion
from churn_assets.stores.models import MANIFEST, FeatureMismatch, Manifest, ModelStore
from churn_assets.stores.offline import OfflineStore, Query
from churn_assets.tables import Column, cutoff_table, sql_version
from churn_assets.tracking import CHALLENGER, CHAMPION, Tracking

if TYPE_CHECKING:
    import pandas as pd

CHURN_PREDICTIONS = cutoff_table(
    "churn_predictions",
    [
        Column("churn_probability", "DOUBLE", "P(no purchase within the horizon)"),
        Column("purchase_probability", "DOUBLE", "Its complement"),
        Column("prediction", "VARCHAR", "CHURN RISK at or above the threshold, else RETAIN"),
        Column("threshold", "DOUBLE", "Probability from which contacting a customer pays"),
        Column("model_version", "VARCHAR", "Digest of the model that was used"),
    ],
)
CHAMPION_MODEL = "champion_model"


class ChampionReplaced(ValueError):
    """The model that a decision chose was trained anew since."""


@dataclass(frozen=True)
class Champion:
    """The decision of a cutoff, as it is kept on disk.

    Args:
        cutoff: The cutoff of the decision.
        model: The kind of model to use.
        model_cutoff: The cutoff for which that model was trained; older where one was kept.
        model_version: Its version.
        promoted: Whether it is a new model.
        reason: Why, for people.
        challenger: The kind of the runner-up, a candidate of `cutoff`; None without one.
        holdout: The cutoff on which everything was graded.
        candidates: Metrics of every candidate.
        incumbent: Metrics of the previous champion on the same hold-out; empty without one.
    """

    cutoff: str
    model: str
    model_cutoff: str
    model_version: str
    promoted: bool
    reason: str
    challenger: str | None
    holdout: str
    candidates: Mapping[str, Mapping[str, float]]
    incumbent: Mapping[str, float]


def find_champion(model_store: ModelStore, cutoff: dt.date) -> Champion | None:
    """The decision of a cutoff, or None where none was made."""
    path = model_store.folder(CHAMPION_MODEL, cutoff.isoformat()) / MANIFEST
    return Champion(**json.loads(path.read_text())) if path.exists() else None


def champion_of(calendar: Calendar, model_store: ModelStore, cutoff: dt.date) -> Manifest:
    """The manifest of the model to predict with at a cutoff.

    Raises:
        FileNotFoundError: No champion was chosen yet.
        ChampionReplaced: Its model was trained anew since.
        ValueError: Its model has seen labels that were not known at the cutoff.
    """
    champion = find_champion(model_store, cutoff)
    if champion is None:
        raise FileNotFoundError(
            f"There is no {CHAMPION_MODEL} for cutoff {cutoff}. Materialize {CHAMPION_MODEL} "
            f"{cutoff} first, for example with `churn backfill --stage models`."
        )
    manifest = model_store.manifest(champion.model, champion.model_cutoff)
    if manifest.version != champion.model_version:
        raise ChampionReplaced(
            f"The champion of {cutoff} is {champion.model} of {champion.model_cutoff} in version "
            f"{champion.model_version}, which was since trained anew as {manifest.version}. "
            f"Materialize {CHAMPION_MODEL} {cutoff} again."
        )
    require_mature(calendar, manifest, cutoff)
    return manifest


def choose_champion(
    calendar: Calendar,
    store: OfflineStore,
    model_store: ModelStore,
    cutoff: dt.date,
    economics: Economics,
) -> tuple[Champion, Decision]:
    """Grade the previous champion on this cutoff's hold-out and decide against the candidates.

    Raises:
        FileNotFoundError: One of the candidates was not trained yet.
    """
    candidates = {name: model_store.manifest(name, cutoff.isoformat()) for name in MODELS}
    holdout = mature_at(calendar, cutoff)[-1]
    incumbent, metrics, remark = _incumbent(
        calendar, store, model_store, calendar.shift(cutoff, -1), holdout, economics
    )
    decision = decide_promotion(
        [_graded(manifest, manifest.metrics) for manifest in candidates.values()],
        _graded(incumbent, metrics) if incumbent else None,
    )
    chosen = model_store.manifest(decision.chosen.model, decision.chosen.cutoff.isoformat())
    champion = Champion(
        cutoff=cutoff.isoformat(),
        model=chosen.model,
        model_cutoff=chosen.cutoff,
        model_version=chosen.version,
        promoted=decision.promoted,
        reason=f"{decision.reason} {remark}".strip(),
        challenger=decision.challenger.model if decision.challenger else None,
        holdout=holdout.isoformat(),
        candidates={name: manifest.metrics for name, manifest in candidates.items()},
        incumbent=metrics,
    )
    return champion, decision


def _graded(manifest: Manifest, metrics: Mapping[str, float]) -> Graded:
    return Graded(manifest.model, parse_key(manifest.cutoff), metrics.get("roc_auc"))


def _incumbent(
    calendar: Calendar,
    store: OfflineStore,
    model_store: ModelStore,
    previous: dt.date,
    holdout: dt.date,
    economics: Economics,
) -> tuple[Manifest | None, Mapping[str, float], str]:
    """The previous champion, its metrics on the hold-out, and why there is none where so."""
    if find_champion(model_store, previous) is None:
        return None, {}, f"There is no champion of {previous}."
    try:
        manifest = champion_of(calendar, model_store, previous)
        model = model_store.load(manifest, feature_versions())
    except (ChampionReplaced, FeatureMismatch, FileNotFoundError) as error:
        return None, {}, f"The champion of {previous} cannot be used: {error}"
    rows = training_rows(store, [holdout])
    return manifest, grade(rows.churned, model.probabilities(rows.features), economics), ""


def population_query(store: OfflineStore, cutoff: dt.date) -> str:
    """A SELECT of customer_id and every feature of the population of a cutoff."""
    first, *others = GROUPS
    key = cutoff.isoformat()
    names = ", ".join(column.name for column in feature_columns())
    joins = " ".join(
        f"LEFT JOIN {store.scan(group.table, [key]).sql} AS {group.name} USING (customer_id)"
        for group in others
    )
    return (
        f"SELECT customer_id, {names} FROM {store.scan(first.table, [key]).sql} AS first_group "
        f"{joins}"
    )


def population_features(store: OfflineStore, cutoff: dt.date) -> "pd.DataFrame":
    """customer_id and every feature of the population of a cutoff, ordered by customer."""
    with store.connect() as connection:
        return connection.execute(f"{population_query(store, cutoff)} ORDER BY customer_id").df()


def predict(manifest: Manifest, model: FittedModel, features: "pd.DataFrame") -> "pd.DataFrame":
    """One row of `CHURN_PREDICTIONS`, without its cutoff, per row of features."""
    import numpy as np
    import pandas as pd

    churn = model.probabilities(features)
    return pd.DataFrame(
        {
            "customer_id": features["customer_id"],
            "churn_probability": churn,
            "purchase_probability": 1 - churn,
            "prediction": np.where(churn >= manifest.threshold, "CHURN RISK", "RETAIN"),
            "threshold": manifest.threshold,
            "model_version": manifest.version,
        }
    )


def assets(
    calendar: Calendar, store: OfflineStore, tracking: Tracking, economics: Economics
) -> list[dg.AssetsDefinition]:
    """The champion of a cutoff and its predictions."""
    model_store = ModelStore(store.home)

    @dg.asset(
        description=f"Which model predicts at the cutoff, and why.\n\n{__doc__}",
        # Not on its own previous partition, which it reads from disk where it is there: Dagster's
        # backfill daemon never gets past an asset that depends on itself.
        deps=[dg.AssetDep(name, partition_mapping=calendar.same_cutoff) for name in MODELS],
        partitions_def=calendar.scored_cutoffs,
        backfill_policy=dg.BackfillPolicy.single_run(),
        code_version=sql_version(inspect.getsource(promotion)),
        group_name="models",
        kinds={"mlflow"},
        owners=["team:ml"],
        tags={"layer": "models"},
    )
    def champion_model(context: dg.AssetExecutionContext) -> None:
        # In order: the champion of one cutoff is the incumbent of the next.
        for key in sorted(context.partition_keys):
            began = time.monotonic()
            champion, decision = choose_champion(
                calendar, store, model_store, parse_key(key), economics
            )
            text = json.dumps(asdict(champion), indent=2)
            model_store.write_json(model_store.folder(CHAMPION_MODEL, key) / MANIFEST, text)
            challenger = champion.challenger and model_store.manifest(champion.challenger, key)
            moved = tracking.move_aliases(
                key,
                {
                    CHAMPION: model_store.manifest(champion.model, champion.model_cutoff),
                    CHALLENGER: challenger or None,
                },
            )
            metadata = champion_metadata(champion, decision) | {
                "aliases_moved": moved,
                "seconds": time.monotonic() - began,
            }
            context.add_asset_metadata(metadata, partition_key=key)
            context.log.info(f"{key}: {champion.reason}")

    @dg.asset(
        description=f"The champion's predictions for the population.\n\n{__doc__}",
        deps=[
            dg.AssetDep(name, partition_mapping=calendar.same_cutoff)
            for name in (CHAMPION_MODEL, *(group.name for group in GROUPS))
        ],
        partitions_def=calendar.scored_cutoffs,
        backfill_policy=dg.BackfillPolicy.single_run(),
        code_version=sql_version(inspect.getsource(predict)),
        group_name="predictions",
        kinds={"duckdb", "parquet"},
        owners=["team:ml"],
        tags={"layer": "predictions"},
        metadata={"dagster/column_schema": CHURN_PREDICTIONS.as_dagster()},
    )
    def churn_predictions(context: dg.AssetExecutionContext) -> Iterator[dg.Output[Query]]:
        import pandas as pd

        scored = []
        for key in context.partition_keys:
            cutoff = parse_key(key)
            manifest = champion_of(calendar, model_store, cutoff)
            model = model_store.load(manifest, feature_versions())
            predictions = predict(manifest, model, population_features(store, cutoff))
            scored.append(predictions.assign(cutoff=key))
            metadata = {
                "model": f"{manifest.model} of {manifest.cutoff}",
                "model_version": manifest.version,
                "threshold": manifest.threshold,
                "mean_churn_probability": float(predictions["churn_probability"].mean()),
                "churn_risk_share": float((predictions["prediction"] == "CHURN RISK").mean()),
            }
            defined = {k: v for k, v in metadata.items() if v == v}  # means of no rows are NaN
            context.add_asset_metadata(defined, partition_key=key)
        with store.connect() as connection:
            connection.register("scored", pd.concat(scored))
            yield dg.Output(Query(["SELECT * FROM scored"], connection))

    return [champion_model, churn_predictions]


def champion_metadata(champion: Champion, decision: Decision) -> dict[str, Any]:
    """What Dagster shows of a decision; floats are plotted over cutoffs."""
    grades = {
        f"roc_auc/{k}": v["roc_auc"] for k, v in champion.candidates.items() if "roc_auc" in v
    }
    if "roc_auc" in champion.incumbent:
        grades["roc_auc/incumbent"] = champion.incumbent["roc_auc"]
    return {
        **grades,
        "champion": f"{champion.model} of {champion.model_cutoff}",
        "model_version": champion.model_version,
        "promoted": champion.promoted,
        "reason": champion.reason,
        "challenger": str(decision.challenger or "none"),
        "holdout": champion.holdout,
    }
