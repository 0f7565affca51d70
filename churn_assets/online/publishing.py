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

# The key is a part of a version. Arguments: deadline, whether the part expires then, and either a
# manifest, or customer_id and row in turn. A part that is there without an expiry must not get one.
_WRITE = """
local key, deadline = KEYS[1], tonumber(ARGV[1])
if tonumber(redis.call('TIME')[1]) >= deadline then return end
local stays = redis.call('EXISTS', key) == 1 and redis.call('PERSIST', key) == 0
redis.call('UNLINK', key)
if #ARGV == 3 then
    redis.call('SET', key, ARGV[3])
elseif #ARGV > 3 then
    redis.call('HSET', key, unpack(ARGV, 3))
end
if ARGV[2] == '1' and not stays then redis.call('EXPIREAT', key, deadline) end
"""


class NotWhole(OnlineStoreError):
    """A version lacks rows, so it did not go live."""


@dataclass(frozen=True)
class Published:
    """`version` is what readers get now, `published` whether that is the content of the table.

    So a repeated publish is True, a refused older cutoff False; `reason` says it in words.
    `uploaded` is how many of the `rows` were sent: none where the store had them all, the rest
    where a killed sync was taken over, what was lost where a retained version was repaired.
    """

    version: str
    published: bool
    rows: int
    uploaded: int
    reason: str


def publish(
    namespace: Namespace,
    table: pa.Table,
    cutoff: date,
    *,
    newest: date,
    upload_seconds: int = UPLOAD_SECONDS,
) -> Published:
    """Makes `table` what readers get, unless a newer cutoff is live.

    Args:
        namespace: Of the installation.
        table: customer_id (string, unique, not NULL), cutoff (optional, the same in every row) and
            features of the types in `rows.PHYSICAL`.
        cutoff: Of all rows.
        newest: The newest cutoff that exists. A live one after it was published while a clock was
            ahead, and any other replaces it.
        upload_seconds: What takes longer does not go live.

    Raises:
        OnlineStoreError: It is another table.
        NotWhole: The upload took too long, or keys were lost. The live version stays live.
    """
    table, bounds = _by_bucket(table, cutoff)
    ids = table["customer_id"]
    codec, rows = RowCodec.encode(table.drop_columns(["customer_id"]), cutoff)
    buckets, uploaded = len(bounds) - 1, 0
    content = f"{cutoff}-{_digest(codec, buckets, ids, rows)}"
    staged, version, *deadline = namespace.run(STAGE, content, buckets, upload_seconds, str(newest))
    outcome, live = staged, version
    if staged != "older":
        upload = _Upload(
            namespace, OnlineVersion(version, len(rows), buckets, codec), ids, rows, bounds
        )
        missing = upload.missing()
        upload.write(missing, int(*deadline), expires=staged == "staged")
        upload.keep()
        whole = not upload.missing()
        outcome, live = namespace.run(FLIP, version, content, int(whole), str(newest))
        uploaded = sum(map(upload.rows_in, missing))
    _delete_leftovers(namespace)
    if outcome == "lost":
        raise NotWhole(
            f"{version} does not go live: it lacks rows, or has others than were sent. Its upload "
            f"took longer than {upload_seconds} s, after which it may be deleted, or the server "
            "evicts keys, or something else writes them. Look at the server's load and memory, "
            "and publish again."
        )
    reason = REASONS[outcome]
    if staged == "retained" and missing:
        reason += f"; {version} had lost {uploaded:,} rows, which are there again"
    return Published(live, outcome != "older", len(rows), uploaded, reason)


def roll_back(namespace: Namespace) -> str:
    """Swaps the live and the retained version and returns the one that is live now.

    A second call undoes the first. Raises OnlineStoreError if no version is retained, or if it has
    lost keys; then the live version stays live.
    """
    live, previous = namespace.retained()
    if not previous:
        raise OnlineStoreError(
            f"There is no version to roll back to: {live or 'nothing'} is live, and nothing was "
            "before it. Publish the cutoff that should be live."
        )
    if damage := damage_of(namespace, previous):
        cutoff = previous[:10]
        raise OnlineStoreError(
            f"{previous} cannot go live again: {damage}. {live} stays live. Publish that cutoff "
            f"again with `churn backfill --stage models --from {cutoff} --to {cutoff}`, which "
            "brings back what is missing if the rows are still the same, and roll back then."
        )
    outcome, version = namespace.run(ROLL_BACK, previous)
    if outcome == "replaced":
        raise OnlineStoreError(
            f"Another version than {live} went live meanwhile, and {version} is the one before it. "
            "Roll back again if that is still wanted."
        )
    return version


