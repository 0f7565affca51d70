"""The online store: every customer's features at the newest published cutoff, in Redis.

Grain and key: one row per `customer_id` of the live version. A version is one table of one cutoff;
it never changes. Its name is the cutoff, a hash of its content and the number of its upload:
`2026-01-01-3f9c0b7a52d1-7`.

| key | type | content |
|---|---|---|
| `churn:pointer` | hash | `current` and `previous` version; `uploads`, a counter; `upload:<version>` for each version that has keys: `<buckets>:<deadline>`, the second from which it may be deleted, negative when it may be at once; `deleted:<version>` likewise until the deadline |
| `churn:<version>:manifest` | string | JSON: cutoff, rows, buckets, schema |
| `churn:<version>:<bucket>` | hash | customer_id → packed row; bucket = crc32(customer_id) mod buckets |

Guarantees, with any number of publishers and readers, and kills at any point:

- A read or a batch sees one version. A reader reads rows of the version that it knows, and the
  pointer; if the pointer names another one, it reads again from that.
- A version is uploaded beside the live one and goes live in one step: a Lua script changes the
  pointer and refuses a cutoff older than the live one. The version before it is retained.
- A killed sync leaves the live version live. Publishing equal content again takes its upload over
  while half its time is left, and sends only the buckets that are missing. Keys are written with
  an expiry, the upload's deadline, that is removed just before the flip. Keys of an upload killed
  in between stay listed in the pointer until the first publisher after the deadline deletes them.
- An upload is whole or not there: each bucket is written once, in one step together with its
  expiry, and the flip refuses an upload that is past its deadline or lacks a row. A sample of its
  rows is read back before.
- Only publishers of equal content share an upload. One that goes on after the others went live and
  were replaced writes keys that are deleted already; nothing is written after the deadline, so
  what was deleted before it is deleted once more after it. So there is no lock.

Every command touches one key, as Redis Cluster wants. The client must return bytes
(`decode_responses=False`), and the server must not evict keys without an expiry. A failover to a
replica may lose what was not replicated yet: a flip, or in a cluster also rows, which the parity
check of the sync finds. An ACL user needs `~churn:*` and, to read, `+ping +hget +get`; to publish
also `+eval +time +hmget +hset +hkeys +hincrby +hdel +hlen +hgetall +exists +set +expireat +persist
+unlink`.

Nothing here knows what a feature means.
"""  # noqa: E501 (a table row is one line)

from __future__ import annotations

import hashlib
import json
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
    import redis

POINTER = "churn:pointer"
# Hashes this small stay packed (listpack) where hash-max-listpack-value admits a row: 10 % less
# memory than a hash table, measured from 50 to 2,000 rows; writing slows down above 500.
ROWS_PER_BUCKET = 100
ROWS_PER_ROUND_TRIP = 10_000  # about 5 MB: enough to hide latency, little to buffer
UPLOAD_SECONDS = 6 * 3600  # 100,000 customers take 1 s; leftovers of a killed sync live this long
READ_ATTEMPTS = 100  # each failed attempt means that a version went live during it

# The scripts see one key, the pointer. A version's first 10 characters are its cutoff; two versions
# have equal content if they differ in their upload number only.
_STATE = """
local pointer, now = KEYS[1], tonumber(redis.call('TIME')[1])
local live = redis.call('HMGET', pointer, 'current', 'previous')
local current, previous = live[1] or '', live[2] or ''

local function older(content) return content:sub(1, 10) < current:sub(1, 10) end
local function holds(version, content) return version:sub(1, #content) == content end
local function read(field)
    local buckets, deadline = (redis.call('HGET', pointer, field) or ''):match('^(%d+):(-?%d+)$')
    return buckets, tonumber(deadline or 0)
end
local function give_up(field)
    local buckets, deadline = read(field)
    if buckets then redis.call('HSET', pointer, field, buckets .. ':' .. -math.abs(deadline)) end
end
local function not_retained(kind)
    local fields = {}
    for _, field in ipairs(redis.call('HKEYS', pointer)) do
        local found, version = field:match('^(%a+):(.*)$')
        if found == kind and version ~= current and version ~= previous then
            table.insert(fields, field)
        end
    end
    return fields
end
local function flip(version)
    if previous ~= version then give_up('upload:' .. previous) end
    redis.call('HSET', pointer, 'current', version, 'previous', current)
    return {'live', version}
end
"""

