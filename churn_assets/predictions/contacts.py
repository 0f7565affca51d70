"""Contacts: the customers whom it pays to contact, most valuable first."""

from churn_assets.models.metrics import Economics
from churn_assets.predictions.reasons import REASON_COLUMNS


def contacts_query(predictions: str, economics: Economics) -> str:
    """The customers whom it pays to contact, most valuable first.

    Expected value, in currency: P(churn) * save rate * customer value - contact cost.

    Args:
        predictions: A relation of `CHURN_PREDICTIONS`.
        economics: What contacting is worth.
    """
    value = (
        f"churn_probability * {economics.save_rate * economics.customer_value} "
        f"- {economics.contact_cost}"
    )
    told = ", ".join(column.name for column in REASON_COLUMNS)
    return (
        f"SELECT customer_id, cutoff, {value} AS expected_value, churn_probability, "
        f"{told}, model_version FROM {predictions} AS predictions WHERE {value} >= 0 "
        "ORDER BY cutoff, expected_value DESC, customer_id"
    )
