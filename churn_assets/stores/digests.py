"""Digests of files: a file is read again only when it was replaced."""

import hashlib
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=100_000)
def _digest(path: Path, modified_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content; read again only when the file was replaced."""
    stat = path.stat()
    return _digest(path, stat.st_mtime_ns, stat.st_size)
