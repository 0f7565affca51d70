"""Versions that lost keys: by eviction, by hand, or because the server was emptied.

Prevents the simplification of believing that what the pointer names is there: publishing equal
content would do nothing, and a rollback would go to customers who are gone.
"""

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.torture import forked
from churn_assets.online import publishing, server
from churn_assets.online.rows import OnlineStoreError
from churn_assets.online.store import OnlineStore, read_version
from churn_assets.online.versions import Namespace
from churn_assets_tests.online.test_online import (
    CUSTOMERS,
    assert_only_retained_keys,
    at,
    edition_cutoff,
    edition_table,
    live_edition,
    publish_edition,
    publish_until_command,
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("home")
    yield server.redis_url(home)
    server.stop(home)


@pytest.fixture
def namespace(url: str) -> Namespace:
    at(url).client.flushall()
    return at(url)


@pytest.fixture(autouse=True, scope="module")
def many_small_buckets() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publishing, "ROWS_PER_BUCKET", 20)
        patch.setattr(publishing, "ROWS_PER_ROUND_TRIP", 40)
        yield


def lose_a_bucket(namespace: Namespace, version: str) -> None:
    namespace.client.unlink(namespace.key(version, 3))


def lose_a_row(namespace: Namespace, version: str) -> None:
    key = namespace.key(version, 2)
    fields: Any = namespace.client.hkeys(key)
    namespace.client.hdel(key, fields[-1])


def get_a_row_too_many(namespace: Namespace, version: str) -> None:
    namespace.client.hset(namespace.key(version, 2), "nobody", b"x")


def get_another_row(namespace: Namespace, version: str) -> None:
    key = namespace.key(version, 1)
    fields: Any = namespace.client.hkeys(key)
    namespace.client.hset(key, min(fields), b"x")


def lose_the_manifest(namespace: Namespace, version: str) -> None:
    namespace.client.unlink(namespace.key(version, "manifest"))


def lose_everything(namespace: Namespace, version: str) -> None:
    for key in namespace.client.scan_iter(namespace.key(version, "*"), count=1000):
        namespace.client.unlink(key)


LOSSES: list[Callable[[Namespace, str], None]] = [
    lose_a_bucket,
    lose_a_row,
    lose_the_manifest,
    lose_everything,
]
FOREIGN = [get_a_row_too_many, get_another_row]


def served(namespace: Namespace) -> int:
    return live_edition(OnlineStore(namespace).get_many(CUSTOMERS))


@pytest.mark.parametrize("damage", [*LOSSES, *FOREIGN])
def test_publishing_again_repairs_the_live_version(
    namespace: Namespace, damage: Callable[[Namespace, str], None]
) -> None:
    publish_edition(namespace, 2)
    live = publish_edition(namespace, 4)
    damage(namespace, live.version)
    repaired = publish_edition(namespace, 4)
    assert (repaired.published, repaired.version) == (True, live.version)
    assert "are there again" in repaired.reason
    assert publishing.damage_of(namespace, live.version) == ""
    assert served(namespace) == 4
    assert read_version(namespace).sort_by("customer_id").num_rows == len(edition_table(4))
    assert_only_retained_keys(namespace)
    again = publish_edition(namespace, 4)
    assert (again.uploaded, again.reason) == (0, "this content is live already")


@pytest.mark.parametrize("damage", [*LOSSES, *FOREIGN])
def test_a_previous_version_is_repaired_before_it_goes_live(
    namespace: Namespace, damage: Callable[[Namespace, str], None]
) -> None:
    good, bad = publish_edition(namespace, 2), publish_edition(namespace, 3)  # of one cutoff
    damage(namespace, good.version)
    again = publish_edition(namespace, 2)
    assert (again.published, again.version) == (True, good.version)
    assert served(namespace) == 2
    assert namespace.retained() == (good.version, bad.version)
    assert_only_retained_keys(namespace)


