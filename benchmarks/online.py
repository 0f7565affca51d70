"""The online store beside Feast's, in one run: the same rows, the same server program.

    python -m benchmarks.online [--customers 100000] [--feast .venv-feast/bin/python]

70 features with the types of the online row; a fifth of the values are NULL, and floats have full
precision, the worst case for packed rows. Write is from a Parquet file to rows that can be read
(Feast: `materialize`), read is through each store's Python client to dictionaries, memory is the
growth of the server's `used_memory`. CPU seconds are of the client's process: they tell how far
other work on the machine disturbed the wall clock.

Feast needs another pandas, so it has an environment of its own, in which this module runs again
with `--side feast`; `make bench` installs it.
"""

import argparse
import datetime as dt
import json
import random
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis

CUTOFF = dt.date(2026, 7, 1)
INTEGERS, FLOATS, TEXTS = 28, 33, 9
BATCH = 100
READS = 300

Figures = dict[str, float]
Read = Callable[[list[str]], Any]


def make_rows(customers: int) -> pa.Table:
    random_numbers = np.random.default_rng(7)

    def nulls() -> Any:
        return random_numbers.random(customers) < 0.2

    columns: dict[str, Any] = {"customer_id": [f"C{i:07d}" for i in range(customers)]}
    for i in range(INTEGERS):
        columns[f"count_{i}"] = random_numbers.poisson(1 + 3 * i, customers)
    for i in range(FLOATS):
        columns[f"ratio_{i}"] = pa.array(random_numbers.random(customers) * 10**i, mask=nulls())
    for i in range(TEXTS):
        values = np.array(["none", "basic", "silver", "gold", "United Kingdom"])
        columns[f"text_{i}"] = pa.array(random_numbers.choice(values, customers), mask=nulls())
    midnight = dt.datetime(CUTOFF.year, CUTOFF.month, CUTOFF.day, tzinfo=dt.UTC)
    columns["event_timestamp"] = pa.array([midnight] * customers, pa.timestamp("us", "UTC"))
    return pa.table(columns)


@contextmanager
def empty_server(folder: Path) -> Iterator[int]:
    """The port of a server that saves nothing."""
    from churn_assets.online.server import server_binary

    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    options = ["--port", str(port), "--save", "", "--hash-max-ziplist-value", "4096"]
    command = [server_binary(), *options, "--bind", "127.0.0.1", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            while True:
                with suppress(redis.ConnectionError), redis.Redis(port=port) as client:
                    if client.ping():
                        break
            yield port
        finally:
            process.kill()


def measure(port: int, ids: list[str], write: Callable[[], Read]) -> Figures:
    def used_memory() -> int:
        with redis.Redis(port=port) as client:
            return int(client.info("memory")["used_memory"])

    def milliseconds(size: int) -> float:
        read(random.sample(ids, size))
        seconds = []
        for _ in range(READS):
            wanted = random.sample(ids, size)
            began = time.perf_counter()
            read(wanted)
            seconds.append(time.perf_counter() - began)
        return 1000 * statistics.median(seconds)

    memory, began, cpu = used_memory(), time.perf_counter(), time.process_time()
    read = write()
    return {
        "write, s": time.perf_counter() - began,
        "write, CPU s": time.process_time() - cpu,
        "read one, ms": milliseconds(1),
        f"read {BATCH}, ms": milliseconds(BATCH),
        "memory, MB per 1,000": (used_memory() - memory) / 1000 / len(ids),
    }


def ours(path: Path, port: int, ids: list[str]) -> Figures:
    from churn_assets.online.publishing import publish
    from churn_assets.online.store import OnlineStore
    from churn_assets.online.versions import Namespace

    namespace = Namespace(redis.Redis(port=port), "benchmark")

    def write(cutoff: dt.date = CUTOFF) -> Read:
        publish(
            namespace, pq.read_table(path).drop_columns(["event_timestamp"]), cutoff, newest=cutoff
        )
        return OnlineStore(namespace).get_many

    # Imports are not counted on either side.
    warm = pq.read_table(path).slice(0, BATCH).drop_columns(["event_timestamp"])
    publish(namespace, warm, CUTOFF - dt.timedelta(1), newest=CUTOFF)
    first = measure(port, ids, write)
    second = measure(port, ids, lambda: write(CUTOFF + dt.timedelta(1)))
    key = "memory, MB per 1,000"
    again = {f"{what}, again": second[what] for what in ("write, s", "write, CPU s")}
    return first | again | {"both versions, MB per 1,000": first[key] + second[key]}


def feast(path: Path, port: int, ids: list[str]) -> Figures:
    from feast import (  # type: ignore[import-not-found, unused-ignore]
        Entity,
        FeatureService,
        FeatureStore,
        FeatureView,
        FileSource,
        RepoConfig,
        ValueType,
    )

    entity = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.STRING)
    source = FileSource(path=str(path), timestamp_field="event_timestamp")
    view = FeatureView(name="features", entities=[entity], source=source)
    service = FeatureService(name="all", features=[view])
    store = FeatureStore(
        config=RepoConfig(
            project="benchmark",
            provider="local",
            registry=str(path.parent / "registry.db"),
            offline_store={"type": "file"},
            online_store={"type": "redis", "connection_string": f"127.0.0.1:{port}"},
            entity_key_serialization_version=3,
        )
    )
    store.apply([entity, view, service])  # the types of the features are read from the file

    def read(wanted: list[str]) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = store.get_online_features(
            service, [{"customer_id": id_} for id_ in wanted]
        ).to_dict()
        if len(rows) != 1 + INTEGERS + FLOATS + TEXTS or None in rows["count_0"]:
            raise RuntimeError("Feast did not return every feature of every customer.")
        return rows

    def write() -> Read:
        midnight = dt.datetime(CUTOFF.year, CUTOFF.month, CUTOFF.day, tzinfo=dt.UTC)
        day = dt.timedelta(1)
        store.materialize(midnight - day, midnight + day)
        return read

    return measure(port, ids, write)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--customers", type=int, default=100_000)
    parser.add_argument("--feast", type=Path, default=Path(".venv-feast/bin/python"))
    parser.add_argument("--side", choices=["feast"], help="used by this module itself")
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--port", type=int)
    arguments = parser.parse_args()
    ids = [f"C{i:07d}" for i in range(arguments.customers)]
    if arguments.side:
        print(json.dumps(feast(arguments.rows, arguments.port, ids)))
        return
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "rows.parquet"
        pq.write_table(make_rows(arguments.customers), path)
        with empty_server(path.parent) as port:
            mine = ours(path, port, ids)
        with empty_server(path.parent) as port:
            command = [str(arguments.feast), "-m", "benchmarks.online", "--side", "feast"]
            command += ["--rows", str(path), "--port", str(port)]
            command += ["--customers", str(arguments.customers)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        theirs: Figures = json.loads(output.splitlines()[-1])
    print(f"{arguments.customers:,} customers     churn-assets        Feast   Feast/churn-assets")
    for what, figure in mine.items():
        other = theirs.get(what.removesuffix(", again"))
        beside = f"{other:12.3f} {other / figure:20.1f}" if other else ""
        print(f"{what:28} {figure:10.3f} {beside}")


if __name__ == "__main__":
    main()
