"""Files that are held open, to see that another file took their place.

A service runs for months. Meanwhile its state folder may be deleted and made anew, restored from a
backup or replaced through a link. What was opened in the old folder goes on working, so a running
process notices only if it looks. Names and sizes may be equal in both folders; an inode number is
not, because no other file gets it while the old one is open.
"""

import os
from pathlib import Path


def hold(path: Path) -> int | None:
    """The descriptor of a file, for `leads_to`; None where there is no such file."""
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None


def leads_to(path: Path, held: int | None) -> bool:
    """Whether a path still leads to the file that is held, or still to none."""
    try:
        found = path.stat()
    except OSError:
        return held is None
    return held is not None and os.path.samestat(found, os.fstat(held))


def let_go(held: int | None) -> None:
    """Close a file that is held."""
    if held is not None:
        os.close(held)
