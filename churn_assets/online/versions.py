"""Versions of the online store: which one is live, and the one step that changes that.

Grain and key: one row per `customer_id` of the live version. A version is one table of one cutoff;
it never changes. Its name is the cutoff, a hash of its content and the number of its upload:
`2026-01-01-3f9c0b7a52d1-7`. Every key begins with the name of the installation, so installations
that share a server never see or touch each other's.

| key | type | content |
|---|---|---|
| `churn:<name>:pointer` | hash | `current` and `previous` version; `uploads`, a counter; `upload:<version>` for each version that has keys: `<buckets>:<deadline>`, the second from which it may be deleted, negative when it may be at once; `deleted:<version>` likewise until the deadline |
| `churn:<name>:<version>:manifest` | string | JSON: cutoff, rows, buckets, schema |
| `churn:<name>:<version>:<bucket>` | hash | customer_id → packed row; bucket = crc32(customer_id) mod buckets |

Guarantees, with any number of publishers and readers, and kills at any point:

- A read or a batch sees one version. A reader reads rows of the version that it knows, and the
  pointer; if the pointer names another one, it reads again from that.
- A version is uploaded beside the live one and goes live in one step: a Lua script changes the
  pointer and refuses a cutoff older than the live one. The version before it is retained. A live
  cutoff that does not exist yet is of a clock that was ahead, and refuses nothing.
- No version goes live, by a publisher or by a rollback, that was not found whole just before.
- A killed sync leaves the live version live. Publishing equal content again takes its upload over
  while half its time is left, and sends only the parts that are missing. Keys are written with
  an expiry, the upload's deadline, that is removed just before the flip. Keys of an upload killed
  in between stay listed in the pointer until the first publisher after the deadline deletes them.
- An upload is whole or not there: each part is written in one step together with its expiry, and
  the flip refuses an upload that is past its deadline, lacks a row or has another first row in a
  bucket than was sent.
- A retained version that lost keys is repaired when equal content is published: the listed
  deadline is moved into the future, and each part that is missing is written in one step without
  an expiry. Its rows are those that were there before, so a reader never sees a mixture. A newer
  live version stays live.
- Only publishers of equal content write keys of one version. One that goes on after the others went
  live and were replaced writes keys that are deleted already; nothing is written after the listed
  deadline, so what was deleted before it is deleted once more after it. So there is no lock.

Every command touches one key, as Redis Cluster wants. The client must return bytes
(`decode_responses=False`), and the server must not evict keys without an expiry. A failover to a
replica may lose what was not replicated yet: a flip, or in a cluster also rows, which the parity
check of the sync finds. An ACL user needs `~churn:<name>:*` and, to read, `+ping +hget +get`; to
publish also `+eval +time +hmget +hset +hkeys +hincrby +hdel +hlen +hgetall +exists +set +expireat
+persist +unlink`.

Nothing here knows what a feature means.
"""  # noqa: E501 (a table row is one line)

from __future__ import annotations

import json
import re
import zlib
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from churn_assets.online.rows import RowCodec, not_as_published

if TYPE_CHECKING:
    import redis

# The scripts see one key, the pointer. A version's first 10 characters are its cutoff; two versions
# have equal content if they differ in their upload number only.
_STATE = """
local pointer, now = KEYS[1], tonumber(redis.call('TIME')[1])
local live = redis.call('HMGET', pointer, 'current', 'previous')
local current, previous = live[1] or '', live[2] or ''

local function is_before_live(content) return content:sub(1, 10) < current:sub(1, 10) end
local function older(content, newest)
    return is_before_live(content) and current:sub(1, 10) <= newest
end
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
    return {is_before_live(version) and 'ahead' or 'live', version}
end
"""

# Arguments: content, buckets, seconds, newest cutoff. The parts of a retained version are written
# again where they are missing. An upload that nobody finished is taken over if there is time to
# finish it.
STAGE = f"""{_STATE}
local content, buckets, seconds, newest = unpack(ARGV)
local function promise(outcome, version, deadline)
    redis.call('HSET', pointer, 'upload:' .. version, buckets .. ':' .. deadline)
    return {{outcome, version, tostring(deadline)}}
end
for _, version in ipairs({{current, previous}}) do
    if holds(version, content) then
        local _, before = read('upload:' .. version)
        return promise('retained', version, math.max(now + seconds, math.abs(before)))
    end
end
if older(content, newest) then return {{'older', current}} end
for _, field in ipairs(not_retained('upload')) do
    local version, _, deadline = field:sub(8), read(field)
    local left = deadline - now - 1  -- now has no fraction
    if holds(version, content) and left >= seconds / 2 then
        return {{'staged', version, tostring(deadline)}}
    end
end
local version = content .. '-' .. redis.call('HINCRBY', pointer, 'uploads', 1)
return promise('staged', version, now + seconds)
"""

# Arguments: version, content, whether the version is whole, newest cutoff. Since it was staged,
# others may have flipped; of those that share the upload, one is enough.
FLIP = f"""{_STATE}
local version, content, whole, newest = ARGV[1], ARGV[2], ARGV[3] == '1', ARGV[4]
local field, retained = 'upload:' .. version, version == current or version == previous
if retained and not whole then return {{'lost', version}} end
if older(content, newest) or holds(current, content) then
    if not retained then give_up(field) end
    return {{holds(current, content) and 'identical' or 'older', current}}
end
local _, deadline = read(field)
if not retained and (not whole or deadline <= now) then return {{'lost', version}} end
return flip(version)
"""

