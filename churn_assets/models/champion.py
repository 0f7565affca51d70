"""The champion: which model predicts at a cutoff, and why.

Grain: one decision per scored cutoff `C`, kept as JSON beside the models, and for people as table
`champion_model` with a row per model that was graded. The incumbent is the champion of the previous
scored cutoff, read from its decision on disk and never from a registry, so a backfill cannot meet a
model from its future. It is graded by a fit that had not seen the outcomes of the hold-out. What
decides is the pure function in `models.promotion`.
"""

import datetime as dt
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import dagster as dg

from churn_assets.cutoffs import Calendar, parse_key, utc_now
from churn_assets.features import Groups, feature_versions
from churn_assets.models import bootstrap, grades, incumbent, promotion
from churn_assets.models.artefacts import Manifest, ModelStore
from churn_assets.models.bootstrap import RESAMPLES, Interval, paired_interval
from churn_assets.models.candidates import MODELS
from churn_assets.models.grades import grade
from churn_assets.models.incumbent import ModelIdentity, chosen_manifest, find_incumbent
from churn_assets.models.promotion import Decision, Graded, decide_promotion
from churn_assets.models.runs import CHALLENGER, CHAMPION, ModelRuns
from churn_assets.models.training_plan import mature_at, needs_graded_fit, require_mature
from churn_assets.models.training_rows import MOST_TRAINING_ROWS, TARGET, drawn, training_rows
from churn_assets.stores.artefacts import PrunedArtefact, is_pruned
from churn_assets.stores.catalog import READS_PREVIOUS, bounds_of, is_within
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.pages import markdown
from churn_assets.stores.partitions import Query
from churn_assets.stores.provenance import code_digest
from churn_assets.stores.retries import connections_are_retried
from churn_assets.stores.staging import write_text
from churn_assets.stores.tables import CUTOFF, Column, Table, sql_version

GRADES = ("roc_auc", "pr_auc", "brier", "log_loss", "calibration_error", "lift_at_10_percent")
CHAMPION_MODEL = Table(
    "champion_model",
    key=("model", "model_cutoff"),
    columns=(
        CUTOFF,
        Column("model", "VARCHAR", "The kind of model"),
        Column("model_cutoff", "DATE", "The cutoff that it was trained for"),
        Column("model_version", "VARCHAR", "Digest of the model"),
        Column("role", "VARCHAR", "champion, challenger, candidate or incumbent"),
        Column("promoted", "BOOLEAN", "Whether it is the champion and a new model"),
        Column("reason", "VARCHAR", "Why the champion was chosen"),
        Column("holdout", "DATE", "The cutoff on which it was graded"),
        *(Column(name, "DOUBLE", f"{name} there; NULL where it is undefined") for name in GRADES),
        Column("lead", "DOUBLE", "Its ROC-AUC minus the incumbent's"),
        Column("lead_low", "DOUBLE", "Lower end of the 95 % interval of that"),
        Column("lead_high", "DOUBLE", "Upper end of it"),
    ),
)


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
        incumbent_identity: Which model that is, also where it could not be graded, of which the
            reason tells; None where there is no previous champion, or its model is not there.
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
    incumbent_identity: ModelIdentity | None = None

    @property
    def identity(self) -> ModelIdentity:
        """The model that it chose."""
        return ModelIdentity(self.model, self.model_cutoff, self.model_version)

    @property
    def metrics(self) -> Mapping[str, float]:
        """The champion's own metrics on the hold-out."""
        kept = self.model_cutoff != self.cutoff
        return self.incumbent if kept else self.candidates[self.model]


def find_champion(model_store: ModelStore, cutoff: dt.date) -> Champion | None:
    """The decision of a cutoff, or None where none was made that can be read."""
    content = model_store.read(CHAMPION_MODEL.name, cutoff.isoformat())
    if content is None:
        return None
    incumbent = content.pop("incumbent_identity", None)  # version 0.1 did not write it down
    return Champion(**content, incumbent_identity=ModelIdentity(**incumbent) if incumbent else None)


def newest_champion(calendar: Calendar, model_store: ModelStore) -> Champion | None:
    """The decision of the newest cutoff of history that has one."""
    bounds = bounds_of(calendar.scored_cutoffs)
    cutoffs = model_store.cutoffs(CHAMPION_MODEL.name)
    decided = [key for key in cutoffs if is_within(bounds, key)]
    return find_champion(model_store, parse_key(decided[-1])) if decided else None


def previous_champion(
    calendar: Calendar, model_store: ModelStore, cutoff: dt.date
) -> Champion | None:
    """The decision of the cutoff before, or None where that is no cutoff with models."""
    previous = calendar.shift(cutoff, -1)
    return None if previous < calendar.first_scored else find_champion(model_store, previous)


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
            f"There is no champion_model for cutoff {cutoff}. Materialize champion_model "
            f"{cutoff} first, for example with `churn backfill --stage models`."
        )
    manifest = chosen_manifest(model_store, champion.identity, champion.cutoff)
    require_mature(calendar, manifest, cutoff)
    return manifest


