"""Backfills whose process was killed: found by a lock, and ended in Dagster's records.

Dagster goes on to take such a run for running, and it keeps its place in a pool: after as many
kills as a pool has places, the next backfill would wait for ever. So each run holds a lock file in
`<DAGSTER_HOME>/backfills`, which lasts exactly as long as its process, and whoever starts a run
ends those whose lock is free. A run whose process goes on, but that an interrupt or an error ended
before Dagster could say so, is ended when it gives its lock back.

Limits: a run that another command started is ended by Dagster's own run monitoring, or by hand.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES


@contextmanager
def running(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """Hold the lock of a run, once runs that were killed are ended."""
    with _turn(instance) as folder:
        own = (folder / run_id).open("w")
        fcntl.flock(own, fcntl.LOCK_EX)
    with own:
        try:
            yield
        finally:
            # Where this fails, the file stays, and whoever starts the next run ends this one.
            _end(instance, run_id, "The backfill was interrupted, or broke off.")
            Path(own.name).unlink(missing_ok=True)


def going_on(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """The runs that go on, of whoever started them, once runs that were killed are ended."""
    with _turn(instance):
        return list(instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS_RUN_STATUSES)))


@contextmanager
def _turn(instance: dg.DagsterInstance) -> Iterator[Path]:
    """The folder of the locks, one process at a time, once runs that were killed are ended."""
    folder = Path(instance.root_directory) / "backfills"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for path in folder.iterdir():
            if path.name != "lock":
                _end_if_killed(instance, path)
        yield folder


def _end_if_killed(instance: dg.DagsterInstance, path: Path) -> None:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        _end(instance, path.name, "The process of this backfill was killed.")
        path.unlink(missing_ok=True)


def _end(instance: dg.DagsterInstance, run_id: str, why: str) -> None:
    """Record that a run failed, where Dagster takes it for one that goes on."""
    run = instance.get_run_by_id(run_id)
    if run and not run.is_finished:
        instance.report_run_failed(run, why)
    instance.event_log_storage.free_concurrency_slots_for_run(run_id)