# Argument: the previous version that was found to be whole.
ROLL_BACK = f"""{_STATE}
if previous ~= ARGV[1] then return {{'replaced', previous}} end
return flip(previous)
"""

# Returns fields and their buckets in turn. The first publisher that finds an upload past its
# deadline gives it up, so a clock that jumps back cannot revive it.
DELETABLE = f"""{_STATE}
local found = {{}}
for _, kind in ipairs({{'upload', 'deleted'}}) do
    for _, field in ipairs(not_retained(kind)) do
        local buckets, deadline = read(field)
        if deadline <= now then
            give_up(field)
            table.insert(found, field)
            table.insert(found, buckets)
        end
    end
end
return found
"""

# Argument: a field of which DELETABLE said so, and whose keys are deleted now.
FORGET = f"""{_STATE}
local field = ARGV[1]
local buckets, deadline = read(field)
redis.call('HDEL', pointer, field)
if -deadline > now then
    redis.call('HSET', pointer, 'deleted' .. field:match(':.*'), buckets .. ':' .. -deadline)
end
return {{}}
"""

REASONS = {
    "live": "new content went live",
    "identical": "this content is live already",
    "older": "a newer cutoff is live, and an older one never replaces it",
    "ahead": "new content went live in place of a later cutoff that does not exist yet: "
    "a clock was ahead, or CHURN_END was later",
}


VERSION = rb"[0-9]{4}-[0-9]{2}-[0-9]{2}-[0-9a-f]{12}-[0-9]{1,15}"

# Far beyond what a table of customers needs; a reader goes through all of them.
MOST_BUCKETS = 2**24

# The pointer of version 0.1.
UNNAMED_POINTER = "churn:pointer"


@dataclass(frozen=True)
class Namespace:
    """What one installation has on a server.

    Args:
        client: Of the server; it must return bytes.
        name: Of the installation, as in its identity.
    """

    client: redis.Redis
    name: str

    @property
    def pointer(self) -> str:
        return f"churn:{self.name}:pointer"

    @property
    def pattern(self) -> str:
        """A glob of Redis for every key."""
        plain = "".join(f"\\{c}" if c in "*?[]\\" else c for c in self.name)
        return f"churn:{plain}:*"

    def retained(self) -> tuple[str, str]:
        """The live version and the one before it; empty where there is none."""
        found: Any = self.client.hmget(self.pointer, ["current", "previous"])
        live, previous = map(version_name, found)
        return live, previous

    def key(self, version: str, part: int | str) -> str:
        """The key of a bucket, or of the manifest, of a version."""
        return f"churn:{self.name}:{version}:{part}"

    def take_over_unnamed(self) -> None:
        """Give what version 0.1 has online, under no name, the name of the installation.

        Only on a private server, where everything belongs to the installation. The pointer goes
        last, so that a call that was killed can be repeated.
        """
        import redis

        if not self.client.exists(UNNAMED_POINTER) or self.client.exists(self.pointer):
            return
        for key in self.client.scan_iter(match="churn:[0-9][0-9][0-9][0-9]-*:*"):
            _, version, part = key.decode().split(":")
            with suppress(redis.ResponseError):  # another process has just renamed it
                self.client.rename(key, self.key(version, part))
        with suppress(redis.ResponseError):
            self.client.rename(UNNAMED_POINTER, self.pointer)

    def run(self, script: str, *arguments: str | int) -> list[str]:
        """What one of the scripts returns for the pointer."""
        reply: Any = self.client.eval(script, 1, self.pointer, *arguments)
        return [part.decode() for part in reply]


def version_name(said: bytes | None) -> str:
    """The name of a version that the server gave; empty where it gave none.

    It becomes part of keys and of the paths of files, so it is never used as it comes.

    Raises:
        OnlineStoreError: It is no name of a version.
    """
    if not said:
        return ""
    if not re.fullmatch(VERSION, said):
        raise not_as_published("The name of a version")
    return said.decode()


@dataclass(frozen=True)
class OnlineVersion:
    """What a reader must know of a version."""

    version: str
    rows: int
    buckets: int
    codec: RowCodec

    @property
    def cutoff(self) -> date:
        return self.codec.cutoff

    def bucket(self, customer_id: str) -> int:
        return zlib.crc32(customer_id.encode()) % self.buckets

    def to_json(self) -> str:
        schema, cutoff = self.codec.schema, self.cutoff.isoformat()
        counts = {"rows": self.rows, "buckets": self.buckets}
        return json.dumps({"cutoff": cutoff, **counts, "schema": schema})

    @classmethod
    def read(cls, namespace: Namespace, version: str) -> OnlineVersion | None:
        """None if there is no such version.

        Raises:
            OnlineStoreError: It has an unknown format, or is not as it was published.
        """
        text: Any = namespace.client.get(namespace.key(version, "manifest"))
        if text is None:
            return None
        try:
            content = json.loads(text)
            rows, buckets = content["rows"], content["buckets"]
            codec = RowCodec.from_schema(content["schema"], date.fromisoformat(content["cutoff"]))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise not_as_published("The manifest of a version") from None
        counts = all(type(count) is int for count in (rows, buckets))
        if (
            not (counts and rows >= 0 and 0 < buckets <= MOST_BUCKETS)
            or content["cutoff"] != version[:10]
        ):
            raise not_as_published("The manifest of a version")
        return cls(version, rows, buckets, codec)
