"""Publishers killed at random, late backfills and readers, for half a minute; ten minutes of it are
a benchmark.

Prevents the simplification of testing a protocol one step at a time, and a judge that finds nothing
because it cannot.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.torture import Hashes, Versions, leftovers, torture
from churn_assets.online.server import redis_url, stop
from churn_assets_tests.online.test_online_servers import assert_nothing_wrong


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    yield redis_url(tmp_path)
    stop(tmp_path)


def test_readers_see_whole_versions_and_never_an_older_one(url: str) -> None:
    enough = {"publish whole": 10, "publish resumed": 0, "publish refused": 10, "kills": 10}
    counts = torture(url, Versions, 15, enough)
    assert_nothing_wrong(counts)
    assert counts["publish whole"] > 10
    assert counts["publish resumed"] > 0
    assert counts["publish refused"] > 10
    assert leftovers(url) == set()


def test_the_same_judges_find_what_is_wrong_with_rows_written_in_place(url: str) -> None:
    counts = torture(url, Hashes, 3)
    assert counts["mixed batches"] > 0
    assert counts["steps back in time"] > 0
    assert counts["stale values where NULL"] > 0
