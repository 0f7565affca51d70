"""What customers say: all their reviews before the cutoff, from texts scored once per slice.

A customer without a review has NULLs and a count of 0. A mean leaves out reviews without its value.
"""

from churn_assets.cutoffs import DAY_US
from churn_assets.features.group import (
    EVER,
    Derived,
    Feature,
    FeatureGroup,
    ratio,
    total,
    whole_days_since,
)
from churn_assets.reviews import TOPIC_COLUMNS, VECTOR_COLUMNS, VECTORS
from churn_assets.tables import Column

# A ratio of votes and a rating as decimals: sums of doubles depend on the order of summation.
EXACT = "DECIMAL(28, 12)"

REVIEWS = Derived(
    rollup="scored_reviews",
    sql=f"""
        SELECT *,
            CAST(epoch_us(review_timestamp) // {DAY_US} AS INTEGER) AS day,
            epoch_us(review_timestamp) AS review_us,
            TRY_CAST(rating AS {EXACT}) AS stars,
            CASE WHEN total_votes > 0
                THEN TRY_CAST(CAST(helpful_votes AS DOUBLE) / total_votes AS {EXACT})
                END AS helpful_ratio
        FROM {{rollup}} AS reviews
    """,
)


def _mean(name: str, column: str, unit: str, description: str, method: str = "") -> Feature:
    mean = ratio(total(column), f"count({column}) FILTER (WHERE {{window}})")
    return Feature(name, mean, "reviews", EVER, "DOUBLE", unit, description, method=method)


def _mean_of_texts(column: Column, method: str = "") -> Feature:
    described = column.description.replace("text", "texts")
    return _mean(column.name, column.name, column.unit, described, method)


REVIEW = FeatureGroup(
    name="customer_review_features",
    description=__doc__,
    owner="team:data",
    derived={"reviews": REVIEWS},
    features=(
        Feature(
            "total_reviews",
            "count(*) FILTER (WHERE {window})",
            "reviews",
            EVER,
            "BIGINT",
            "reviews",
            "Reviews ever",
            default=0,
        ),
        _mean("avg_rating", "stars", "stars", "Mean rating"),
        _mean("avg_helpful_ratio", "helpful_ratio", "share", "Mean share of helpful votes"),
        _mean("avg_text_length", "text_length", "code points", "Mean length of the text"),
        _mean("avg_sentiment_score", "sentiment_score", "-1 to 1", "Mean VADER compound score"),
        *(_mean_of_texts(column) for column in TOPIC_COLUMNS),
        *(_mean_of_texts(column, VECTORS) for column in VECTOR_COLUMNS),
        Feature(
            "last_review_days",
            whole_days_since("max(review_us) FILTER (WHERE {window})"),
            "reviews",
            EVER,
            "INTEGER",
            "days",
            "Whole days since the last review",
        ),
    ),
)
