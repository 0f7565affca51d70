"""The report as text for a terminal."""

from typing import TYPE_CHECKING

from churn_assets.cutoffs import Calendar
from churn_assets.monitoring.report import cutoff_reports, rows_per_table
from churn_assets.stores.offline import OfflineStore

if TYPE_CHECKING:
    from rich.console import Console


def show(console: "Console", store: OfflineStore, calendar: Calendar) -> None:
    """Print rows per table, what became of each cutoff's models, and where to look next."""
    from rich.table import Table

    tables = Table("table", "partitions", "rows", title="Offline store", title_justify="left")
    for name, (partitions, rows) in rows_per_table(store).items():
        tables.add_row(name, str(partitions), f"{rows:,}")
    console.print(tables)
    reports = cutoff_reports(store, calendar)
    cutoffs = Table("cutoff", "champion", "graded on", "AUC", "best possible", "why")
    for row in reports:
        cutoffs.add_row(
            str(row.cutoff),
            row.champion,
            row.holdout,
            "" if row.auc is None else f"{row.auc:.3f}",
            "" if row.best_auc is None else f"{row.best_auc:.3f}",
            row.reason,
        )
    console.print(cutoffs)
    console.print(
        "Where to look next\n"
        "  make dev                           the graph, every partition and plot, on "
        "http://localhost:3000\n"
        "  .venv/bin/churn sql                DuckDB over all tables\n"
        "  .venv/bin/churn explain ID CUTOFF  where a customer's features come from\n"
        "  .venv/bin/churn online get ID      the row that is served\n"
        f"  all state                          {store.home}",
        highlight=False,
    )
