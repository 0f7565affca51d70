"""The online store: every customer's features at the newest published cutoff, in Redis.

Grain and key: one row per `customer_id` of the live version. A version is one table of one cutoff;
it never changes. Its name is the cutoff, a hash of its content and the number of its upload:
`2026-01-01-3f9c0b7a52d1-7`.

| key | type | content |
|---|---|---|
| `churn:pointer` | hash | `current` and `previous` version; `uploads`, a counter; `upload:<version>` for each version that may have keys: `<buckets>:<second from which it may be deleted>` |
| `churn:<version>:manifest` | string | JSON: cutoff, rows, buckets, schema |
| `churn:<version>:<bucket>` | hash | customer_id → packed row; bucket = crc32(customer_id) mod buckets |

Guarantees, with any number of publishers and readers, and kills at any point:

- A read or a batch sees one version. A reader reads rows of the version that it knows, and the
  pointer; if the pointer names another one, it reads again from that.
- A version is uploaded beside the live one and goes live in one step: a Lua script changes the
  pointer and refuses a cutoff older than the live one. The version before it is retained.
- A killed sync leaves the live version live; a re-run starts a new upload. Keys are written with an
  expiry that is removed just before the flip. Keys of an upload killed in between stay listed in
  the pointer until the first publisher after their deadline deletes them. The flip refuses an
  upload past its deadline, so nothing that may have been deleted goes live.
- No two uploads share a key, even of equal content: nobody deletes what another one writes. So
  there is no lock.

Every command touches one key, as Redis Cluster wants. The client must return bytes
(`decode_responses=False`), and the server must not evict keys without an expiry.

Nothing here knows what a feature means.
"""  # noqa: E501 (a table row is one line)

from __future__ import annotations

import hashlib
import json
import math
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from churn_assets.stores.offline import OfflineStore, Query
from churn_assets.stores.online_rows import OnlineStoreError, RowCodec
from churn_assets.stores.online_server import ServerError, redis_url

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
local function upload(version)
    local entry = redis.call('HGET', pointer, 'upload:' .. version) or ''
    local buckets, deadline = entry:match('^(%d+):(%d+)$')
    return buckets, tonumber(deadline or 0)
end
local function give_up(version)
    local buckets = upload(version)
    if buckets then redis.call('HSET', pointer, 'upload:' .. version, buckets .. ':0') end
end
local function flip(version)
    if previous ~= version then give_up(previous) end
    redis.call('HSET', pointer, 'current', version, 'previous', current)
    return {'live', version}
end
"""
# Arguments: content, buckets, seconds. A retained version goes live again without an upload.
_STAGE = f"""{_STATE}
local content = ARGV[1]
if older(content) then return {{'older', current}} end
if holds(current, content) then return {{'identical', current}} end
if holds(previous, content) then return flip(previous) end
local version = content .. '-' .. redis.call('HINCRBY', pointer, 'uploads', 1)
redis.call('HSET', pointer, 'upload:' .. version, ARGV[2] .. ':' .. (now + ARGV[3]))
return {{'staged', version}}
"""
# Arguments: version, content. Since it was staged, another publisher may have flipped.
_FLIP = f"""{_STATE}
local version, content = ARGV[1], ARGV[2]
if version == current then return {{'live', current}} end  -- a repeated call, its reply was lost
local _, deadline = upload(version)
if deadline <= now then return {{'late', version}} end
if older(content) then give_up(version) return {{'older', current}} end
if holds(current, content) then give_up(version) return {{'identical', current}} end
return flip(version)
"""
_ROLL_BACK = f"{_STATE} if previous == '' then return {{'none', current}} end return flip(previous)"
_DELETABLE = f"""{_STATE}
local found = {{}}
for _, field in ipairs(redis.call('HKEYS', pointer)) do
    local version = field:match('^upload:(.*)$')
    if version and version ~= current and version ~= previous then
        local buckets, deadline = upload(version)
        if deadline <= now then table.insert(found, {{version, buckets}}) end
    end
