"""The catalog: what the graph declares of its assets, as far as stores have to know it.

It says which partitions belong to history as the settings define it, what an asset's rows mean, and
what a partition is made from. It knows declarations only: whether a file is there, and what it was
made from, is the store's.

What the rows of an asset mean is its **definition**: a digest of the code of its table and of the
definitions of everything that it is made from. Horizon, lookback and the features are in it,
because they are in that code. Partitions of two definitions are never mixed. The code that fits,
chooses or reports is not in it: it makes what it makes again stale, and no row something else.
"""

import datetime as dt
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from churn_assets.cutoffs import Calendar, day_number, parse_key

# Raw slices are read from the source, whose code is the parser's version.
RAW = "raw"
# What only a person makes again. Whoever is made from it does not mean something else because of
# it: refitted topics change values, and are used and shown as stale until then.
ON_DEMAND = "topics"
# Groups whose code decides what a row means.
DEFINING = frozenset({"rollups", "features", "ground_truth", "labels", "training"})

# Metadata of an asset that reads its own previous partition. Dagster's backfill daemon never gets
# past an asset that depends on itself, so it is no dependency.
READS_PREVIOUS = "churn/reads_previous_partition"
# Metadata of a raw asset whose source opens on CHURN_START, as the synthetic shop does: with
# another one, every slice has other rows.
OPENS_AT_START = "churn/source_opens_at_start"

# The one partition of an asset without partitions, where partitions are counted and listed.
WHOLE = ""

Key = str | None
Present = Callable[[str], Sequence[Key]]


class OtherDefinitions(ValueError):
    """Partitions were asked for that were made under other definitions than the settings'."""

    def __init__(self, asset: str, keys: Sequence[Key], needed: int) -> None:
        super().__init__(
            f"{asset} {keys[0] or ''} was made under other definitions than those of the settings "
            f"({len(keys)} of {needed} partitions that are needed): of other features, another "
            "horizon or lookback. Both would be mixed. Run `churn backfill --stale`, which makes "
            "them again."
        )


