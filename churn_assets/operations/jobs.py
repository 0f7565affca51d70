"""Jobs: the stages of a backfill, in the order in which data flows.

A stage is the set of assets that share a partition definition and can be materialized for a whole
range of partitions in one run.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import dagster as dg

# The tags by which Dagster knows which partitions a run makes.
RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"


@dataclass(frozen=True)
class Stage:
    """A job and what it materializes.

    Args:
        name: The job's name.
        groups: Asset groups of the job.
        description: For people.
        also: Assets of other groups, where the code location has them.
        on_demand: Whether a backfill runs it only where it is asked for by name.
    """

    name: str
    groups: tuple[str, ...]
    description: str
    also: tuple[str, ...] = ()
    on_demand: bool = False


INGEST = "ingest"

STAGES = (
    Stage(INGEST, ("raw", "rollups"), "Raw slices from the source, and their daily rollups."),
    Stage(
        "topics",
        ("topics",),
        "The topic model of reviews, fitted anew; scored reviews and all they feed become stale.",
        on_demand=True,
    ),
    Stage(
        "features",
        ("features", "ground_truth"),
        "Every feature group of a cutoff, and the feature registry.",
        also=("feature_registry",),
    ),
    Stage("training_data", ("labels", "training"), "Labels and training data of mature cutoffs."),
    Stage(
        "models",
        ("models", "predictions", "online"),
        "Models of a cutoff, its champion and predictions, and the online sync.",
    ),
    Stage(
        "drift",
        ("drift",),
        "How far a cutoff's features and predictions are from the champion's training data.",
    ),
    Stage(
        "realised_performance",
        ("performance",),
        "What became of predictions, and the walk-forward report.",
        also=("walk_forward_report",),
    ),
)


def jobs(assets: Iterable[dg.AssetsDefinition]) -> list[Any]:
    """One job per stage, over those of its assets that there are."""
    groups = {key: group for asset in assets for key, group in asset.group_names_by_key.items()}
    return [
        dg.define_asset_job(
            stage.name,
            dg.AssetSelection.assets(
                *(
                    key
                    for key, group in groups.items()
                    if group in stage.groups or key.path[-1] in stage.also
                )
            ),
            description=stage.description,
        )
        for stage in STAGES
    ]
