"""An inspection as text for a terminal."""

from typing import TYPE_CHECKING

from churn_assets.operations.inspection import InspectedTable, Inspection
from churn_assets.operations.terminal import marked

if TYPE_CHECKING:
    from rich.console import Console

MOST_SHOWN = 20


def show(console: "Console", inspection: Inspection) -> None:
    """Print what was found: per table, then the settings that suit it."""

    def say(text: str) -> None:
        console.print(text, highlight=False)

    for table in inspection.tables:
        _show_table(console, table)
    if not any(table.ingested for table in inspection.tables):
        return
    console.print("history", style="bold")
    for line in inspection.outlook:
        say(f"  {line}")
    console.print()
    if inspection.settings:
        console.print("settings that suit it", style="bold")
        assigned = " ".join(f"{name}={value}" for name, value in inspection.settings.items())
        say(f"  export {assigned}")
    say("Next: `churn backfill`")


def _show_table(console: "Console", table: InspectedTable) -> None:
    from rich.table import Table

    def say(text: str, mark: str = " ", style: str = "") -> None:
        console.print(marked(mark, style, text), highlight=False)

    console.print(table.name, style="bold")
    for file, reason in table.unread[:MOST_SHOWN]:
        say(f"{file} is not read: {reason}", "!", "yellow")
    if len(table.unread) > MOST_SHOWN:
        say(f"and {len(table.unread) - MOST_SHOWN:,} more are not read", "!", "yellow")
    if table.columns:
        columns = Table("column", "values", "usable", "first that is not", box=None, padding=(0, 2))
        for column in table.columns:
            first = column.first_unusable or ""
            columns.add_row(
                column.name,
                f"{column.given:,}",
                f"{column.usable:,}",
                first if len(first) <= 80 else f"{first[:80]}…",
            )
        console.print(columns)
        if table.others:
            shown = ", ".join(table.others[:MOST_SHOWN])
            say(f"not used: {shown}{', …' if len(table.others) > MOST_SHOWN else ''}")
    if table.problem:
        say(table.problem, "✗", "red")
        console.print()
        return
    say(f"{table.ingested:,} of {table.rows:,} rows would be ingested")
    for reason, count, first in table.reasons:
        say(f"  {count:,} {reason}, the first is {first}")
    for name, fact in table.facts.items():
        say(f"{name}: {fact}")
    for warning in table.warnings:
        say(warning, "!", "yellow")
    console.print()
