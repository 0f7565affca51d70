"""The Dagster instance of an installation, whose storage lies inside the state."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from churn_assets.operations.with_settings import dagster_home
from churn_assets.settings import Settings


@contextmanager
def dagster_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The instance of DAGSTER_HOME; without one, the instance inside CHURN_HOME.

    Raises:
        OSError: Its folder or its storage cannot be written.
    """
    from sqlalchemy.exc import OperationalError

    home = dagster_home(settings)
    os.environ["DAGSTER_HOME"] = str(home)
    try:
        with dg.DagsterInstance.get() as instance:
            yield instance
    except OperationalError as error:
        raise OSError(
            f"Dagster's storage in {home} cannot be used: {error.orig}. See that its disk has "
            "space left and that no other program locks it, and run again."
        ) from error
