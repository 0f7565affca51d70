"""History to training data beside what a user would otherwise write by hand, in one run.

    python -m benchmarks.offline [--customers 100000] [--cadence monthly] [--cutoffs 12]
        [--one-more] [--runs 3] [--work FOLDER] [--no-feast]

Ours are stages `ingest`, `features` and `training_data` of `churn backfill` as Dagster runs, with
validation, quarantine and contracts on, in one process. They also make the profile and review
groups, labels of surveys and the joined training data, which the others do not. Theirs is
`benchmarks/polars_features.py`: from the same event files to the event groups of the last N cutoffs
and the churn labels of those that are mature.

Every pair of runs is compared before a figure is printed: the same rows, the same columns, integers
and decimals exactly, doubles within a relative 1e-9. A difference ends the benchmark. Runs are
whole processes, imports included, ours and theirs in turn; figures are medians, ratios those of
the pairs. With `--one-more`, history is there already and one more slice arrives: one more cutoff
is made, and the labels of the one that matures.

Then the labels of the cutoffs, as entity rows, get their features from our feature files by Feast's
point-in-time join with pandas (`benchmarks/feast_features.py`), beside stage `training_data`: up to
100,000 customers, and for ten minutes at most.

Polars and Feast are installed into environments of their own below the work folder. Inputs and
environments that are there are used again.
"""

import argparse
import datetime as dt
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import dagster as dg
import duckdb
import pyarrow.parquet as pq

from benchmarks.history import END, START, run
from churn_assets.cutoffs import Cadence, Calendar
from churn_assets.definitions import build_definitions
from churn_assets.features.activity import ACTIVITY
from churn_assets.features.behavior import BEHAVIOR
from churn_assets.features.recent import RECENT
from churn_assets.features.rfm import RFM
from churn_assets.features.trend import TREND
from churn_assets.settings import Settings
from churn_assets.sources.shop import Shop
from churn_assets.stores.tables import Table
from churn_assets.training_data.dataset import TRAINING_DATASET
from churn_assets.training_data.labels import CHURN_LABELS

GROUPS = [group.table for group in (ACTIVITY, RECENT, RFM, BEHAVIOR, TREND)]
STAGES = ("ingest", "features", "training_data")
KEY = ("customer_id", "cutoff")
TOLERANCE = 1e-9
FEAST_CUSTOMERS, FEAST_SECONDS = 100_000, 600

# Runs a command and says how long it took and how much memory. It is a small process of its own,
# because a process begins with the peak of the one that it was forked from.
STOPWATCH = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
try:
    subprocess.run(sys.argv[2:], check=True, timeout=float(sys.argv[1]) or None)
except subprocess.TimeoutExpired:
    sys.exit(124)
