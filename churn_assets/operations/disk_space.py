"""Disk space: what files take, and how SQLite databases give back what they no longer need.

A database keeps the pages of rows that were deleted, for new rows. Only `VACUUM` makes its file
smaller. It needs the database for itself for a moment: where another program is writing, the
database stays as it is, and a message says so.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

# For less it is not worth writing a database anew; pages for new rows are of use.
LEAST_FREE = 1_000_000
WAIT_SECONDS = 5.0


def size(*paths: Path) -> int:
    """Bytes of files, and of the files in folders; nothing where they are gone."""
    return sum(file.lstat().st_size for path in paths for file in _files(path))


def _files(path: Path) -> Iterator[Path]:
    """A link counts as itself: what it leads to is elsewhere."""
    if path.is_symlink() or not path.is_dir():
        yield from [path] if os.path.lexists(path) else []
        return
    for folder, _, names in os.walk(path):
        yield from (Path(folder, name) for name in names)


def free_bytes(database: Path) -> int:
    """How many bytes of a SQLite file hold nothing; 0 where that cannot be told now."""
    try:
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as opened:
            pages, page = (
                opened.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("freelist_count", "page_size")
            )
    except sqlite3.Error:
        return 0
    return int(pages) * int(page)


def compact(
    database: Path, page_bytes: int | None = None, wait_seconds: float = WAIT_SECONDS
) -> str:
    """Make a SQLite file as small as its content, and say why where that failed; else empty.

    Args:
        database: The file.
        page_bytes: The size of pages that suits its rows, of a database with a write-ahead log;
            None leaves it.
        wait_seconds: How long to wait for another program.
    """
    try:
        with closing(sqlite3.connect(database, wait_seconds, isolation_level=None)) as opened:
            if page_bytes and opened.execute("PRAGMA page_size").fetchone()[0] != page_bytes:
                # With a write-ahead log the size of pages is fixed.
                opened.execute("PRAGMA journal_mode = DELETE")
                opened.execute(f"PRAGMA page_size = {page_bytes}")
            try:
                opened.execute("VACUUM")
            finally:
                if page_bytes:
                    opened.execute("PRAGMA journal_mode = WAL")
            # The smaller content is in the write-ahead log until then.
            busy, *_ = opened.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                raise sqlite3.OperationalError("database is locked")
    except sqlite3.Error as error:
        return (
            f"{database} keeps its size for now: {error}. What was removed stays removed; run "
            "`churn prune --yes` again when no other program writes to it and the disk has room "
            "for a copy of it."
        )
    return ""
