"""Commands that show customers, in the audit log beside the requests of the service.

A read is recorded before anything is shown. The audit log names the user of the operating system.
"""

import os
import pwd
import secrets
from collections.abc import Sequence
from contextlib import closing
from datetime import date

import click

from churn_assets.serving.audit import AuditLog
from churn_assets.settings import Settings
from churn_assets.stores.identity import find_identity

# DuckDB reads a line of the audit log of at most 16 MB, and JSON may write a character in 6 bytes.
MOST_CHARACTERS = 1_000_000
CUSTOMERS_A_LINE = 1_000


def record_read(
    settings: Settings,
    action: str,
    *,
    source: str = "offline",
    cutoff: date | None = None,
    customers: Sequence[tuple[str, bool]] = (),
    query: str | None = None,
) -> None:
    """Record that this user reads customers; very many in several lines of one request.

    Args:
        settings: The settings.
        action: The name of the command.
        source: The store that is read.
        cutoff: Of the rows, where they are of one.
        customers: Each customer that is shown or was asked for, and whether there is a row.
        query: The text of a query.

    Raises:
        ClickException: It cannot be recorded, so nothing may be shown.
    """
    if query and len(query) > MOST_CHARACTERS:
        raise click.ClickException(
            f"A query of more than {MOST_CHARACTERS:,} characters cannot be recorded in the audit "
            "log, so it is not run. Put what is long into a file that the query reads."
        )
    identity = find_identity(settings.home)
    request, caller = secrets.token_hex(16), f"cli:{_user()}"
    read = [(_text(customer), found) for customer, found in customers]
    try:
        with closing(AuditLog(settings.home)) as audit:
            for first in range(0, len(read) or 1, CUSTOMERS_A_LINE):
                audit.record(
                    installation=identity.name if identity else "",
                    request_id=request,
                    caller=caller,
                    action=action,
                    sensitive=True,
                    source=source,
                    cutoff=cutoff,
                    customers=read[first : first + CUSTOMERS_A_LINE],
                    query=None if query is None else _text(query),
                )
    except OSError as error:
        raise click.ClickException(
            "Nothing is shown, because the audit log could not say who read it: "
            f"{settings.home / 'serving' / 'audit'} cannot be written ({error.strerror or error}). "
            "See that its disk has space left and that this user may write to it, and run again."
        ) from None


def _user() -> str:
    """Who runs this process, whatever $USER says."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may run under a number without a name
        return str(os.getuid())


def _text(text: str) -> str:
    """A text without what UTF-8 cannot write: bytes of an argument that are no text."""
    return text.encode(errors="replace").decode()