# Arguments: content, buckets, seconds. A retained version goes live again without an upload, and
# an upload that nobody finished is taken over if there is time to finish it.
_STAGE = f"""{_STATE}
local content, buckets, seconds = ARGV[1], ARGV[2], ARGV[3]
if older(content) then return {{'older', current}} end
if holds(current, content) then return {{'identical', current}} end
if holds(previous, content) then return flip(previous) end
for _, field in ipairs(not_retained('upload')) do
    local version, found, deadline = field:sub(8), read(field)
    local left = deadline - now - 1  -- now has no fraction
    if holds(version, content) and found == buckets and left >= seconds / 2 then
        return {{'staged', version, tostring(deadline)}}
    end
end
local version = content .. '-' .. redis.call('HINCRBY', pointer, 'uploads', 1)
redis.call('HSET', pointer, 'upload:' .. version, buckets .. ':' .. (now + seconds))
return {{'staged', version, tostring(now + seconds)}}
"""

# Arguments: version, content, whether the upload is whole. Since it was staged, others may have
# flipped; of those that share the upload, one is enough.
_FLIP = f"""{_STATE}
local version, content, whole = ARGV[1], ARGV[2], ARGV[3] == '1'
if version == current then return {{'live', current}} end
local field = 'upload:' .. version
if older(content) then give_up(field) return {{'older', current}} end
if holds(current, content) then give_up(field) return {{'identical', current}} end
local _, deadline = read(field)
if deadline <= now or not whole then return {{'lost', version}} end
return flip(version)
"""

_ROLL_BACK = f"{_STATE} if previous == '' then return {{'none', current}} end return flip(previous)"
# Who finds an upload past its deadline ends it, so that no clock can make it one in time again.
_DELETABLE = f"""{_STATE}
local found = {{}}
for _, kind in ipairs({{'upload', 'deleted'}}) do
    for _, field in ipairs(not_retained(kind)) do
        local buckets, deadline = read(field)
        if deadline <= now then
            give_up(field)
            table.insert(found, {{field, buckets}})
        end
    end
end
return found
"""

# Argument: a field of which _DELETABLE said so, and whose keys are deleted now.
_FORGET = f"""{_STATE}
local field = ARGV[1]
local buckets, deadline = read(field)
redis.call('HDEL', pointer, field)
if -deadline > now then
    redis.call('HSET', pointer, 'deleted' .. field:match(':.*'), buckets .. ':' .. -deadline)
end
return {{}}
"""

# The key is a bucket. Arguments: deadline, then customer_id and row in turn. A bucket that is there
# may have lost its expiry for good, and must not get one again.
_WRITE = """
if redis.call('EXISTS', KEYS[1]) == 0 then
    redis.call('HSET', KEYS[1], unpack(ARGV, 2))
    redis.call('EXPIREAT', KEYS[1], ARGV[1])
end
"""

_REASONS = {
    "live": "new content went live",
    "identical": "this content is live already",
    "older": "a newer cutoff is live, and an older one never replaces it",
}


