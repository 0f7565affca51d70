"""In how many ways a column is written, and one value of each."""

from dataclasses import dataclass


class Refused(ValueError):
    """Nobody can tell how a column is written; the message shows its values and what to write."""


@dataclass(frozen=True)
class Way:
    """A way in which values of a column are written.

    Args:
        name: What `numbers` or `times` call it.
        example: The first of its values.
        place: The file and line of that.
    """

    name: str
    example: str
    place: str


def place(file: str = "file", line: str = "line") -> str:
    """SQL for where a row is, as messages name it."""
    return f"CASE WHEN {file} = '' THEN 'row ' || {line} ELSE {file} || ':' || {line} END"


def placed(file: str, line: int) -> str:
    """Where a row is, as `place` says it."""
    return f"{file}:{line}" if file else f"row {line}"


def shown(way: Way) -> str:
    """Its first value and where it is."""
    example = way.example if len(way.example) <= 40 else way.example[:40] + "…"
    return f"{example} ({way.place})"
