"""Where files are written before they are published in one step: `<home>/staging`.

It is beside what it feeds, on the same file system, so that publishing is a rename. What fails
leaves nothing there; what a killed run leaves is removed once it is a day old.
"""

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# A staged file this old belongs to a killed run: no query takes a day.
GRACE_SECONDS = 86_400


@contextmanager
def staged(home: Path) -> Iterator[Path]:
    """A path for a new file or folder; what is still there in the end is removed.

    Raises:
        PermissionError: The state folder cannot be written.
    """
    path = _folder(home) / uuid.uuid4().hex
    try:
        yield path
    finally:
        _remove(path)


def write_text(home: Path, path: Path, text: str) -> None:
    """Replace a file under the state folder in one step, as `publish` does."""
    with staged(home) as made:
        made.write_text(text)
        publish(made, path)


def publish(made: Path, path: Path) -> None:
    """Replace a file by a staged one in one step, so that it survives a power failure."""
    _sync(made)
    new = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    made.replace(path)
    # A name is in its folder, and a new folder's name in the one above.
    for folder in (path.parent, *(folder.parent for folder in new)):
        _sync(folder)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _folder(home: Path) -> Path:
    folder = home / "staging"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(folder)
    except OSError as error:
        raise PermissionError(
            f"CHURN_HOME ({home}) cannot be written: {error}. "
            "Set CHURN_HOME to a folder that this user may write to."
        ) from error
    for leftover in folder.iterdir():
        try:
            if time.time() - leftover.stat().st_mtime > GRACE_SECONDS:
                _remove(leftover)
        except FileNotFoundError:
            continue  # another run published or removed it
    return folder


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
