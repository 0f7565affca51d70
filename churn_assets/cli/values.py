"""How values are given on the command line, and shown."""

import click

DAY = click.DateTime(formats=["%Y-%m-%d"])


def shown(value: object) -> str:
    """A value of a table's cell."""
    if value is None:
        return "NULL"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
