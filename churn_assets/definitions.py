"""The code location: every asset, job and resource, built from the settings.

`build_definitions` takes settings as an argument, so a test builds the whole graph on a folder of
its own. What an asset does is in the module named after its layer.
"""

import warnings

import dagster as dg

from churn_assets import (
    alerts,
    automation,
    champion,
    checks,
    drift,
    inventory,
    jobs,
    labels,
    lineage,
    models,
    online,
    performance,
    predictions,
    raw,
    registry,
    reviews,
    rollups,
    training,
    truth,
)
from churn_assets import features as feature_groups
from churn_assets.estimators import ESTIMATORS, EXTRA_ESTIMATORS
from churn_assets.settings import Settings, SettingsError
from churn_assets.sources import open_source
from churn_assets.sources.synthetic import Synthetic
from churn_assets.stores.offline import OfflineIOManager, OfflineStore, duckdb_config
from churn_assets.stores.online import OnlineIOManager
from churn_assets.tables import Table
from churn_assets.tracking import Tracking

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        *(raw_table.table for raw_table in raw.RAW_TABLES),
        raw.QUARANTINED_ROWS,
        *rollups.TABLES,
        reviews.SCORED_REVIEWS,
        *(group.table for group in feature_groups.GROUPS),
        *training.LABEL_SETS,
        training.TRAINING_DATASET,
        champion.CHAMPION_MODEL,
        predictions.CHURN_PREDICTIONS,
        drift.DRIFT_REPORT,
        registry.FEATURE_REGISTRY,
        truth.SYNTHETIC_TRUTH,
        performance.REALISED_PERFORMANCE,
        inventory.ASSET_INVENTORY,
    )
}


def offline_store(settings: Settings) -> OfflineStore:
    """The offline store of an installation."""
    return OfflineStore(
        settings.home,
        TABLES,
        duckdb_config(settings),
        settings.allow_shrink,
        checks.Gate(settings.calendar()),
    )


def build_definitions(settings: Settings) -> dg.Definitions:
    """The whole graph for the given settings.

    Raises:
        SettingsError: CHURN_REVIEW_VECTORS is another one than at import.
    """
    if settings.review_vectors != reviews.VECTORS:
        raise SettingsError(
            f"CHURN_REVIEW_VECTORS is {settings.review_vectors}, and tables were declared for "
            f"{reviews.VECTORS} when the package was imported. Set it in the environment or in "
            "`.env` before the process starts."
        )
    # Partition mappings past the edge of history and single-run backfills are marked as beta,
    # checks with partitions as preview.
    warnings.filterwarnings("ignore", category=dg.BetaWarning)
    warnings.filterwarnings("ignore", category=dg.PreviewWarning)
    calendar = settings.calendar()
    store = offline_store(settings)
    source = open_source(settings)
    tracking = Tracking(settings.home, settings.mlflow_tracking_uri)
    economics = settings.economics()
    kinds = (*ESTIMATORS, *(EXTRA_ESTIMATORS[name] for name in settings.extra_models))
    raw_assets = raw.assets(calendar, source, store)
    assets = [
        *raw_assets,
        *rollups.assets(calendar),
        *reviews.assets(calendar, store, tracking, settings.seed),
        *feature_groups.assets(calendar),
        *labels.assets(calendar, settings.seed),
        *training.assets(calendar),
        *models.assets(calendar, store, tracking, economics, settings.seed, kinds, settings.tuning),
        *champion.assets(calendar, store, tracking, economics, [kind.name for kind in kinds]),
        *predictions.assets(calendar, store),
        *online.assets(calendar, store),
        *performance.assets(
            calendar, store, economics, settings.seed, isinstance(source, Synthetic)
        ),
        *drift.assets(calendar, store),
        *inventory.assets(lambda: definitions, store, calendar),
        *registry.assets(calendar, settings.home.parent / "feature_registry.yaml"),
        *(truth.assets(calendar, source, store) if isinstance(source, Synthetic) else []),
    ]
    definitions = dg.Definitions(
        assets=automation.with_conditions(lineage.with_lineage(assets)),
        asset_checks=[
            *checks.definitions(assets, calendar, store),
            *online.checks(calendar, store),
        ],
        jobs=jobs.jobs(assets),
        schedules=[automation.ingestion_schedule(calendar, raw_assets)],
        sensors=[
            automation.condition_sensor(),
            alerts.sensor(
                lambda: definitions,
                store,
                calendar,
                settings.alert_url.get_secret_value() if settings.alert_url else None,
            ),
        ],
        resources={
            "io_manager": OfflineIOManager(store, calendar),
            "online_io_manager": OnlineIOManager(store, settings.redis_url),
        },
        # DuckDB uses every core within a step; a process per step would only add its start-up.
        executor=dg.in_process_executor,
    )
    return definitions


defs = build_definitions(Settings.read())
