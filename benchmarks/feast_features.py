"""Training data by Feast's point-in-time join with pandas, as its quick start does it.

    python feast_features.py INPUT OUTPUT

`INPUT` has a Parquet file for each feature group, with `customer_id` and `event_timestamp`, and
`churn_labels.parquet`, whose rows are the entity rows. `OUTPUT` is one Parquet file. Definitions
are applied to a registry of its own, which is part of what is measured, as is reading and writing.
`benchmarks.offline` runs it in an environment of its own, because Feast needs pandas < 3.
"""

# /// script
# dependencies = ["feast==0.67.0"]
# ///

import argparse
import datetime as dt
import tempfile
from pathlib import Path

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, FileSource, RepoConfig, ValueType

LABELS = "churn_labels"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    entity = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.STRING)
    views = [
        FeatureView(
            name=path.stem,
            entities=[entity],
            ttl=dt.timedelta(days=1),  # of a customer who left, older rows are no features
            source=FileSource(path=str(path), timestamp_field="event_timestamp"),
        )
        for path in sorted(arguments.input.glob("*.parquet"))
        if path.stem != LABELS
    ]
    with tempfile.TemporaryDirectory() as folder:
        config = RepoConfig(
            project="benchmark",
            provider="local",
            registry=f"{folder}/registry.db",
            offline_store={"type": "file"},
            online_store=None,
            entity_key_serialization_version=3,
        )
        store = FeatureStore(config=config)
        store.apply([entity, *views])  # the types of the features are read from the files
        names = [f"{view.name}:{feature.name}" for view in views for feature in view.features]
        entities = pd.read_parquet(arguments.input / f"{LABELS}.parquet")
        job = store.get_historical_features(entity_df=entities, features=names)
        job.to_df().to_parquet(arguments.output)


if __name__ == "__main__":
    main()
