"""Retries of steps that talk to a server: Redis or MLflow may be away for a moment.

What is tried again is the error of a connection. What the project refuses, or a wrong value, fails
at once: a `RetryPolicy` of the asset would try that again too.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

# Some seconds: a restart of a server, not an outage. Clients have waited by themselves before.
MOST_RETRIES, SECONDS_BETWEEN = 2, 3.0

# Known without importing what a step may not need.
CONNECTION_ERRORS = {
    "redis.exceptions.ConnectionError",
    "redis.exceptions.TimeoutError",
    "redis.exceptions.BusyLoadingError",
    "requests.exceptions.ConnectionError",
    "requests.exceptions.Timeout",
    "urllib3.exceptions.MaxRetryError",
}


@contextmanager
def connections_are_retried() -> Iterator[None]:
    """Ask Dagster to run the step again where a connection to a server failed."""
    try:
        yield
    except Exception as error:
        if not is_connection_error(error):
            raise
        raise dg.RetryRequested(MOST_RETRIES, SECONDS_BETWEEN) from error


def is_connection_error(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that of a connection."""
    while error is not None:
        names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
        if names & CONNECTION_ERRORS:
            return True
        error = error.__cause__ or error.__context__
    return False
