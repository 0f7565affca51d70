"""Reasons: what speaks for a customer's prediction, in words that a marketer reads.

A reason is a feature whose contribution (`models.contributions`) points where the prediction
does: to churn for CHURN RISK, to staying for RETAIN. Features that tell the same, such as the days
since the last purchase counted in days and in usual gaps, are one reason with the sum of their
contributions. A reason says what the model made of a value, not what would happen if it changed.

The words follow from a feature's declaration: "<description> in the last <window>: <value> (typical
<median of the training rows>)". The tables here have better ones where a description is a
definition. Nothing depends on which other customers are explained.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from churn_assets.features import Groups
from churn_assets.features.activity import COUNTED_TYPES
from churn_assets.features.group import EVER, window_days
from churn_assets.history.text_vectors import DIMENSIONS
from churn_assets.history.topics import TOPICS
from churn_assets.models.contributions import Contributions
from churn_assets.models.estimators import MISSING, FittedModel, inputs
from churn_assets.stores.tables import Column

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

REASON_COLUMNS = (
    Column("reason_1", "VARCHAR", "What speaks most for the prediction"),
    Column("reason_2", "VARCHAR", "What speaks for it next; NULL where nothing weighs enough"),
    Column("reason_3", "VARCHAR", "What speaks for it then; NULL where nothing weighs enough"),
)

# The numbers of a text vector, whether or not a model has them.
VECTOR = tuple(f"embedding_vector_{i}" for i in range(DIMENSIONS))

# A reason carries at least this share of all that speaks for the prediction: among some fifty
# features an even share is 2 %.
WORTH_NAMING = 0.05

# Features that are told by another one, because they say the same in other units.
TOLD_BY: Mapping[str, str] = {"recency_over_gap": "recency_days", "overdue_days": "recency_days"}

# Sentences for features that tell much, and what is added of another feature. `{}` is the value.
# Features of one sentence are one reason: a single number of a text vector says nothing.
SENTENCES: Mapping[str, str] = {
    "recency_days": "Last purchase {} ago",
    "last_active_days": "Last seen {} ago",
    "days_since_last_event": "Last seen {} ago",
    "tenure_days": "First purchase {} ago",
    "account_age_days": "Account opened {} ago",
    "last_review_days": "Last review {} ago",
    **dict.fromkeys(VECTOR, "Wording of own reviews"),
}
ADDITIONS: Mapping[str, tuple[str, str]] = {"recency_days": ("gap_mean_days", "; usual gap {}")}

# What is said instead where there is no value, or a count is 0; `{lookback}` is its days.
NOTHING: Mapping[str, tuple[str, ...]] = {
    "No purchase in the last {lookback}": (
        *("recency_days", "frequency", "purchase_count"),
        *("avg_order_value", "avg_basket_size", "return_rate"),
        *("purchases_30d_share", "revenue_30d_share"),
    ),
    "No purchase in the last 7 days": ("purchases_7d",),
    "No review so far": (
        *("total_reviews", "avg_rating", "avg_helpful_ratio", "avg_text_length"),
        *("avg_sentiment_score", "last_review_days"),
        *VECTOR,
    ),
    "No purchase so far": ("lifetime_orders", "tenure_days"),
    "Purchases on at most one day in the last {lookback}": ("avg_days_between_purchases",),
    "Purchases on at most one day so far": ("gap_mean_days", "gap_last_days"),
    "Purchases on at most two days so far": ("gap_sd_days",),
    "No amounts in the last 7 days": ("avg_amount_nonzero_7d", "max_amount_7d", "min_amount_7d"),
}

ACTIONS = {
    "page_view": "pages viewed",
    "product_view": "products viewed",
    "search": "searches",
    "add_to_cart": "products put in the cart",
    "remove_from_cart": "products taken out of the cart",
    "purchase": "products bought",
    "refund": "products sent back",
    "other": "other actions",
}

# Plain words for features whose description is a definition; the window and the value follow.
LABELS: Mapping[str, str] = {
    **{f"{kind}_count": ACTIONS[kind].capitalize() for kind in COUNTED_TYPES},
    **{
        f"event_vector_{kind}": f"Share of {words} among all actions"
        for kind, words in ACTIONS.items()
    },
    "total_events": "Actions in the shop",
    "events_7d": "Actions in the shop",
    "mobile_events_7d": "Actions on mobile",
    "web_events_7d": "Actions on the website",
    "browse_events_7d": "Pages and products viewed, and searches",
    "session_count": "Visits",
    "avg_session_length": "Average length of a visit",
    "active_days": "Days with a visit",
    "purchase_count": "Orders",
    "frequency": "Orders",
    "purchases_7d": "Orders",
    "refund_count": "Orders sent back",
    "refunds_7d": "Orders sent back",
    "return_rate": "Share of orders sent back",
    "monetary": "Spending",
    "revenue_7d": "Spending",
    "refund_amount_7d": "Money paid back",
    "avg_amount_nonzero_7d": "Average amount",
    "amount_stddev_7d": "Variation of the amounts",
    "max_amount_7d": "Largest amount",
    "min_amount_7d": "Smallest amount",
    "avg_order_value": "Average order value",
    "avg_basket_size": "Average order size",
    "n_unique_products": "Different products bought",
    "avg_days_between_purchases": "Average time between purchases",
    "purchases_30d_share": "Share of recent orders placed",
    "revenue_30d_share": "Share of recent spending",
    "events_30d_share": "Share of recent actions",
    "active_days_30d_share": "Share of recent days with a visit",
    "lifetime_orders": "Orders so far",
    "lifetime_revenue": "Spending so far",
    "recency_over_gap": "Time since the last purchase in usual gaps",
    "overdue_days": "Days beyond the usual gap",
    "gap_mean_days": "Usual gap between purchases",
    "gap_sd_days": "Variation of the gaps between purchases",
    "gap_last_days": "Last gap between purchases",
    "total_reviews": "Reviews so far",
    "avg_rating": "Average rating of own reviews",
    "avg_helpful_ratio": "Share of votes that found own reviews helpful",
    "avg_text_length": "Average length of own reviews",
    "avg_sentiment_score": "Tone of own reviews, from -1 to 1",
    **{f"topic_vector_{i}": f"Share of topic {i} in own reviews" for i in range(TOPICS)},
    "age": "Age",
    "gender": "Gender",
    "premium": "Paid membership",
}


@dataclass(frozen=True)
class Story:
    """What is told of one feature, or of several that tell the same.

    Args:
        feature: Its name.
        text: `{}` stands for the value.
        nothing: What is said where there is no value.
        zero_is_nothing: Whether that is also said of 0.
        typical: A value to compare with, in words; empty for none.
        addition: A feature, and words that follow instead where it has a value.
    """

    feature: str
    text: str
    nothing: str
    zero_is_nothing: bool
    typical: str
    addition: tuple[str, str] | None


class Explainer:
    """Explains what one model says of customers. Made once per model, which takes up to 0.3 s.

    Args:
        model: The model.
        groups: The feature groups, which know the windows.
        lookback_days: The setting of that name.
        typical: Of the model's training rows, see `typical_values`; may lack features.
        withheld: Features that are never named. What they contribute is left out, not passed on.
    """

    def __init__(
        self,
        model: FittedModel,
        groups: Groups,
        lookback_days: int,
        typical: Mapping[str, float],
        withheld: Collection[str] = (),
    ) -> None:
        self._columns = {column.name: column for column in model.columns}
        self._contributions = Contributions(model)
        self._stories = _stories(model.columns, groups, lookback_days, typical, withheld)

    def reasons(
        self, features: "pd.DataFrame", at_risk: "np.ndarray"
    ) -> list[tuple[str | None, ...]]:
        """The reasons of each prediction, strongest first: one per `REASON_COLUMNS`, or None.

        Args:
            features: One row per customer; columns are found by name, others ignored.
            at_risk: Whether the prediction is CHURN RISK, one per row. Its reasons are what speaks
                for churn, otherwise what speaks for staying.
        """
        import numpy as np

        table = inputs(features, list(self._columns.values()))
        towards = self._contributions.of(table) * np.where(at_risk, 1.0, -1.0)[:, None]
        weights = np.zeros((len(table), len(self._stories)))
        for number, (_, positions) in enumerate(self._stories):
            for position in positions:
                weights[:, number] += towards[:, position]
        floor = WORTH_NAMING * np.maximum(weights, 0).sum(axis=1, keepdims=True)
        worth = ((weights > 0) & (weights >= floor)).sum(axis=1)
        strongest = np.argsort(-weights, axis=1, kind="stable")
        values = {name: table[name].tolist() for name in self._columns}
        return [
            self._tell([self._stories[number][0] for number in numbers[:count]], values, row)
            for row, (numbers, count) in enumerate(zip(strongest.tolist(), worth, strict=True))
        ]

    def _tell(
        self, stories: Sequence[Story], values: Mapping[str, Sequence[Any]], row: int
    ) -> tuple[str | None, ...]:
        def value_of(feature: str) -> str:
            return spoken(values[feature][row], self._columns[feature])

        # By their first words, so that no order and no last purchase are one reason.
        told: dict[str, str] = {}
        for story in stories:
            value, more = value_of(story.feature), ""
            nothing = value == "" or (value == "0" and story.zero_is_nothing)
            said = story.nothing if nothing else story.text.replace("{}", value)
            if story.addition and (other := value_of(story.addition[0])):
                more = story.addition[1].replace("{}", other)
            elif not nothing and story.typical not in ("", value):
                more = f" (typical {story.typical})"
            told.setdefault(said, said + more)
            if len(told) == len(REASON_COLUMNS):
                break
        return (*told.values(), *[None] * (len(REASON_COLUMNS) - len(told)))


def spoken(value: float | str, column: Column) -> str:
    """A value as people say it, with its unit; empty where it is missing.

    Args:
        value: From `models.estimators.inputs`.
        column: The feature.
    """
    if value == MISSING or value != value:
        return ""
    if isinstance(value, str):
        return value
    if column.dtype == "BOOLEAN":
        return "yes" if value else "no"
    if column.unit == "share":
        return f"{round(100 * value)} %"
    if column.unit.startswith("currency"):
        return f"{value:,.2f}"
    if column.dtype in ("BIGINT", "INTEGER") or column.unit in ("days", "minutes"):
        number = f"{round(value):,}"
    else:
        number = (f"{value:,.1f}" if abs(value) >= 1 else f"{value:.2g}").removesuffix(".0")
    # The label of a count says of what: "Orders: 3". A scale such as "-1 to 1" is no unit.
    if column.dtype == "BIGINT" or not column.unit.replace(" ", "").isalpha():
        return number
    return f"{number} {column.unit.removesuffix('s') if number == '1' else column.unit}"


def _stories(
    columns: Sequence[Column],
    groups: Groups,
    lookback_days: int,
    typical: Mapping[str, float],
    withheld: Collection[str],
) -> list[tuple[Story, list[int]]]:
    """All that can be told, with the positions of the features that tell it."""
    windows = {feature.name: feature.window for group in groups for feature in group.features}
    nothing = {feature: words for words, features in NOTHING.items() for feature in features}
    named = {column.name: column for column in columns if column.name not in withheld}

    def story(column: Column) -> Story:
        name = column.name
        label, window = LABELS.get(name, column.description), windows.get(name, EVER)
        if window != EVER:
            label += f" in the last {window_days(window, lookback_days)} days"
        instead = nothing.get(name, f"{label}: unknown")
        addition = ADDITIONS.get(name)
        text = SENTENCES.get(name, f"{label}: {{}}")
        return Story(
            feature=name,
            text=text,
            nothing=instead.replace("{lookback}", f"{lookback_days} days"),
            zero_is_nothing=name in nothing and column.dtype == "BIGINT",
            typical=spoken(typical[name], column) if name in typical and "{}" in text else "",
            addition=addition if addition and addition[0] in named else None,
        )

    stories: dict[str, tuple[Story, list[int]]] = {}
    for position, column in enumerate(columns):
        if column.name in named:
            teller = TOLD_BY.get(column.name, column.name)
            told = story(named.get(teller, column))
            stories.setdefault(told.text, (told, []))[1].append(position)
    return list(stories.values())
