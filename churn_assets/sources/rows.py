"""Rows of text files: what the readers of CSV and JSON give.

A reader never drops a line: each is part of a row, a blank line, or an unreadable one that is
kept with its text.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import IO

from churn_assets.sources.text import UNDECODABLE

# Of a line that is kept as it is.
MOST_KEPT = 2_000
# Columns that every row of a text file has beside those of the file.
OF_TEXT = ("_file", "_line", "_unreadable", "_part")
# Those that rows of any source may have; `_row` numbers the rows of a query.
OURS = (*OF_TEXT, "_row")


@dataclass(frozen=True)
class Unreadable:
    """A line that is no row.

    Args:
        line: Its number, from 1.
        text: The line, at most its first MOST_KEPT characters.
        why: What is wrong with it.
    """

    line: int
    text: str
    why: str


@dataclass
class Block:
    """Some rows of a file, as columns of text.

    Args:
        columns: The values of each column; None where the file has none.
        lines: The number of the line on which each row begins.
        unreadable: Lines among them that are no rows.
        end: How many bytes of what is read are behind the block; None where nobody counts.
        next_line: The number of the line after it, where bytes are counted.
        tells_empty: Whether the format tells an empty text from a missing one. In CSV both are
            nothing between two commas.
    """

    columns: Mapping[str, Sequence[str | None]]
    lines: Sequence[int]
    unreadable: list[Unreadable] = field(default_factory=list)
    tells_empty: bool = False
    end: int | None = None
    next_line: int = 0


def unique_names(header: Iterable[str]) -> tuple[str, ...]:
    """Names for columns: those of the header, but missing and repeated ones are numbered.

    SQL tells no upper from lower case, so `Email` and `email` are repeated.
    """
    names, taken = list[str](), set(OURS)
    for position, cell in enumerate(header, 1):
        name = cell.strip() or f"column_{position}"
        stem, number = name, 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name.lower())
        names.append(name)
    return tuple(names)


class Lines:
    """The lines of a text with their numbers, read ahead as far as somebody looks.

    Args:
        text: Opened so that line ends are kept.
        number: The number of the first one.
        encoding: That of the text, where its bytes are to be counted.
    """

    def __init__(self, text: IO[str], number: int = 1, encoding: str | None = None) -> None:
        self._text = text
        self._ahead: list[str] = []
        self._encoding = encoding
        # The number of the next line.
        self.number = number
        # The bytes of the lines that are left behind; None where nobody can count them.
        self.end = 0 if encoding else None

    def peek(self, count: int) -> list[str]:
        """The next lines, at most `count`; none at the end."""
        missing = count - len(self._ahead)
        if missing > 0:
            self._ahead.extend(islice(self._text, missing))
            if len(self._ahead) < count and self._ahead[-1:] == ["\x1a"]:
                self._ahead.pop()  # DOS ends a text with it
        return self._ahead[:count]

    def go_on(self, count: int) -> None:
        """Leave `count` lines behind."""
        self.number += count
        if self.end is not None:
            behind = "".join(self._ahead[:count])
            assert self._encoding is not None
            self.end += len(behind.encode(self._encoding))
            if UNDECODABLE in behind:  # it stands for a byte of another length
                self.end = None
        del self._ahead[:count]
