"""Commands about the state folder itself: `accept`, `reset`, `adopt` and `prune`."""

import sys

import click

from churn_assets.cli.values import settings_to_write
from churn_assets.cutoffs import utc_now
from churn_assets.operations.terminal import terminal
from churn_assets.settings import Settings

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
        click.echo(f"Stays, as it is none of ours: {kept}")
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


COMMANDS = (accept, reset, adopt, prune)
