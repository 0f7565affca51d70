"""Who read what: one line per answered request, as table `audit_log` in `churn sql`.

Grain of the table: one row per request and customer, and one without a customer per request that
named none, such as one that scored raw features. Files are
`CHURN_HOME/serving/audit/<UTC day>.jsonl`, shared by all workers: each line is one append. A read
that cannot be recorded is not answered. `churn prune` deletes whole days that are older than it is
told to keep. Whoever deletes the folder deletes the past only: the next read makes it again.
"""

import datetime as dt
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from pydantic_core import to_json

from churn_assets.cutoffs import utc_now
from churn_assets.serving.held import leads_to, let_go
from churn_assets.stores.sql import quoted

COLUMNS = {
    "read_at": "TIMESTAMPTZ",
    "installation": "VARCHAR",
    "request_id": "VARCHAR",
    "caller": "VARCHAR",
    "action": "VARCHAR",
    "sensitive": "BOOLEAN",
    "source": "VARCHAR",
    "cutoff": "DATE",
    "rows": "INTEGER",
    "customers": "STRUCT(customer_id VARCHAR, found BOOLEAN)[]",
}


def folder(home: Path) -> Path:
    """Where the audit log of an installation is."""
    return home / "serving" / "audit"


def old_days(home: Path, today: dt.date, kept_days: int) -> list[Path]:
    """The files of the days that are more than `kept_days` before today; never today's."""
    first = (today - dt.timedelta(days=max(kept_days, 0))).isoformat()
    return sorted(path for path in folder(home).glob("????-??-??.jsonl") if path.stem < first)


def delete_days(days: Sequence[Path]) -> None:
    """Delete files of days; a call that was killed can be repeated."""
    for path in days:
        path.unlink(missing_ok=True)


class AuditLog:
    """Appends to the file of the day. One object may serve any number of threads."""

    def __init__(self, home: Path) -> None:
        self._folder = folder(home)
        self._lock = threading.Lock()
        self._file: int | None = None
        home.mkdir(parents=True, exist_ok=True)
        self._make_folder()

    def record(
        self,
        installation: str,
        request_id: str,
        caller: str,
        action: str,
        sensitive: bool,
        source: str,
        cutoff: dt.date | None,
        customers: Sequence[tuple[str, bool]],
        rows: int = 0,
    ) -> None:
        """Append one request.

        Args:
            installation: Of which rows were read.
            request_id: As the answer says it.
            caller: Who asked.
            action: What for.
            sensitive: Whether sensitive features were shown.
            source: Where the rows came from; `request` for raw features that came with it.
            cutoff: Of the rows; None for raw features.
            customers: Whose rows, and whether each was found.
            rows: How many rows of raw features were scored.

        Raises:
            OSError: It could not be written.
        """
        now = utc_now()
        line = {
            "read_at": now,
            "installation": installation,
            "request_id": request_id,
            "caller": caller,
            "action": action,
            "sensitive": sensitive,
            "source": source,
            "cutoff": cutoff,
            "rows": rows,
            "customers": [{"customer_id": id_, "found": found} for id_, found in customers],
        }
        # The line feed comes first, so that a line that a full disk cut short ends before this one.
        text = b"\n" + to_json(line)
        with self._lock:
            path = self._folder / f"{now.date()}.jsonl"
            if self._file is None or not leads_to(path, self._file):
                self.close()
                self._make_folder()
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            # One write call, so that lines of several workers do not interleave.
            if os.write(self._file, text) != len(text):
                raise OSError("the disk is full")

    def close(self) -> None:
        let_go(self._file)
        self._file = None

    def _make_folder(self) -> None:
        """Not the state folder: one that was deleted is for the operator to make again."""
        for made in (self._folder.parent, self._folder):
            made.mkdir(mode=0o700, exist_ok=True)


def audit_query(home: Path) -> str:
    """The table `audit_log`, newest day last; without rows where nobody read anything."""
    files = sorted(folder(home).glob("*.jsonl"))
    columns = ", ".join(f"{name}: '{dtype}'" for name, dtype in COLUMNS.items())
    nulls = ", ".join(f"CAST(NULL AS {dtype}) AS {name}" for name, dtype in COLUMNS.items())
    paths = ", ".join(f"'{quoted(file)}'" for file in files)
    lines = (
        f"read_json([{paths}], format = 'newline_delimited', columns = {{{columns}}}, "
        "ignore_errors = true)"  # a line that a full disk cut short; its request was refused
        if files
        else f"(SELECT {nulls} WHERE false)"
    )
    return (
        "SELECT * EXCLUDE (customers), customers.customer_id, customers.found "
        "FROM (SELECT * REPLACE (unnest(if(len(customers) = 0, [NULL], customers)) AS customers) "
        f"FROM {lines})"
    )
