"""What customers say: all their reviews before the cutoff, from texts scored once per slice.

A customer without a review has NULLs and a count of 0. A mean leaves out reviews without its value.
"""

from typing import TYPE_CHECKING, Any

import dagster as dg

from churn_assets.features.group import (
    EVER,
    Derived,
    Feature,
    FeatureGroup,
    ratio,
    whole_days_since,
)
from churn_assets.history.text_scores import TOPIC_COLUMNS, vector_columns
from churn_assets.history.text_vectors import Vectors
from churn_assets.stores.pages import markdown
from churn_assets.stores.partitions import Scan
from churn_assets.stores.tables import Column

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# A ratio of votes and a rating as decimals: sums of doubles depend on the order of summation.
EXACT = "DECIMAL(28, 12)"

REVIEWS = Derived(
    rollup="scored_reviews",
    timestamp="review_timestamp",
    sql=f"""
        SELECT *,
            unix_micros(review_timestamp) AS review_us,
            TRY_CAST(rating AS {EXACT}) AS stars,
            CASE WHEN total_votes > 0
                THEN TRY_CAST(CAST(helpful_votes AS DOUBLE) / total_votes AS {EXACT})
                END AS helpful_ratio
        FROM {{rollup}} AS reviews
    """,
)


def _mean(name: str, column: str, unit: str, description: str, method: str = "") -> Feature:
    mean = ratio(f"sum({column})", f"count({column})")
    return Feature(
        name=name,
        sql=mean,
        source="reviews",
        window=EVER,
        dtype="DOUBLE",
        unit=unit,
        description=description,
        method=method,
    )


def _mean_of_texts(column: Column, method: str = "") -> Feature:
    described = column.description.replace("text", "texts")
    return _mean(column.name, column.name, column.unit, described, method)


def describe(connection: "DuckDBPyConnection", rows: Scan) -> dict[str, Any]:
    """What Dagster shows of a cutoff: who has reviews, their sentiment and topics, and a sample.

    The words of each topic are on the page of `scored_reviews`.
    """
    from churn_assets.history.sentiment_picture import sentiment_histogram
    from churn_assets.stores.figures import png
    from churn_assets.stores.pages import markdown_image

    table = connection.sql(f"FROM {rows.sql} WHERE total_reviews > 0 ORDER BY customer_id")
    reviewers = table.to_arrow_table()
    scores = reviewers["avg_sentiment_score"].drop_null().to_numpy()
    if not len(scores):
        return {"customers_with_reviews": len(reviewers)}
    picture = png(sentiment_histogram(scores, f"means of {len(scores):,} customers"))
    topics = [column.name for column in TOPIC_COLUMNS]
    shares = connection.execute(
        f"SELECT {', '.join(f'avg({name})' for name in topics)} FROM {rows.sql}"
    ).fetchall()[0]
    known = [[i, f"{share:.1%}"] for i, share in enumerate(shares) if share is not None]
    names = ["total_reviews", "avg_rating", "avg_sentiment_score"]
    sample = table.project(", ".join(names)).limit(5).fetchall()
    return {
        "customers_with_reviews": len(reviewers),
        "sentiment": dg.MetadataValue.md(markdown_image(picture, "Sentiment by customer")),
        "topics": dg.MetadataValue.md(markdown(["topic", "share"], known)),
        "sample": dg.MetadataValue.md(markdown(names, sample)),
    }


def review_group(vectors: Vectors) -> FeatureGroup:
    """The group; vectors add a feature for each of their numbers."""
    return FeatureGroup(
        name="customer_review_features",
        description=__doc__,
        owner="team:data",
        module=__name__,
        describe=describe,
        derived={"reviews": REVIEWS},
        features=(
            Feature(
                name="total_reviews",
                sql="count(*)",
                source="reviews",
                window=EVER,
                dtype="BIGINT",
                unit="reviews",
                description="Reviews ever",
                default=0,
                minimum=0,
            ),
            _mean("avg_rating", "stars", "stars", "Mean rating"),
            _mean("avg_helpful_ratio", "helpful_ratio", "share", "Mean share of helpful votes"),
            _mean("avg_text_length", "text_length", "code points", "Mean length of the text"),
            _mean("avg_sentiment_score", "sentiment_score", "-1 to 1", "Mean VADER compound score"),
            *(_mean_of_texts(column) for column in TOPIC_COLUMNS),
            *(_mean_of_texts(column, vectors) for column in vector_columns(vectors)),
            Feature(
                name="last_review_days",
                sql=whole_days_since("max(review_us)"),
                source="reviews",
                window=EVER,
                dtype="INTEGER",
                unit="days",
                description="Whole days since the last review",
                minimum=0,
            ),
        ),
    )
