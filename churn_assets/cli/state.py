"""Commands about the state folder itself: `accept`, `reset`, `adopt`, `erase` and `prune`."""

import sys
from collections.abc import Sequence

import click

from churn_assets.cli.values import settings_to_write
from churn_assets.cutoffs import utc_now
from churn_assets.operations.terminal import terminal
from churn_assets.settings import Settings
from churn_assets.stores.erased import FILE as ERASED

SHOWN = 20


@click.command()
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

    settings = settings_to_write()
    store = offline_store(settings)
    try:
        with dagster_instance(settings) as instance:
            broken = contract_checks.accept(
                store, settings.calendar(), table, key, reason, instance
            )
    except (ValueError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from None
    terminal().print(f"{table} {key or ''} passes in spite of {', '.join(broken.failures)}.")


@click.command()
@click.option("--yes", is_flag=True, help="Delete without asking.")
def reset(yes: bool) -> None:
    """Delete what this project made under CHURN_HOME, and nothing else.

    Also its keys on the server that REDIS_URL names. Files of your own stay, and so do input files,
    and what was recorded in another DAGSTER_HOME or on an MLflow server.
    """
    from churn_assets.operations import reset as resets
    from churn_assets.operations.with_settings import dagster_home

    settings = Settings.read()
    home = settings.home
    sizes = resets.sizes(home)
    if not sizes:
        click.echo(f"There is nothing to delete: {home} holds no state.")
        return
    resets.refuse_while_running(settings)
    name = resets.name_of(settings)
    click.echo(f"To delete, in {home}:")
    for entry, size in sizes.items():
        click.echo(f"  {entry:<24}{size / 1e6:>10.1f} MB")
    if settings.redis_url and name:
        click.echo(f"and, on the server that REDIS_URL names, every key churn:{name}:*")
    for kept in resets.kept(home)[:SHOWN]:
        why = "as it is none of ours"
        if kept.name == ERASED:
            why = "so that who was erased does not come back"
        click.echo(f"Stays, {why}: {kept}")
    if settings.redis_url and not name:
        click.echo(
            "Stays: the keys on the server that REDIS_URL names, as the name of this installation "
            "is not known. Set CHURN_INSTALLATION to it to delete them."
        )
    if settings.mlflow_tracking_uri:
        click.echo(
            "Stays: the runs and models on the MLflow server that MLFLOW_TRACKING_URI names"
            + (f", of installation {name}" if name else "")
            + ". Its web UI deletes them."
        )
    elsewhere = dagster_home(settings)
    if elsewhere != settings.dagster_home:
        click.echo(
            f"Stays: Dagster's records in DAGSTER_HOME={elsewhere}. There `dagster asset wipe "
            "--all` and `dagster run wipe` delete them, or the web UI those of single assets."
        )
    if not yes and not (sys.stdin.isatty() and click.confirm("Delete it?")):
        raise click.ClickException("Nothing was deleted. `churn reset --yes` deletes it.")
    resets.reset(settings, name)
    click.echo("Deleted. `churn backfill` begins anew.")


@click.command()
@click.option("--moved", is_flag=True, help="The state was moved here.")
@click.option("--copied", is_flag=True, help="It is a copy, and the original goes on.")
def adopt(moved: bool, copied: bool) -> None:
    """Make the folder in which the state is now its home, so that it publishes from there.

    A copy gets a name of its own: CHURN_INSTALLATION, or one that is drawn.
    """
    from churn_assets.stores.identity import adopt as adopt_here

    if moved == copied:
        raise click.UsageError("Say what happened to the state: either --moved or --copied.")
    identity = adopt_here(Settings.read(), copied=copied)
    click.echo(f"Installation {identity.name} is at home in {identity.path}.")
    if copied:
        click.echo("Next: `churn backfill` publishes what it has under that name.")
    else:
        click.echo("It publishes from here under the same name: nothing has to be made again.")


@click.command()
@click.option("--yes", is_flag=True, help="Remove it; without it, only show what would go.")
@click.option(
    "--models",
    default=12,
    show_default=True,
    type=click.IntRange(min=1),
    help="Keep models of so many of the newest cutoffs, and all that are in use.",
)
@click.option(
    "--days",
    default=14,
    show_default=True,
    type=click.IntRange(min=0),
    help="Keep records of Dagster of so many days.",
)
@click.option(
    "--audit-days",
    default=400,
    show_default=True,
    type=click.IntRange(min=0),
    help="Keep the audit log of so many days.",
)
def prune(yes: bool, models: int, days: int, audit_days: int) -> None:
    """Remove what nobody reads any more: old models, old records, partitions outside history.

    Of a model that is removed the record stays: what it was, how good, and why it was chosen.
    """
    from churn_assets.definitions import build_definitions
    from churn_assets.operations import pruning
    from churn_assets.operations.disk_space import size
    from churn_assets.operations.instance import dagster_instance
    from churn_assets.operations.reset import refuse_while_running
    from churn_assets.serving.audit import delete_days, old_days

    settings, now = settings_to_write(), utc_now()
    if yes:
        refuse_while_running(settings)
    with dagster_instance(settings) as instance:
        found = pruning.prunable(settings, build_definitions(settings), instance, now, models, days)
        if audit := old_days(settings.home, now.date(), audit_days):
            what = f"days of the audit log, more than {audit_days} days ago"
            found.append(
                pruning.Prunable(what, len(audit), size(*audit), lambda: delete_days(audit))
            )
        free = pruning.reclaimable(settings)
        if not found and not free:
            click.echo("There is nothing to prune.")
            return
        for kind in found:
            click.echo(f"{kind.count:>8} {kind.bytes / 1e6:>10.1f} MB  {kind.what}")
        if free:
            click.echo(f"{'':>8} {free / 1e6:>10.1f} MB  in databases that hold nothing there")
        if not yes:
            click.echo("Nothing was removed. `churn prune --yes` removes it.")
            return
        for why in pruning.prune(settings, found):
            click.echo(why, err=True)
    click.echo("Removed.")


@click.command()
@click.argument("customers", nargs=-1, required=True, metavar="ID...")
@click.option("--retrain", is_flag=True, help="Have models that learned from them become stale.")
@click.option("--yes", is_flag=True, help="Erase without asking.")
def erase(customers: Sequence[str], retrain: bool, yes: bool) -> None:
    """Erase customers: their rows, their id, and what the rows of others owe to them.

    The source is not touched: erase them there too. Until then it does not bring them back. Models
    that learned from them are named.
    """
    from churn_assets.definitions import build_definitions
    from churn_assets.monitoring.inventory import inventory, with_catalog
    from churn_assets.operations import erasure, traces
    from churn_assets.operations.backfill import BackfillFailed, run_batch
    from churn_assets.operations.installation import offline_store
    from churn_assets.operations.instance import dagster_instance
    from churn_assets.operations.progress import shown_progress
    from churn_assets.operations.reset import refuse_while_running

    settings = settings_to_write()
    refuse_while_running(settings)
    if not yes and not (
        sys.stdin.isatty() and click.confirm(f"Erase {len(customers)} customers for good?")
    ):
        raise click.ClickException("Nothing was erased. With --yes it is.")
    calendar, now = settings.calendar(), utc_now()
    defs = build_definitions(settings)
    store = with_catalog(offline_store(settings), defs, calendar)
    console = terminal()
    with dagster_instance(settings) as instance:
        erased = erasure.begin(store, customers, inventory(defs, store, calendar, instance, now))
        rows = erasure.erase_rows(store, erased)
        online = erasure.erase_online(settings, customers)
        traces.erase_snapshots(settings.home, customers)
        traces.erase_traces(settings, instance, customers)
        for table, count in rows.items():
            console.print(f"{table}: {count:,} rows erased", highlight=False)
        console.print(f"online: {online:,} rows erased", highlight=False)
        remaking = erasure.Remaking(defs, store, calendar, instance, now, retrain)
        for batch in remaking.batches():
            with shown_progress(console, batch) as on_step:
                try:
                    run_batch(batch, defs, instance, on_step)
                except BackfillFailed as failure:
                    raise click.ClickException(
                        f"{failure}\nThe customers are erased. What was made from their rows is "
                        "not made again yet: give the same command again."
                    ) from None
        traces.erase_snapshots(settings.home, customers)
        left = remaking.left()
        erasure.finish(store)
    for name, keys in remaking.learned.items():
        console.print(f"{name} learned from them: {', '.join(sorted(keys)) or 'whole'}")
    if left:
        count = sum(map(len, left.values()))
        console.print(f"{count} stale: `churn backfill --stale` makes them again.")


COMMANDS = (accept, reset, adopt, erase, prune)
