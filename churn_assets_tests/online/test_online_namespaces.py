"""Several installations on one server, and a state folder that may be a copy.

Prevents the simplification that a server has one user: keys that two installations share would make
each publish, roll back and delete what the other serves.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from churn_assets.online import publishing, server
from churn_assets.online.io_manager import open_to_publish, open_to_read
from churn_assets.online.rows import OnlineStoreError
from churn_assets.online.store import read_version
from churn_assets.online.versions import Namespace
from churn_assets.settings import Settings
from churn_assets.stores.identity import AnotherInstallation, adopt, identify
from churn_assets_tests.conftest import make_settings
from churn_assets_tests.online.test_online import CUTOFF, at, publish_edition, stopped

# One name begins like another.
NAMES = ("shop", "shop-2", "s")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("home")
    yield server.redis_url(home)
    server.stop(home)


def act(namespace: Namespace, action: str, edition: int) -> str:
    """One step of an installation, and what it said."""
    if action == "publish":
        return publish_edition(namespace, edition).reason
    if action == "roll back":
        try:
            return publishing.roll_back(namespace)
        except OnlineStoreError as error:
            return str(error)
    with pytest.MonkeyPatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(publishing._Upload, "keep", stopped)
        # Above what the others publish, so that it is staged.
        publish_edition(namespace, edition + 100)
    for field in stored(namespace.client, namespace.pointer):
        if field.startswith(b"upload:"):
            namespace.client.hset(namespace.pointer, field.decode(), "2:1")  # its time is over
    return "expired"


def stored(client: redis.Redis, key: str) -> Any:
    kind = client.type(key)
    return client.hgetall(key) if kind == b"hash" else client.get(key)


def contents(namespace: Namespace) -> dict[str, Any]:
    """Everything that an installation has, without its name and the seconds of its deadlines."""
    found = {}
    for key in namespace.client.scan_iter(f"churn:{namespace.name}:*", count=1000):
        name = key.decode().removeprefix(f"churn:{namespace.name}:")
        content = stored(namespace.client, key.decode())
        if name == "pointer":
            content = {
                field: value.split(b":")[0] if b":" in field else value
                for field, value in content.items()
            }
        found[name] = content
    return found


steps = st.tuples(
    st.sampled_from(NAMES),
    st.sampled_from(["publish", "publish", "roll back", "expire"]),
    st.integers(0, 7),
)


@settings(deadline=None, max_examples=40)
@given(st.lists(steps, max_size=12))
def test_installations_on_one_server_do_not_notice_each_other(
    url: str, history: list[tuple[str, str, int]]
) -> None:
    redis.Redis.from_url(url).flushall()
    together = [(name, act(at(url, name), action, n)) for name, action, n in history]
    found = {name: contents(at(url, name)) for name in NAMES}
    keys = {key.decode() for key in at(url).client.scan_iter(count=1000)}
    assert keys == {f"churn:{name}:{key}" for name in NAMES for key in found[name]}
    for name in NAMES:
        redis.Redis.from_url(url).flushall()
        alone = [(name, act(at(url, name), action, n)) for by, action, n in history if by == name]
        assert alone == [step for step in together if step[0] == name]
        assert contents(at(url, name)) == found[name]


# --------------------------------------------------------------------------- copies

TABLE = pa.table({"customer_id": ["a"], "x": [1]})


@pytest.fixture
def moved(url: str, tmp_path: Path) -> Settings:
    """An installation that published to an external server, and whose folder was moved then."""
    redis.Redis.from_url(url).flushall()
    made = make_settings(tmp_path, redis_url=url)
    publishing.publish(
        open_to_publish(made.home, url, identify(made)), TABLE, CUTOFF, newest=CUTOFF
    )
    home = tmp_path / "elsewhere"
    made.home.rename(home)
    return made.model_copy(update={"home": home})


def test_a_moved_home_reads_from_an_external_server_but_does_not_publish(moved: Settings) -> None:
    home, url = moved.home, moved.redis_url
    before = contents(open_to_read(home, url, identify(moved)))
    assert read_version(open_to_read(home, url, identify(moved)))["x"].to_pylist() == [1]
    with pytest.raises(AnotherInstallation, match="churn adopt --moved"):
        open_to_publish(home, url, identify(moved))
    assert contents(open_to_read(home, url, identify(moved))) == before
    adopt(moved, copied=False)
    assert open_to_publish(home, url, identify(moved)).name == identify(moved).name
    original = identify(moved).name
    adopt(moved, copied=True)
    assert open_to_publish(home, url, identify(moved)).name != original


def test_a_moved_home_publishes_to_its_private_server(moved: Settings) -> None:
    try:
        publishing.publish(
            open_to_publish(moved.home, None, identify(moved)), TABLE, CUTOFF, newest=CUTOFF
        )
    finally:
        server.stop(moved.home)


def test_a_command_in_a_moved_home_reads_but_does_not_roll_back(moved: Settings) -> None:
    def churn(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = "from churn_assets.cli import main; main()"
        settings = {"CHURN_HOME": str(moved.home), "CHURN_SOURCE": moved.source}
        return subprocess.run(
            [sys.executable, "-c", code, "online", *arguments],
            env=settings | {"REDIS_URL": str(moved.redis_url), "PYTHONPATH": ":".join(sys.path)},
            cwd=moved.home,
            capture_output=True,
            text=True,
        )

    assert churn("get", "a").stdout.endswith("x\t1\n")
    refused = churn("rollback")
    assert refused.returncode == 1
    assert "nothing is published to Redis" in refused.stderr
