"""What is read of a file once, and again only when the file was replaced: its digest above all."""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

Read = TypeVar("Read")


def read_once(read: Callable[[Path], Read]) -> Callable[[Path], Read]:
    """The function, which reads a path again only where its time or size is another.

    Raises:
        FileNotFoundError: There is no such file.
    """

    @lru_cache(maxsize=100_000)
    def kept(path: Path, modified_ns: int, size: int) -> Read:
        return read(path)

    def current(path: Path) -> Read:
        stat = path.stat()
        return kept(path, stat.st_mtime_ns, stat.st_size)

    return current


@read_once
def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def range_digest(path: Path, begin: int, size: int) -> str:
    """SHA-256 of some bytes of a file; of fewer where it has fewer."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(begin)
        while size > 0 and (block := file.read(min(size, 2**20))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def text_digest(text: str) -> str:
    """The first 32 hex digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
