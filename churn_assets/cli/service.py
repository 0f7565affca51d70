"""Commands for the service: `serve` and `api-key`."""

import os

import click

from churn_assets.cli.values import settings_to_write


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Interface to listen on.")
@click.option("--port", default=8000, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), help="Processes; by default one per core.")
def serve(host: str, port: int, workers: int | None) -> None:
    """Serve features and predictions over HTTP, and a page for people at /."""
    from churn_assets.serving.access import Access, is_loopback
    from churn_assets.serving.run import run

    settings = settings_to_write()
    if Access.from_settings(settings).open and not is_loopback(host):
        raise click.ClickException(
            f"Without keys everybody who reaches {host} could read every customer. Set "
            "CHURN_API_KEYS (`churn api-key` makes one) or CHURN_JWT_KEY, or leave out --host."
        )
    run(host, port, workers or os.cpu_count() or 1)


@click.command()
@click.argument("name")
@click.argument("scopes", nargs=-1, required=True)
def api_key(name: str, scopes: tuple[str, ...]) -> None:
    """Draw a key for a caller of the service, and show its entry for CHURN_API_KEYS."""
    from churn_assets.serving.access import new_key

    key, entry = new_key(name, scopes)
    click.echo(f"Key, for the caller, not shown again: {key}")
    click.echo(f"Entry for CHURN_API_KEYS: {entry}")


COMMANDS = (serve, api_key)
