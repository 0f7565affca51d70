"""The state is its user's alone: nobody else may read or write what processes of ours make.

State holds rows of customers, in databases and files of several libraries. Each of them takes the
rights that the process gives to new files, so these are set once per process, before it makes any.

Known limit: a `dagster` command opens its own storage before it loads the code location, so what it
makes there has the rights of the shell. It is out of reach all the same, below a private folder.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path

OTHERS = stat.S_IRWXG | stat.S_IRWXO


def keep_private() -> None:
    """Keep what this process and those that it starts make to its user; called when it starts."""
    os.umask(OTHERS)


def tighten(home: Path) -> None:
    """Take a state folder and all that is in it from everybody but its user.

    An older version let others read it. Where the folder is private already, nothing in it is
    looked at. It comes last, so that a call that was killed is repeated.
    """
    if home.is_dir() and _is_open(home):
        for path in [*home.rglob("*"), home]:
            with suppress(OSError):  # it was deleted meanwhile, or the disk has no rights
                if not path.is_symlink() and _is_open(path):
                    path.chmod(stat.S_IMODE(path.stat().st_mode) & ~OTHERS)


def _is_open(path: Path) -> bool:
    """Whether others may use it, and that is ours to change."""
    found = path.stat()
    return bool(found.st_mode & OTHERS) and found.st_uid == os.geteuid()
