"""The Dagster instance of an installation, whose storage lies inside the state."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from churn_assets.settings import Settings

DAGSTER_YAML = Path(__file__).parent / "dagster.yaml"


@contextmanager
def dagster_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The instance of DAGSTER_HOME; without one, the instance inside CHURN_HOME.

    Raises:
        OSError: Its folder or its storage cannot be written.
    """
    from sqlalchemy.exc import OperationalError

    home = Path(os.environ.get("DAGSTER_HOME") or settings.dagster_home)
    try:
        home.mkdir(parents=True, exist_ok=True)
        if not (home / "dagster.yaml").exists():
            # In one step, for other commands that start now.
            made = home / f"dagster.yaml.{os.getpid()}"
            shutil.copy(DAGSTER_YAML, made)
            made.replace(home / "dagster.yaml")
    except OSError as error:
        raise OSError(
            f"CHURN_HOME ({settings.home}) cannot be written: {error}. "
            "Set CHURN_HOME to a folder that this user may write to."
        ) from error
    os.environ["DAGSTER_HOME"] = str(home)
    try:
        with dg.DagsterInstance.get() as instance:
            yield instance
    except OperationalError as error:
        raise OSError(
            f"Dagster's storage in {home} cannot be used: {error.orig}. See that its disk has "
            "space left and that no other program locks it, and run again."
        ) from error