seconds, usage = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6]))
"""


@dataclass(frozen=True)
class Measured:
    """A process: its seconds, those of CPU time, its peak memory in GB, and what it printed."""

    seconds: float
    cpu: float
    peak: float
    output: Sequence[str]


def measure(command: Sequence[str | Path], limit: float = 0) -> Measured:
    """Run a command as a whole process; `limit` is in seconds, 0 is none.

    Raises:
        subprocess.CalledProcessError: It failed, or took longer, which is code 124.
    """
    stopwatch: list[str | Path] = [sys.executable, "-S", "-c", STOPWATCH, str(limit)]
    whole = [*stopwatch, *command]
    done = subprocess.run(whole, check=True, stdout=subprocess.PIPE, text=True)
    *output, figures = done.stdout.splitlines()
    seconds, cpu, peak = json.loads(figures)
    return Measured(seconds, cpu, peak, output)


def environment(folder: Path, script: Path) -> Path:
    """The Python of an environment with what a script declares as its dependencies."""
    declared = re.search(r"^# dependencies = (.*)$", script.read_text(), re.MULTILINE)
    assert declared, f"{script} declares no dependencies"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, *json.loads(declared[1])], check=True)
    return python


@dataclass(frozen=True)
class Case:
    """What is made, and where.

    Args:
        work: The folder of this run; inputs and environments are kept there too.
        customers: Size of the shop.
        cadence: How often there is a cutoff.
        cutoffs: How many of the newest cutoffs are made.
        one_more: Whether only the newest is, onto history.
    """

    work: Path
    customers: int
    cadence: Cadence
    cutoffs: int
    one_more: bool

    @property
    def source(self) -> Path:
        return self.work / f"input-{self.customers}"

    @property
    def folder(self) -> Path:
        return self.work / "run"

    @property
    def input(self) -> Path:
        return self.folder / "input"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def history(self) -> Path:
        """The state before the last slice arrives."""
        return self.folder / "history"

    @property
    def polars(self) -> Path:
        return self.folder / "polars"

    @property
    def end(self) -> dt.date:
        """Where history stops: the newest cutoff."""
        return Calendar(START, cadence=self.cadence).floor(END)

    @property
    def before(self) -> dt.date:
        """The cutoff before that."""
        return Calendar(START, cadence=self.cadence).shift(self.end, -1)

    def settings(self, end: dt.date) -> Settings:
        return Settings(
            _env_file=None,
            home=self.state,
            input_dir=self.input,
            source="files",
            cadence=self.cadence,
            start=START,
            end=dt.datetime(end.year, end.month, end.day, tzinfo=dt.UTC),
        )

    def keys(self, end: dt.date, one_more: bool) -> dict[str, list[str]]:
        """The partitions of each stage.

        Raises:
            SystemExit: No label of so few cutoffs is mature.
        """
        calendar, now = self.settings(end).calendar(), dt.datetime.now(dt.UTC)
        if self.cutoffs <= calendar.lag:
            raise SystemExit(
                f"The labels of the last {calendar.lag} {self.cadence} cutoffs are not mature: "
                f"--cutoffs must be {calendar.lag + 1} or more."
            )
        slices = list(calendar.slices.get_partition_keys(current_time=now))
        cutoffs = list(calendar.cutoffs.get_partition_keys(current_time=now))[-self.cutoffs :]
        mature = calendar.labeled_cutoffs.get_partition_keys(current_time=now)
        labels = [key for key in mature if key in cutoffs]
        keys = dict(zip(STAGES, (slices, cutoffs, labels), strict=True))
        return {stage: of[-1:] for stage, of in keys.items()} if one_more else keys


def write_input(folder: Path, customers: int) -> None:
    """The shop's 18 months, a file per month and per last period of every cadence.

    By month, so that memory stays small; the rows are those of `benchmarks.history`.
    """
    months = Calendar(START)
    cuts = {*months.between(START, END), END}
    for cadence in Cadence:
        calendar = Calendar(START, cadence=cadence)
        cuts |= {calendar.floor(END), calendar.shift(calendar.floor(END), -1)}
    shop = Shop(customers, seed=7, start=START)
    part = folder.with_suffix(".part")  # one that was cut short is not taken for whole
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for begin, end in pairwise(sorted(cuts)):
        pq.write_table(shop.events(begin, end), part / f"events-{begin}.parquet")
        pq.write_table(shop.customer_versions(begin, end), part / f"customers-{begin}.parquet")
    part.rename(folder)


def link_input(case: Case, end: dt.date) -> int:
    """Give a run the files of before `end`; returns the number of their events."""
    shutil.rmtree(case.input, ignore_errors=True)
    case.input.mkdir(parents=True)
    for path in sorted(case.source.glob("*.parquet")):
        if path.stem.split("-", 1)[1] < str(end):
            (case.input / path.name).hardlink_to(path)
    return sum(pq.read_metadata(path).num_rows for path in case.input.glob("events-*"))


def make(case: Case, end: dt.date, stages: Sequence[str], one_more: bool) -> dict[str, float]:
    """Run our stages in this process; returns the seconds of each."""
    defs, keys = build_definitions(case.settings(end)), case.keys(end, one_more)
    storage = case.state / "dagster"
    storage.mkdir(parents=True, exist_ok=True)
    with dg.DagsterInstance.local_temp(str(storage)) as instance:
        return {s: run(defs, instance, s, keys[s][0], keys[s][-1])[0] for s in stages}


def compare(ours: str, theirs: str, tables: Sequence[Table]) -> int:
    """Compare two relations that have all columns of the tables; returns the number of values.

    Raises:
        SystemExit: They differ.
    """
    kinds = {c.name: c.dtype for table in tables for c in table.columns if c.name not in KEY}

    def same(column: str) -> str:
        a, b = f"ours.{column}", f"theirs.{column}"
        if kinds[column] != "DOUBLE":
            return f"{a} IS NOT DISTINCT FROM {b}"
        # DuckDB holds NaN for equal to NaN and for the largest number of all.
        close = f"abs({a} - {b}) <= {TOLERANCE} * greatest(abs({a}), abs({b}))"
        near = f"isfinite({a}) AND isfinite({b}) AND {close}"
        return f"(({a} IS NULL AND {b} IS NULL) OR coalesce({near}, false))"

    with duckdb.connect() as connection:
        names = {name for name, *_ in connection.sql(f"DESCRIBE {theirs}").fetchall()}
        if odd := names ^ {*KEY, *kinds}:
            raise SystemExit(f"Only one side has column {', '.join(sorted(odd))}.")
        both = "ours.customer_id IS NOT NULL AND theirs.customer_id IS NOT NULL"
        who = f"concat_ws(' at ', {', '.join(KEY)})"
        firsts = [f"min({who}) FILTER (WHERE {both} AND NOT {same(name)})" for name in kinds]
        joined = f"({ours}) AS ours FULL JOIN ({theirs}) AS theirs USING ({', '.join(KEY)})"
        rows, lone, *found = connection.sql(
            f"SELECT count(*), min({who}) FILTER (WHERE NOT ({both})), {', '.join(firsts)} "
            f"FROM {joined}"
        ).fetchall()[0]
        if lone:
            raise SystemExit(f"Only one side has {lone}.")
        for side in (ours, theirs):
            (count,) = connection.sql(f"SELECT count(*) FROM ({side})").fetchall()[0]
            if count != rows:
                raise SystemExit(f"{count:,} rows join to {rows:,}: one side has a row twice.")
        for name, first in zip(kinds, found, strict=True):
            if first:
                values = connection.sql(
                    f"SELECT ours.{name}, theirs.{name} FROM {joined} WHERE {who} = '{first}'"
                ).fetchall()[0]
                raise SystemExit(f"{name} of {first}: {values[0]} here, {values[1]} there.")
    return int(rows) * len(kinds)


def ours_of(case: Case, tables: Sequence[str], keys: Sequence[str]) -> str:
    """Our rows of some cutoffs, the columns of all the tables side by side."""
    relations = []
    for table in tables:
        root = case.state / "offline_store" / table
        files = [str(root / f"cutoff={key}" / "part-0.parquet") for key in keys]
        relations.append(f"read_parquet({files}, hive_partitioning = false) AS {table}")
    first, *others = relations
    return f"FROM {first} " + " ".join(f"JOIN {r} USING ({', '.join(KEY)})" for r in others)


def compare_with_polars(case: Case) -> str:
    """Compare every cutoff; says what was compared."""
    keys, values = case.keys(case.end, case.one_more), 0
    for stage, folder, tables in (
        ("features", "features", GROUPS),
        ("training_data", "labels", [CHURN_LABELS]),
    ):
        written = sorted(path.stem for path in (case.polars / folder).glob("*.parquet"))
        if written != keys[stage]:
            raise SystemExit(f"Polars wrote {folder} of {written}, ours are {keys[stage]}.")
        for key in keys[stage]:
            theirs = f"FROM read_parquet('{case.polars / folder / key}.parquet')"
            values += compare(ours_of(case, [t.name for t in tables], [key]), theirs, tables)
    cutoffs, labels = len(keys["features"]), len(keys["training_data"])
    return f"{values:,} values (cutoffs with features: {cutoffs}, with labels: {labels})"


def write_feast_input(case: Case, folder: Path, keys: Sequence[str]) -> None:
    """Our feature groups and labels as Feast reads them: a file each, with an instant."""
    folder.mkdir(parents=True, exist_ok=True)
    instant = "CAST(cutoff AS TIMESTAMP) AT TIME ZONE 'UTC' AS event_timestamp"
    with duckdb.connect() as connection:
        for table in (*GROUPS, CHURN_LABELS):
            rows = ours_of(case, [table.name], keys)
            connection.execute(
                f"COPY (SELECT * EXCLUDE (cutoff), {instant} FROM ({rows})) "
                f"TO '{folder / table.name}.parquet'"
            )


def compare_with_feast(case: Case, path: Path) -> str:
    tables = [*GROUPS, CHURN_LABELS]
    zone = "event_timestamp AT TIME ZONE 'UTC'"
    theirs = f"SELECT * EXCLUDE (event_timestamp), CAST({zone} AS DATE) AS cutoff FROM '{path}'"
    labels = case.keys(case.end, False)["training_data"]
    names = [c.name for table in tables for c in table.columns if c.name not in KEY]
    ours = f"SELECT {', '.join((*KEY, *names))} FROM ({ours_of(case, [TRAINING_DATASET], labels)})"
    return f"{compare(ours, theirs, tables):,} values (cutoffs: {len(labels)})"


def pairs(
    runs: int,
    ours: Callable[[], Measured],
    theirs: Callable[[], Measured],
    compared: Callable[[], str],
    name: str,
) -> None:
    """Run both in turn, compare what they wrote, and print medians and ratios."""
    mine, other = list[Measured](), list[Measured]()
    for number in range(runs):
        # Who runs second finds the input in the page cache, so they take turns.
        for side, into in ((ours, mine), (theirs, other))[:: -1 if number % 2 else 1]:
            into.append(side())
        print(f"pair {number + 1}: {compared()} are equal", flush=True)
    stages = [json.loads(m.output[-1]) for m in mine]
    for stage in stages[0]:
        print(f"  {stage:14} {statistics.median(s[stage] for s in stages):8.1f} s")
    for what, figure in (
        ("whole process, s", lambda m: m.seconds),
        ("CPU seconds", lambda m: m.cpu),
        ("peak memory, GB", lambda m: m.peak),
    ):
        a, b = [[figure(m) for m in side] for side in (mine, other)]
        ratios = sorted(x / y for x, y in zip(a, b, strict=True))
        print(
            f"{what:18} churn-assets {statistics.median(a):8.2f}   {name} "
            f"{statistics.median(b):8.2f}   churn-assets/{name} {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})",
            flush=True,
        )


def own(case: Case, end: dt.date, stages: Sequence[str], one_more: bool) -> list[str]:
    """The command that runs our stages."""
    command = [sys.executable, "-m", "benchmarks.offline", "--work", str(case.work)]
    command += ["--customers", str(case.customers), "--cadence", case.cadence]
    command += ["--cutoffs", str(case.cutoffs), *(["--one-more"] if one_more else [])]
    return [*command, "--make", str(end), *stages]


def beside_polars(case: Case, runs: int) -> None:
    script = Path(__file__).with_name("polars_features.py")
    python = environment(case.work / "polars-environment", script)
    keys = case.keys(case.end, case.one_more)

    def ours() -> Measured:
        shutil.rmtree(case.state, ignore_errors=True)
        if case.one_more:
            shutil.copytree(case.history, case.state)
        return measure(own(case, case.end, STAGES, case.one_more))

    def theirs() -> Measured:
        shutil.rmtree(case.polars, ignore_errors=True)
        cutoffs = ["--features", *keys["features"], "--labels", *keys["training_data"]]
        return measure([python, script, case.input, case.polars, *cutoffs])

    pairs(runs, ours, theirs, lambda: compare_with_polars(case), "Polars")


def beside_feast(case: Case, runs: int) -> None:
    script = Path(__file__).with_name("feast_features.py")
    python = environment(case.work / "feast-environment", script)
    folder, written = case.folder / "feast", case.folder / "training.parquet"
    write_feast_input(case, folder, case.keys(case.end, False)["training_data"])

    def ours() -> Measured:
        return measure(own(case, case.end, ["training_data"], one_more=False))

    def theirs() -> Measured:
        written.unlink(missing_ok=True)
        return measure([python, script, folder, written], FEAST_SECONDS)

    try:
        pairs(runs, ours, theirs, lambda: compare_with_feast(case, written), "Feast")
    except subprocess.CalledProcessError as error:
        if error.returncode != 124:
            raise
        print(f"Feast took more than {FEAST_SECONDS} s and was stopped.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--customers", type=int, default=100_000)
    parser.add_argument("--cadence", type=Cadence, choices=list(Cadence), default=Cadence.MONTHLY)
    parser.add_argument("--cutoffs", type=int, default=12)
    parser.add_argument("--one-more", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--no-feast", action="store_true")
    parser.add_argument("--make", nargs="+", help="used by this module itself: end and stages")
    arguments = parser.parse_args()
    shape = arguments.customers, arguments.cadence, arguments.cutoffs, arguments.one_more
    if arguments.make:
        end, *stages = arguments.make
        case = Case(arguments.work, *shape)
        print(json.dumps(make(case, dt.date.fromisoformat(end), stages, case.one_more)))
        return
    with tempfile.TemporaryDirectory() as name:
        work = (arguments.work or Path(name)).resolve()
        case = Case(work, *shape)
        keys = case.keys(case.end, False)
        if not case.source.exists():
            # In a process of its own, which gives the memory back.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                process.submit(write_input, case.source, case.customers).result()
        shutil.rmtree(case.folder, ignore_errors=True)
        if case.one_more:
            link_input(case, case.before)
            measure(own(case, case.before, STAGES, one_more=False))
            case.state.rename(case.history)
        events = link_input(case, case.end)
        print(
            f"{events:,} events of {case.customers:,} customers, {len(keys['ingest'])} slices, "
            f"{len(keys['features'])} {case.cadence} cutoffs{', one more' * case.one_more}",
            flush=True,
        )
        beside_polars(case, arguments.runs)
        if not (case.one_more or arguments.no_feast) and case.customers <= FEAST_CUSTOMERS:
            beside_feast(case, arguments.runs)


if __name__ == "__main__":
    main()
