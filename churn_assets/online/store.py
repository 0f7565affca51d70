"""The online store, as readers see it: every customer's features at the newest published cutoff.

Grain and key: one row per `customer_id` of the live version. A read or a batch sees one version: a
reader reads rows of the version that it knows, and the pointer, and where the pointer names another
one, it reads again from that. How versions change is in `online.versions`, how they are written in
`online.publishing`. Nothing here knows what a feature means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from churn_assets.online.rows import OnlineStoreError, not_as_published

if TYPE_CHECKING:
    import pyarrow as pa
from churn_assets.online.publishing import _round_trips
from churn_assets.online.versions import Namespace, OnlineVersion, version_name

READ_ATTEMPTS = 100  # each failed attempt means that a version went live during it


class OnlineStore:
    """Reads rows of the live version as dicts: customer_id, cutoff, then the features.

    One object may serve any number of threads.
    """

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._known: OnlineVersion | None = None

    def live(self) -> OnlineVersion | None:
        """The live version; None before the first one."""
        return self._read([])[0]

    def get(self, customer_id: str) -> dict[str, Any] | None:
        """The customer's row; None if the live version has none."""
        return self.get_many([customer_id])[0]

    def get_many(self, customer_ids: Sequence[str]) -> list[dict[str, Any] | None]:
        """The row of each customer, None where there is none; all rows are of one version."""
        manifest, rows = self._read(customer_ids)
        if manifest is None:
            return [None] * len(customer_ids)
        decode, cutoff = manifest.codec.decode, manifest.cutoff
        return [
            None if row is None else {"customer_id": id_, "cutoff": cutoff, **decode(row)}
            for id_, row in zip(customer_ids, rows, strict=True)
        ]

    def _read(self, customer_ids: Sequence[str]) -> tuple[OnlineVersion | None, list[bytes | None]]:
        namespace = self._namespace
        for _ in range(READ_ATTEMPTS):
            known = self._known
            pipeline = namespace.client.pipeline(transaction=False)
            if known:
                for customer_id in customer_ids:
                    key = namespace.key(known.version, known.bucket(customer_id))
                    pipeline.hget(key, customer_id)
            pipeline.hget(namespace.pointer, "current")
            *rows, live = pipeline.execute()
            if None in rows:  # only a pointer that is read afterwards tells absent from deleted
                live = namespace.client.hget(namespace.pointer, "current")
            if live is None:
                return None, []
            if known and known.version.encode() == live:
                return known, rows
            self._known = OnlineVersion.read(namespace, version_name(live))
        raise OnlineStoreError(
            f"No version was live throughout a read, in {READ_ATTEMPTS} attempts: something "
            "publishes without pause, or the manifest of the current version in "
            f"{namespace.pointer} is gone. In the second case publish that cutoff again."
        )


def read_version(namespace: Namespace, version: str | None = None) -> pa.Table:
    """A retained version (the live one by default) as it was published, sorted by customer_id.

    Columns: customer_id, cutoff, the features. Raises OnlineStoreError if it is not retained.
    """
    import pyarrow as pa

    live: Any = namespace.client.hget(namespace.pointer, "current")
    name = version or version_name(live)
    manifest = OnlineVersion.read(namespace, name)
    ids: list[str] = []
    rows: list[bytes] = []
    for buckets in _round_trips(manifest.buckets if manifest else 0):
        pipeline = namespace.client.pipeline(transaction=False)
        for bucket in buckets:
            pipeline.hgetall(namespace.key(name, bucket))
        for found in pipeline.execute():
            try:
                ids.extend(id_.decode() for id_ in found)
            except ValueError:
                raise not_as_published("The id of a customer") from None
            rows.extend(found.values())
    if manifest is None or len(rows) != manifest.rows:
        raise OnlineStoreError(
            f"Version {name or '(none is live)'} is not retained, ceased to be while it was read, "
            f"or lost rows. The retained ones are current and previous in {namespace.pointer}; "
            "publishing one of them again brings back what it lost."
        )
    keys = {
        "customer_id": pa.array(ids, pa.string()),
        "cutoff": pa.array([manifest.cutoff] * len(ids), pa.date32()),
    }
    features = manifest.codec.decode_table(rows)
    names = [*keys, *features.column_names]
    return pa.table([*keys.values(), *features.columns], names).sort_by("customer_id")
