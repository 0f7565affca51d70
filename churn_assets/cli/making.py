"""Commands that make tables: `init`, `inspect` and `backfill`."""

import datetime as dt
import sys
from collections.abc import Sequence

import click

from churn_assets.cli.values import DAY, settings_to_read
from churn_assets.cutoffs import utc_now
from churn_assets.operations.terminal import terminal
from churn_assets.settings import Settings
from churn_assets.sources.presets import PRESETS


@click.command()
@click.argument("preset", type=click.Choice(PRESETS))
def init(preset: str) -> None:
    """Write the query of a preset into the input folder: events.sql, yours to change."""
    from churn_assets.sources.presets import write_preset

    path, files = write_preset(preset, Settings.read().input_folder)
    click.echo(f"{path} reads {', '.join(files) or 'no file yet: put the export beside it'}.")
    click.echo("Next: `churn inspect`")


@click.command()
def inspect() -> None:
    """What the source holds and how it would be read. Nothing is stored."""
    from churn_assets.operations.inspection import inspected
    from churn_assets.operations.inspection_text import show

    inspection = inspected(Settings.read(), utc_now())
    show(terminal(), inspection)
    if any(table.problem for table in inspection.tables):
        sys.exit(1)


@click.command()
@click.option("--from", "first", type=DAY, help="First cutoff to make again, YYYY-MM-DD.")
@click.option("--to", "last", type=DAY, help="Last cutoff to make again, YYYY-MM-DD.")
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
    from churn_assets.history.readings import notice_deliveries
    from churn_assets.monitoring.inventory import inventory, with_catalog
    from churn_assets.operations import plans, remarks
    from churn_assets.operations.backfill import BackfillFailed, run_batch
    from churn_assets.operations.forgetting import forget_what_is_to_come
    from churn_assets.operations.installation import offline_store
    from churn_assets.operations.instance import dagster_instance
    from churn_assets.operations.progress import shown_progress
    from churn_assets.sources import open_source
    from churn_assets.stores.identity import identify
    from churn_assets.stores.views import write_views

    settings = settings_to_read()
    calendar = settings.calendar()
    defs, now = build_definitions(settings), utc_now()
    store = with_catalog(offline_store(settings), defs, calendar)
    stages = plans.stages(names)
    slices_only = list(names) == ["ingest"]
    wanted = plans.wanted_range(
        calendar.slices if slices_only else calendar.cutoffs,
        calendar,
        first and first.date(),
        last and last.date(),
        newest,
        now,
    )
    identify(settings)
    console = terminal()
    with dagster_instance(settings) as instance:
        forget_what_is_to_come(store, instance, now)
        notice_deliveries(open_source(settings), store, calendar, now)
        batches = (
            plans.refresh_batches(defs, store, calendar, instance, now)
            if stale
            else plans.backfill_batches(
                stages, defs, store, calendar, instance, now, wanted, slices_only
            )
        )
        made = 0
        for batch in batches:
            made += 1
            with shown_progress(console, batch) as on_step:
                try:
                    run_batch(batch, defs, instance, on_step)
                except BackfillFailed as failure:
                    raise click.ClickException(str(failure)) from None
        if not made:
            console.print(f"Nothing is {'stale' if stale else 'missing'}.")
        if stale:
            lines = remarks.on_demand(inventory(defs, store, calendar, instance, now))
        else:
            lines = remarks.after_backfill(defs, store, calendar, instance, now)
        for line in [*(lines if not names else []), *remarks.unread_input(settings)]:
            console.print(line, highlight=False)
        # Also then: the last run may have been killed before it came to this.
        write_views(store)


COMMANDS = (init, inspect, backfill)
