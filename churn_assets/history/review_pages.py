"""What Dagster shows of reviews: topics and their words, sentiment, a sample, texts reused."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from churn_assets.history.sentiment_picture import sentiment_histogram
from churn_assets.stores.figures import png
from churn_assets.stores.pages import markdown, markdown_image

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def topic_metadata(
    words: Sequence[Sequence[str]], matches: Sequence[tuple[int, int, float]]
) -> dict[str, Any]:
    """The words of each topic, and which topic of the previous model each is most like."""
    shown: dict[str, Any] = {}
    if words:
        rows = [[i, ", ".join(top)] for i, top in enumerate(words)]
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
        rows: The relation of a slice of `scored_reviews`.
        words: The most telling words of each topic; empty without a topic model.
    """
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
            f"SELECT {', '.join(f'avg(topic_vector_{i})' for i in range(len(words)))} FROM {rows}"
        ).fetchall()[0]
        table = [
            [i, f"{share:.1%}", ", ".join(top)]
            for i, (share, top) in enumerate(zip(shares, words, strict=True))
        ]
        shown["topics"] = dg.MetadataValue.md(markdown(["topic", "share", "words"], table))
    names = ["review_id", "rating", "text_length", "sentiment_score"]
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
