"""Reviews: each text scored for sentiment, topics and, where CHURN_REVIEW_VECTORS asks for one, a
vector; once, when its slice is rolled up.

Grain: `scored_reviews` one row per review of a slice; a review without a text keeps its row with
NULL scores. `review_topic_model` is one frozen model without partitions: topics of models that were
fitted at different cutoffs could not be compared or averaged.

The topic model is fitted on the distinct texts from before the first cutoff, so no cutoff sees its
future through it. The first ingestion that has all of these slices fits it; before that, reviews
wait unscored, because scores of another model would have to be thrown away. Later ingestions never
refit it: that is what job `topics` is for, and it makes every scored slice stale. With fewer than
`text_models.MIN_TEXTS` distinct texts there is no model, and topics are NULL. Vectors are fitted
and frozen with the topics, by the same asset and under the same version.

A distinct text is scored once: scores are kept by a hash of the text under the version of the
scorer and of the models, and every later slice or re-run takes them from there.
"""

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from churn_assets import sentiment, text_models, text_vectors, topics
from churn_assets.cutoffs import Calendar
from churn_assets.raw import REVIEWS
from churn_assets.settings import Settings
from churn_assets.stores.models import MANIFEST, ModelStore
from churn_assets.stores.offline import OfflineStore, Query, Scan, current_provenance, quoted
from churn_assets.stores.staging import staged
from churn_assets.tables import CUSTOMER_ID, SLICE, Column, Table, markdown, sql_version
from churn_assets.text_models import TextModel
from churn_assets.topics import TOPICS, TopicModel
from churn_assets.tracking import Tracking

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

TOPIC_MODEL = "review_topic_model"
TOPICS_FILE, VECTORS_FILE = "topics.npz", "vectors.npz"

# Tables are declared at import, so the setting that decides about their columns is read here.
VECTORS = Settings.read().review_vectors

# Texts that are scored together: what is lost by a kill, and the memory that scoring takes. A
# sentence embedding takes some 20 milliseconds.
CHUNK = 5_000 if VECTORS == "minilm" else 200_000

SENTIMENT_TYPE, VECTOR_TYPE = "DECIMAL(5, 4)", "DECIMAL(7, 6)"  # sums of decimals are exact
TOPIC_COLUMNS = tuple(
    Column(f"topic_vector_{i}", VECTOR_TYPE, f"Share of topic {i} in the text", "share")
    for i in range(TOPICS)
)
VECTOR_COLUMNS = tuple(
    Column(
        f"embedding_vector_{i}",
        VECTOR_TYPE,
        f"Number {i} of the {VECTORS} vector of the text",
        "-2 to 2",
    )
    for i in range(0 if VECTORS == "none" else text_vectors.DIMENSIONS)
)
SCORED_REVIEWS = Table(
    "scored_reviews",
    key=("review_id",),
    columns=(
        Column("review_id", "VARCHAR", "Identifies the review"),
        CUSTOMER_ID,
        SLICE,
        *(
            column
            for column in REVIEWS.table.columns
            if column.name
            in ("product_id", "review_timestamp", "rating", "helpful_votes", "total_votes")
        ),
        Column("text_length", "BIGINT", "Length of the unmodified text", "code points"),
        Column("sentiment_score", SENTIMENT_TYPE, "VADER compound score", "-1 to 1"),
        *TOPIC_COLUMNS,
        *VECTOR_COLUMNS,
    ),
    partitioned_by="slice",
    moment="epoch_us(review_timestamp)",
)
SCORES = Table(
    "text_scores",
    key=("text_hash",),
    columns=(
        Column("text_hash", "VARCHAR", "SHA-256 of the text"),
        *(c for c in SCORED_REVIEWS.columns if c.name == "sentiment_score"),
        *TOPIC_COLUMNS,
        *VECTOR_COLUMNS,
    ),
    partitioned_by=None,
)


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
    vectors: str = "none"
    has_vectors: bool = False


TextModels = tuple[TopicModel | None, TextModel | None]
"""The topic model and that of the vectors; None where there is none."""


def find_manifest(model_store: ModelStore) -> TopicManifest | None:
    """The current topic model, or None where none was fitted yet."""
    path = model_store.folder(TOPIC_MODEL, None) / MANIFEST
    return TopicManifest(**json.loads(path.read_text())) if path.exists() else None


def load_topics(model_store: ModelStore, manifest: TopicManifest) -> TopicModel | None:
    """The topic model of a manifest; None where there were too few texts for one."""
    if manifest.reason:
        return None
    folder = model_store.folder(TOPIC_MODEL, None) / manifest.version
    return TopicModel.load(folder / TOPICS_FILE)