@pytest.mark.parametrize("damage", LOSSES)
def test_no_rollback_to_a_version_that_lost_keys(
    namespace: Namespace, damage: Callable[[Namespace, str], None]
) -> None:
    good, bad = publish_edition(namespace, 2), publish_edition(namespace, 4)
    damage(namespace, good.version)
    lost = publishing.damage_of(namespace, good.version)
    assert lost
    with pytest.raises(OnlineStoreError, match=lost) as refused:
        publishing.roll_back(namespace)
    day = edition_cutoff(2)
    assert f"`churn backfill --stage models --from {day} --to {day}`" in str(refused.value)
    assert namespace.retained() == (bad.version, good.version)
    older = publish_edition(namespace, 2)
    assert not older.published
    assert older.version == bad.version
    assert f"{good.version} had lost" in older.reason
    assert served(namespace) == 4
    assert publishing.roll_back(namespace) == good.version
    assert served(namespace) == 2
    assert_only_retained_keys(namespace)


def test_an_emptied_server_is_filled_by_publishing_again(namespace: Namespace) -> None:
    publish_edition(namespace, 4)
    namespace.client.flushall()
    again = publish_edition(namespace, 4)
    assert (again.published, again.uploaded) == (True, len(edition_table(4)))
    assert served(namespace) == 4


def test_a_lost_manifest_is_named_by_what_reads(namespace: Namespace) -> None:
    live = publish_edition(namespace, 2)
    lose_the_manifest(namespace, live.version)
    with pytest.raises(OnlineStoreError, match="publish that cutoff again"):
        OnlineStore(namespace).get("C001")
    with pytest.raises(OnlineStoreError, match="brings back what it lost"):
        read_version(namespace)


