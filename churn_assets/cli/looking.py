"""Commands that show what there is: `status`, `report`, `sql`, `explain` and `contacts`."""

import datetime as dt
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from churn_assets.cli.recorded import record_read
from churn_assets.cli.values import DAY, settings_to_read, shown, store_with_catalog
from churn_assets.cutoffs import utc_now
from churn_assets.operations.terminal import terminal

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from churn_assets.features.explain import Span


@click.command()
def status() -> None:
    """Partitions per table: present, missing, failed, stale, held back and foreign."""
    from rich.table import Table

    from churn_assets.definitions import build_definitions
    from churn_assets.monitoring.inventory import inventory
    from churn_assets.operations import remarks
    from churn_assets.operations.installation import offline_store
    from churn_assets.operations.instance import dagster_instance

    settings = settings_to_read()
    store = offline_store(settings)
    counts = ("present", "missing", "failed", "stale", "held back", "foreign")
    table = Table("group", "asset", *counts, "first gap")
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
            str(len(row.held_back)),
            str(len(row.foreign)),
            row.first_gap or "",
        )
    terminal().print(table)
    for line in [*remarks.of_status(rows), *remarks.unread_input(settings)]:
        terminal().print(line, highlight=False)


@click.command()
def report() -> None:
    """What there is: rows per table, champion and hold-out AUC per cutoff, where to look next."""
    from churn_assets.monitoring.report_text import show

    settings = settings_to_read()
    show(terminal(), store_with_catalog(settings), settings.calendar())


@click.command()
@click.argument("query", required=False)
def sql(query: str | None) -> None:
    """Run a DuckDB query over the offline store; without one, read queries from standard input.

    Every table is a view, and so are refresh_log: what Dagster did, when, and with what outcome;
    and audit_log: who read whose rows, or ran which query. Each statement is recorded there.
    """
    from churn_assets.monitoring.refresh_log import empty_log, refresh_log
    from churn_assets.operations.instance import dagster_instance
    from churn_assets.operations.sql_shell import statements
    from churn_assets.serving.audit import audit_query
    from churn_assets.stores.views import create_views, renew_views

    settings = settings_to_read()
    store = store_with_catalog(settings)
    renew_views(store)
    with store.connect() as connection:
        create_views(connection, store)
        connection.register("refresh_log", empty_log())
        prompt = "churn> " if sys.stdin.isatty() else ""
        for statement in [query] if query else statements(prompt):
            record_read(settings, "sql", query=statement.strip())
            # Anew each time, because the file of the day may just have been made.
            connection.execute(f"CREATE OR REPLACE VIEW audit_log AS {audit_query(store.home)}")
            # Every run is read for it: seconds, where there are thousands.
            if "refresh_log" in statement.lower():
                with dagster_instance(settings) as instance:
                    connection.register("refresh_log", refresh_log(instance))
            _show(connection, statement)


def _show(connection: "DuckDBPyConnection", query: str) -> None:
    import duckdb

    try:
        relation = connection.sql(query)
        if relation is not None:
            relation.show(max_rows=200, max_width=200)
    except duckdb.Error as error:
        raise click.ClickException(str(error)) from None


@click.command()
@click.argument("customer_id")
@click.argument("cutoff", type=DAY)
def explain(customer_id: str, cutoff: dt.datetime) -> None:
    """Every feature of a customer at a cutoff, with the rows and the window it came from."""
    from rich.table import Table

    from churn_assets.features import feature_groups
    from churn_assets.features.explain import explain as explain_customer
    from churn_assets.operations.installation import offline_store

    settings = settings_to_read()
    calendar = settings.calendar()
    day = cutoff.date()
    calendar.require(calendar.cutoffs, [day.isoformat()], utc_now())
    table = Table("feature", "value", "unit", "window", "rows", "of", "first day", "last day")
    group = ""
    groups = feature_groups(settings.review_vectors)
    try:
        rows = explain_customer(groups, offline_store(settings), calendar, customer_id, day)
    except LookupError:
        record_read(settings, "explain", cutoff=day, customers=[(customer_id, False)])
        raise
    record_read(settings, "explain", cutoff=day, customers=[(customer_id, True)])
    for row in rows:
        if row.group != group:
            group = row.group
            table.add_section()
            table.add_row(group, style="bold")
        own, *of = row.spans
        table.add_row(
            row.feature,
            shown(row.value),
            row.unit,
            own.window,
            str(own.rows),
            row.source,
            *_days(own),
        )
        for span in of:
            table.add_row("  of", "", "", span.window, str(span.rows), row.source, *_days(span))
    terminal().print(table)


def _days(span: "Span") -> tuple[str, str]:
    return str(span.first_day or ""), str(span.last_day or "")


@click.command()
@click.option("--cutoff", type=DAY, help="The scored cutoff; the newest where it is not given.")
@click.option(
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(min=0),
    help="Rows to print.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write all to a .csv or .parquet file."
)
def contacts(cutoff: dt.datetime | None, limit: int, out: Path | None) -> None:
    """Customers whom it pays to contact, by expected value, with the reasons."""
    from churn_assets.models.metrics import Economics
    from churn_assets.predictions.churn_predictions import CHURN_PREDICTIONS
    from churn_assets.predictions.contacts import contacts_query
    from churn_assets.stores.sql import quoted

    settings = settings_to_read()
    store = store_with_catalog(settings)
    keys = store.keys(CHURN_PREDICTIONS)
    key = cutoff.date().isoformat() if cutoff else keys[-1] if keys else None
    if key is None:
        raise click.ClickException("There are no predictions yet. Make them with `churn backfill`.")
    if out and out.suffix not in (".csv", ".parquet"):
        raise click.ClickException(f"{out} ends neither with .csv nor with .parquet.")
    query = contacts_query(store.scan(CHURN_PREDICTIONS, [key]).sql, Economics.of(settings))
    most = f"LIMIT {limit}" if out is None else ""
    with store.connect() as connection:
        connection.execute(f"CREATE TEMP TABLE contacts AS FROM ({query}) {most}")
        ids = [id_ for (id_,) in connection.execute("SELECT customer_id FROM contacts").fetchall()]
        record_read(
            settings,
            "contacts",
            cutoff=dt.date.fromisoformat(key),
            customers=[(id_, True) for id_ in ids],
        )
        if out is None:
            _show(connection, "FROM contacts")
            return
        file_format = "csv, HEADER" if out.suffix == ".csv" else "parquet"
        connection.execute(f"COPY contacts TO '{quoted(out)}' (FORMAT {file_format})")
    click.echo(f"{len(ids):,} customers to contact at {key} are in {out}.")


COMMANDS = (status, report, sql, explain, contacts)
