"""How long history takes: raw slices, rollups and all feature groups, as Dagster runs.

    python -m benchmarks.history [--customers 100000] [--cutoffs 12]

Writes 18 months of the synthetic shop to Parquet, then runs job `ingest` over all slices and job
`features` over the cutoffs with source `files`. The second table splits the time into the work
(inside the IO manager and the source) and what Dagster adds.
"""

import argparse
import datetime as dt
import resource
import tempfile
import time
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq

from churn_assets.definitions import build_definitions
from churn_assets.operations.jobs import RANGE_END, RANGE_START
from churn_assets.settings import Settings
from churn_assets.sources.shop import Shop

START, END = dt.date(2025, 1, 1), dt.date(2026, 7, 1)


def write_input(folder: Path, customers: int) -> int:
    """The shop's 18 months as Parquet files; returns the number of events."""
    folder.mkdir(parents=True)
    shop = Shop(customers, seed=7, start=START)
    events = shop.events(START, END)
    pq.write_table(events, folder / "events.parquet")
    pq.write_table(shop.customer_versions(START, END), folder / "customers.parquet")
    return int(events.num_rows)


def run(
    defs: dg.Definitions, instance: dg.DagsterInstance, job: str, first: str, last: str
) -> tuple[float, float]:
    """Seconds of a Dagster run, and of the queries and writes within it."""
    began = time.perf_counter()
    result = defs.resolve_job_def(job).execute_in_process(
        instance=instance,
        tags={RANGE_START: first, RANGE_END: last},
        run_config={"loggers": {"console": {"config": {"log_level": "ERROR"}}}},
    )
    seconds = time.perf_counter() - began
    work = sum(
        (event.step_success_data.duration_ms or 0) / 1000
        for event in result.all_events
        if event.event_type == dg.DagsterEventType.STEP_SUCCESS
    )
    written = sum(
        float(str(materialization.metadata["seconds"].value))
        for event in result.all_events
        if event.event_type == dg.DagsterEventType.ASSET_MATERIALIZATION
        and "seconds" in (materialization := event.materialization).metadata
    )
    print(f"{job:10} {seconds:6.1f} s   steps {work:6.1f} s   writing tables {written:6.1f} s")
    return seconds, work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--customers", type=int, default=100_000)
    parser.add_argument("--cutoffs", type=int, default=12)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        events = write_input(folder / "input", arguments.customers)
        print(f"{events:,} events of {arguments.customers:,} customers")
        settings = Settings(
            _env_file=None,
            home=folder / "state",
            input_dir=folder / "input",
            source="files",
            start=START,
            end=dt.datetime(END.year, END.month, END.day, tzinfo=dt.UTC),
        )
        defs, calendar = build_definitions(settings), settings.calendar()
        (folder / "dagster").mkdir()
        instance = dg.DagsterInstance.local_temp(str(folder / "dagster"))
        now = dt.datetime.now(dt.UTC)
        slices = calendar.slices.get_partition_keys(current_time=now)
        cutoffs = calendar.cutoffs.get_partition_keys(current_time=now)[-arguments.cutoffs :]
        total = sum(
            run(defs, instance, job, keys[0], keys[-1])[0]
            for job, keys in (("ingest", slices), ("features", cutoffs))
        )
        print(f"together   {total:6.1f} s for {len(slices)} slices and {len(cutoffs)} cutoffs")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory {peak:.1f} GB, the generator included")


if __name__ == "__main__":
    main()
