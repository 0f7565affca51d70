"""What a change of settings or code redefined, and what of it has to be made before something else.

A redefined partition (`monitoring.staleness`) is refused by whatever would be made from it, so it
is made first where something missing needs it. The others are left until somebody asks for them.
Footers, records and verdicts are read here, no content that is sound, so it costs little however
long history is.
"""

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from churn_assets.history.readings import delivered_since
from churn_assets.monitoring.inventory import held_back_partitions, present_partitions
from churn_assets.monitoring.staleness import read_otherwise, redefined, sources
from churn_assets.sources.tables import RAW_TABLES
from churn_assets.stores.catalog import WHOLE, Catalog
from churn_assets.stores.offline import OfflineStore


@dataclass(frozen=True)
class Survey:
    """What there is, by asset in the order of the data.

    Args:
        catalog: What is declared of the assets.
        present: The partitions that are there.
        redefined: Those of them that are redefined.
        to_read: The raw slices to be read again whatever is missing: those of which something else
            was read than belongs to them, those of which files were delivered since, and those that
            are held back, whose source may be mended.
    """

    catalog: Catalog
    present: Mapping[str, set[str]]
    redefined: Mapping[str, Collection[str]]
    to_read: Mapping[str, Collection[str]]


def survey(
    defs: dg.Definitions,
    store: OfflineStore,
    instance: dg.DagsterInstance,
    now: dt.datetime,
) -> Survey:
    """What there is of every asset that exists at `now`; the store must have a catalog."""
    catalog, graph = store.declared, defs.resolve_asset_graph()
    present, other, to_read = dict[str, set[str]](), dict[str, Collection[str]](), {}
    for asset in graph.toposorted_asset_keys:
        if asset not in graph.materializable_asset_keys:
            continue
        name = asset.path[-1]
        keys = present_partitions(defs, store, instance, asset) & set(catalog.existing(name, now))
        present[name] = keys
        other[name] = redefined(store, name, keys, sources(store, instance, name))
        if catalog.is_raw(name):
            to_read[name] = slices_to_read_again(store, name, keys)
    return Survey(catalog, present, other, to_read)


def slices_to_read_again(store: OfflineStore, asset: str, keys: Collection[str]) -> set[str]:
    """Those of the slices of a raw asset that are not to stay as they were read.

    Those of which something else was read than belongs to them, those that have rows in files which
    were delivered since, as `notice_deliveries` has noticed, and those that are held back, whose
    source may be mended.
    """
    again = {*held_back_partitions(store, store.tables[asset], keys)}
    again |= read_otherwise(store, asset, keys)
    for raw_table in RAW_TABLES:
        if raw_table.table.name == asset:
            again |= delivered_since(store, store.declared.calendar, raw_table, keys)
    return again


def made_first(
    found: Survey, starts: Mapping[str, Collection[str]], targets: Mapping[str, Collection[str]]
) -> dict[str, set[str]]:
    """Of what is present, all that lies on a way from `starts` to `targets`, by asset.

    Args:
        found: What there is.
        starts: What is not to be used as it is, by asset.
        targets: The partitions to be made, by asset; one that is present counts as on its way.
    """
    if not any(starts.values()):
        return {}

    def there(asset: str) -> Sequence[str | None]:
        return [key or None for key in sorted(found.present.get(asset, ()))]

    def upstream(asset: str, key: str) -> list[tuple[str, str]]:
        return [(n, k or WHOLE) for n, k in found.catalog.upstream(asset, key or None, there)]

    needed = {asset: set(targets.get(asset, ())) for asset in found.present}
    for asset in reversed(needed):
        for key in needed[asset]:
            for before, before_key in upstream(asset, key):
                needed[before].add(before_key)
    again: dict[str, set[str]] = {asset: set() for asset in needed}
    for asset in needed:
        for key in needed[asset] & set(found.present[asset]):
            if key in starts.get(asset, ()) or any(k in again[n] for n, k in upstream(asset, key)):
                again[asset].add(key)
    return {asset: keys for asset, keys in again.items() if keys}
