"""Jobs: the stages of a backfill, in the order in which data flows.

A stage is the set of assets that share a partition definition and can be materialized for a whole
range of partitions in one run.
"""

from dataclasses import dataclass
from typing import Any

import dagster as dg


@dataclass(frozen=True)
class Stage:
    """A job and what it materializes.

    Args:
        name: The job's name.
        groups: Asset groups of the job.
        also: Further assets, without partitions of their own.
        description: For people.
    """

    name: str
    groups: tuple[str, ...]
    description: str
    also: tuple[str, ...] = ()

    @property
    def selection(self) -> dg.AssetSelection:
        selection = dg.AssetSelection.groups(*self.groups)
        return selection | dg.AssetSelection.assets(*self.also) if self.also else selection


STAGES = (
    Stage("ingest", ("raw", "rollups"), "Raw slices from the source, and their daily rollups."),
    Stage(
        "features",
        ("features",),
        "Every feature group of a cutoff, and the feature registry.",
        also=("feature_registry",),
    ),
    Stage("training_data", ("labels", "training"), "Labels and training data of mature cutoffs."),
)


def jobs() -> list[Any]:
    """One job per stage."""
    return [
        dg.define_asset_job(stage.name, stage.selection, description=stage.description)
        for stage in STAGES
    ]
