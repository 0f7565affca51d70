"""Publishing: writes a table as the next version of the online store, and flips to it.

The guarantees are those of `online.versions`. Publishing equal content again takes an upload over
and sends only the buckets that are missing. Which table is published is decided by `online.sync`.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from churn_assets.online.rows import OnlineStoreError, RowCodec

if TYPE_CHECKING:
    import pyarrow as pa
from churn_assets.online.versions import (
    DELETABLE,
    FLIP,
    FORGET,
    REASONS,
    ROLL_BACK,
    STAGE,
    Namespace,
    OnlineVersion,
)

# Hashes this small stay packed (listpack) where hash-max-listpack-value admits a row: 10 % less
# memory than a hash table, measured from 50 to 2,000 rows; writing slows down above 500.
ROWS_PER_BUCKET = 100
ROWS_PER_ROUND_TRIP = 10_000  # about 5 MB: enough to hide latency, little to buffer
UPLOAD_SECONDS = 6 * 3600  # 100,000 customers take 1 s; leftovers of a killed sync live this long

# The key is a bucket. Arguments: deadline, then customer_id and row in turn. A bucket that is there
# may have lost its expiry for good, and must not get one again.
_WRITE = """
if redis.call('EXISTS', KEYS[1]) == 0 then
    redis.call('HSET', KEYS[1], unpack(ARGV, 2))
    redis.call('EXPIREAT', KEYS[1], ARGV[1])
end
"""


class UploadExpired(OnlineStoreError):
    """An upload took longer than it may, so it did not go live."""


@dataclass(frozen=True)
class Published:
    """`version` is what readers get now, `published` whether that is the content of the table.

    So a repeated publish is True, a refused older cutoff False; `reason` says it in words.
    `uploaded` is how many of the `rows` were sent: none where the store had them all, the rest
    where a killed sync was taken over.
    """

    version: str
    published: bool
    rows: int
    uploaded: int
    reason: str


def publish(
    namespace: Namespace, table: pa.Table, cutoff: date, *, upload_seconds: int = UPLOAD_SECONDS
) -> Published:
    """Makes `table` what readers get, unless a newer cutoff is live.

    `table`: customer_id (string, unique, not NULL), cutoff (optional, the same in every row) and
    features of the types in `rows.PHYSICAL`. Raises OnlineStoreError for any other table,
    and for an upload that takes longer than `upload_seconds`; then the live version stays live.
    """
    table, bounds = _by_bucket(table, cutoff)
    ids = table["customer_id"]
    codec, rows = RowCodec.encode(table.drop_columns(["customer_id"]), cutoff)
    content = f"{cutoff}-{_digest(codec, ids, rows)}"
    buckets = len(bounds) - 1
    outcome, version, *deadline = namespace.run(STAGE, content, buckets, upload_seconds)
    missing: list[int] = []
    if outcome == "staged":
        manifest = OnlineVersion(version, len(rows), buckets, codec)
        missing = [bucket for bucket, size in enumerate(_sizes(namespace, manifest)) if not size]
        _upload(namespace, manifest, ids, rows, bounds, missing, int(*deadline))
        whole = _keep(namespace, manifest) and _has_sample(namespace, manifest, ids, rows, bounds)
        outcome, version = namespace.run(FLIP, version, content, int(whole))
    _delete_leftovers(namespace)
    if outcome == "lost":
        raise UploadExpired(
            f"{version} did not go live: its upload took longer than {upload_seconds} s, after "
            "which it may be deleted, or the server evicts keys. Publish again; if that does not "
            "help, look at the server's load and memory."
        )
    uploaded = sum(bounds[bucket + 1] - bounds[bucket] for bucket in missing)
    return Published(version, outcome != "older", len(rows), uploaded, REASONS[outcome])


def roll_back(namespace: Namespace) -> str:
    """Swaps the live and the retained version and returns the one that is live now.

    A second call undoes the first. Raises OnlineStoreError if no version is retained.
    """
    outcome, version = namespace.run(ROLL_BACK)
    if outcome == "none":
        raise OnlineStoreError(
            f"There is no version to roll back to: {version or 'nothing'} is live, and nothing was "
            "before it. Publish the cutoff that should be live."
        )
    return version


def _round_trips(buckets: int) -> Iterator[range]:
    """The numbers of all buckets, in runs that are worth one round trip."""
    step = ROWS_PER_ROUND_TRIP // ROWS_PER_BUCKET
    return (range(start, min(start + step, buckets)) for start in range(0, buckets, step))


def _by_bucket(table: pa.Table, cutoff: date) -> tuple[pa.Table, list[int]]:
    """The table without `cutoff`, sorted by bucket and customer_id, and where each bucket starts
    (and the last one ends).
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if "cutoff" in table.column_names:
        if others := set(pc.unique(table["cutoff"]).to_pylist()) - {cutoff}:
            raise OnlineStoreError(
                f"The table of cutoff {cutoff} also has rows of {sorted(map(str, others))}; "
                "a version has one cutoff. Publish one partition at a time."
            )
        table = table.drop_columns(["cutoff"])
    ids = table["customer_id"]
    if repeated := len(ids) - pc.count_distinct(ids).as_py():  # NULL is not counted as a value
        raise OnlineStoreError(
            f"{repeated} rows have no customer_id or one that another row has; the online row is "
            "looked up by it. Publish one row per customer."
        )
    buckets = max(1, math.ceil(len(ids) / ROWS_PER_BUCKET))
    hashes = [zlib.crc32(id_) for id_ in ids.cast(pa.binary()).to_pylist()]
    bucket_of = np.array(hashes, np.int64) % buckets  # what `bucket_of` gives for each of them
    by_id = pc.sort_indices(ids).to_numpy()
    order = by_id[np.argsort(bucket_of[by_id], kind="stable")]
    bounds = np.searchsorted(bucket_of[order], np.arange(buckets + 1))
    with ThreadPoolExecutor(2) as threads:
        columns = list(threads.map(lambda values: values.take(pa.array(order)), table.columns))
    return pa.table(columns, schema=table.schema), bounds.tolist()


