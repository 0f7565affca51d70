"""Prevents: an online store that decides where the service writes, or stops it."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from churn_assets.online.rows import OnlineStoreError
from churn_assets.online.store import OnlineStore, read_version
from churn_assets.online.versions import Namespace
from churn_assets.serving.rows import Rows, Unavailable
from churn_assets.stores.identity import identify
from churn_assets_tests.served_shop import Shop, publish_rows

CUSTOMER = "c0"


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def watched(shop: Shop) -> Rows:
    """What a service knows after a look at the online store; it reads a customer, or says why not.

    Whatever it finds, it writes into its own folder only, and goes on.
    """
    home = shop.settings.home
    before = files(home.parent)
    rows = Rows(home, shop.settings.redis_url, identify(shop.settings), "")
    rows.watch()
    try:
        found = rows.read([CUSTOMER, "nobody"])
        assert found.rows[1] is None and found.rows[0] is not None
    except Unavailable as error:
        assert "online store" in str(error)
    rows.close()
    written = files(home.parent) - before
    folder = f"{home.relative_to(home.parent)}/serving"
    assert all(path == folder or path.startswith(f"{folder}/20") for path in written), written
    return rows


VERSION = "2025-06-01-0123456789ab-1"
NAMES = ["../../escaped", "/tmp/escaped", "2025-06-01-../../x-1", "a\nb", "", "x" * 10_000, "\0"]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_version_of_any_name_is_no_path(shop: Shop, name: str):
    """Issue: it made the service write outside of its folder, every second."""
    namespace = shop.online
    namespace.client.flushall()
    publish_rows(shop)
    [live, _] = namespace.retained()
    manifest: Any = namespace.client.get(namespace.key(live, "manifest"))
    table = namespace.client.hgetall(namespace.key(live, 0))
    namespace.client.set(namespace.key(name, "manifest"), manifest)
    namespace.client.hset(namespace.key(name, 0), mapping=table)  # type: ignore[arg-type]
    namespace.client.hset(namespace.pointer, "current", name)
    rows = watched(shop)
    if name:
        assert rows.away == "it is away: OnlineStoreError"
    with pytest.raises(OnlineStoreError) as refused:
        read_version(namespace)
    assert len(name) < 3 or name not in str(refused.value)


TEXTS = st.text(max_size=20) | st.sampled_from(NAMES)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(["rows", "buckets", "cutoff", "schema", "format", "columns"])


def hostile(manifest: dict[str, Any], field: str, value: Any) -> bytes:
    """A manifest with another value in one field."""
    inner = manifest["schema"] if field in ("format", "columns") else manifest
    inner[field] = value
    return json.dumps(manifest).encode()


@pytest.fixture(scope="module")
def published(shop: Shop) -> tuple[Namespace, str, bytes, dict[bytes, bytes]]:
    """The namespace, its live version, its manifest and its first rows."""
    shop.online.client.flushall()
    publish_rows(shop)
    [live, _] = shop.online.retained()
    manifest: Any = shop.online.client.get(shop.online.key(live, "manifest"))
    rows: Any = shop.online.client.hgetall(shop.online.key(live, 0))
    return shop.online, live, manifest, rows


OFTEN = hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@OFTEN
@given(field=FIELDS, value=JSON, garbage=st.none() | st.binary(max_size=30))
@example("buckets", 2**60, None)
@example("columns", [["age", "int32", "9999999s"]], None)
@example("columns", [["age", "string", "q"]], None)
@example("schema", None, b"[" * 100_000)
def test_a_manifest_of_any_content_stops_nobody(
    shop: Shop, published: Any, field: str, value: Any, garbage: bytes | None
):
    namespace, live, manifest, _ = published
    text = hostile(json.loads(manifest), field, value) if garbage is None else garbage
    namespace.client.set(namespace.key(live, "manifest"), text)
    try:
        watched(shop)
    finally:
        namespace.client.set(namespace.key(live, "manifest"), manifest)


@OFTEN
@given(
    at=st.integers(0, 400), piece=st.binary(min_size=1, max_size=12), cut=st.none() | st.integers(0)
)
def test_a_row_of_any_content_stops_nobody(
    shop: Shop, published: Any, at: int, piece: bytes, cut: int | None
):
    namespace, live, _, rows = published
    customer, row = next(iter(rows.items()))
    spoilt = (row[:at] + piece + row[at + len(piece) :])[: cut and cut % len(row)]
    namespace.client.hset(namespace.key(live, 0), customer, spoilt)
    try:
        watched(shop)
        for read in (OnlineStore(namespace).get_many, lambda _: read_version(namespace)):
            with contextlib.suppress(OnlineStoreError):
                read([customer.decode()])
    finally:
        namespace.client.hset(namespace.key(live, 0), customer, row)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("buckets", value) for value in (0, -1, 2**60, "1", 1.5, True, None)),
        *(("rows", value) for value in (-1, "1", None)),
        *(("cutoff", value) for value in ("2025-05-01", "../x", 5)),
        ("columns", [["age", "int32", "9999999s"]]),
        ("columns", [["age", "int31", "i"]]),
        ("columns", [[1, "int32", "i"]]),
        ("columns", [["age", "int32", "i"]] * 2),
        ("columns", [["age", "int32"]]),
    ],
    ids=str,
)
def test_a_manifest_that_nobody_published_is_refused(published: Any, field: str, value: Any):
    namespace, live, manifest, _ = published
    text = hostile(json.loads(manifest), field, value)
    namespace.client.set(namespace.key(live, "manifest"), text)
    try:
        with pytest.raises(OnlineStoreError, match="not as it was published"):
            OnlineStore(namespace).live()
    finally:
        namespace.client.set(namespace.key(live, "manifest"), manifest)


@pytest.mark.parametrize("change", [-200, -1, 1, 200])
def test_a_row_of_another_length_is_refused(published: Any, change: int):
    """Arrow would read beyond the end of what there is."""
    namespace, live, _, rows = published
    customer, row = next(iter(rows.items()))
    spoilt = row[:change] if change < 0 else row + b"x" * change
    namespace.client.hset(namespace.key(live, 0), customer, spoilt)
    try:
        with pytest.raises(OnlineStoreError):
            OnlineStore(namespace).get(customer.decode())
        with pytest.raises(OnlineStoreError):
            read_version(namespace)
    finally:
        namespace.client.hset(namespace.key(live, 0), customer, row)
