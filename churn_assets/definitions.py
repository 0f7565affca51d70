"""The code location: every asset, job and resource, built from the settings.

`build_definitions` takes settings as an argument, so a test builds the whole graph on a folder of
its own. What an asset does is in the module named after its layer.
"""

import warnings

import dagster as dg

from churn_assets import features as feature_groups
from churn_assets import jobs, labels, raw, registry, rollups, training
from churn_assets.settings import Settings
from churn_assets.sources import open_source
from churn_assets.stores.offline import OfflineIOManager, OfflineStore, duckdb_resource
from churn_assets.tables import Table

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        *(raw_table.table for raw_table in raw.RAW_TABLES),
        raw.QUARANTINED_ROWS,
        *rollups.TABLES,
        *(group.table for group in feature_groups.GROUPS),
        *training.LABEL_SETS,
        training.TRAINING_DATASET,
        registry.FEATURE_REGISTRY,
    )
}


def offline_store(settings: Settings) -> OfflineStore:
    """The offline store of an installation."""
    return OfflineStore(settings.home, TABLES, duckdb_resource(settings), settings.allow_shrink)


def build_definitions(settings: Settings) -> dg.Definitions:
    """The whole graph for the given settings."""
    calendar = settings.calendar()
    store = offline_store(settings)
    # Partition mappings past the edge of history and single-run backfills are marked as beta.
    warnings.filterwarnings("ignore", category=dg.BetaWarning)
    return dg.Definitions(
        assets=[
            *raw.assets(calendar, open_source(settings), store),
            *rollups.assets(calendar),
            *feature_groups.assets(calendar),
            *labels.assets(calendar, settings.seed),
            *training.assets(calendar),
            *registry.assets(calendar, settings.home.parent / "feature_registry.yaml"),
        ],
        jobs=jobs.jobs(),
        resources={"io_manager": OfflineIOManager(store, calendar)},
        # DuckDB uses every core within a step; a process per step would only add its start-up.
        executor=dg.in_process_executor,
    )


defs = build_definitions(Settings())
