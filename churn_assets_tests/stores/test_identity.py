"""Prevents: a state that is used with settings under which its partitions mean other things."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from churn_assets.settings import Settings
from churn_assets.stores.identity import (
    FILE,
    FORMAT,
    AnotherInstallation,
    adopt,
    find_identity,
    identify,
    refuse_another,
)
from churn_assets_tests.conftest import make_settings


def shop(folder: Path, **overrides: Any) -> Settings:
    return make_settings(folder, **({"source": "synthetic"} | overrides))


def test_the_first_writer_gives_a_name_that_stays(tmp_path: Path) -> None:
    assert refuse_another(shop(tmp_path)) is None
    first = identify(shop(tmp_path))
    assert first == identify(shop(tmp_path)) == refuse_another(shop(tmp_path))
    assert first.name and first.path == str((tmp_path / "state").resolve())
    assert first.name != identify(shop(tmp_path / "other")).name


def test_of_many_first_writers_one_gives_the_name(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        names = {i.name for i in threads.map(lambda _: identify(shop(tmp_path)), range(32))}
    assert len(names) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"source": "files"},
        {"cadence": "weekly"},
        {"seed": 8},
        {"synthetic_customers": 11},
        {"installation": "elsewhere"},
    ],
    ids=str,
)
def test_what_partitions_mean_may_not_change(tmp_path: Path, other: dict[str, Any]) -> None:
    identify(shop(tmp_path))
    (name,) = other
    with pytest.raises(AnotherInstallation, match=f"CHURN_{name.upper()}=.*CHURN_HOME.*reset"):
        identify(shop(tmp_path, **other))
    with pytest.raises(AnotherInstallation):
        refuse_another(shop(tmp_path, **other))


def test_what_partitions_were_made_with_may_change(tmp_path: Path) -> None:
    made = identify(shop(tmp_path))
    changed = {
        "start": "2024-01-01",
        "end": "2025-01-01",
        "horizon_days": 14,
        "lookback_days": 60,
        "training_cutoffs": 3,
        "customer_value": 1,
    }
    assert identify(shop(tmp_path, **changed)) == made


def test_the_size_of_the_synthetic_shop_means_nothing_elsewhere(tmp_path: Path) -> None:
    made = identify(make_settings(tmp_path))
    assert identify(make_settings(tmp_path, synthetic_customers=11)) == made


def test_a_folder_that_was_moved_publishes_nothing_until_it_is_adopted(tmp_path: Path) -> None:
    made = identify(shop(tmp_path, installation="shop"))
    made.require_at_home(tmp_path / "state", "Redis")
    (tmp_path / "state").rename(tmp_path / "moved")
    settings = shop(tmp_path, home=tmp_path / "moved")
    with pytest.raises(AnotherInstallation, match="adopt --moved"):
        identify(settings).require_at_home(settings.home, "Redis")
    assert adopt(settings, copied=False).name == "shop"
    identify(settings).require_at_home(settings.home, "Redis")
    copy = adopt(settings, copied=True)
    assert copy.name != "shop"
    identify(settings).require_at_home(settings.home, "Redis")
    named = shop(tmp_path, home=tmp_path / "moved", installation="copy")
    assert adopt(named, copied=True).name == "copy"
    with pytest.raises(AnotherInstallation, match="name of the original"):
        adopt(named, copied=True)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "a"}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    identify(shop(tmp_path))
    (tmp_path / "state" / FILE).write_text(text)
    with pytest.raises(AnotherInstallation, match=FILE):
        identify(shop(tmp_path))


def test_a_state_of_a_later_release_is_refused(tmp_path: Path) -> None:
    identify(shop(tmp_path))
    path = tmp_path / "state" / FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": FORMAT + 1}))
    with pytest.raises(AnotherInstallation, match="later release"):
        find_identity(tmp_path / "state")


def test_a_state_without_an_identity_is_adopted_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state" / "offline_store" / "raw_events" / "slice=2025-01-01").mkdir(parents=True)
    with pytest.raises(AnotherInstallation, match="CHURN_CADENCE"):
        identify(shop(tmp_path, cadence="weekly"))
    with caplog.at_level(logging.WARNING):
        made = identify(shop(tmp_path))
    assert made.name in caplog.text