@dataclass(frozen=True)
class Manifest:
    """What a reader must know of a version."""

    version: str
    rows: int
    buckets: int
    codec: RowCodec

    @property
    def cutoff(self) -> date:
        return self.codec.cutoff

    def bucket_key(self, customer_id: str) -> str:
        return _key(self.version, _bucket(customer_id, self.buckets))

    def to_json(self) -> str:
        schema, cutoff = self.codec.schema, self.cutoff.isoformat()
        counts = {"rows": self.rows, "buckets": self.buckets}
        return json.dumps({"cutoff": cutoff, **counts, "schema": schema})

    @classmethod
    def read(cls, client: redis.Redis, version: str) -> Manifest | None:
        """None if there is no such version. Raises OnlineStoreError for an unknown format."""
        text = client.get(_key(version, "manifest"))
        if text is None:
            return None
        content = json.loads(text)
        codec = RowCodec.from_schema(content["schema"], date.fromisoformat(content["cutoff"]))
        return cls(version, content["rows"], content["buckets"], codec)


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
    client: redis.Redis, table: pa.Table, cutoff: date, *, upload_seconds: int = UPLOAD_SECONDS
) -> Published:
    """Makes `table` what readers get, unless a newer cutoff is live.

    `table`: customer_id (string, unique, not NULL), cutoff (optional, the same in every row) and
    features of the types in `online_rows.PHYSICAL`. Raises OnlineStoreError for any other table,
    and for an upload that takes longer than `upload_seconds`; then the live version stays live.
    """
    table, bounds = _by_bucket(table, cutoff)
    ids = table["customer_id"]
    codec, rows = RowCodec.encode(table.drop_columns(["customer_id"]), cutoff)
    content = f"{cutoff}-{_digest(codec, ids, rows)}"
    buckets = len(bounds) - 1
    outcome, version, *deadline = _run(client, _STAGE, content, buckets, upload_seconds)
    missing: list[int] = []
    if outcome == "staged":
        manifest = Manifest(version, len(rows), buckets, codec)
        missing = [bucket for bucket, size in enumerate(_sizes(client, manifest)) if not size]
        _upload(client, manifest, ids, rows, bounds, missing, int(*deadline))
        whole = _keep(client, manifest) and _has_sample(client, manifest, ids, rows, bounds)
        outcome, version = _run(client, _FLIP, version, content, int(whole))
    _delete_leftovers(client)
    if outcome == "lost":
        raise OnlineStoreError(
            f"{version} did not go live: its upload took longer than {upload_seconds} s, after "
            "which it may be deleted, or the server evicts keys. Publish again; if that does not "
            "help, look at the server's load and memory."
        )
    uploaded = sum(bounds[bucket + 1] - bounds[bucket] for bucket in missing)
    return Published(version, outcome != "older", len(rows), uploaded, _REASONS[outcome])


def roll_back(client: redis.Redis) -> str:
    """Swaps the live and the retained version and returns the one that is live now.

    A second call undoes the first. Raises OnlineStoreError if no version is retained.
    """
    outcome, version = _run(client, _ROLL_BACK)
    if outcome == "none":
        raise OnlineStoreError(
            f"There is no version to roll back to: {version or 'nothing'} is live, and nothing was "
            "before it. Publish the cutoff that should be live."
        )
    return version


