"""The Dagster instance of an installation, whose storage lies inside the state."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import dagster as dg
from dagster._core.storage.compute_log_manager import CapturedLogContext

from churn_assets.operations.with_settings import make_dagster_home
from churn_assets.settings import Settings


@contextmanager
def dagster_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The instance of DAGSTER_HOME; without one, the instance inside CHURN_HOME.

    Raises:
        OSError: Its folder cannot be written, or its storage cannot be used, which may also be a
            database server that goes away in the middle.
    """
    home = make_dagster_home(settings)
    os.environ["DAGSTER_HOME"] = str(home)
    try:
        with dg.DagsterInstance.get() as instance:
            _keep_interrupts_from_helpers(instance)
            yield instance
    except Exception as error:
        if why := storage_error(error):
            raise OSError(
                f"Dagster's storage, as {home / 'dagster.yaml'} names it, cannot be used: {why} "
                "See that its disk has space left and that no other program locks it, or that its "
                "server runs, and run again."
            ) from error
        raise


def _keep_interrupts_from_helpers(instance: dg.DagsterInstance) -> None:
    """Let only this process answer Ctrl-C, which reaches all that the terminal runs.

    Dagster copies the output of a step to its log by Python processes, which answer with a
    traceback each. A process inherits the signals that are blocked where it is started.
    """
    manager = instance.compute_log_manager
    capture = manager.capture_logs

    @contextmanager
    def capture_logs(log_key: Sequence[str]) -> Iterator[CapturedLogContext]:
        with ExitStack() as stack:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                captured = stack.enter_context(capture(log_key))
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            yield captured

    vars(manager)["capture_logs"] = capture_logs


def storage_error(error: BaseException | None) -> str:
    """What a database said, where an error or what caused it is that of one; else empty.

    It is the text of the driver alone: that of SQLAlchemy quotes the statement and its values.
    """
    from sqlalchemy.exc import DBAPIError

    while error is not None:
        if isinstance(error, DBAPIError):
            text = " ".join(str(error.orig).split())
            return text if text.endswith((".", "?", "!")) else f"{text}."
        error = error.__cause__ or error.__context__
    return ""
