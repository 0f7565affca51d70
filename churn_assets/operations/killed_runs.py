"""Backfills whose process was killed: found by a lock, and ended in Dagster's records.

Dagster goes on to take such a run for running, and it keeps its place in a pool: after as many
kills as a pool has places, the next backfill would wait for ever. So each run holds a lock file in
`<DAGSTER_HOME>/backfills`, which lasts exactly as long as its process, and whoever starts a run
ends those whose lock is free.

Limits: a run that another command started is ended by Dagster's own run monitoring, or by hand.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg


@contextmanager
def running(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """Hold the lock of a run, once runs that were killed are ended."""
    folder = Path(instance.root_directory) / "backfills"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for path in folder.iterdir():
            if path.name != "lock":
                _end_if_killed(instance, path)
        own = (folder / run_id).open("w")
        fcntl.flock(own, fcntl.LOCK_EX)
    with own:
        try:
            yield
        finally:
            Path(own.name).unlink(missing_ok=True)


def _end_if_killed(instance: dg.DagsterInstance, path: Path) -> None:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        run = instance.get_run_by_id(path.name)
        if run and not run.is_finished:
            instance.report_run_failed(run, "The process of this backfill was killed.")
        instance.event_log_storage.free_concurrency_slots_for_run(path.name)
        path.unlink(missing_ok=True)
