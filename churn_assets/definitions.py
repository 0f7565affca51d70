"""The code location: every asset, job and resource, built from the settings.

`build_definitions` takes settings as an argument, so a test builds the whole graph on a folder of
its own. What an asset does is in the module of its layer; docs/architecture.md is the map.
"""

import warnings
from functools import cache, partial

import dagster as dg

from churn_assets.features import assets as features
from churn_assets.features import feature_groups, registry
from churn_assets.history import raw, rollups, scored_reviews, topic_model
from churn_assets.models import candidates, champion
from churn_assets.models.kinds import ESTIMATORS, EXTRA_ESTIMATORS
from churn_assets.models.metrics import Economics
from churn_assets.models.runs import ModelRuns
from churn_assets.monitoring import (
    alerts,
    backtest_report,
    drift,
    ground_truth,
    inventory,
    performance,
)
from churn_assets.online import sync
from churn_assets.online.io_manager import OnlineIOManager
from churn_assets.operations import (
    annotations,
    automation,
    contract_checks,
    jobs,
    remaking,
)
from churn_assets.operations.installation import offline_store
from churn_assets.predictions import churn_predictions
from churn_assets.settings import Settings
from churn_assets.sources import open_source
from churn_assets.sources.synthetic import Synthetic
from churn_assets.stores.catalog import Catalog
from churn_assets.stores.identity import identify, refuse_another
from churn_assets.stores.io_manager import OfflineIOManager
from churn_assets.stores.private import keep_private
from churn_assets.training_data import dataset, labels


def build_definitions(settings: Settings) -> dg.Definitions:
    """The whole graph for the given settings."""
    # Partition mappings past the edge of history and single-run backfills are marked as beta,
    # checks with partitions as preview.
    warnings.filterwarnings("ignore", category=dg.BetaWarning)
    warnings.filterwarnings("ignore", category=dg.PreviewWarning)
    calendar, seed = settings.calendar(), settings.seed
    catalog = cache(lambda: Catalog.of(calendar, [s for asset in assets for s in asset.specs]))
    store = offline_store(settings, catalog)
    source = open_source(settings)
    groups = feature_groups(settings.review_vectors)
    # Asked for when something is written: a code location that only loads writes nothing.
    identity = cache(partial(identify, settings))
    runs = ModelRuns(settings.home, settings.mlflow_tracking_uri, identity)
    economics = Economics.of(settings)
    kinds = (*ESTIMATORS, *(EXTRA_ESTIMATORS[name] for name in settings.extra_models))
    raw_assets = raw.assets(calendar, source, store)
    fitter = topic_model.TopicFitter(store, calendar, runs, seed, settings.review_vectors)
    topics = topic_model.asset(fitter)
    has_truth = isinstance(source, Synthetic)
    assets = [
        *raw_assets,
        *rollups.assets(calendar),
        topics,
        scored_reviews.asset(fitter, topics.get_asset_spec()),
        *features.assets(groups, calendar, store),
        *labels.assets(calendar, seed),
        *dataset.assets(groups, calendar),
        *candidates.assets(groups, calendar, store, runs, economics, seed, kinds, settings.tuning),
        *champion.assets(groups, calendar, store, runs, [kind.name for kind in kinds]),
        *churn_predictions.assets(groups, calendar, store, economics.threshold),
        *sync.assets(groups, calendar, store),
        *performance.assets(calendar, store, economics, seed, has_truth),
        *backtest_report.assets(store),
        *drift.assets(groups, calendar, store),
        *inventory.assets(lambda: definitions, store, calendar),
        *registry.assets(groups, calendar, settings.home),
        *(ground_truth.assets(calendar, source, store) if isinstance(source, Synthetic) else []),
    ]
    stage_jobs = jobs.jobs(assets)
    definitions = dg.Definitions(
        assets=annotations.annotated(assets, groups, calendar, store),
        asset_checks=[
            *contract_checks.definitions(assets, calendar, store),
            *sync.checks(groups, calendar, store),
        ],
        jobs=stage_jobs,
        schedules=[automation.ingestion_schedule(calendar, store, raw_assets, source)],
        sensors=[
            automation.condition_sensor(),
            remaking.sensor(lambda: definitions, store, calendar, stage_jobs),
            alerts.sensor(
                lambda: definitions,
                store,
                calendar,
                settings.alert_url.get_secret_value() if settings.alert_url else None,
            ),
        ],
        resources={
            "io_manager": OfflineIOManager(store),
            "online_io_manager": OnlineIOManager(store, calendar, settings.redis_url, identity),
        },
        # DuckDB uses every core within a step; a process per step would only add its start-up.
        executor=dg.in_process_executor,
    )
    return definitions


# Whatever loads this module may write state: a run's worker, the daemon, a `dagster` command.
keep_private()
settings = Settings.read()
refuse_another(settings)
defs = build_definitions(settings)
