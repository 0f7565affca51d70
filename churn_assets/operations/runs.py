"""Runs of this process, recorded as those of the code location.

The web UI lists a run under its job, and can re-execute it, only where the run names the code
location that has the job. Dagster calls that the run's origin; `execute_in_process` gives none.
"""

import os
import signal
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

# As workspace.yaml, `[tool.dg]` and `dagster dev -m` name it: it is how the web UI knows its runs.
LOCATION = "churn_assets.definitions"


def origin(job: str) -> RemoteJobOrigin:
    """Where the web UI finds a job: the code location that loads `churn_assets.definitions`."""
    target = LoadableTargetOrigin(
        executable_path=sys.executable, module_name=LOCATION, working_directory=str(Path.cwd())
    )
    location = ManagedGrpcPythonEnvCodeLocationOrigin(target, LOCATION)
    return RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), job)


def run_job(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    run_id: str,
    tags: Mapping[str, str],
    assets: Collection[dg.AssetKey],
) -> Any:
    """Run assets of a job in this process, and give Dagster's result, failed or not.

    Args:
        job: The job.
        instance: Where the run is recorded.
        run_id: The id of the new run.
        tags: Its tags; a range of partitions is named by `jobs.RANGE_START` and `RANGE_END`.
        assets: What it materializes.
    """
    run = instance.create_run_for_job(
        job_def=job,
        run_id=run_id,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        tags={**job.run_tags, **tags},
        asset_selection=frozenset(assets),
        remote_job_origin=origin(job.name),
    )
    return execute_run(InMemoryJob(job), run, instance)


@contextmanager
def interrupts_kept() -> Iterator[None]:
    """Raise KeyboardInterrupt at the end where the process was interrupted meanwhile.

    Dagster handles SIGINT and SIGTERM while it executes a run: it takes an interrupt for a failure
    of the run, and forgets one that comes between the last step and the end. So the signals are
    noted where no handler can hide them. One that comes while garbage is collected cannot be
    raised there, where Python would show it and go on, so it is sent again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # where no signal arrives
        return
    noted, note = os.pipe()
    os.set_blocking(noted, False)
    os.set_blocking(note, False)
    before = signal.set_wakeup_fd(note, warn_on_full_buffer=False)
    show = sys.unraisablehook

    def send_again(lost: Any) -> None:
        if isinstance(lost.exc_value, KeyboardInterrupt | dg.DagsterExecutionInterruptedError):
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            show(lost)

    sys.unraisablehook = send_again
    try:
        yield
    finally:
        sys.unraisablehook = show
        signal.set_wakeup_fd(before)
        os.close(note)
        try:
            signals = os.read(noted, 1_000)
        except BlockingIOError:  # none, while a forked process keeps the other end
            signals = b""
        os.close(noted)
        if {signal.SIGINT, signal.SIGTERM} & set(signals):
            raise KeyboardInterrupt
