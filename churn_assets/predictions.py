"""Batch predictions."""

from churn_assets.tables import Column, cutoff_table

CHURN_PREDICTIONS = cutoff_table(
    "churn_predictions",
    [
        Column("churn_probability", "DOUBLE", "P(no purchase within the horizon)"),
        Column("purchase_probability", "DOUBLE", "Its complement"),
        Column("prediction", "VARCHAR", "CHURN RISK at or above the threshold, else RETAIN"),
        Column("threshold", "DOUBLE", "Probability from which contacting a customer pays"),
        Column("model_version", "VARCHAR", "Digest of the model that was used"),
    ],
)
