"""Publishers that are killed, late backfills and readers, all at once: what do the readers see?

    python -m benchmarks.torture [--seconds 600] [--store hashes]

Three publishers are killed at random and started again, two thirds of the time with the next
edition of the customers and one third with an old one, while four readers judge every row and every
batch. An edition is a table whose every value follows from its number, the NULLs and who is in it
too; each cutoff has two editions, a first one and a correction. `--store hashes` does the same to a
plain hash per customer, which shows that the judges can find something.
"""

import argparse
import collections
import datetime as dt
import gc
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import redis

from churn_assets.online import publishing, versions
from churn_assets.online import store as online
from churn_assets.online.server import open_client, redis_url, stop

PUBLISHERS, READERS = 3, 4
FORK = multiprocessing.get_context("fork")  # children cost milliseconds, so many can be killed
FIRST_CUTOFF = dt.date(2000, 1, 1)
CUSTOMERS = [f"C{i:03d}" for i in range(400)]
OLD = 4  # the editions below are what late backfills publish
MOST_SECONDS = 300
UPLOAD_SECONDS = 4  # short, so that leftovers expire during the run
COUNTS = "counts"  # a hash of the same server; a killed process cannot spoil it

Row = dict[str, Any]
COLUMNS = {
    "customer_id": pa.string(),
    "cutoff": pa.date32(),
    "edition": pa.int64(),
    "score": pa.float64(),
    "label": pa.string(),
}


def forked(target: Callable[..., None], *arguments: Any) -> Any:
    """A child process that runs `target`.

    A child collects no garbage of its parent: what belongs to the parent's threads may not be let
    go of in a process that does not have them.
    """
    process = FORK.Process(target=target, args=arguments, daemon=True)
    gc.freeze()
    process.start()
    gc.unfreeze()
    return process