def load_models(model_store: ModelStore, manifest: TopicManifest) -> TextModels:
    """The models of a manifest.

    Raises:
        ValueError: They were fitted with another CHURN_REVIEW_VECTORS.
    """
    if manifest.vectors != VECTORS:
        raise ValueError(
            f"CHURN_REVIEW_VECTORS is {VECTORS}, and the models of review texts were fitted with "
            f"{manifest.vectors}. Set it back, or fit anew with `churn backfill --stage topics` "
            "and make every slice and cutoff again, as docs/reviews.md says."
        )
    found = load_topics(model_store, manifest)
    if VECTORS == "none" or not manifest.has_vectors:
        return found, None
    folder = model_store.folder(TOPIC_MODEL, None) / manifest.version
    return found, text_vectors.load_text_vectors(VECTORS, folder / VECTORS_FILE)


def slices_of_topics(calendar: Calendar) -> list[str]:
    """The slices before the first cutoff, whose reviews the topic model is fitted on."""
    last = calendar.shift(calendar.first_cutoff, -1)
    return [day.isoformat() for day in calendar.between(calendar.first_slice, last)]


def fit_topic_model(
    store: OfflineStore, calendar: Calendar, seed: int, provenance: Mapping[str, str]
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
    model = topics.fit_topics(texts, seed)
    vectors = None if VECTORS == "none" else text_vectors.fit_text_vectors(VECTORS, texts, seed)
    reason = (
        ""
        if model
        else f"{len(texts)} distinct texts before {calendar.first_cutoff}, "
        f"{text_models.MIN_TEXTS} are needed"
    )
    version = model.version if model else hashlib.sha256(reason.encode()).hexdigest()[:16]
    if VECTORS != "none":
        version += f"-{vectors.version if vectors else VECTORS}"
    manifest = TopicManifest(
        version=version,
        before=calendar.first_cutoff.isoformat(),
        texts=len(texts),
        words=model.top_words() if model else [],
        reason=reason,
        provenance=provenance,
        vectors=VECTORS,
        has_vectors=vectors is not None,
    )

    def save(folder: Path) -> None:
        if model:
            model.save(folder / TOPICS_FILE)
        if vectors:
            vectors.save(folder / VECTORS_FILE)

    model_store = ModelStore(store.home)
    model_store.publish(
        model_store.folder(TOPIC_MODEL, None),
        manifest.version,
        json.dumps(asdict(manifest), indent=2),
        save,
    )
    return manifest, model


def scores_version(manifest: TopicManifest) -> str:
    """Names the scores that a text gets: another scorer or model makes others."""
    return hashlib.sha256(f"{sentiment.scorer_version()} {manifest.version}".encode()).hexdigest()[
        :16
    ]


def score_texts(texts: Sequence[str], models: TextModels) -> "pa.Table":
    """Sentiment, topics and vector of each text, as the columns of `SCORES` but the hash."""
    import pyarrow as pa

    scored: dict[str, Any] = {"sentiment_score": pa.array(sentiment.score_all(texts), pa.float64())}
    for columns, model in zip((TOPIC_COLUMNS, VECTOR_COLUMNS), models, strict=True):
        values = model.transform(texts) if model else None
        for i, column in enumerate(columns):
            scored[column.name] = (
                pa.nulls(len(texts), pa.float64()) if values is None else pa.array(values[:, i])
            )
    return pa.table(scored)


def score_new_texts(
    connection: "DuckDBPyConnection",
    store: OfflineStore,
    reviews: str,
    manifest: TopicManifest,
    models: TextModels,
) -> Iterator[tuple[int, int]]:
    """Make the temporary tables `new_texts` and `known_scores` for the reviews of a relation.

    Scores that are new are kept for later. Yields (texts scored, texts to score) as it goes on.

    Args:
        connection: An open connection.
        store: Where scores are kept.
        reviews: A relation with a column `text`.
        manifest: The current models.
        models: The same, opened.
    """
    folder = store.home / "text_scores" / scores_version(manifest)
    kept = f"read_parquet('{quoted(folder / '*.parquet')}')"
    known = kept if any(folder.glob("*.parquet")) else f"({SCORES.empty()})"
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE known_scores AS SELECT DISTINCT * "
        f"FROM {known} WHERE text_hash IN (SELECT sha256(text) FROM {reviews})"
    )
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE new_texts AS SELECT DISTINCT text, sha256(text) AS text_hash "
        f"FROM {reviews} WHERE text IS NOT NULL "
        "AND sha256(text) NOT IN (SELECT text_hash FROM known_scores)"
    )
    [(total,)] = connection.execute("SELECT count(*) FROM new_texts").fetchall()
    for start in range(0, total, CHUNK):
        chunk = connection.sql(
            f"SELECT text_hash, text FROM new_texts ORDER BY text_hash LIMIT {CHUNK} OFFSET {start}"
        ).to_arrow_table()
        scores = score_texts(chunk["text"].to_pylist(), models)
        connection.register("scores", scores.append_column("text_hash", chunk["text_hash"]))
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE scored_chunk AS {SCORES.typed('SELECT * FROM scores')}"
        )
        connection.unregister("scores")
        _keep(connection, store, folder)
        connection.execute("INSERT INTO known_scores FROM scored_chunk")
        yield min(start + CHUNK, total), total


