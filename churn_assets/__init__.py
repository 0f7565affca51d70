"""Point-in-time customer churn as Dagster assets, partitioned by cutoff date."""
