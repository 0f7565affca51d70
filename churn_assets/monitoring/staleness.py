"""Staleness: which partitions would be others if they were made now, and which would mean more.

A partition is **stale** where its provenance differs from what it would have now, or where it was
made from a stale one. It is **redefined** where what it means changed: the definition of its rows,
or of a raw slice what was read of the source. What is redefined is never mixed with what is not;
what is otherwise stale is used, and shown as stale.

An asset that keeps no provenance, such as a report, is stale where something that it reads was
materialized after it. What a person alone makes again, the topic model, may be stale and is none
the less the current one: its dependants are not stale because of it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache

import dagster as dg

from churn_assets.stores.catalog import ON_DEMAND, WHOLE, upstream_keys
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.parquet import PROVENANCE
from churn_assets.stores.provenance import current_provenance

PAGE = 1_000

# What a partition of an asset was made from; None where it does not say.
MadeFrom = Callable[[str], Mapping[str, str] | None]


def sources(store: OfflineStore, instance: dg.DagsterInstance, asset: str) -> MadeFrom:
    """What partitions of an asset were made from, by their files or by Dagster's record."""
    published = cache(lambda: published_provenance(instance, dg.AssetKey(asset)))

    def made_from(key: str) -> Mapping[str, str] | None:
        said = store.made_from(asset, key or None)
        # A file that says nothing was put there by somebody else: a record is not about it.
        return published().get(key) if said is None else said

    return made_from


def redefined(
    store: OfflineStore, asset: str, present: Collection[str], made_from: MadeFrom
) -> frozenset[str]:
    """Which of the present partitions of an asset mean something else than they would now.

    Args:
        store: Where files are, and the catalog.
        asset: The asset.
        present: Its partitions to look at.
        made_from: Its `sources`.
    """
    catalog = store.declared

    def is_redefined(key: str) -> bool:
        said = made_from(key)
        if catalog.is_raw(asset):
            return _says_what_was_read(said) and said != current_provenance(store, asset, key)
        return catalog.redefines(asset, said)

    return frozenset(filter(is_redefined, present))


def read_otherwise(store: OfflineStore, asset: str, present: Collection[str]) -> frozenset[str]:
    """Which of the present slices of a raw table hold something else of the source than they would.

    A slice that was read before it was over, or one that CHURN_START or CHURN_END cut otherwise.
    """

    def differs(key: str) -> bool:
        said = store.made_from(asset, key) or {}
        now = current_provenance(store, asset, key)
        return _says_what_was_read(said) and said["inputs"] != now["inputs"]

    return frozenset(filter(differs, present))


def stale(
    store: OfflineStore,
    instance: dg.DagsterInstance,
    asset: str,
    present: Collection[str],
    made_from: MadeFrom,
    upstream: Mapping[str, Collection[str]],
    on_disk: Callable[[str], Sequence[str | None]],
) -> frozenset[str]:
    """Which of the present partitions of an asset would be others if they were made now.

    Args:
        store: Where files are, and the catalog.
        instance: Knows when an asset without provenance was made.
        asset: The asset.
        present: Its partitions to look at.
        made_from: Its `sources`.
        upstream: The stale partitions of everything before it in the order of the data.
        on_disk: See `current_provenance`.
    """
    catalog = store.declared
    spec = catalog.specs[asset]
    inherited = [
        (dep.partition_mapping, [key or None for key in sorted(upstream[name])])
        for dep in spec.deps
        if upstream.get(name := dep.asset_key.path[-1])
        and catalog.specs[name].group_name != ON_DEMAND
    ]

    def is_stale(key: str) -> bool:
        said = made_from(key)
        if said is None:
            return bool(inherited) or _is_older_than_inputs(instance, spec)
        if catalog.is_raw(asset) and not _says_what_was_read(said):
            return False
        return said != current_provenance(store, asset, key or None, on_disk) or any(
            upstream_keys(catalog.calendar, mapping, key or None, keys)
            for mapping, keys in inherited
        )

    found = set[str]()
    for key in sorted(present):
        if catalog.previous(asset, key or None) in found or is_stale(key):
            found.add(key)
    return frozenset(found)


def _says_what_was_read(made_from: Mapping[str, str] | None) -> bool:
    """Whether a raw slice says it; those of version 0.1 do not, and their source may be gone."""
    return made_from is not None and "definition" in made_from


def published_provenance(
    instance: dg.DagsterInstance, asset: dg.AssetKey
) -> dict[str, dict[str, str]]:
    """Per partition, what an asset whose rows live elsewhere was made from, if it says so."""
    found: dict[str, dict[str, str]] = {}
    cursor, more = None, True
    while more:
        page = instance.fetch_materializations(asset, PAGE, cursor)
        cursor, more = page.cursor, page.has_more
        for record in page.records:  # newest first
            metadata = record.asset_materialization.metadata if record.asset_materialization else {}
            said = {k: str(metadata[k].value) for k in PROVENANCE if k in metadata}
            found.setdefault(record.partition_key or WHOLE, said)
    return {key: said for key, said in found.items() if said}


def _is_older_than_inputs(instance: dg.DagsterInstance, spec: dg.AssetSpec) -> bool:
    def newest(asset: dg.AssetKey) -> int:
        records = instance.fetch_materializations(asset, limit=1).records
        return records[0].storage_id if records else 0

    return any(newest(dep.asset_key) > newest(spec.key) for dep in spec.deps)