def _keep(connection: "DuckDBPyConnection", store: OfflineStore, folder: Path) -> None:
    """Publish `scored_chunk` as one more file, named by its texts: equal ones have equal rows."""
    [(name,)] = connection.execute(
        "SELECT sha256(string_agg(text_hash, '' ORDER BY text_hash)) FROM scored_chunk"
    ).fetchall()
    folder.mkdir(parents=True, exist_ok=True)
    with staged(store.home) as path:
        connection.execute(f"COPY scored_chunk TO '{quoted(path)}' (FORMAT parquet)")
        path.replace(folder / f"{name}.parquet")


def scored_reviews_query(reviews: str) -> str:
    """The reviews with their scores, from `known_scores`; an unscored text has no length either."""
    scored = [column.name for column in SCORES.columns[1:]]
    kept = [c.name for c in SCORED_REVIEWS.columns if c.name not in {"text_length", *scored}]
    return f"""
        SELECT {", ".join(kept)},
            CASE WHEN sentiment_score IS NOT NULL THEN length(text) END AS text_length,
            {", ".join(scored)}
        FROM {reviews} AS reviews
        LEFT JOIN known_scores ON text_hash = sha256(text)
    """


def assets(
    calendar: Calendar, store: OfflineStore, tracking: Tracking, seed: int
) -> list[dg.AssetsDefinition]:
    """The topic model and the scored reviews."""
    model_store = ModelStore(store.home)
    fitted_on = slices_of_topics(calendar)

    def fit(spec: dg.AssetSpec, run_id: str) -> tuple[TopicManifest, dict[str, Any]]:
        """Fit, publish and log the models, and what Dagster shows of them."""
        before = find_manifest(model_store)
        previous = load_topics(model_store, before) if before else None
        made_from = current_provenance(store, calendar, spec, None, cache(store.present))
        manifest, model = fit_topic_model(store, calendar, seed, made_from)
        matches = topics.match_topics(previous, model) if previous and model else []
        record(manifest, run_id)
        return manifest, topic_metadata(manifest, matches)

    def record(manifest: TopicManifest, run_id: str) -> None:
        if not manifest.reason:
            folder = model_store.folder(TOPIC_MODEL, None) / manifest.version
            tracking.record_topics(manifest.version, manifest.texts, manifest.words, folder, run_id)

    sources = (topics, text_models, *([text_vectors] if VECTOR_COLUMNS else []))

    @dg.asset(
        name=TOPIC_MODEL,
        description=f"Ten topics, fitted once on reviews before the first cutoff.\n\n{__doc__}",
        deps=[
            dg.AssetDep(
                REVIEWS.table.name,
                partition_mapping=dg.SpecificPartitionsPartitionMapping(fitted_on),
            )
        ],
        code_version=sql_version(*map(inspect.getsource, sources), VECTORS),
        group_name="rollups",
        kinds={"scikitlearn", "mlflow"},
        owners=["team:ml"],
        tags={"layer": "rollups"},
    )
    def review_topic_model(context: dg.AssetExecutionContext) -> None:
        manifest, metadata = fit(context.assets_def.get_asset_spec(), context.run.run_id)
        context.add_asset_metadata(metadata)
        context.log.info(manifest.reason or f"Topic model {manifest.version}")

    topic_spec = review_topic_model.get_asset_spec()

    @dg.asset(
        description=f"Reviews with sentiment and topics.\n\n{__doc__}",
        ins={REVIEWS.table.name: dg.AssetIn(partition_mapping=calendar.same_cutoff)},
        deps=[review_topic_model],
        partitions_def=calendar.slices,
        backfill_policy=dg.BackfillPolicy.single_run(),
        code_version=sql_version(
            scored_reviews_query(REVIEWS.table.name), sentiment.scorer_version()
        ),
        group_name="rollups",
        kinds={"duckdb", "parquet"},
        owners=["team:data"],
        tags={"layer": "rollups"},
        metadata={"dagster/column_schema": SCORED_REVIEWS.as_dagster()},
        output_required=False,
    )
    def scored_reviews(
        context: dg.AssetExecutionContext, raw_reviews: Scan
    ) -> Iterator[dg.Output[Query]]:
        manifest = find_manifest(model_store)
        if manifest is None:
            lacking = sorted(set(fitted_on) - set(store.keys(REVIEWS.table)))
            if lacking:
                context.log.warning(
                    f"Reviews wait unscored: the topic model is fitted on those before "
                    f"{calendar.first_cutoff}, and {len(lacking)} slices before it are not "
                    f"ingested yet, the first is {lacking[0]}. Once they are, the next ingestion "
                    "fits it, and `churn backfill` scores what is missing."
                )
                return
            manifest, metadata = fit(topic_spec, context.run.run_id)
            context.log_event(dg.AssetMaterialization(TOPIC_MODEL, metadata=metadata))
        elif context.instance.get_latest_materialization_event(topic_spec.key) is None:
            # The run that fitted it was killed before it said so.
            record(manifest, context.run.run_id)
            metadata = topic_metadata(manifest, [])
            context.log_event(dg.AssetMaterialization(TOPIC_MODEL, metadata=metadata))
        models = load_models(model_store, manifest)
        with store.connect() as connection:
            for done, total in score_new_texts(
                connection, store, raw_reviews.sql, manifest, models
            ):
                context.log.info(f"{done:,} of {total:,} new texts scored")
            for key in context.partition_keys:
                metadata = reuse_metadata(connection, store.scan(REVIEWS.table, [key]).sql)
                context.add_asset_metadata(metadata, partition_key=key)
            words = manifest.words

            def describe(connection: "DuckDBPyConnection", rows: Scan) -> Mapping[str, Any]:
                return review_metadata(connection, rows.sql, words)

            query = scored_reviews_query(raw_reviews.sql)
            yield dg.Output(Query([query], connection, describe))

    return [review_topic_model, scored_reviews]


