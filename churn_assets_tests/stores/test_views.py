"""The database for people: prevents a copy whose views read the files of the original."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.views import DATABASE, renew_views, write_views
from churn_assets_tests.stores.test_offline import CUTOFFS, numbers, numbers_store, publish


def made(folder: Path, rows: int) -> OfflineStore:
    store = numbers_store(folder)
    publish(store, numbers(rows, CUTOFFS), CUTOFFS)
    return store


def count(connection: duckdb.DuckDBPyConnection, view: str = "numbers") -> int:
    rows = connection.sql(f"SELECT count(*) FROM {view}").fetchall()
    return int(rows[0][0])


def opened(home: Path, **config: str) -> duckdb.DuckDBPyConnection:
    return duckdb.connect(str(home / DATABASE), read_only=True, config=dict(config))


def attached(*homes: Path) -> duckdb.DuckDBPyConnection:
    """A database in memory with those of some folders as `db0`, `db1`, …"""
    connection = duckdb.connect()
    for number, home in enumerate(homes):
        path = str(home / DATABASE).replace("'", "''")
        connection.execute(f"ATTACH '{path}' AS db{number} (READ_ONLY)")
    return connection


@pytest.fixture
def original(tmp_path: Path) -> OfflineStore:
    store = made(tmp_path / "it's 100% a shop", 3)
    write_views(store)
    return store


@pytest.fixture
def copy(original: OfflineStore, tmp_path: Path) -> OfflineStore:
    """A copy in which one more row was made, beside the original."""
    shutil.copytree(original.home, tmp_path / "copy" / "state")
    return made(tmp_path / "copy", 4)


@pytest.fixture(params=["folder", "parent", "elsewhere"])
def directory(
    request: pytest.FixtureRequest, original: OfflineStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    places = {"folder": original.home, "parent": original.home.parent, "elsewhere": Path("/")}
    monkeypatch.chdir(places[request.param])
    yield


@pytest.mark.usefixtures("directory")
def test_where_it_was_made_it_reads_from_any_directory(
    original: OfflineStore, tmp_path: Path
) -> None:
    linked = tmp_path / "linked"
    linked.symlink_to(original.home)
    for home in (original.home, linked):
        assert count(opened(home)) == 6
        assert count(opened(home, temp_directory=str(tmp_path / "spill"))) == 6
        assert count(attached(home), "db0.numbers") == 6


@pytest.mark.usefixtures("directory")
def test_a_copy_reads_its_own_files(original: OfflineStore, copy: OfflineStore) -> None:
    assert count(opened(copy.home)) == 8
    assert count(opened(original.home)) == 6
    shutil.rmtree(original.home)
    assert count(opened(copy.home)) == 8


def test_a_copy_that_cannot_tell_where_it_lies_gives_no_rows(
    original: OfflineStore, copy: OfflineStore, tmp_path: Path
) -> None:
    connections = (
        (opened(copy.home, temp_directory=str(tmp_path / "spill")), "numbers"),
        (attached(copy.home), "db0.numbers"),
        (attached(original.home, copy.home), "db0.numbers"),
        (attached(original.home, copy.home), "db1.numbers"),
    )
    for connection, view in connections:
        for query in (f"SELECT count(*) FROM {view}", f"FROM {view}", f"FROM {view} LIMIT 1"):
            with pytest.raises(duckdb.InvalidInputException, match="churn sql") as error:
                connection.sql(query).fetchall()
            assert str(copy.home / DATABASE) in str(error.value)


def test_after_it_is_written_anew_both_can_be_attached(
    original: OfflineStore, copy: OfflineStore
) -> None:
    renew_views(copy)
    both = attached(original.home, copy.home)
    assert (count(both, "db0.numbers"), count(both, "db1.numbers")) == (6, 8)


def test_two_installations_are_compared_without_mixing_them(
    original: OfflineStore, tmp_path: Path
) -> None:
    other = made(tmp_path / "other", 5)
    write_views(other)
    both = attached(original.home, other.home)
    assert (count(both, "db0.numbers"), count(both, "db1.numbers")) == (6, 10)
    connection = opened(original.home)
    connection.execute(f"ATTACH '{other.home / DATABASE}' AS other (READ_ONLY)")
    assert count(connection) == 6
    with pytest.raises(duckdb.InvalidInputException, match="in memory"):
        count(connection, "other.numbers")


def test_it_is_written_anew_only_where_it_is_of_another_place(copy: OfflineStore) -> None:
    path = copy.home / DATABASE
    renew_views(copy)
    written = path.stat().st_ino
    renew_views(copy)
    assert path.stat().st_ino == written
    path.write_bytes(b"no database")
    renew_views(copy)
    assert count(opened(copy.home)) == 8
    path.unlink()
    renew_views(copy)
    assert not path.exists()