def damage_of(namespace: Namespace, version: str) -> str:
    """What a retained version has lost, in words; empty where it is whole."""
    manifest = OnlineVersion.read(namespace, version)
    if manifest is None:
        return "its manifest is gone"
    found = 0
    for buckets in _round_trips(manifest.buckets):
        pipeline = namespace.client.pipeline(transaction=False)
        for bucket in buckets:
            pipeline.hlen(namespace.key(version, bucket))
        found += sum(pipeline.execute())
    return "" if found == manifest.rows else f"it has {found:,} of its {manifest.rows:,} rows"


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


def _digest(codec: RowCodec, buckets: int, ids: pa.ChunkedArray, rows: pa.ChunkedArray) -> str:
    import pyarrow as pa

    digest = hashlib.sha256(codec.header + buckets.to_bytes(8, "little"))
    for array in (ids.cast(pa.large_binary()).combine_chunks(), *rows.chunks):
        _, ends, data = array.buffers()
        digest.update(ends or b"")
        digest.update(data or b"")
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class _Upload:
    """The keys of a version, and what they should hold.

    Args:
        namespace: Where.
        version: What its manifest says.
        ids: Customers, by bucket.
        rows: The packed row of each.
        bounds: Where each bucket starts in them, and the last one ends.
    """

    namespace: Namespace
    version: OnlineVersion
    ids: pa.ChunkedArray
    rows: pa.ChunkedArray
    bounds: Sequence[int]

    @property
    def parts(self) -> list[str | int]:
        return ["manifest", *range(self.version.buckets)]

    def rows_in(self, part: str | int) -> int:
        return 0 if isinstance(part, str) else self.bounds[part + 1] - self.bounds[part]

    def missing(self) -> list[str | int]:
        """The parts that are not as they should be: by the number of rows and the first of them."""
        expected: list[Any] = []
        found: list[Any] = []
        for buckets in _round_trips(self.version.buckets):
            pipeline = self.namespace.client.pipeline(transaction=False)
            for bucket in buckets:
                size, start = self.rows_in(bucket), self.bounds[bucket]
                first = self.ids[start].as_py() if size else ""
                pipeline.hlen(self._key(bucket))
                pipeline.hget(self._key(bucket), first)
                expected.append((size, self.rows[start].as_py() if size else None))
            answers = iter(pipeline.execute())
            found += zip(answers, answers, strict=True)
        manifest: Any = self.namespace.client.get(self._key("manifest"))
        found.insert(0, manifest and manifest.decode())
        expected.insert(0, self.version.to_json())
        return [part for part, a, b in zip(self.parts, found, expected, strict=True) if a != b]

    def write(self, parts: Sequence[str | int], deadline: int, *, expires: bool) -> None:
        """Writes parts, each in one step, until the deadline; at it they expire or are to stay."""

        def send(batch: range) -> None:
            pipeline: Any = self.namespace.client.pipeline(transaction=False)
            for part in parts[batch.start : batch.stop]:
                # Not eval(): a pipeline of a cluster has none.
                pipeline.execute_command(
                    "EVAL", _WRITE, 1, self._key(part), deadline, int(expires), *self._content(part)
                )
            pipeline.execute()

        # One packs while the server works for the other.
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(send, _round_trips(len(parts))))

    def keep(self) -> None:
        """Removes every expiry of the version."""
        for buckets in _round_trips(len(self.parts)):
            pipeline = self.namespace.client.pipeline(transaction=False)
            for part in self.parts[buckets.start : buckets.stop]:
                pipeline.persist(self._key(part))
            pipeline.execute()

    def _key(self, part: str | int) -> str:
        return self.namespace.key(self.version.version, part)

    def _content(self, part: str | int) -> list[Any]:
        """A manifest, or customer_id and row in turn."""
        if isinstance(part, str):
            return [self.version.to_json()]
        start, size = self.bounds[part], self.rows_in(part)
        items: list[Any] = [None] * (2 * size)
        items[::2] = self.ids.slice(start, size).to_pylist()
        items[1::2] = self.rows.slice(start, size).to_pylist()
        return items


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