def topic_metadata(
    manifest: TopicManifest, matches: Sequence[tuple[int, int, float]]
) -> dict[str, Any]:
    """What Dagster shows of the topic model, and how its topics relate to those it replaces."""
    shown: dict[str, Any] = {
        "model_version": manifest.version,
        "distinct_texts": manifest.texts,
        "before": manifest.before,
        "reason": manifest.reason or "fitted",
        "vectors": manifest.vectors if manifest.has_vectors else "none",
    }
    if manifest.words:
        rows = [[i, ", ".join(words)] for i, words in enumerate(manifest.words)]
        shown["topics"] = dg.MetadataValue.md(markdown(["topic", "words"], rows))
    if matches:
        header = ["old topic", "new topic", "similarity"]
        shown["matches"] = dg.MetadataValue.md(markdown(header, matches))
    return shown


def review_metadata(
    connection: "DuckDBPyConnection", rows: str, words: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """What Dagster shows of scored reviews: sentiment, topics and a sample.

    Args:
        connection: An open connection.
        rows: The relation of a slice of `SCORED_REVIEWS`.
        words: The most telling words of each topic; empty without a topic model.
    """
    from churn_assets.plots import markdown_image, png, sentiment_histogram

    column = connection.sql(
        f"SELECT CAST(sentiment_score AS DOUBLE) AS score FROM {rows}"
    ).to_arrow_table()["score"]
    shown: dict[str, Any] = {"unscored_reviews": column.null_count}
    scores = column.drop_null().to_numpy()
    if not len(scores):
        return shown
    shown["mean_sentiment"] = float(scores.mean())
    picture = png(sentiment_histogram(scores, f"{len(scores):,} reviews"))
    shown["sentiment"] = dg.MetadataValue.md(markdown_image(picture, "Sentiment of reviews"))
    if words:
        shares = connection.execute(
            f"SELECT {', '.join(f'avg({column.name})' for column in TOPIC_COLUMNS)} FROM {rows}"
        ).fetchall()[0]
        table = [
            [i, f"{share:.1%}", ", ".join(top)]
            for i, (share, top) in enumerate(zip(shares, words, strict=True))
        ]
        shown["topics"] = dg.MetadataValue.md(markdown(["topic", "share", "words"], table))
    names = ["review_id", "customer_id", "rating", "text_length", "sentiment_score"]
    sample = connection.execute(
        f"SELECT {', '.join(names)} FROM {rows} ORDER BY review_id LIMIT 5"
    ).fetchall()
    shown["sample"] = dg.MetadataValue.md(markdown(names, sample))
    return shown


def reuse_metadata(connection: "DuckDBPyConnection", reviews: str) -> dict[str, Any]:
    """The share of a slice's texts that were not scored for it, from `new_texts`."""
    texts, scored = connection.execute(
        "SELECT count(reviews.text), count(DISTINCT new_texts.text) "
        f"FROM {reviews} AS reviews LEFT JOIN new_texts ON new_texts.text = reviews.text"
    ).fetchall()[0]
    return {"reused_share": 1 - scored / texts} if texts else {}
