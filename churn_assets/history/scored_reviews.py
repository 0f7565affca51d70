"""Scored reviews: each review of a slice with the scores of its text.

Grain: one row per review; a review without a text keeps its row with NULL scores. A text is scored
for sentiment, topics and, where CHURN_REVIEW_VECTORS asks for one, a vector, when its slice is
rolled up (`history.text_scores`), under the frozen `history.topic_model`.

Until the slices before the first cutoff are there, reviews wait unscored, because scores of another
model would have to be thrown away. The ingestion that completes them fits the model.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from churn_assets.history import sentiment
from churn_assets.history.review_pages import reuse_metadata, review_metadata
from churn_assets.history.text_scores import score_columns, score_new_texts
from churn_assets.history.text_vectors import Vectors
from churn_assets.history.topic_model import (
    TOPIC_MODEL,
    TopicFitter,
    find_topics,
    load_models,
    slices_of_topics,
)
from churn_assets.sources.tables import REVIEWS
from churn_assets.stores.partitions import Query, Scan
from churn_assets.stores.sql import day_of
from churn_assets.stores.tables import CUSTOMER_ID, SLICE, Column, Table, sql_version

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SCORED_REVIEWS = "scored_reviews"
AS_GIVEN = (
    *("product_id", "review_timestamp", "rating", "helpful_votes", "total_votes"),
    *("known_at", "withdrawn_at"),
)


def scored_reviews_table(vectors: Vectors) -> Table:
    """The table; vectors add columns to it."""
    return Table(
        SCORED_REVIEWS,
        key=("review_id", "known_at"),
        columns=(
            Column("review_id", "VARCHAR", "Identifies the review"),
            CUSTOMER_ID,
            SLICE,
            *(column for column in REVIEWS.table.columns if column.name in AS_GIVEN),
            Column("text_length", "BIGINT", "Length of the unmodified text", "code points"),
            *score_columns(vectors),
        ),
        partitioned_by="slice",
        moment="epoch_us(review_timestamp)",
        known_day=day_of("known_at"),
        replaced_day=day_of("withdrawn_at"),
    )


def scored_reviews_query(reviews: str, vectors: Vectors) -> str:
    """The reviews with their scores, from `known_scores`; an unscored text has no length either."""
    scored = [column.name for column in score_columns(vectors)]
    table = scored_reviews_table(vectors)
    given = {"known_at": "coalesce(known_at, review_timestamp) AS known_at"}
    made = {"text_length", *scored}
    kept = [given.get(name, name) for name in table.column_names if name not in made]
    return f"""
        SELECT {", ".join(kept)},
            CASE WHEN sentiment_score IS NOT NULL THEN length(text) END AS text_length,
            {", ".join(scored)}
        FROM {reviews} AS reviews
        LEFT JOIN known_scores ON text_hash = sha256(text)
    """


def asset(fitter: TopicFitter, topic_spec: dg.AssetSpec) -> dg.AssetsDefinition:
    """The scored reviews of each slice.

    Args:
        fitter: Fits the topic model where it is due.
        topic_spec: The asset of the topic model.
    """
    store, calendar, vectors = fitter.store, fitter.calendar, fitter.vectors
    fitted_on = slices_of_topics(calendar)

    @dg.asset(
        name=SCORED_REVIEWS,
        description=__doc__,
        ins={REVIEWS.table.name: dg.AssetIn(partition_mapping=calendar.same_cutoff)},
        deps=[TOPIC_MODEL],
        partitions_def=calendar.slices,
        backfill_policy=dg.BackfillPolicy.single_run(),
        code_version=sql_version(
            scored_reviews_query(REVIEWS.table.name, vectors), sentiment.scorer_version()
        ),
        group_name="rollups",
        kinds={"duckdb", "parquet"},
        owners=["team:data"],
        tags={"layer": "rollups"},
        metadata={"dagster/column_schema": scored_reviews_table(vectors).as_dagster()},
        output_required=False,
    )
    def scored_reviews(
        context: dg.AssetExecutionContext, raw_reviews: Scan
    ) -> Iterator[dg.Output[Query]]:
        manifest = find_topics(fitter.artefacts)
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
            manifest, metadata = fitter.fit(context.run.run_id)
            context.log_event(dg.AssetMaterialization(TOPIC_MODEL, metadata=metadata))
        elif context.instance.get_latest_materialization_event(topic_spec.key) is None:
            # The run that fitted it was killed before it said so.
            fitter.record(manifest, context.run.run_id)
            metadata = fitter.metadata(manifest, [])
            context.log_event(dg.AssetMaterialization(TOPIC_MODEL, metadata=metadata))
        models = load_models(fitter.artefacts, manifest, vectors)
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

            query = scored_reviews_query(raw_reviews.sql, vectors)
            yield dg.Output(Query(query, connection, describe, raw_reviews.notes("files")))

    return scored_reviews