@dataclass(frozen=True)
class Catalog:
    """What is declared of the assets.

    Args:
        calendar: Where partitions lie.
        specs: The assets, by name.
        definitions: What the rows of each mean, as 16 hex digits.
    """

    calendar: Calendar
    specs: Mapping[str, dg.AssetSpec]
    definitions: Mapping[str, str]

    @classmethod
    def of(cls, calendar: Calendar, assets: Iterable[dg.AssetSpec]) -> "Catalog":
        """The catalog of a graph."""
        specs = {spec.key.path[-1]: spec for spec in assets}
        definitions: dict[str, str] = {}

        def define(name: str) -> str:
            if name not in definitions:
                spec = specs[name]
                parts = [spec.code_version or ""] if spec.group_name in {RAW, *DEFINING} else []
                for dep in sorted(dep.asset_key.path[-1] for dep in spec.deps):
                    if dep in specs and specs[dep].group_name not in {RAW, ON_DEMAND}:
                        parts.append(f"{dep} {define(dep)}")
                definitions[name] = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
            return definitions[name]

        for name in specs:
            define(name)
        return cls(calendar, specs, definitions)

    def existing(self, asset: str, now: dt.datetime) -> list[str]:
        """The partitions of an asset that exist at `now`; `[WHOLE]` for one without partitions."""
        definition = self.specs[asset].partitions_def
        if not isinstance(definition, dg.TimeWindowPartitionsDefinition):
            return [WHOLE]
        return self.calendar.keys(definition, now)

    def is_raw(self, asset: str) -> bool:
        """Whether an asset is read from the source."""
        return asset in self.specs and self.specs[asset].group_name == RAW

    def redefines(self, asset: str, made_from: Mapping[str, str] | None) -> bool:
        """Whether the rows of a partition mean something else than its asset's would now.

        What only a person makes again, such as a raw slice, never does.

        Args:
            asset: The asset; one that is not in the catalog has no definition.
            made_from: The partition's provenance; None where it has none.
        """
        if made_from is None or asset not in self.specs:
            return False
        on_demand = self.specs[asset].group_name in {RAW, ON_DEMAND}
        return not on_demand and made_from.get("definition") != self.definitions[asset]

    def belongs(self, asset: str, key: str) -> bool:
        """Whether a partition is one of the asset's, as CHURN_START and CHURN_END have it.

        What is still to come, or not mature yet, may belong to it: that needs a clock.
        """
        return is_within(self.bounds(asset), key)

    def bounds(self, asset: str) -> tuple[str, str]:
        """The first partition of an asset and the first after its last; empty where there is none.

        Empty for an asset without partitions, and one that is not in the catalog.
        """
        return bounds_of(self.specs[asset].partitions_def if asset in self.specs else None)

    def upstream(self, asset: str, key: Key, present: Present) -> Iterator[tuple[str, Key]]:
        """The partitions that a partition is made from, of those that `present` gives."""
        spec = self.specs[asset]
        for dep in sorted(spec.deps, key=lambda dep: dep.asset_key):
            name = dep.asset_key.path[-1]
            mapping = dep.partition_mapping
            for found in upstream_keys(self.calendar, mapping, key, present(name)):
                yield name, found

    def known_before(self, asset: str, key: Key) -> int | None:
        """The day before which what a partition is made from was known; None where all counts."""
        if key is None:
            return None
        match self.specs[asset].group_name:
            case "features" | "ground_truth":
                return day_number(parse_key(key))
            case "labels":
                return day_number(self.calendar.labels_known_before(parse_key(key)))
            case _:
                return None

    def previous(self, asset: str, key: Key) -> Key:
        """The partition of the asset itself that `key` is made from; None without one."""
        if key is None or READS_PREVIOUS not in self.specs[asset].metadata:
            return None
        previous = self.calendar.shift(parse_key(key), -1).isoformat()
        return previous if self.belongs(asset, previous) else None

    def reading(self, asset: str, key: Key) -> str:
        """What of the source a raw slice holds; empty for other assets.

        The first slice also counts the rows before CHURN_START, the last those after CHURN_END.
        Of a source that opens on CHURN_START, every slice depends on it.
        """
        if key is None or not self.is_raw(asset):
            return ""
        calendar, day = self.calendar, parse_key(key)
        begin, end = calendar.slice_window(key)
        opens = OPENS_AT_START in self.specs[asset].metadata
        before = calendar.start if opens or day == calendar.first_slice else ""
        after = calendar.end if day == calendar.last_slice else ""
        return f"[{begin.isoformat()}, {end.isoformat()}) {before} {after}"


def bounds_of(definition: dg.PartitionsDefinition[str] | None) -> tuple[str, str]:
    """The first partition of a definition and the first after its last; empty without them."""
    if not isinstance(definition, dg.TimeWindowPartitionsDefinition):
        return "", ""
    end = definition.end
    return f"{definition.start:%Y-%m-%d}", f"{end:%Y-%m-%d}" if end else ""


def is_within(bounds: tuple[str, str], key: str) -> bool:
    """Whether a partition lies in bounds."""
    first, end = bounds
    return first <= key and (not end or key < end)


def upstream_keys(
    calendar: Calendar,
    mapping: dg.PartitionMapping | None,
    key: Key,
    existing: Sequence[Key],
) -> Sequence[Key]:
    """The upstream partitions, of those that exist, that partition `key` is made from.

    An asset without partitions names those that it reads; the registry, which names none, reads
    declarations only.
    """
    if None in existing:
        return existing
    keys = [k for k in existing if k is not None]
    if isinstance(mapping, dg.SpecificPartitionsPartitionMapping):
        return [k for k in keys if k in mapping.partition_keys]
    if key is None:
        return []
    if not isinstance(mapping, dg.TimeWindowPartitionMapping):
        return [key] if key in keys else []
    first = calendar.shift(parse_key(key), mapping.start_offset).isoformat()
    last = calendar.shift(parse_key(key), mapping.end_offset).isoformat()
    return [k for k in keys if first <= k <= last]
