"""Scores of review texts: sentiment, topics and vector of each distinct text, computed once.

Grain: one row per distinct text, by its SHA-256, under `<home>/text_scores/<version>/`. The version
names the scorer and the models (`history.topic_model`), so another model's scores are never taken
for this one's; every later slice or re-run takes what is there. Reviews and their slices are not
known here.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from churn_assets.history import sentiment
from churn_assets.history.text_vectors import DIMENSIONS, Vectors
from churn_assets.history.topic_model import TextModels, TopicManifest
from churn_assets.history.topics import TOPICS
from churn_assets.sources.tables import REVIEWS
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.parquet import copy_to, damage
from churn_assets.stores.sql import quoted
from churn_assets.stores.staging import publish, staged
from churn_assets.stores.tables import Column, Table

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

# Texts that are scored together: what is lost by a kill, and the memory that scoring takes. A
# sentence embedding takes some 20 milliseconds.
CHUNK, CHUNK_WITH_EMBEDDINGS = 200_000, 5_000

log = logging.getLogger(__name__)

SENTIMENT_TYPE, VECTOR_TYPE = "DECIMAL(5, 4)", "DECIMAL(7, 6)"  # sums of decimals are exact
SENTIMENT_COLUMN = Column("sentiment_score", SENTIMENT_TYPE, "VADER compound score", "-1 to 1")
TOPIC_COLUMNS = tuple(
    Column(f"topic_vector_{i}", VECTOR_TYPE, f"Share of topic {i} in the text", "share")
    for i in range(TOPICS)
)


def vector_columns(vectors: Vectors) -> tuple[Column, ...]:
    """The columns of the vector of a text; none without vectors."""
    return tuple(
        Column(
            f"embedding_vector_{i}",
            VECTOR_TYPE,
            f"Number {i} of the {vectors} vector of the text",
            "-2 to 2",
        )
        for i in range(0 if vectors == "none" else DIMENSIONS)
    )


def score_columns(vectors: Vectors) -> tuple[Column, ...]:
    """The columns of everything that a text is scored for."""
    return SENTIMENT_COLUMN, *TOPIC_COLUMNS, *vector_columns(vectors)


def scores_table(vectors: Vectors) -> Table:
    """The files of scores."""
    text_hash = Column("text_hash", "VARCHAR", "SHA-256 of the text")
    return Table(
        "text_scores",
        key=("text_hash",),
        columns=(text_hash, *score_columns(vectors)),
        partitioned_by=None,
    )


def scores_version(manifest: TopicManifest) -> str:
    """Names the scores that a text gets: another scorer or model makes others."""
    return hashlib.sha256(f"{sentiment.scorer_version()} {manifest.version}".encode()).hexdigest()[
        :16
    ]


def score_texts(texts: Sequence[str], models: TextModels, vectors: Vectors) -> "pa.Table":
    """Sentiment, topics and vector of each text, as the columns of `scores_table` but the hash."""
    import pyarrow as pa

    scored: dict[str, Any] = {"sentiment_score": pa.array(sentiment.score_all(texts), pa.float64())}
    for columns, model in zip((TOPIC_COLUMNS, vector_columns(vectors)), models, strict=True):
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
    kept = ", ".join(f"'{quoted(path)}'" for path in _readable(folder))
    table = scores_table(manifest.vectors)
    known = f"read_parquet([{kept}])" if kept else f"({table.empty()})"
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
    size = CHUNK_WITH_EMBEDDINGS if manifest.vectors == "minilm" else CHUNK
    for start in range(0, total, size):
        chunk = connection.sql(
            f"SELECT text_hash, text FROM new_texts ORDER BY text_hash LIMIT {size} OFFSET {start}"
        ).to_arrow_table()
        scores = score_texts(chunk["text"].to_pylist(), models, manifest.vectors)
        connection.register("scores", scores.append_column("text_hash", chunk["text_hash"]))
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE scored_chunk AS {table.typed('SELECT * FROM scores')}"
        )
        connection.unregister("scores")
        _keep(connection, store, folder)
        connection.execute("INSERT INTO known_scores FROM scored_chunk")
        yield min(start + size, total), total


def _readable(folder: Path) -> list[Path]:
    """The files of scores in a folder. A damaged one is deleted: its texts are scored again."""
    found = []
    for path in sorted(folder.glob("*.parquet")):
        if why := damage(path):
            log.warning("%s cannot be read, so its texts are scored again: %s", path, why)
            path.unlink(missing_ok=True)
        else:
            found.append(path)
    return found


def _keep(connection: "DuckDBPyConnection", store: OfflineStore, folder: Path) -> None:
    """Publish `scored_chunk` as one more file, named by its texts: equal ones have equal rows."""
    [(name,)] = connection.execute(
        "SELECT sha256(string_agg(text_hash, '' ORDER BY text_hash)) FROM scored_chunk"
    ).fetchall()
    with staged(store.home) as path:
        connection.execute(f"COPY scored_chunk TO '{quoted(path)}' (FORMAT parquet)")
        publish(path, folder / f"{name}.parquet")


def forget_scores(connection: "DuckDBPyConnection", store: OfflineStore, theirs: str) -> None:
    """Delete the kept scores of texts that only some customers wrote.

    Args:
        connection: An open connection.
        store: Where scores and reviews are.
        theirs: SQL for whether `customer_id` is one of them.
    """
    table = store.tables[REVIEWS.table.name]
    reviews = store.unchecked(table, store.on_disk(table.name)).sql
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE forgotten AS SELECT sha256(text) AS text_hash "
        f"FROM {reviews} WHERE text IS NOT NULL GROUP BY ALL HAVING bool_and({theirs})"
    )
    of_them = "text_hash IN (FROM forgotten)"
    folders = (store.home / "text_scores").glob("*")
    for path in (path for folder in folders for path in _readable(folder)):
        kept = f"FROM read_parquet('{quoted(path)}')"
        [(count,)] = connection.execute(f"SELECT count(*) {kept} WHERE {of_them}").fetchall()
        if count:
            with staged(store.home) as made:
                connection.execute(copy_to(made, f"{kept} WHERE NOT {of_them}", {}))
                publish(made, path)
