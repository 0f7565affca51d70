"""Commands for the online store: `online get` and `online rollback`."""

import click

from churn_assets.cli.recorded import record_read
from churn_assets.cli.values import shown
from churn_assets.settings import Settings
from churn_assets.stores.identity import identify


@click.group()
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
    record_read(
        settings,
        "online get",
        source="redis",
        cutoff=row["cutoff"] if row else None,
        customers=[(customer_id, row is not None)],
    )
    if row is None:
        live = store.live()
        where = f"version {live.version} ({live.rows:,} customers)" if live else "nothing"
        raise click.ClickException(f"There is no online row of {customer_id!r}; live is {where}.")
    for name, value in row.items():
        click.echo(f"{name}\t{shown(value)}")


@online.command()
def rollback() -> None:
    """Serve the retained previous version again."""
    from churn_assets.online.io_manager import open_to_publish
    from churn_assets.online.publishing import roll_back

    settings = Settings.read()
    version = roll_back(open_to_publish(settings.home, settings.redis_url, identify(settings)))
    click.echo(f"Live is {version} now.")


COMMANDS = (online,)