def test_a_rollback_that_another_publisher_overtakes_is_refused(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_edition(namespace, 2)
    publish_edition(namespace, 4)
    damage_of = publishing.damage_of

    def overtaken(*arguments: Any) -> str:
        found = damage_of(*arguments)
        publish_edition(namespace, 6)
        return found

    monkeypatch.setattr(publishing, "damage_of", overtaken)
    with pytest.raises(OnlineStoreError, match="went live meanwhile"):
        publishing.roll_back(namespace)
    assert served(namespace) == 6


def test_a_repair_killed_at_any_command_leaves_nothing_worse_and_is_finished_by_the_next(
    namespace: Namespace, url: str
) -> None:
    publish_edition(namespace, 2)
    live = publish_edition(namespace, 4).version
    store = OnlineStore(namespace)
    assert store.live()
    for last in range(100):
        lost = ["manifest", *range(0, 10, 2)]
        namespace.client.unlink(*(namespace.key(live, part) for part in lost))
        child = forked(publish_until_command, url, 4, last)
        child.join()
        found = [row for row in store.get_many(CUSTOMERS) if row]
        assert {row["edition"] for row in found} == {4}
        keys = namespace.client.scan_iter(count=1000)
        assert {namespace.client.ttl(key) for key in keys} == {-1}
        repaired = publish_edition(namespace, 4)
        assert repaired.version == live
        assert served(namespace) == 4
        assert_only_retained_keys(namespace)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
    assert last > 5


def test_what_is_repaired_in_a_version_that_was_deleted_meanwhile_does_not_stay(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = publish_edition(namespace, 2)
    lose_everything(namespace, live.version)
    namespace.client.hset(namespace.pointer, f"upload:{live.version}", "10:1")  # long ago
    write = publishing._Upload.write

    def overtaken(*arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(publishing._Upload, "write", write)
        for edition in (4, 6, 8):
            publish_edition(namespace, edition)
        write(*arguments, **options)

    monkeypatch.setattr(publishing._Upload, "write", overtaken)
    assert not publish_edition(namespace, 2).published
    assert served(namespace) == 8
    keys = list(namespace.client.scan_iter(namespace.key(live.version, "*"), count=1000))
    assert keys
    field = f"deleted:{live.version}"
    assert namespace.client.hexists(namespace.pointer, field)
    namespace.client.hset(namespace.pointer, field, f"{len(keys)}:1")  # its deadline passes
    publish_edition(namespace, 10)
    assert_only_retained_keys(namespace)
    assert not namespace.client.hexists(namespace.pointer, field)


def test_nothing_is_repaired_after_the_deadline(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = publish_edition(namespace, 2, upload_seconds=1)
    lose_everything(namespace, live.version)
    write = publishing._Upload.write

    def late(*arguments: Any, **options: Any) -> None:
        time.sleep(2.1)
        write(*arguments, **options)

    monkeypatch.setattr(publishing._Upload, "write", late)
    with pytest.raises(publishing.NotWhole, match="took longer than 1 s"):
        publish_edition(namespace, 2, upload_seconds=1)
    assert not list(namespace.client.scan_iter(namespace.key(live.version, "*"), count=1000))


def test_a_reader_sees_no_mixture_while_a_version_loses_keys_and_is_repaired(
    namespace: Namespace, url: str
) -> None:
    live = publish_edition(namespace, 4).version
    truth = {row["customer_id"]: row for row in edition_table(4).to_pylist()}
    over, reads = threading.Event(), 0
    wrong: list[Any] = []

    def read_on() -> None:
        nonlocal reads
        store = OnlineStore(at(url))
        store.live()
        while not over.is_set():
            found = store.get_many(CUSTOMERS)
            reads += 1
            wrong.extend(row for row in found if row and row["edition"] != 4)
            wrong.extend(row for row in found if row and row["customer_id"] not in truth)

    reader = threading.Thread(target=read_on)
    reader.start()
    while reads < 200:
        lose_a_row(namespace, live)
        namespace.client.unlink(namespace.key(live, random.randrange(10)))
        publish_edition(namespace, 4)
    over.set()
    reader.join()
    assert wrong == []
    assert served(namespace) == 4


actions = st.one_of(
    st.tuples(st.just("publish"), st.integers(0, 7)),
    st.tuples(st.just("roll back"), st.just(0)),
    st.tuples(st.sampled_from(["harm live", "harm previous"]), st.integers(0, len(LOSSES) - 1)),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(actions, max_size=14))
def test_only_whole_versions_go_live_whatever_was_lost_before(
    url: str, history: list[tuple[str, int]]
) -> None:
    namespace = at(url)
    namespace.client.flushall()
    for action, n in history:
        before = namespace.retained()
        match action:
            case "publish":
                published = publish_edition(namespace, n)
                if published.published:
                    assert served(namespace) == n
                else:
                    assert published.version == before[0]
            case "roll back":
                try:
                    assert publishing.roll_back(namespace) == before[1]
                except OnlineStoreError:
                    assert namespace.retained() == before
            case harm:
                version = before[harm == "harm previous"]
                if version and not publishing.damage_of(namespace, version):
                    LOSSES[n](namespace, version)
        live, previous = namespace.retained()
        if live != before[0]:
            assert publishing.damage_of(namespace, live) == ""
            assert previous == before[0]


def test_a_version_with_another_number_of_buckets_is_another_version(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish_edition(namespace, 2)
    monkeypatch.setattr(publishing, "ROWS_PER_BUCKET", 40)
    lose_a_bucket(namespace, first.version)
    second = publish_edition(namespace, 2)
    assert second.uploaded == second.rows
    assert served(namespace) == 2


def test_wholeness_is_told_in_words(namespace: Namespace) -> None:
    table = pa.table({"customer_id": ["a", "b"], "x": [1, 2]})
    version = publishing.publish(
        namespace, table, edition_cutoff(0), newest=edition_cutoff(0)
    ).version
    assert publishing.damage_of(namespace, version) == ""
    namespace.client.hdel(namespace.key(version, 0), "a")
    assert publishing.damage_of(namespace, version) == "it has 1 of its 2 rows"
    lose_the_manifest(namespace, version)
    assert publishing.damage_of(namespace, version) == "its manifest is gone"
