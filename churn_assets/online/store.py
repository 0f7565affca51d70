"""The online store, as readers see it: every customer's features at the newest published cutoff.

Grain and key: one row per `customer_id` of the live version. A read or a batch sees one version: a
reader reads rows of the version that it knows, and the pointer, and where the pointer names another
one, it reads again from that. How versions change is in `online.versions`, how they are written in
`online.publishing`. Nothing here knows what a feature means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from churn_assets.online.rows import OnlineStoreError

if TYPE_CHECKING:
    import pyarrow as pa
    import redis
from churn_assets.online.publishing import _round_trips
from churn_assets.online.versions import POINTER, OnlineVersion, key_of

READ_ATTEMPTS = 100  # each failed attempt means that a version went live during it


class OnlineStore:
    """Reads rows of the live version as dicts: customer_id, cutoff, then the features.

    One object may serve any number of threads.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
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
        for _ in range(READ_ATTEMPTS):
            known = self._known
            pipeline = self._client.pipeline(transaction=False)
            if known:
                for customer_id in customer_ids:
                    pipeline.hget(known.bucket_key(customer_id), customer_id)
            pipeline.hget(POINTER, "current")
            *rows, live = pipeline.execute()
            if None in rows:  # only a pointer that is read afterwards tells absent from deleted
                live = self._client.hget(POINTER, "current")
            if live is None:
                return None, []
            if known and known.version.encode() == live:
                return known, rows
            self._known = OnlineVersion.read(self._client, live.decode())
        raise OnlineStoreError(
            f"No version was live throughout a read, in {READ_ATTEMPTS} attempts: something "
            "publishes without pause, or the manifest of the current version in churn:pointer was "
            "removed. In the second case delete churn:pointer and publish again."
        )


def read_version(client: redis.Redis, version: str | None = None) -> pa.Table:
    """A retained version (the live one by default) as it was published, sorted by customer_id.

    Columns: customer_id, cutoff, the features. Raises OnlineStoreError if it is not retained.
    """
    import pyarrow as pa

    live: Any = client.hget(POINTER, "current") or b""
    name = version or live.decode()
    manifest = OnlineVersion.read(client, name)
    ids: list[str] = []
    rows: list[bytes] = []
    for buckets in _round_trips(manifest.buckets if manifest else 0):
        pipeline = client.pipeline(transaction=False)
        for bucket in buckets:
            pipeline.hgetall(key_of(name, bucket))
        for found in pipeline.execute():
            ids.extend(id_.decode() for id_ in found)
            rows.extend(found.values())
    if manifest is None or len(rows) != manifest.rows:
        raise OnlineStoreError(
            f"Version {name or '(none is live)'} is not retained, or ceased to be while it was "
            "read. The retained ones are current and previous in churn:pointer."
        )
    keys = {
        "customer_id": pa.array(ids, pa.string()),
        "cutoff": pa.array([manifest.cutoff] * len(ids), pa.date32()),
    }
    features = manifest.codec.decode_table(rows)
    names = [*keys, *features.column_names]
    return pa.table([*keys.values(), *features.columns], names).sort_by("customer_id")
