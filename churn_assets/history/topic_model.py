"""The topic model: ten topics, and vectors where they are asked for, fitted once and frozen.

Grain: one model without partitions: topics that were fitted at different cutoffs could not be
compared or averaged. It is fitted on the distinct review texts from before the first cutoff, so no
cutoff sees its future through it. The first ingestion that has all of these slices fits it
(`history.scored_reviews`). Later ingestions never refit it: only the job `topics` does, and that
makes every scored slice stale.

With fewer than `text_models.MIN_TEXTS` distinct texts there is no model, and topics are NULL.
Vectors are fitted and frozen with the topics, by the same asset and under the same version.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from churn_assets.cutoffs import Calendar
from churn_assets.history import text_models, text_vectors, topics
from churn_assets.history.review_pages import topic_metadata
from churn_assets.history.text_models import TextModel
from churn_assets.history.text_vectors import Vectors
from churn_assets.history.topics import TopicModel
from churn_assets.sources.tables import REVIEWS
from churn_assets.stores.artefacts import ArtefactStore, DamagedArtefact, require_whole
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.provenance import code_digest, current_provenance
from churn_assets.stores.retries import connections_are_retried
from churn_assets.stores.tables import sql_version
from churn_assets.stores.tracking import DAGSTER_RUN_TAG, VERSION_TAG, Tracking

TOPIC_MODEL = "review_topic_model"
TOPICS_FILE, VECTORS_FILE = "topics.npz", "vectors.npz"


@dataclass(frozen=True)
class TopicManifest:
    """The frozen topic model and that of the vectors, as they are kept on disk.

    Args:
        version: Digest of the model; of the reason where there is none. With vectors, theirs too.
        before: The first cutoff: the model has seen texts from before it only.
        texts: Distinct texts that it was fitted on, or that there were.
        words: The most telling words of each topic; empty without a model.
        reason: Why there is no model; empty where there is one.
        provenance: What it was made from.
        vectors: CHURN_REVIEW_VECTORS as it was.
        has_vectors: False also where the texts were too few, or shared too few words.
    """

    version: str
    before: str
    texts: int
    words: Sequence[Sequence[str]]
    reason: str
    provenance: Mapping[str, str] = field(default_factory=dict)
    vectors: Vectors = "none"
    has_vectors: bool = False


TextModels = tuple[TopicModel | None, TextModel | None]
"""The topic model and that of the vectors; None where there is none."""


def find_topics(artefacts: ArtefactStore) -> TopicManifest | None:
    """The manifest of the current topic model, or None where none was fitted yet."""
    content = artefacts.read(TOPIC_MODEL, None)
    return None if content is None else TopicManifest(**content)


def load_topics(artefacts: ArtefactStore, manifest: TopicManifest) -> TopicModel | None:
    """The topic model of a manifest; None where there were too few texts for one."""
    if manifest.reason:
        return None
    return TopicModel.load(_folder(artefacts, manifest) / TOPICS_FILE)


def load_models(artefacts: ArtefactStore, manifest: TopicManifest, vectors: Vectors) -> TextModels:
    """The models of a manifest.

    Raises:
        ValueError: They were fitted with another CHURN_REVIEW_VECTORS.
    """
    if manifest.vectors != vectors:
        raise ValueError(
            f"CHURN_REVIEW_VECTORS is {vectors}, and the models of review texts were fitted with "
            f"{manifest.vectors}. Set it back, or fit anew with `churn backfill --stage topics` "
            "and make every slice and cutoff again, as docs/reviews.md says."
        )
    found = load_topics(artefacts, manifest)
    if vectors == "none" or not manifest.has_vectors:
        return found, None
    return found, text_vectors.load_text_vectors(
        vectors, _folder(artefacts, manifest) / VECTORS_FILE
    )


def _folder(artefacts: ArtefactStore, manifest: TopicManifest) -> Path:
    """The folder with the files of a topic model.

    Raises:
        DamagedArtefact: They are not as they were written.
    """
    folder = artefacts.folder(TOPIC_MODEL, None) / manifest.version
    require_whole(folder, "churn backfill --stage topics")
    return folder


def slices_of_topics(calendar: Calendar) -> list[str]:
    """The slices before the first cutoff, whose reviews the topic model is fitted on."""
    last = calendar.shift(calendar.first_cutoff, -1)
    return [day.isoformat() for day in calendar.between(calendar.first_slice, last)]


def fit_topic_model(
    store: OfflineStore,
    calendar: Calendar,
    seed: int,
    vectors: Vectors,
    provenance: Mapping[str, str],
) -> tuple[TopicManifest, TopicModel | None]:
    """Fit topics and vectors on the distinct texts from before the first cutoff, and publish them.

    Raises:
        FileNotFoundError: A slice before the first cutoff was not ingested yet.
    """
    scan = store.scan(REVIEWS.table, slices_of_topics(calendar))
    with store.connect() as connection:
        found = connection.execute(
            f"SELECT DISTINCT text FROM {scan.sql} WHERE text IS NOT NULL ORDER BY text"
        ).fetchall()
    texts = [text for (text,) in found]
    topic_model = topics.fit_topics(texts, seed)
    vector_model = (
        None if vectors == "none" else text_vectors.fit_text_vectors(vectors, texts, seed)
    )
    reason = (
        ""
        if topic_model
        else f"{len(texts)} distinct texts before {calendar.first_cutoff}, "
        f"{text_models.MIN_TEXTS} are needed"
    )
    version = (
        topic_model.version if topic_model else hashlib.sha256(reason.encode()).hexdigest()[:16]
    )
    if vectors != "none":
        version += f"-{vector_model.version if vector_model else vectors}"
    manifest = TopicManifest(
        version=version,
        before=calendar.first_cutoff.isoformat(),
        texts=len(texts),
        words=topic_model.top_words() if topic_model else [],
        reason=reason,
        provenance=provenance,
        vectors=vectors,
        has_vectors=vector_model is not None,
    )

    def save(folder: Path) -> None:
        if topic_model:
            topic_model.save(folder / TOPICS_FILE)
        if vector_model:
            vector_model.save(folder / VECTORS_FILE)

    artefacts = ArtefactStore(store.home)
    artefacts.publish(
        artefacts.folder(TOPIC_MODEL, None),
        manifest.version,
        json.dumps(asdict(manifest), indent=2),
        save,
    )
    return manifest, topic_model


@dataclass(frozen=True)
class TopicFitter:
    """Fits, publishes and logs the topic model of an installation.

    Args:
        store: The reviews, and where the model goes.
        calendar: Says which slices lie before the first cutoff.
        tracking: Where a fit is logged.
        seed: Of everything drawn at random.
        vectors: CHURN_REVIEW_VECTORS.
    """

    store: OfflineStore
    calendar: Calendar
    tracking: Tracking
    seed: int
    vectors: Vectors

    @property
    def artefacts(self) -> ArtefactStore:
        return ArtefactStore(self.store.home)

    def fit(self, run_id: str) -> tuple[TopicManifest, dict[str, Any]]:
        """The manifest of a new fit, and what Dagster shows of it.

        Args:
            run_id: The Dagster run that asked for it.
        """
        store = self.store
        before = find_topics(self.artefacts)
        try:
            previous = load_topics(self.artefacts, before) if before else None
        except DamagedArtefact:
            previous = None  # it is what is made again
        made_from = current_provenance(store, TOPIC_MODEL, None)
        manifest, model = fit_topic_model(store, self.calendar, self.seed, self.vectors, made_from)
        matches = topics.match_topics(previous, model) if previous and model else []
        self.record(manifest, run_id)
        return manifest, self.metadata(manifest, matches)

    def record(self, manifest: TopicManifest, run_id: str) -> None:
        """Log the model with its top words as the one run of its asset; nothing without a model."""
        if manifest.reason:
            return
        from mlflow.entities import Param

        with connections_are_retried():
            client = self.tracking.client
            tags = {VERSION_TAG: manifest.version, DAGSTER_RUN_TAG: run_id}
            with self.tracking.only_run(TOPIC_MODEL, "", tags) as mlflow_run:
                client.log_batch(mlflow_run, params=[Param("texts", str(manifest.texts))])
                named = {f"topic_{i}": list(top) for i, top in enumerate(manifest.words)}
                client.log_dict(mlflow_run, named, "top_words.json")
                client.log_artifacts(
                    mlflow_run, str(_folder(self.artefacts, manifest)), "topic_model"
                )
                client.set_terminated(mlflow_run)

    def metadata(
        self, manifest: TopicManifest, matches: Sequence[tuple[int, int, float]]
    ) -> dict[str, Any]:
        """What Dagster shows of the model, and how its topics relate to those it replaces."""
        shown = {
            "model_version": manifest.version,
            "distinct_texts": manifest.texts,
            "before": manifest.before,
            "reason": manifest.reason or "fitted",
            "vectors": manifest.vectors if manifest.has_vectors else "none",
        }
        return shown | topic_metadata(manifest.words, matches)


def asset(fitter: TopicFitter) -> dg.AssetsDefinition:
    """The topic model, fitted anew whenever it is materialized."""
    fitted_on = slices_of_topics(fitter.calendar)
    sources = (topics, text_models, *([text_vectors] if fitter.vectors != "none" else []))

    @dg.asset(
        name=TOPIC_MODEL,
        description=__doc__,
        deps=[
            dg.AssetDep(
                REVIEWS.table.name,
                partition_mapping=dg.SpecificPartitionsPartitionMapping(fitted_on),
            )
        ],
        code_version=sql_version(code_digest(*sources), fitter.vectors),
        group_name="topics",
        kinds={"scikitlearn", "mlflow"},
        owners=["team:ml"],
        tags={"layer": "topics"},
    )
    def review_topic_model(context: dg.AssetExecutionContext) -> None:
        manifest, metadata = fitter.fit(context.run.run_id)
        context.add_asset_metadata(metadata)
        context.log.info(manifest.reason or f"Topic model {manifest.version}")

    return review_topic_model
