"""What commands are given and show: days, cells of a table, and the settings of a state folder."""

from typing import TYPE_CHECKING

import click

from churn_assets.settings import Settings
from churn_assets.stores.identity import identify, refuse_another

if TYPE_CHECKING:
    from churn_assets.stores.offline import OfflineStore

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


def store_with_catalog(settings: Settings) -> "OfflineStore":
    """The offline store, which leaves out what is no history and refuses other definitions."""
    from churn_assets.definitions import build_definitions
    from churn_assets.monitoring.inventory import with_catalog
    from churn_assets.operations.installation import offline_store

    defs = build_definitions(settings)
    return with_catalog(offline_store(settings), defs, settings.calendar())


def settings_to_write() -> Settings:
    """The settings, for a command that writes to the state folder, or to a server for it.

    Raises:
        SettingsError: A setting has no valid value, or the state is that of other settings.
        PermissionError: The state folder cannot be written.
    """
    settings = Settings.read()
    identify(settings)
    return settings