def incumbent_of(
    calendar: Calendar, store: OfflineStore, model_store: ModelStore, cutoff: dt.date
) -> ModelIdentity | None:
    """The champion of the cutoff before, which the decision of `cutoff` is made against.

    None where there is none, where its model is not there as it was written, or where that was made
    under other definitions.
    """
    champion = previous_champion(calendar, model_store, cutoff)
    if (
        champion is None
        or not model_store.is_whole(champion.model, champion.model_cutoff)
        or store.is_redefined(champion.model, champion.model_cutoff)
    ):
        return None
    return champion.identity


def refuse_pruned_incumbent(
    calendar: Calendar, store: OfflineStore, model_store: ModelStore, cutoff: dt.date
) -> None:
    """See that the previous champion can be graded, where it is to be.

    Without its files it would count as none, and the decision might be another than it was.

    Raises:
        PrunedArtefact: Its files were pruned.
    """
    champion = previous_champion(calendar, model_store, cutoff)
    if champion and not store.is_redefined(champion.model, champion.model_cutoff):
        folder = model_store.folder(champion.model, champion.model_cutoff) / champion.model_version
        if is_pruned(folder):
            raise PrunedArtefact(folder)


def choose_champion(
    calendar: Calendar,
    store: OfflineStore,
    model_store: ModelStore,
    versions: Mapping[str, str],
    cutoff: dt.date,
    models: Sequence[str] = MODELS,
) -> tuple[Champion, Decision]:
    """Grade the previous champion on this cutoff's hold-out and decide against the candidates.

    Args:
        calendar: The cutoffs.
        store: Has the hold-out's rows.
        model_store: Has the models and decisions.
        versions: The version of every feature as it is defined now.
        cutoff: The cutoff of the decision.
        models: The kinds that are candidates.

    Raises:
        FileNotFoundError: One of the candidates was not trained yet.
    """
    candidates = {name: model_store.manifest(name, cutoff.isoformat()) for name in models}
    holdout = mature_at(calendar, cutoff)[-1]
    rows = training_rows(store, [holdout])
    previous = previous_champion(calendar, model_store, cutoff)
    defending = find_incumbent(
        calendar,
        model_store,
        versions,
        previous.identity if previous else None,
        cutoff,
        holdout,
        rows,
        is_redefined=previous is not None
        and store.is_redefined(previous.model, previous.model_cutoff),
    )
    metrics: Mapping[str, float] = {}
    if defending.probabilities is not None:
        metrics = grade(rows.churned, defending.probabilities)

    def lead(manifest: Manifest) -> Interval | None:
        said = model_store.holdout_probabilities(manifest)
        # Training data that was made anew since may have other customers.
        if defending.probabilities is None or len(said) != len(rows):
            return None
        return paired_interval(rows.churned, said, defending.probabilities, manifest.seed)

    decision = decide_promotion(
        [_graded(m, m.metrics, lead(m)) for m in candidates.values()],
        _graded(defending.manifest, metrics) if defending.manifest else None,
    )
    chosen = model_store.manifest(decision.chosen.model, decision.chosen.cutoff.isoformat())
    champion = Champion(
        cutoff=cutoff.isoformat(),
        model=chosen.model,
        model_cutoff=chosen.cutoff,
        model_version=chosen.version,
        promoted=decision.promoted,
        reason=f"{decision.reason} {defending.remark}".strip(),
        challenger=decision.challenger.model if decision.challenger else None,
        holdout=holdout.isoformat(),
        candidates={name: manifest.metrics for name, manifest in candidates.items()},
        incumbent=metrics,
        incumbent_identity=incumbent_of(calendar, store, model_store, cutoff),
    )
    return champion, decision


def _graded(
    manifest: Manifest, metrics: Mapping[str, float], lead: Interval | None = None
) -> Graded:
    return Graded(manifest.model, parse_key(manifest.cutoff), metrics.get("roc_auc"), lead)


