"""The identity of a state folder: what it is called, and what its partitions mean.

`<CHURN_HOME>/installation.json` is written by the first command or run that writes anything:

| field | |
|---|---|
| `name` | `CHURN_INSTALLATION`, or short and random: it keeps apart what several installations \
put into one Redis or MLflow server |
| `path` | where the state is at home: a copy must not publish under the name of the original |
| `format` | of the state, raised where an older release could not read it |
| `meaning` | source, cadence, seed, size of the synthetic shop. With another value of these the \
same partition key names something else, so another value is refused |

Everything else about partitions may change; what they were made with is in their provenance.
"""

import json
import logging
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from churn_assets.settings import Settings, SettingsError
from churn_assets.stores.private import tighten
from churn_assets.stores.staging import staged, write_text

FILE = "installation.json"

# 1 is version 0.1, which kept no such file.
FORMAT = 2

log = logging.getLogger(__name__)


class AnotherInstallation(SettingsError):
    """The state folder belongs to other settings, or to another place."""


@dataclass(frozen=True)
class Identity:
    """What `installation.json` says; see the table of the module."""

    name: str
    path: str
    format: int
    meaning: Mapping[str, str | int]

    def require_at_home(self, home: Path, what: str) -> None:
        """Refuse to publish from another folder than the state is at home in.

        Args:
            home: The state folder as it is found now.
            what: What would be published to, for the message.

        Raises:
            AnotherInstallation: The folder was moved or copied.
        """
        if self.path == str(home.resolve()):
            return
        raise AnotherInstallation(
            f"{home.resolve()} was made as {self.path}, and nothing is published to {what} from a "
            f"place that may be a copy: two would publish as {self.name!r}. If it was moved, run "
            "`churn adopt --moved`; if it is a copy, `churn adopt --copied`, which gives it a name "
            "of its own."
        )


def find_identity(home: Path) -> Identity | None:
    """The identity of a state folder; None where nothing was written yet, or by version 0.1.

    Raises:
        AnotherInstallation: The file is damaged, or of a later release.
    """
    path = home / FILE
    try:
        kept = json.loads(path.read_text())
        identity = Identity(**kept)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise AnotherInstallation(
            f"{path} cannot be read: {error}. Restore it from a backup; if there is none, delete "
            "it: the next command writes it anew, with the settings that it is run with."
        ) from error
    if identity.format > FORMAT:
        raise AnotherInstallation(
            f"{home} was written by a later release (format {identity.format}, this one knows "
            f"{FORMAT}). Install that release, or set CHURN_HOME to another folder."
        )
    return identity


def meaning_of(settings: Settings) -> dict[str, str | int]:
    """What the partitions of an installation with these settings mean."""
    shop = {"synthetic_customers": settings.synthetic_customers}
    return {
        "source": settings.source,
        "cadence": settings.cadence.value,
        "seed": settings.seed,
        **(shop if settings.source == "synthetic" else {}),
    }


def refuse_another(settings: Settings) -> Identity | None:
    """The identity of the state folder, which must be that of the settings; None where it is new.

    Raises:
        AnotherInstallation: It is not; the message names both ways out.
    """
    identity = find_identity(settings.home)
    if identity is None:
        return None
    now = {**meaning_of(settings), "installation": settings.installation or identity.name}
    made = {**identity.meaning, "installation": identity.name}
    if other := [name for name in made if made[name] != now.get(name)]:
        differences = ", ".join(
            f"CHURN_{name.upper()}={made[name]} and not {now.get(name)}" for name in other
        )
        raise AnotherInstallation(
            f"{settings.home} was made with {differences}. In one folder both would be mixed. Set "
            "CHURN_HOME to another folder, or `churn reset --yes` deletes what is in this one."
        )
    return identity


def identify(settings: Settings) -> Identity:
    """The identity of the state folder, written now where it is new; it is made private.

    Raises:
        AnotherInstallation: It is that of other settings.
        PermissionError: The state folder cannot be written.
    """
    identity = refuse_another(settings)
    tighten(settings.home)
    if identity is None:
        _refuse_other_boundaries(settings)
        _write_once(settings)
        identity = refuse_another(settings)
        assert identity is not None
    return identity


def adopt(settings: Settings, *, copied: bool) -> Identity:
    """Make the folder in which the state is now its home.

    Args:
        settings: The settings; `installation` names a copy, without it the name is drawn.
        copied: Whether the original is still there, so that this one needs a name of its own.

    Raises:
        AnotherInstallation: A copy would have the name of its original.
    """
    identity = find_identity(settings.home) or identify(settings)
    name = identity.name
    if copied:
        name = settings.installation or _new_name()
        if name == identity.name:
            raise AnotherInstallation(
                f"CHURN_INSTALLATION={name} is the name of the original. Set another one, or unset "
                "it, and run `churn adopt --copied` again."
            )
    adopted = replace(identity, name=name, path=str(settings.home.resolve()))
    write_text(settings.home, settings.home / FILE, json.dumps(asdict(adopted), indent=2))
    return adopted


def _new_name() -> str:
    return secrets.token_hex(4)


def _write_once(settings: Settings) -> None:
    """Write the file where there is none; of several processes that start now, one does."""
    home = settings.home
    old = (home / "offline_store").exists()
    made = Identity(
        settings.installation or _new_name(), str(home.resolve()), FORMAT, meaning_of(settings)
    )
    with staged(home) as path:
        path.write_text(json.dumps(asdict(made), indent=2))
        with path.open("rb") as file:
            os.fsync(file.fileno())
        try:
            os.link(path, home / FILE)
        except FileExistsError:
            return
    if old:
        log.warning(
            "%s was made by version 0.1 and is installation %r from now on. What it has in Redis "
            "and MLflow is published again under that name by `churn backfill`.",
            home,
            made.name,
        )


def _refuse_other_boundaries(settings: Settings) -> None:
    """A state of version 0.1 does not say its cadence, but its slices do."""
    calendar = settings.calendar()
    for folder in sorted((settings.home / "offline_store" / "raw_events").glob("slice=*")):
        day = re.fullmatch(r"slice=(\d{4}-\d{2}-\d{2})", folder.name)
        if day and not calendar.is_boundary(day[1]):
            raise AnotherInstallation(
                f"{settings.home} has the slice {day[1]}, which is none of CHURN_CADENCE="
                f"{settings.cadence}. Set CHURN_CADENCE as it was, or CHURN_HOME to another folder."
            )
