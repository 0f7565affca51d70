"""Erasing customers from the online store: from every version that is retained.

What a killed sync has left of other versions is deleted: nobody may be publishing meanwhile.

A version counts as whole without its erased rows: the number of rows in its manifest is lowered
with each of them. In a cluster, whose scripts see one key, that is two steps; a call that was
killed between them leaves a version that no rollback goes to.
"""

import json
import time
from collections import defaultdict
from collections.abc import Collection
from typing import Any

from churn_assets.online.versions import Namespace, OnlineVersion

KEYS_AT_ONCE = 1_000

# Keys: bucket, manifest. Arguments: the customers.
_ERASE = """
local erased = redis.call('HDEL', KEYS[1], unpack(ARGV))
if erased > 0 then
    local manifest = redis.call('GET', KEYS[2])
    redis.call('SET', KEYS[2], (manifest:gsub('"rows": (%d+)', function(rows)
        return '"rows": ' .. string.format('%d', rows - erased)
    end)))
end
return erased
"""


def erase(namespace: Namespace, customers: Collection[str]) -> int:
    """Delete the rows of customers, and give how many there were in the retained versions."""
    erased, retained = 0, namespace.retained()
    kept = (namespace.pointer, *(namespace.key(version, "") for version in retained if version))
    for key in namespace.client.scan_iter(match=namespace.pattern, count=KEYS_AT_ONCE):
        if not key.decode().startswith(kept):
            namespace.client.unlink(key)
    for name in filter(None, retained):
        version = OnlineVersion.read(namespace, name)
        if version is None:
            continue
        buckets = defaultdict[int, list[str]](list)
        for customer in customers:
            buckets[version.bucket(customer)].append(customer)
        for bucket, of_bucket in buckets.items():
            keys = (namespace.key(name, bucket), namespace.key(name, "manifest"))
            erased += _erase(namespace.client, *keys, of_bucket)
    return erased


def _erase(client: Any, bucket: str, manifest: str, customers: list[str]) -> int:
    import redis

    if not isinstance(client, redis.RedisCluster):
        return int(client.eval(_ERASE, 2, bucket, manifest, *customers))
    erased = int(client.hdel(bucket, *customers))
    if erased:
        content = json.loads(client.get(manifest) or "{}")
        client.set(manifest, json.dumps({**content, "rows": content["rows"] - erased}))
    return erased


def compact(client: Any) -> None:
    """Have a private server write its file anew, without what was deleted, and wait for it."""
    client.bgrewriteaof()
    while True:
        state = client.info("persistence")
        if not (state["aof_rewrite_in_progress"] or state["aof_rewrite_scheduled"]):
            return
        time.sleep(0.01)
