"""A shop with a champion and published rows, for the tests of a module."""

from collections.abc import Iterator

import pytest

from churn_assets.online.server import stop
from churn_assets_tests.conftest import MadeOnce
from churn_assets_tests.served_shop import Shop, make_tables, open_shop


@pytest.fixture(scope="module")
def shop(made_once: MadeOnce, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    shop = open_shop(made_once("served", make_tables), tmp_path_factory.mktemp("shop"))
    yield shop
    stop(shop.redis_home)
