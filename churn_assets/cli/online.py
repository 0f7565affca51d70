"""Commands for the online store: `online get` and `online rollback`."""

import click

from churn_assets.cli.values import settings_to_read, settings_to_write, shown


@click.group()
def online() -> None:
    """The online store: what is served now."""


@online.command()
@click.argument("customer_id")
def get(customer_id: str) -> None:
    """The online row of a customer."""
    from churn_assets.online.io_manager import connect
    from churn_assets.online.store import OnlineStore

    settings = settings_to_read()
    store = OnlineStore(connect(settings.home, settings.redis_url))
    row = store.get(customer_id)
    if row is None:
        live = store.live()
        where = f"version {live.version} ({live.rows:,} customers)" if live else "nothing"
        raise click.ClickException(f"There is no online row of {customer_id!r}; live is {where}.")
    for name, value in row.items():
        click.echo(f"{name}\t{shown(value)}")


@online.command()
def rollback() -> None:
    """Serve the retained previous version again."""
    from churn_assets.online.io_manager import connect
    from churn_assets.online.publishing import roll_back

    settings = settings_to_write()
    version = roll_back(connect(settings.home, settings.redis_url))
    click.echo(f"Live is {version} now.")


COMMANDS = (online,)
