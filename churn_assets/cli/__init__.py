"""The `churn` command. Its modules hold the commands, by what people do with them.

A module imports the settings and Dagster, which takes a second, so `main` is there before them:
whoever interrupts the command meanwhile sees no traceback.
"""

import sys
from importlib import import_module

import click

from churn_assets.stores.private import keep_private

MODULES = ("making", "looking", "state", "online", "service")


class Commands(click.Group):
    """The commands of the modules."""

    def _load(self) -> None:
        for name in MODULES if not self.commands else ():
            module = import_module(f"{__name__}.{name}")
            for command in module.COMMANDS:
                self.add_command(command)

    def list_commands(self, ctx: click.Context) -> list[str]:
        self._load()
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        self._load()
        return super().get_command(ctx, cmd_name)


@click.group(cls=Commands)
def churn() -> None:
    """Point-in-time churn features, labels and training sets."""
    keep_private()


def main() -> None:
    """Run the command; expected errors are one message, not a traceback."""
    try:
        churn.main(standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (ValueError, LookupError, OSError, RuntimeError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