def _digest(codec: RowCodec, ids: pa.ChunkedArray, rows: pa.ChunkedArray) -> str:
    import pyarrow as pa

    digest = hashlib.sha256(codec.header)
    for array in (ids.cast(pa.large_binary()).combine_chunks(), *rows.chunks):
        _, ends, data = array.buffers()
        digest.update(ends or b"")
        digest.update(data or b"")
    return digest.hexdigest()[:12]


def _sizes(namespace: Namespace, manifest: OnlineVersion) -> list[int]:
    """How many rows each bucket has; a written one has all of its rows."""
    pipeline = namespace.client.pipeline(transaction=False)
    for bucket in range(manifest.buckets):
        pipeline.hlen(namespace.key(manifest.version, bucket))
    return pipeline.execute()


def _upload(
    namespace: Namespace,
    manifest: OnlineVersion,
    ids: pa.ChunkedArray,
    rows: pa.ChunkedArray,
    bounds: Sequence[int],
    missing: Sequence[int],
    deadline: int,
) -> None:
    """Writes the manifest and the missing buckets, all to expire at the deadline."""
    version = manifest.version
    namespace.client.set(
        namespace.key(version, "manifest"), manifest.to_json(), exat=deadline, nx=True
    )

    def send(batch: range) -> None:
        pipeline: Any = namespace.client.pipeline(transaction=False)
        for bucket in missing[batch.start : batch.stop]:
            start, length = bounds[bucket], bounds[bucket + 1] - bounds[bucket]
            if length:
                items: list[Any] = [None] * (2 * length)
                items[::2] = ids.slice(start, length).to_pylist()
                items[1::2] = rows.slice(start, length).to_pylist()
                # Not eval(): a pipeline of a cluster has none.
                pipeline.execute_command(
                    "EVAL", _WRITE, 1, namespace.key(version, bucket), deadline, *items
                )
        pipeline.execute()

    # One packs while the server works for the other.
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(send, _round_trips(len(missing))))


def _has_sample(
    namespace: Namespace,
    manifest: OnlineVersion,
    ids: pa.ChunkedArray,
    rows: pa.ChunkedArray,
    bounds: Sequence[int],
) -> bool:
    """Reads the first row of each bucket back, before anybody else does, and says whether all are
    there. They may be gone because others went live with this upload and were replaced since.

    Raises OnlineStoreError if one is not what was sent; the live version stays live.
    """
    sent = []
    pipeline = namespace.client.pipeline(transaction=False)
    for bucket, (start, end) in enumerate(pairwise(bounds)):
        if start < end:
            pipeline.hget(namespace.key(manifest.version, bucket), ids[start].as_py())
            sent.append(rows[start].as_py())
    found = pipeline.execute()
    if differ := sum(a not in (None, b) for a, b in zip(found, sent, strict=True)):
        raise OnlineStoreError(
            f"{manifest.version} did not go live: {differ} of {len(sent)} rows that were read back "
            "are not what was sent. Something else writes keys of this version; publish again when "
            "that is mended."
        )
    return None not in found


def _keep(namespace: Namespace, manifest: OnlineVersion) -> bool:
    """Removes every expiry of the version, and says whether all of it is there to stay."""
    pipeline = namespace.client.pipeline(transaction=False)
    for part in ["manifest", *range(manifest.buckets)]:
        pipeline.persist(namespace.key(manifest.version, part))
    pipeline.execute()
    rows = sum(_sizes(namespace, manifest))
    return rows == manifest.rows and bool(
        namespace.client.exists(namespace.key(manifest.version, "manifest"))
    )


def _delete_leftovers(namespace: Namespace) -> None:
    """Deletes the versions that are not retained any more and the uploads past their deadline."""
    found = iter(namespace.run(DELETABLE))
    for field, buckets in zip(found, found, strict=True):
        version = field.split(":")[1]
        pipeline = namespace.client.pipeline(transaction=False)
        for part in ["manifest", *range(int(buckets))]:
            pipeline.unlink(namespace.key(version, part))
        pipeline.execute()
        namespace.run(FORGET, field)