def decision_rows(
    champion: Champion, decision: Decision, versions: Mapping[tuple[str, str], str]
) -> list[dict[str, Any]]:
    """A decision as rows of `CHAMPION_MODEL`: every model that was graded, and its role.

    Args:
        champion: The decision as it is kept.
        decision: The decision with its grades.
        versions: The version of each model, by kind and cutoff.
    """
    rows = []
    for graded in decision.graded:
        key = (graded.model, graded.cutoff.isoformat())
        newer = key[1] == champion.cutoff
        metrics = champion.candidates[graded.model] if newer else champion.incumbent
        chosen = graded is decision.chosen
        challenger = graded is decision.challenger
        other = "challenger" if challenger else "candidate" if newer else "incumbent"
        low, high = graded.lead or (None, None)
        before = champion.incumbent.get("roc_auc")
        rows.append(
            {
                "cutoff": champion.cutoff,
                "model": graded.model,
                "model_cutoff": key[1],
                "model_version": versions[key],
                "role": "champion" if chosen else other,
                "promoted": chosen and champion.promoted,
                "reason": champion.reason,
                "holdout": champion.holdout,
                **{name: metrics.get(name) for name in GRADES},
                "lead": (
                    graded.roc_auc - before
                    if newer and before is not None and graded.roc_auc is not None
                    else None
                ),
                "lead_low": low,
                "lead_high": high,
            }
        )
    return rows


# What decides a champion: who is graded, on which rows and by which fit, and who wins.
CODE = (
    *(promotion, grades, bootstrap),
    *(choose_champion, previous_champion, incumbent, incumbent_of, _graded, decision_rows),
    *(mature_at, require_mature, needs_graded_fit, training_rows, drawn),
)


def assets(
    groups: Groups,
    calendar: Calendar,
    store: OfflineStore,
    tracking: ModelRuns,
    models: Sequence[str] = MODELS,
) -> list[dg.AssetsDefinition]:
    """The champion of a cutoff."""
    model_store, versions = ModelStore(store.home), feature_versions(groups)

    @dg.asset(
        description=__doc__,
        # Not on its own previous partition, which it reads from disk where it is there: Dagster's
        # backfill daemon never gets past an asset that depends on itself.
        deps=[dg.AssetDep(name, partition_mapping=calendar.same_cutoff) for name in models],
        partitions_def=calendar.scored_cutoffs,
        backfill_policy=dg.BackfillPolicy.single_run(),
        code_version=sql_version(
            code_digest(*CODE), f"{RESAMPLES} {MOST_TRAINING_ROWS} {TARGET} {' '.join(GRADES)}"
        ),
        group_name="models",
        kinds={"mlflow", "parquet"},
        owners=["team:ml"],
        tags={"layer": "models"},
        metadata={"dagster/column_schema": CHAMPION_MODEL.as_dagster(), READS_PREVIOUS: True},
    )
    def champion_model(context: dg.AssetExecutionContext) -> Iterator[dg.Output[Query]]:
        import pyarrow as pa

        rows: list[dict[str, Any]] = []
        newest = max(calendar.keys(calendar.scored_cutoffs, utc_now()), default="")
        # In order: the champion of one cutoff is the incumbent of the next.
        for key in sorted(context.partition_keys):
            began = time.monotonic()
            refuse_pruned_incumbent(calendar, store, model_store, parse_key(key))
            champion, decision = choose_champion(
                calendar, store, model_store, versions, parse_key(key), models
            )
            text = json.dumps(asdict(champion), indent=2)
            write_text(store.home, model_store.manifest_path(CHAMPION_MODEL.name, key), text)
            challenger = champion.challenger and model_store.manifest(champion.challenger, key)
            with connections_are_retried():
                moved = tracking.move_aliases(
                    key,
                    {
                        CHAMPION: model_store.manifest(champion.model, champion.model_cutoff),
                        CHALLENGER: challenger or None,
                    },
                    newest,
                )
            graded = [(g.model, g.cutoff.isoformat()) for g in decision.graded]
            made = {model: model_store.manifest(*model).version for model in graded}
            decided = decision_rows(champion, decision, made)
            rows.extend(decided)
            metadata = champion_metadata(champion, decided) | {
                "aliases_moved": moved,
                "decision_seconds": time.monotonic() - began,
            }
            context.add_asset_metadata(metadata, partition_key=key)
            context.log.info(f"{key}: {champion.reason}")
        with store.connect() as connection:
            connection.register("decisions", pa.Table.from_pylist(rows))
            yield dg.Output(Query("SELECT * FROM decisions", connection))

    return [champion_model]


def champion_metadata(champion: Champion, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What Dagster shows of a decision; floats are plotted over cutoffs."""
    grades = {
        f"roc_auc/{name}": metrics["roc_auc"]
        for name, metrics in {**champion.candidates, "incumbent": champion.incumbent}.items()
        if "roc_auc" in metrics
    }

    def shown(value: object) -> str:
        return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)

    names = ["model", "model_cutoff", "role", "roc_auc", "lead", "lead_low", "lead_high", "brier"]
    table = markdown(names, [[shown(row[name]) for name in names] for row in rows])
    return {
        **grades,
        "champion": f"{champion.model} of {champion.model_cutoff}",
        "model_version": champion.model_version,
        "promoted": champion.promoted,
        "reason": champion.reason,
        "graded": dg.MetadataValue.md(table),
        "holdout": champion.holdout,
    }