class OnlineStore:
    """Reads rows of the live version as dicts: customer_id, cutoff, then the features.

    One object may serve any number of threads.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._known: Manifest | None = None

    def live(self) -> Manifest | None:
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

    def _read(self, customer_ids: Sequence[str]) -> tuple[Manifest | None, list[bytes | None]]:
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
            self._known = Manifest.read(self._client, live.decode())
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
    manifest = Manifest.read(client, name)
    ids: list[str] = []
    rows: list[bytes] = []
    for buckets in _round_trips(manifest.buckets if manifest else 0):
        pipeline = client.pipeline(transaction=False)
        for bucket in buckets:
            pipeline.hgetall(_key(name, bucket))
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


def _key(version: str, part: int | str) -> str:
    return f"churn:{version}:{part}"


def _bucket(customer_id: str, buckets: int) -> int:
    return zlib.crc32(customer_id.encode()) % buckets


def _round_trips(buckets: int) -> Iterator[range]:
    """The numbers of all buckets, in runs that are worth one round trip."""
    step = ROWS_PER_ROUND_TRIP // ROWS_PER_BUCKET
    return (range(start, min(start + step, buckets)) for start in range(0, buckets, step))


def _run(client: redis.Redis, script: str, *arguments: str | bytes | int) -> list[str]:
    reply: Any = client.eval(script, 1, POINTER, *arguments)
    return [part.decode() for part in reply]


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
    bucket_of = np.array(hashes, np.int64) % buckets  # what `_bucket` gives for each of them
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


def _sizes(client: redis.Redis, manifest: Manifest) -> list[int]:
    """How many rows each bucket has; a written one has all of its rows."""
    pipeline = client.pipeline(transaction=False)
    for bucket in range(manifest.buckets):
        pipeline.hlen(_key(manifest.version, bucket))
    return pipeline.execute()


def _upload(
    client: redis.Redis,
    manifest: Manifest,
    ids: pa.ChunkedArray,
    rows: pa.ChunkedArray,
    bounds: Sequence[int],
    missing: Sequence[int],
    deadline: int,
) -> None:
    """Writes the manifest and the missing buckets, all to expire at the deadline."""
    version = manifest.version
    client.set(_key(version, "manifest"), manifest.to_json(), exat=deadline, nx=True)

    def send(batch: range) -> None:
        pipeline: Any = client.pipeline(transaction=False)
        for bucket in missing[batch.start : batch.stop]:
            start, length = bounds[bucket], bounds[bucket + 1] - bounds[bucket]
            if length:
                items: list[Any] = [None] * (2 * length)
                items[::2] = ids.slice(start, length).to_pylist()
                items[1::2] = rows.slice(start, length).to_pylist()
                # Not eval(): a pipeline of a cluster has none.
                pipeline.execute_command("EVAL", _WRITE, 1, _key(version, bucket), deadline, *items)
        pipeline.execute()

    # One packs while the server works for the other.
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(send, _round_trips(len(missing))))


def _has_sample(
    client: redis.Redis,
    manifest: Manifest,
    ids: pa.ChunkedArray,
    rows: pa.ChunkedArray,
    bounds: Sequence[int],
) -> bool:
    """Reads the first row of each bucket back, before anybody else does, and says whether all are
    there. They may be gone because others went live with this upload and were replaced since.

    Raises OnlineStoreError if one is not what was sent; the live version stays live.
    """
    sent = []
    pipeline = client.pipeline(transaction=False)
    for bucket, (start, end) in enumerate(pairwise(bounds)):
        if start < end:
            pipeline.hget(_key(manifest.version, bucket), ids[start].as_py())
            sent.append(rows[start].as_py())
    found = pipeline.execute()
    if differ := sum(a not in (None, b) for a, b in zip(found, sent, strict=True)):
        raise OnlineStoreError(
            f"{manifest.version} did not go live: {differ} of {len(sent)} rows that were read back "
            "are not what was sent. Something else writes keys of this version; publish again when "
            "that is mended."
        )
    return None not in found


def _keep(client: redis.Redis, manifest: Manifest) -> bool:
    """Removes every expiry of the version, and says whether all of it is there to stay."""
    pipeline = client.pipeline(transaction=False)
    for part in ["manifest", *range(manifest.buckets)]:
        pipeline.persist(_key(manifest.version, part))
    pipeline.execute()
    rows = sum(_sizes(client, manifest))
    return rows == manifest.rows and bool(client.exists(_key(manifest.version, "manifest")))


def _delete_leftovers(client: redis.Redis) -> None:
    """Deletes the versions that are not retained any more and the uploads past their deadline."""
    found: Any = client.eval(_DELETABLE, 1, POINTER)
    for field, buckets in found:
        version = field.decode().split(":")[1]
        pipeline = client.pipeline(transaction=False)
        for part in ["manifest", *range(int(buckets))]:
            pipeline.unlink(_key(version, part))
        pipeline.execute()
        _run(client, _FORGET, field)
