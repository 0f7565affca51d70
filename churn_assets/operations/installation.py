"""An installation's tables, and its offline store behind the gate of their contracts."""

from collections.abc import Callable
from functools import partial

from churn_assets.features import feature_groups
from churn_assets.features.registry import FEATURE_REGISTRY
from churn_assets.history.quarantine import QUARANTINED_ROWS
from churn_assets.history.rollups import ROLLUPS
from churn_assets.history.scored_reviews import scored_reviews_table
from churn_assets.models.champion import CHAMPION_MODEL
from churn_assets.monitoring.drift import DRIFT_REPORT
from churn_assets.monitoring.ground_truth import SYNTHETIC_TRUTH
from churn_assets.monitoring.inventory import ASSET_INVENTORY
from churn_assets.monitoring.performance import REALISED_PERFORMANCE
from churn_assets.operations.gate import Gate
from churn_assets.predictions.churn_predictions import CHURN_PREDICTIONS
from churn_assets.settings import Settings
from churn_assets.sources.tables import RAW_TABLES
from churn_assets.stores.catalog import Catalog
from churn_assets.stores.identity import identify
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.tables import Table
from churn_assets.training_data.dataset import LABEL_SETS, training_table


def tables(settings: Settings) -> dict[str, Table]:
    """Every table of the offline store, by name, in the order of the data."""
    groups = feature_groups(settings.review_vectors)
    declared = (
        *(raw_table.table for raw_table in RAW_TABLES),
        QUARANTINED_ROWS,
        *(table for table, *_ in ROLLUPS),
        scored_reviews_table(settings.review_vectors),
        *(group.table for group in groups),
        *LABEL_SETS,
        training_table(groups),
        CHAMPION_MODEL,
        CHURN_PREDICTIONS,
        DRIFT_REPORT,
        FEATURE_REGISTRY,
        SYNTHETIC_TRUTH,
        REALISED_PERFORMANCE,
        ASSET_INVENTORY,
    )
    return {table.name: table for table in declared}


def offline_store(settings: Settings, catalog: Callable[[], Catalog] | None = None) -> OfflineStore:
    """The offline store of an installation; see `OfflineStore` for the catalog."""
    return OfflineStore(
        settings.home,
        tables(settings),
        settings.duckdb_config(),
        settings.allow_shrink,
        Gate(settings.calendar()),
        catalog,
        partial(identify, settings),
    )
