"""Run another program in the folders that the settings name.

`python -m churn_assets.operations.with_settings dg dev` starts `dg dev` with CHURN_HOME and
DAGSTER_HOME in its environment. So make need not read `.env`, whose quotes and comments it would
take for a part of the value.
"""

import os
import shutil
import sys
from pathlib import Path

from churn_assets.settings import ENV_FILE, Settings, SettingsError, refuse_two_values
from churn_assets.stores.private import keep_private

DAGSTER_YAML = Path(__file__).parent / "dagster.yaml"


def dagster_home(settings: Settings) -> Path:
    """DAGSTER_HOME, or the folder inside CHURN_HOME."""
    return Path(os.environ.get("DAGSTER_HOME") or settings.dagster_home)


def make_dagster_home(settings: Settings) -> Path:
    """Dagster's folder, made with its configuration where it is new.

    Raises:
        OSError: It cannot be written.
    """
    home = dagster_home(settings)
    try:
        home.mkdir(parents=True, exist_ok=True)
        if not (home / "dagster.yaml").exists():
            # In one step, for other commands that start now.
            made = home / f"dagster.yaml.{os.getpid()}"
            shutil.copyfile(DAGSTER_YAML, made)  # with the rights of new files
            made.replace(home / "dagster.yaml")
    except OSError as error:
        raise OSError(
            f"CHURN_HOME ({settings.home}) cannot be written: {error}. "
            "Set CHURN_HOME to a folder that this user may write to."
        ) from error
    return home


def main(command: list[str]) -> None:
    """Become `command`."""
    keep_private()
    try:
        settings = Settings.read()
        refuse_two_values(ENV_FILE)
        folders = {
            "CHURN_HOME": str(settings.home),
            "DAGSTER_HOME": str(make_dagster_home(settings)),
        }
    except (SettingsError, OSError) as error:
        sys.exit(f"Error: {error}")
    os.execvpe(command[0], command, os.environ | folders)


if __name__ == "__main__":
    main(sys.argv[1:])
