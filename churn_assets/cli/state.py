"""Commands about the state folder itself: `accept`."""

import click

from churn_assets.cli.values import settings_to_write
from churn_assets.operations.terminal import terminal


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


COMMANDS = (accept,)
