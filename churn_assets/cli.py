"""The `churn` command: backfill, status, sql, explain, online, serve."""

import datetime as dt
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from churn_assets.cutoffs import utc_now
from churn_assets.operations.terminal import terminal
from churn_assets.settings import Settings
from churn_assets.sources.presets import PRESETS
from churn_assets.stores.identity import identify, refuse_another

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

KEY = click.DateTime(formats=["%Y-%m-%d"])


def main() -> None:
    """Run the command; expected errors are one message, not a traceback."""
    try:
        churn.main(standalone_mode=False)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (ValueError, LookupError, OSError, RuntimeError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


@click.group()
def churn() -> None:
    """Point-in-time churn features, labels and training sets."""


@churn.command()
@click.argument("preset", type=click.Choice(PRESETS))
def init(preset: str) -> None:
    """Write the query of a preset into the input folder: events.sql, yours to change."""
    from churn_assets.sources.presets import write_preset

    path, files = write_preset(preset, Settings.read().input_folder)
    click.echo(f"{path} reads {', '.join(files) or 'no file yet: put the export beside it'}.")
    click.echo("Next: `churn inspect`")


@churn.command()
def inspect() -> None:
    """What the source holds and how it would be read. Nothing is stored."""
    from churn_assets.operations.inspection import inspected
    from churn_assets.operations.inspection_text import show

    inspection = inspected(Settings.read(), utc_now())
    show(terminal(), inspection)
    if any(table.problem for table in inspection.tables):
        sys.exit(1)


@churn.command()
@click.option("--from", "first", type=KEY, help="First cutoff to make again, YYYY-MM-DD.")
@click.option("--to", "last", type=KEY, help="Last cutoff to make again, YYYY-MM-DD.")
@click.option("--last", "newest", type=click.IntRange(min=1), help="Complete the newest N cutoffs.")
@click.option("--stage", "names", multiple=True, help="Only this stage, such as ingest or models.")
@click.option("--stale", is_flag=True, help="Make what is stale again, and nothing else.")
def backfill(
    first: dt.datetime | None,
    last: dt.datetime | None,
    newest: int | None,
    names: Sequence[str],
    stale: bool,
) -> None:
    """Materialize all stages in order; by default everything that is missing.

    With --from and --to, the cutoffs in between are made again, and what they need is made first
    where it is missing. With --stage ingest alone, the bounds are slices. With --stale, what became
    stale is made again, such as everything that was made from a slice with late rows.
    """
    if stale and (first or last or newest or names):
        raise ValueError("--stale goes alone: it finds the stages and partitions by itself.")
    from churn_assets.definitions import build_definitions
    from churn_assets.models.training_rows import nobody_to_learn_from
    from churn_assets.monitoring.inventory import ON_DEMAND, inventory, present_partitions
    from churn_assets.operations import backfill as backfills
    from churn_assets.operations.inspection import not_made
    from churn_assets.operations.installation import offline_store
    from churn_assets.operations.instance import dagster_instance
    from churn_assets.operations.progress import shown_progress
    from churn_assets.stores.views import write_views

    settings = Settings.read()
    calendar = settings.calendar()
    defs, store, now = build_definitions(settings), offline_store(settings), utc_now()
    stages = backfills.stages(names)
    slices_only = list(names) == ["ingest"]
    wanted = backfills.wanted_range(
        calendar.slices if slices_only else calendar.cutoffs,
        calendar,
        first and first.date(),
        last and last.date(),
        newest,
        now,
    )
    console = terminal()
    with dagster_instance(settings) as instance:
        made, without = 0, set[str]()
        rows = inventory(defs, store, calendar, instance, now) if stale else []
        for stage in stages:
            if stale:
                batches = backfills.plan_refresh(stage, defs, calendar, rows)
            else:
                batches = backfills.plan_stage(
                    stage,
                    defs,
                    calendar,
                    lambda asset: present_partitions(defs, store, instance, asset),
                    now,
                    wanted,
                    slices_only,
                    without := nobody_to_learn_from(
                        store, calendar, calendar.keys(calendar.scored_cutoffs, now)
                    ),
                )
            for batch in batches:
                with shown_progress(console, batch) as on_step:
                    try:
                        backfills.run_batch(batch, defs, instance, on_step)
                    except backfills.BackfillFailed as failure:
                        raise click.ClickException(str(failure)) from None
            made += len(batches)
            if stale and batches:  # which may have made more stale
                rows = inventory(defs, store, calendar, instance, now)
        if stale and any(row.stale and row.asset.path[-1] in ON_DEMAND for row in rows):
            console.print(
                f"{', '.join(sorted(ON_DEMAND))} was made from other inputs and is kept: only its "
                "own stage makes it anew, such as `churn backfill --stage topics`."
            )
        if not made:
            console.print(f"Nothing is {'stale' if stale else 'missing'}.")
        for line in [] if names else not_made(calendar, now, without):
            console.print(line, highlight=False)
        # Also then: the last run may have been killed before it came to this.
        write_views(store, settings.home / "offline_store.duckdb")


@churn.command()
def status() -> None:
    """Partitions per table: present, missing, failed and stale."""
    from rich.table import Table

    from churn_assets.definitions import build_definitions
    from churn_assets.monitoring.inventory import inventory
    from churn_assets.operations.installation import offline_store
    from churn_assets.operations.instance import dagster_instance

    settings = Settings.read()
    store = offline_store(settings)
    table = Table("group", "asset", "present", "missing", "failed", "stale", "first gap")
    with dagster_instance(settings) as instance:
        rows = inventory(
            build_definitions(settings),
            store,
            settings.calendar(),
            instance,
            utc_now(),
        )
    for row in rows:
        table.add_row(
            row.group,
            row.asset.path[-1],
            f"{len(row.present)}/{len(row.existing)}",
            str(len(row.missing)),
            str(len(row.failed)),
            str(len(row.stale)),
            row.first_gap or "",
        )
    terminal().print(table)


@churn.command()
@click.argument("table")
@click.argument("key", required=False)
@click.option("--reason", required=True, help="Why the partition is right as it is.")
def accept(table: str, key: str | None, reason: str) -> None:
    """Let a partition pass that is held back; it is recorded who did, when and why.

    TABLE is its table, KEY its slice or cutoff. Holds for its present content only.
    """
    from churn_assets.operations import contract_checks
    from churn_assets.operations.installation import offline_store
    from churn_assets.operations.instance import dagster_instance

    settings = Settings.read()
    store = offline_store(settings)
    try:
        with dagster_instance(settings) as instance:
            broken = contract_checks.accept(
                store, settings.calendar(), table, key, reason, instance
            )
    except (ValueError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from None
    terminal().print(f"{table} {key or ''} passes in spite of {', '.join(broken.failures)}.")


@churn.command()
def report() -> None:
    """What there is: rows per table, champion and hold-out AUC per cutoff, where to look next."""
    from churn_assets.monitoring.report_text import show
    from churn_assets.operations.installation import offline_store

    settings = Settings.read()
    show(terminal(), offline_store(settings), settings.calendar())


@churn.command()
@click.argument("query", required=False)
def sql(query: str | None) -> None:
    """Run a DuckDB query over the offline store; without one, read queries from standard input.

    Every table is a view, and so are refresh_log: what Dagster did, when, and with what outcome;
    and audit_log: whose rows the service gave to whom.
    """
    from churn_assets.monitoring.refresh_log import refresh_log
    from churn_assets.operations.installation import offline_store
    from churn_assets.operations.instance import dagster_instance
    from churn_assets.operations.sql_shell import statements
    from churn_assets.serving.audit import audit_query
    from churn_assets.stores.views import create_views

    settings = Settings.read()
    store = offline_store(settings)
    with store.connect() as connection:
        create_views(connection, store)
        with dagster_instance(settings) as instance:
            log = refresh_log(instance)
        connection.register("refresh_log", log)
        connection.execute(f"CREATE VIEW audit_log AS {audit_query(store.home)}")
        if query:
            _show(connection, query)
            return
        prompt = "churn> " if sys.stdin.isatty() else ""
        for statement in statements(prompt):
            _show(connection, statement)


def _show(connection: "DuckDBPyConnection", query: str) -> None:
    import duckdb

    try:
        relation = connection.sql(query)
        if relation is not None:
            relation.show(max_rows=200, max_width=200)
    except duckdb.Error as error:
        raise click.ClickException(str(error)) from None


@churn.command()
@click.argument("customer_id")
@click.argument("cutoff", type=KEY)
def explain(customer_id: str, cutoff: dt.datetime) -> None:
    """Every feature of a customer at a cutoff, with the rows and the window it came from."""
    from rich.table import Table

    from churn_assets.features import feature_groups
    from churn_assets.features.explain import explain as explain_customer
    from churn_assets.operations.installation import offline_store

    settings = Settings.read()
    calendar = settings.calendar()
    day = cutoff.date()
    calendar.require(calendar.cutoffs, [day.isoformat()], utc_now())
    table = Table("feature", "value", "unit", "window", "rows", "of", "first day", "last day")
    group = ""
    groups = feature_groups(settings.review_vectors)
    for row in explain_customer(groups, offline_store(settings), calendar, customer_id, day):
        if row.group != group:
            group = row.group
            table.add_section()
            table.add_row(f"[bold]{group}")
        table.add_row(
            row.feature,
            _text(row.value),
            row.unit,
            row.window,
            str(row.rows),
            row.source,
            str(row.first_day or ""),
            str(row.last_day or ""),
        )
    terminal().print(table)


def _text(value: object) -> str:
    if value is None:
        return "NULL"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@churn.command()
@click.option("--cutoff", type=KEY, help="The scored cutoff; the newest where it is not given.")
@click.option("--limit", default=20, show_default=True, help="Rows to print.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write all to a .csv or .parquet file."
)
def contacts(cutoff: dt.datetime | None, limit: int, out: Path | None) -> None:
    """Customers whom it pays to contact, by expected value, with the reasons."""
    from churn_assets.models.metrics import Economics
    from churn_assets.operations.installation import offline_store
    from churn_assets.predictions.churn_predictions import CHURN_PREDICTIONS
    from churn_assets.predictions.contacts import contacts_query
    from churn_assets.stores.sql import quoted

    settings = Settings.read()
    store = offline_store(settings)
    keys = store.keys(CHURN_PREDICTIONS)
    key = cutoff.date().isoformat() if cutoff else keys[-1] if keys else None
    if key is None:
        raise click.ClickException("There are no predictions yet. Make them with `churn backfill`.")
    if out and out.suffix not in (".csv", ".parquet"):
        raise click.ClickException(f"{out} ends neither with .csv nor with .parquet.")
    query = contacts_query(store.scan(CHURN_PREDICTIONS, [key]).sql, Economics.of(settings))
    with store.connect() as connection:
        if out is None:
            _show(connection, f"FROM ({query}) LIMIT {limit}")
            return
        file_format = "csv, HEADER" if out.suffix == ".csv" else "parquet"
        written = connection.execute(
            f"COPY ({query}) TO '{quoted(out)}' (FORMAT {file_format})"
        ).fetchall()
    click.echo(f"{written[0][0]:,} customers to contact at {key} are in {out}.")


@churn.group()
def online() -> None:
    """The online store: what is served now."""


@online.command()
@click.argument("customer_id")
def get(customer_id: str) -> None:
    """The online row of a customer."""
    from churn_assets.online.io_manager import open_to_read
    from churn_assets.online.store import OnlineStore

    settings = Settings.read()
    store = OnlineStore(open_to_read(settings.home, settings.redis_url, identify(settings)))
    row = store.get(customer_id)
    if row is None:
        live = store.live()
        where = f"version {live.version} ({live.rows:,} customers)" if live else "nothing"
        raise click.ClickException(f"There is no online row of {customer_id!r}; live is {where}.")
    for name, value in row.items():
        click.echo(f"{name}\t{_text(value)}")


@online.command()
def rollback() -> None:
    """Serve the retained previous version again."""
    from churn_assets.online.io_manager import open_to_publish
    from churn_assets.online.publishing import roll_back

    settings = Settings.read()
    version = roll_back(open_to_publish(settings.home, settings.redis_url, identify(settings)))
    click.echo(f"Live is {version} now.")


@churn.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Interface to listen on.")
@click.option("--port", default=8000, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), help="Processes; by default one per core.")
def serve(host: str, port: int, workers: int | None) -> None:
    """Serve features and predictions over HTTP, and a page for people at /."""
    from churn_assets.serving.access import Access, is_loopback
    from churn_assets.serving.run import run

    settings = Settings.read()
    refuse_another(settings)
    if Access.from_settings(settings).open and not is_loopback(host):
        raise click.ClickException(
            f"Without keys everybody who reaches {host} could read every customer. Set "
            "CHURN_API_KEYS (`churn api-key` makes one) or CHURN_JWT_KEY, or leave out --host."
        )
    run(host, port, workers or os.cpu_count() or 1)


@churn.command()
@click.argument("name")
@click.argument("scopes", nargs=-1, required=True)
def api_key(name: str, scopes: tuple[str, ...]) -> None:
    """Draw a key for a caller of the service, and show its entry for CHURN_API_KEYS."""
    from churn_assets.serving.access import new_key

    key, entry = new_key(name, scopes)
    click.echo(f"Key, for the caller, not shown again: {key}\nEntry for CHURN_API_KEYS: {entry}")
