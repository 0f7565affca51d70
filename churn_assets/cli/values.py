"""What commands are given and show: days, cells of a table, and the settings of a state folder."""

import click

from churn_assets.settings import Settings
from churn_assets.stores.identity import identify, refuse_another

DAY = click.DateTime(formats=["%Y-%m-%d"])


def shown(value: object) -> str:
    """A value of a table's cell."""
    if value is None:
        return "NULL"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def settings_to_read() -> Settings:
    """The settings, for a command that only reads the state folder.

    Raises:
        SettingsError: A setting has no valid value, or the state is that of other settings.
    """
    settings = Settings.read()
    refuse_another(settings)
    return settings


def settings_to_write() -> Settings:
    """The settings, for a command that writes to the state folder, or to a server for it.

    Raises:
        SettingsError: A setting has no valid value, or the state is that of other settings.
        PermissionError: The state folder cannot be written.
    """
    settings = Settings.read()
    identify(settings)
    return settings
