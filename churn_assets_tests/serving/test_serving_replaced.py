"""A service whose state folder is deleted, made anew or replaced while it runs.

Prevents the simplification of opening everything once: files and connections that were opened in
the old folder go on working, so the service would answer from it, and record in it, for ever.
"""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from churn_assets.features import feature_columns
from churn_assets.online.publishing import publish
from churn_assets.online.server import stop
from churn_assets.serving import app as serving
from churn_assets.serving.audit import audit_query
from churn_assets.serving.rows import Rows
from churn_assets.settings import Settings
from churn_assets.stores.identity import identify
from churn_assets_tests.conftest import GROUPS, make_settings, online, query
from churn_assets_tests.served_shop import CUTOFF, Client, eventually, running

NUMBER = "lifetime_orders"


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "WATCH_SECONDS", 0.05)
        yield


def publish_number(settings: Settings, number: int) -> None:
    """One customer, whose only number says which folder it is from."""
    types = {"VARCHAR": pa.string(), "DOUBLE": pa.float64(), "INTEGER": pa.int32()}
    columns: dict[str, Any] = {
        c.name: pa.array([None], types.get(c.dtype, pa.int64())) for c in feature_columns(GROUPS)
    }
    columns[NUMBER] = columns[NUMBER].fill_null(number)
    prediction = {"churn_probability": [0.5], "prediction": ["RETAIN"], "model_version": ["v"]}
    table = pa.table({"customer_id": ["ann"], **columns, **prediction})
    publish(online(settings), table, CUTOFF, newest=CUTOFF)


def served(client: Client) -> tuple[int, Any]:
    """The status, and where the answer is from."""
    status, answer = client.get("/features/ann")
    return status, (answer["features"][NUMBER], answer["source"]) if status == 200 else None


def audited(home: Path) -> int:
    return len(query(audit_query(home)))


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """An installation with a private server; whatever serves it is ended in the end."""
    settings = make_settings(tmp_path, installation="shop")
    publish_number(settings, 1)
    pid = int((settings.home / "online_store" / "server.pid").read_text())
    yield settings
    stop(settings.home)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)  # no path leads to it where its files are gone


def test_a_home_that_is_deleted_and_made_anew(settings: Settings) -> None:
    with running(settings) as client:
        eventually(lambda: served(client) == (200, (1, "redis")))
        shutil.rmtree(settings.home)
        eventually(lambda: served(client)[0] == 503)
        for _ in range(20):
            assert served(client)[0] == 503
        assert not settings.home.exists()
        assert client.get("/ready")[0] == 503
        publish_number(settings, 2)
        eventually(lambda: served(client) == (200, (2, "redis")))
        before = audited(settings.home)
        served(client)
        assert audited(settings.home) == before + 1
        eventually(lambda: list((settings.home / "serving").glob("*.arrow")))
        stop(settings.home)
        status, answer = client.get("/features/ann")
        assert (status, answer["features"][NUMBER]) == (200, 2)


def by_renaming(home: Path, other: Path) -> None:
    home.rename(home.with_name("old"))
    other.rename(home)


def by_a_link(home: Path, other: Path) -> None:
    link = home.with_name("link")
    link.symlink_to(other)
    link.replace(home)


@pytest.mark.parametrize("replace", [by_renaming, by_a_link])
@pytest.mark.parametrize("name", ["shop", "another"])
def test_a_home_that_is_replaced(
    settings: Settings, tmp_path: Path, replace: Callable[[Path, Path], None], name: str
) -> None:
    other = make_settings(tmp_path, home=tmp_path / "other", installation=name)
    publish_number(other, 2)
    stop(other.home)
    if replace is by_a_link:
        stop(settings.home)
        settings.home.rename(tmp_path / "first")
        settings.home.symlink_to(tmp_path / "first")
    with running(settings, installation="") as client:
        eventually(lambda: served(client) == (200, (1, "redis")))
        old = audited(settings.home)
        replace(settings.home, other.home)
        eventually(lambda: served(client) == (200, (2, "redis")))
        for _ in range(5):
            assert served(client) == (200, (2, "redis"))
        assert audited(settings.home) >= 5
        moved = tmp_path / ("old" if replace is by_renaming else "first")
        assert old <= audited(moved)
        last = audited(moved)
        served(client)
        assert audited(moved) == last
    if replace is by_a_link:
        stop(tmp_path / "first")


def test_a_home_that_is_replaced_by_that_of_other_settings_is_not_served(
    settings: Settings, tmp_path: Path
) -> None:
    other = make_settings(tmp_path, home=tmp_path / "other", seed=8)
    publish_number(other, 2)
    stop(other.home)
    with running(settings) as client:
        eventually(lambda: served(client) == (200, (1, "redis")))
        by_renaming(settings.home, other.home)
        eventually(lambda: served(client)[0] == 503)
        status, ready = client.get("/ready")
        assert status == 503
        assert "cannot be used" in ready["checks"]["online store"]
        assert str(settings.home) not in str(ready)
        shutil.rmtree(settings.home)
        (tmp_path / "old").rename(settings.home)
        eventually(lambda: served(client) == (200, (1, "redis")))


def test_deleting_the_folder_of_the_service_costs_the_past_only(settings: Settings) -> None:
    with running(settings) as client:
        eventually(lambda: served(client) == (200, (1, "redis")))
        assert audited(settings.home) > 0
        for _ in range(3):
            shutil.rmtree(settings.home / "serving")
            for asked in range(1, 4):
                assert served(client)[0] == 200
                assert audited(settings.home) == asked
            eventually(lambda: list((settings.home / "serving").glob("*.arrow")))
        assert (settings.home / "serving").stat().st_mode & 0o777 == 0o700


def test_deleting_the_private_server_s_folder_leads_to_the_new_server(settings: Settings) -> None:
    with running(settings) as client:
        eventually(lambda: served(client) == (200, (1, "redis")))
        shutil.rmtree(settings.home / "online_store")
        eventually(lambda: served(client) == (200, (1, "snapshot")))
        publish_number(settings, 2)
        eventually(lambda: served(client) == (200, (2, "redis")))


def test_a_connection_to_a_server_whose_files_were_deleted_is_given_up(settings: Settings) -> None:
    """Even where no request needs a new connection, which would fail."""
    rows = Rows(settings.home, None, identify(settings), "")
    rows.watch()
    assert rows.read(["ann"]).source == "redis"
    shutil.rmtree(settings.home / "online_store")
    rows.watch()
    assert rows.read(["ann"]).source == "snapshot"
    rows.close()


def test_a_service_that_starts_before_its_home_serves_it_once_it_is_there(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    try:
        with running(settings) as client:
            assert served(client)[0] == 503
            publish_number(settings, 1)
            eventually(lambda: served(client) == (200, (1, "redis")))
    finally:
        stop(settings.home)