end
return found
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
    """

    version: str
    published: bool
    rows: int
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
    codec, rows = RowCodec.encode(table.drop_columns(["customer_id"]), cutoff)
    content = f"{cutoff}-{_digest(codec, table['customer_id'], rows)}"
    buckets = len(bounds) - 1
    outcome, version = _run(client, _STAGE, content, buckets, upload_seconds)
    if outcome == "staged":
        manifest = Manifest(version, len(rows), buckets, codec)
        _upload(client, manifest, table["customer_id"], rows, bounds, upload_seconds)
        outcome, version = _run(client, _FLIP, version, content)
    _delete_leftovers(client)
    if outcome == "late":
        raise OnlineStoreError(
            f"{version} did not go live: its upload took longer than {upload_seconds} s, after "
            "which it may be deleted. Publish again; if it stays slow, look at the server's load."
        )
    return Published(version, outcome != "older", len(rows), _REASONS[outcome])


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


def _run(client: redis.Redis, script: str, *arguments: str | int) -> tuple[str, str]:
    outcome, version = client.eval(script, 1, POINTER, *arguments)
    return outcome.decode(), version.decode()


def _by_bucket(table: pa.Table, cutoff: date) -> tuple[pa.Table, list[int]]:
    """The table without `cutoff`, sorted by bucket and customer_id, and where each bucket starts
    (and the last one ends).
    """
    import numpy as np
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
    bucket_of = np.array([_bucket(id_, buckets) for id_ in ids.to_pylist()], np.int64)
    by_id = pc.sort_indices(ids).to_numpy()
    order = by_id[np.argsort(bucket_of[by_id], kind="stable")]
    bounds = np.searchsorted(bucket_of[order], np.arange(buckets + 1))
    return table.take(order), bounds.tolist()


def _digest(codec: RowCodec, ids: pa.ChunkedArray, rows: pa.LargeBinaryArray) -> str:
    import pyarrow as pa

    digest = hashlib.sha256(codec.header)
    for array in (ids.cast(pa.large_binary()).combine_chunks(), rows):
        _, ends, data = array.buffers()
        digest.update(ends or b"")
        digest.update(data or b"")
    return digest.hexdigest()[:12]


def _upload(
    client: redis.Redis,
    manifest: Manifest,
    ids: pa.ChunkedArray,
    rows: pa.LargeBinaryArray,
    bounds: Sequence[int],
    seconds: int,
) -> None:
    """Writes every key of the version with an expiry; when all are there, removes the expiries."""
    keys = [_key(manifest.version, "manifest")]
    client.set(keys[0], manifest.to_json(), ex=seconds)
    for buckets in _round_trips(manifest.buckets):
        pipeline = client.pipeline(transaction=False)
        for bucket in buckets:
            start, length = bounds[bucket], bounds[bucket + 1] - bounds[bucket]
            if length:
                items: list[Any] = [None] * (2 * length)
                items[::2] = ids.slice(start, length).to_pylist()
                items[1::2] = rows.slice(start, length).to_pylist()
                keys.append(_key(manifest.version, bucket))
                pipeline.hset(keys[-1], items=items)
                pipeline.expire(keys[-1], seconds)
        pipeline.execute()
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.persist(key)
    if not all(pipeline.execute()):
        raise OnlineStoreError(
            f"Keys of {manifest.version} vanished before it was complete: the server evicts keys, "
            "or the upload was slower than their expiry. Give it memory and publish again."
        )


def _delete_leftovers(client: redis.Redis) -> None:
    """Deletes the versions that are not retained any more and the uploads past their deadline."""
    for name, buckets in client.eval(_DELETABLE, 1, POINTER):
        version = name.decode()
        pipeline = client.pipeline(transaction=False)
        for part in ["manifest", *range(int(buckets))]:
            pipeline.unlink(_key(version, part))
        pipeline.execute()
        client.hdel(POINTER, f"upload:{version}")


def connect(home: Path, url: str | None, **options: Any) -> redis.Redis:
    """A client of the server that `url` names, or else of the private server of `home`.

    `options` are those of `redis.Redis`, such as timeouts.

    Raises ServerError where there is none, or where it does not answer.
    """
    import redis

    client = redis.Redis.from_url(redis_url(home, url), **options)
    try:
        client.ping()
    except redis.RedisError as error:
        # Never the URL itself: it may hold a password.
        raise ServerError(
            f"The server that REDIS_URL names cannot be used: {error} Start it, or unset REDIS_URL "
            "to use a private one."
        ) from error
    return client


class OnlineIOManager(dg.IOManager):
    """Publishes the rows of a `Query` as the online version of their cutoff, and reads one back.

    An older cutoff than the live one is refused without an error: `published` is false in the
    metadata of its partition. Of a range, only the newest cutoff is published.
    """

    def __init__(self, store: OfflineStore, url: str | None) -> None:
        self.store = store
        self.url = url

    def handle_output(self, context: dg.OutputContext, obj: Query) -> None:
        began = time.monotonic()
        *older, newest = sorted(context.asset_partition_keys)
        with self.store.connect() as connection:
            table = connection.sql(obj.selects[0]).to_arrow_table()
        published = publish(connect(self.store.home, self.url), table, date.fromisoformat(newest))
        context.log.info(f"{published.version}: {published.rows:,} rows, {published.reason}")
        metadata = {
            "dagster/row_count": published.rows,
            "published": published.published,
            "version": published.version,
            "reason": published.reason,
            "seconds": round(time.monotonic() - began, 4),
        }
        context.step_context.add_asset_metadata(metadata, context.asset_key, newest)
        for key in older:
            superseded = {"published": False, "reason": f"{newest} of the same run is newer"}
            context.step_context.add_asset_metadata(superseded, context.asset_key, key)

    def load_input(self, context: dg.InputContext) -> pa.Table:
        """The live version. Raises OnlineStoreError where it is of another cutoff."""
        table = read_version(connect(self.store.home, self.url))
        live = {str(cutoff) for cutoff in table["cutoff"].unique().to_pylist()}
        if context.has_asset_partitions and live - set(context.asset_partition_keys):
            raise OnlineStoreError(
                f"The live version is of cutoff {', '.join(sorted(live))}, not of "
                f"{', '.join(context.asset_partition_keys)}. Only the live cutoff can be loaded."
            )
        return table
