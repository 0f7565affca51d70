"""What every asset carries beside its own: where its columns come from, where its rows and its code
are, when it is made and how fresh it must be.

Told once, over all assets, so that no declaration repeats it. What an asset is and shows of its
partitions is said in its own module.
"""

import datetime as dt
import sys
from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

import dagster as dg

from churn_assets.cutoffs import Cadence, Calendar
from churn_assets.features import Groups
from churn_assets.history import rollups
from churn_assets.models import kinds
from churn_assets.models.champion import CHAMPION_MODEL
from churn_assets.monitoring.inventory import ASSET_INVENTORY
from churn_assets.online.sync import ONLINE_FEATURES
from churn_assets.operations.automation import condition_of
from churn_assets.operations.lineage import lineage_metadata
from churn_assets.predictions.churn_predictions import CHURN_PREDICTIONS
from churn_assets.stores.offline import OfflineStore

# Made at the end of each period, in the night that follows it; a day late is worth a look.
SERVED = {CHAMPION_MODEL.name, CHURN_PREDICTIONS.name, ONLINE_FEATURES}
LONGEST_PERIOD = {
    Cadence.MONTHLY: dt.timedelta(days=31),
    Cadence.WEEKLY: dt.timedelta(days=7),
    Cadence.DAILY: dt.timedelta(days=1),
}
LATE, TOO_LATE = dt.timedelta(days=1), dt.timedelta(days=2)
HOUR = dt.timedelta(hours=1)


def annotated(
    assets: Iterable[dg.AssetsDefinition],
    groups: Groups,
    calendar: Calendar,
    store: OfflineStore,
) -> list[dg.AssetsDefinition]:
    """The assets with lineage, code references, tables, conditions and freshness policies.

    Args:
        assets: All of them.
        groups: The feature groups, which know where they are declared.
        calendar: Says how often cutoffs come, and whether history has ended.
        store: Where tables are.
    """
    lineage = lineage_metadata(groups, store.tables)
    declared = {group.name: group.module for group in groups}
    declared |= {table.name: rollups.__name__ for table, *_ in rollups.ROLLUPS}
    estimators = (*kinds.ESTIMATORS, *kinds.EXTRA_ESTIMATORS.values())
    declared |= {estimator.name: kinds.__name__ for estimator in estimators}

    def annotate(spec: dg.AssetSpec, function: dg.LocalFileCodeReference) -> dg.AssetSpec:
        name = spec.key.path[-1]
        # Not the factory that makes assets of declarations.
        reference = code_reference(declared[name], name) if name in declared else function
        metadata: dict[str, Any] = {
            **spec.metadata,
            **lineage.get(name, {}),
            "dagster/code_references": dg.CodeReferencesMetadataValue(code_references=[reference]),
        }
        if name in store.tables:
            metadata["dagster/table_name"] = f"{store.root.name}.{name}"
            metadata["dagster/uri"] = dg.MetadataValue.url((store.root / name).as_uri())
        return spec.replace_attributes(
            metadata=metadata,
            automation_condition=condition_of(spec),
            freshness_policy=freshness_policy(spec, calendar),
        )

    return [
        asset.map_asset_specs(partial(annotate, function=function_reference(asset)))
        for asset in assets
    ]


def function_reference(asset: dg.AssetsDefinition) -> dg.LocalFileCodeReference:
    """Where the function of an asset begins.

    As `dg.with_source_code_references` has it, which reads every function to its end for that.
    """
    code = asset.op.compute_fn.decorated_fn.__code__  # type: ignore[union-attr]
    return dg.LocalFileCodeReference(file_path=code.co_filename, line_number=code.co_firstlineno)


def code_reference(module: str, name: str) -> dg.LocalFileCodeReference:
    """The line of a module in which a declaration says its name."""
    file = str(sys.modules[module].__file__)
    lines = enumerate(_lines(file), 1)
    number = next((number for number, line in lines if f'"{name}"' in line), 1)
    return dg.LocalFileCodeReference(file_path=file, line_number=number)


@cache
def _lines(file: str) -> list[str]:
    return Path(file).read_text().splitlines()


def freshness_policy(spec: dg.AssetSpec, calendar: Calendar) -> dg.FreshnessPolicy | None:
    """The policy of what is served, and of what is made by the clock.

    A history that has ended stays as it is, and nothing of it is late.
    """
    if calendar.end is not None:
        return None
    name = spec.key.path[-1]
    if name == ASSET_INVENTORY.name:
        return dg.FreshnessPolicy.time_window(fail_window=3 * HOUR, warn_window=2 * HOUR)
    if name in SERVED or spec.group_name == "raw":
        period = LONGEST_PERIOD[calendar.cadence]
        return dg.FreshnessPolicy.time_window(
            fail_window=period + TOO_LATE, warn_window=period + LATE
        )
    return None
