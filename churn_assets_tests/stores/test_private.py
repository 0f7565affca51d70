"""Prevents: customers' rows that every user of the machine can read, or replace.

A whole state that commands made is looked at in test_cli.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from churn_assets.stores.identity import identify
from churn_assets.stores.private import tighten
from churn_assets_tests.conftest import make_settings

# Each way in which a process of ours starts, but the command and the service: see their tests.
STARTS = {
    "make dev": ["-m", "churn_assets.operations.with_settings", "sh", "-c", "umask"],
    "code location": ["-c", "import churn_assets.definitions, os; os.system('umask')"],
    "worker": [
        "-c",
        "import os; from churn_assets.serving.app import from_environment;"
        "from_environment(); os.system('umask')",
    ],
}


def open_to_others(home: Path) -> list[str]:
    """What anybody but its user may read or write, below a folder and the folder itself."""
    return [
        f"{path.stat().st_mode & 0o777:o} {path.relative_to(home)}"
        for path in [home, *home.rglob("*")]
        if path.stat().st_mode & 0o077
    ]


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS.keys())
def test_what_a_process_makes_is_its_users(start: list[str], tmp_path: Path) -> None:
    environment = os.environ | {"CHURN_HOME": str(tmp_path / "state"), "CHURN_SOURCE": "files"}
    run = subprocess.run(
        [sys.executable, *start],
        env={k: v for k, v in environment.items() if k != "DAGSTER_HOME"},
        cwd=tmp_path,
        umask=0o022,
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip() == "0077", run.stderr
    if (tmp_path / "state").exists():
        assert not open_to_others(tmp_path / "state")


def test_an_older_state_is_tightened_once_by_whoever_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(tmp_path)
    identify(settings)
    home, outside = settings.home, tmp_path / "mine"
    (home / "serving" / "audit").mkdir(parents=True)
    (home / "serving" / "rows.arrow").touch()
    outside.touch()
    (home / "link").symlink_to(outside)
    (home / "dangling").symlink_to(tmp_path / "nothing")
    opened = [home, *(path for path in home.rglob("*") if not path.is_symlink()), outside]
    for path in opened:
        path.chmod(0o755)
    identify(settings)
    (home / "dangling").unlink()
    assert [path.stat().st_mode & 0o777 for path in opened] == [*[0o700] * (len(opened) - 1), 0o755]

    (home / "mine.txt").touch()
    (home / "mine.txt").chmod(0o644)
    identify(settings)
    assert (home / "mine.txt").stat().st_mode & 0o777 == 0o644

    home.chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    tighten(home)
    assert home.stat().st_mode & 0o777 == 0o755


def test_a_walk_that_was_killed_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows").touch()
    for path in (tmp_path / "rows", tmp_path):
        path.chmod(0o755)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "chmod", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        tighten(tmp_path)
    tighten(tmp_path)
    assert not open_to_others(tmp_path)