def cutoff_of(edition: int) -> dt.date:
    return FIRST_CUTOFF + dt.timedelta(days=edition // 2)


def row_of(edition: int, i: int) -> Row | None:
    """What customer `i` must look like; None if it is not in the edition."""
    if (i + edition) % 5 == 0:
        return None
    values = {
        "edition": edition,
        "score": None if (i + edition) % 3 == 0 else edition / 3,
        "label": None if (i + edition) % 4 == 0 else f"edition {edition}",
    }
    return {"customer_id": CUSTOMERS[i], "cutoff": cutoff_of(edition), **values}


def rows_of(edition: int) -> list[Row]:
    rows = (row_of(edition, i) for i in range(len(CUSTOMERS)))
    return [row for row in rows if row]


class Store(Protocol):
    """What is tortured."""

    def publish(self, edition: int) -> None: ...
    def read(self, customer_ids: Sequence[str]) -> list[Row | None]: ...


class Versions:
    """The online store."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.namespace = versions.Namespace(client, "torture")
        self.read = online.OnlineStore(self.namespace).get_many
        # Several round trips per upload, so that many kills hit one.
        publishing.ROWS_PER_BUCKET, publishing.ROWS_PER_ROUND_TRIP = 10, 20

    def publish(self, edition: int) -> None:
        table = pa.Table.from_pylist(rows_of(edition), pa.schema(COLUMNS))
        try:
            published = publishing.publish(
                self.namespace,
                table,
                cutoff_of(edition),
                newest=dt.date.max,
                upload_seconds=UPLOAD_SECONDS,
            )
        except publishing.NotWhole:  # a busy machine
            self.client.hincrby(COUNTS, "publish expired")
            return
        what = (
            ("refused" if not published.published else "repeated")
            if not published.uploaded
            else ("whole" if published.uploaded == published.rows else "resumed")
        )
        self.client.hincrby(COUNTS, f"publish {what}")


class Hashes:
    """A hash per customer, written in place: what one would do first."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client

    def publish(self, edition: int) -> None:
        for row in rows_of(edition):
            values: Any = {name: str(value) for name, value in row.items() if value is not None}
            self.client.hset(row["customer_id"], mapping=values)
        self.client.hincrby(COUNTS, "publish")

    def read(self, customer_ids: Sequence[str]) -> list[Row | None]:
        pipeline = self.client.pipeline(transaction=False)
        for customer_id in customer_ids:
            pipeline.hgetall(customer_id)
        return [self._row(found) for found in pipeline.execute()]

    def _row(self, found: dict[bytes, bytes]) -> Row | None:
        if not found:
            return None
        text = {name.decode(): value.decode() for name, value in found.items()}
        return {
            "customer_id": text["customer_id"],
            "cutoff": dt.date.fromisoformat(text["cutoff"]),
            "edition": int(text["edition"]),
            "score": float(text["score"]) if "score" in text else None,
            "label": text.get("label"),
        }


def publish_on(store: Store, live: Callable[[], int]) -> None:
    """Publishes the edition after the live one, and now and then an old one."""
    while True:
        store.publish(random.randrange(OLD) if random.random() < 1 / 3 else live() + 1)


def read_on(store: Store, stop: Any, counts: Any) -> None:
    """Reads batches and single rows, and counts what must never be."""
    seen: collections.Counter[str] = collections.Counter()
    newest = FIRST_CUTOFF
    while not stop.is_set():
        alone = random.random() < 0.5
        size = 1 if alone else random.randrange(2, len(CUSTOMERS))
        wanted = random.sample(range(len(CUSTOMERS)), size)
        found = store.read([CUSTOMERS[i] for i in wanted])
        seen["reads"] += 1
        rows = [row for row in found if row]
        editions = {row["edition"] for row in rows}
        seen["mixed batches"] += len(editions) > 1
        for i, row in zip(wanted, found, strict=True):
            if row is None:  # the others of the batch tell which edition it is
                should = [row_of(edition, i) for edition in editions]
                seen["customers lost"] += len(should) == 1 and should[0] is not None
                continue
            truth = row_of(row["edition"], i) or dict.fromkeys(row, "not in this edition")
            stale = [name for name in row if truth[name] is None and row[name] is not None]
            seen["stale values where NULL"] += len(stale)
            seen["mixed rows"] += any(row[name] != truth[name] for name in row if name not in stale)
        if rows:
            seen["steps back in time"] += min(row["cutoff"] for row in rows) < newest
            newest = max(newest, *(row["cutoff"] for row in rows))
    counts.put(seen)


def torture(
    url: str,
    kind: Callable[[redis.Redis], Store],
    seconds: float,
    enough: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """What the readers saw, and what the publishers did. The server should be empty.

    Args:
        url: The server.
        kind: What is tortured.
        seconds: How long at least.
        enough: Counts of kills and publications to go beyond; a busy machine takes longer.
    """

    def store() -> Store:
        return kind(open_client(url))

    def start(target: Callable[..., None], *arguments: Any) -> Any:
        return forked(lambda: target(store(), *arguments))

    def live() -> int:
        row = next(filter(None, reading.read(CUSTOMERS[:2])))
        return int(row["edition"])

    first, reading, counting = store(), store(), open_client(url)
    while not any(reading.read(CUSTOMERS[:2])):  # on a busy machine an upload may expire
        first.publish(OLD)
    over, counts = FORK.Event(), FORK.Queue()
    readers = [start(read_on, over, counts) for _ in range(READERS)]
    publishers = [start(publish_on, live) for _ in range(PUBLISHERS)]
    total: collections.Counter[str] = collections.Counter()
    began = time.monotonic()

    def goes_on() -> bool:
        passed = time.monotonic() - began
        done: Any = counting.hgetall(COUNTS) if enough else {}
        found = total | {name.decode(): int(count) for name, count in done.items()}
        lacking = any(found.get(name, 0) <= count for name, count in (enough or {}).items())
        return passed < seconds or (lacking and passed < MOST_SECONDS)

    while goes_on():
        time.sleep(random.uniform(0.02, 0.3))
        i = random.randrange(PUBLISHERS)
        if not publishers[i].is_alive():
            total["publishers that failed"] += 1
        publishers[i].kill()
        publishers[i].join()
        total["kills"] += 1
        publishers[i] = start(publish_on, live)
    for publisher in publishers:
        publisher.kill()
        publisher.join()
    over.set()
    for _ in readers:
        total.update(counts.get(timeout=30))
    for reader in readers:
        reader.join()
    with open_client(url) as client:
        done: Any = client.hgetall(COUNTS)
        total.update({name.decode(): int(count) for name, count in done.items()})
    return dict(total)


def leftovers(url: str) -> set[str]:
    """The keys that no retained version has, once every deadline is over and another edition is
    published. A fresh store has none.
    """
    time.sleep(UPLOAD_SECONDS + 1)
    client = open_client(url)
    store = Versions(client)
    store.publish(next(filter(None, store.read(CUSTOMERS[:2])))["edition"] + 1)
    pointer = store.namespace.pointer
    fields: Any = client.hmget(pointer, "current", "previous")
    known = {COUNTS, pointer}
    retained = tuple(store.namespace.key(version.decode(), "") for version in fields)
    keys = {key.decode() for key in client.scan_iter(count=1000)}
    return {key for key in keys - known if not key.startswith(retained)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--store", choices=["versions", "hashes"], default="versions")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        url = redis_url(Path(home))
        try:
            kind: type[Any] = {"versions": Versions, "hashes": Hashes}[arguments.store]
            for what, count in sorted(torture(url, kind, arguments.seconds).items()):
                print(f"{what:26} {count:12,}")
            if arguments.store == "versions":
                print(f"{'keys left over':26} {len(leftovers(url)):12,}")
        finally:
            stop(Path(home))


if __name__ == "__main__":
    main()
