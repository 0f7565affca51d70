"""Rows of JSON files: an object a line, or an array of objects.

Numbers keep their digits, because they stay text. A value within a value stays JSON. A line that is
no object is unreadable; so is an unfinished last one.
"""

import json
import re
from collections.abc import Iterator
from typing import IO, Any

from churn_assets.sources.rows import MOST_KEPT, Block, Lines, Unreadable, unique_names
from churn_assets.sources.text import UNDECODABLE

ROWS_PER_BLOCK = 20_000
DECODER = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)
BETWEEN = re.compile(r"[\s,]*")


def json_blocks(text: IO[str], line: int = 1, encoding: str | None = None) -> Iterator[Block]:
    """The rows of a file, some at a time.

    Args:
        text: The file, or what it has from a line on.
        line: The number of its first line.
        encoding: That of the text, where bytes are to be counted; those of an array are not.
    """
    lines = Lines(text, line, encoding)
    while (head := lines.peek(1)) and not head[0].strip():
        lines.go_on(1)
    if head and head[0].lstrip().startswith("["):
        yield from _blocks(_of_array("".join(lines.peek(2**62)), lines.number))
        return
    while ahead := lines.peek(ROWS_PER_BLOCK):
        blocks = list(_blocks(_of_lines(ahead, lines.number)))
        lines.go_on(len(ahead))
        if blocks:
            blocks[-1].end, blocks[-1].next_line = lines.end, lines.number
        yield from blocks


def _of_lines(lines: list[str], first: int) -> Iterator[tuple[int, str, Any]]:
    """Line number, text and value of each line; an exception where it has none."""
    for number, line in enumerate(lines, first):
        if line.strip():
            try:
                yield number, line, DECODER.decode(line.strip())
            except ValueError as error:
                yield number, line, error


def _of_array(text: str, number: int) -> Iterator[tuple[int, str, Any]]:
    """As `_of_lines`, of the elements of an array; after a bad one goes on with the next line."""
    position = text.index("[") + 1
    counted = 0
    while True:
        between = BETWEEN.match(text, position)
        assert between is not None
        position = between.end()
        if position >= len(text):
            yield number, "", ValueError("the array has no end")
            return
        if text[position] == "]":
            return
        number += text.count("\n", counted, position)
        counted = position
        try:
            value, end = DECODER.raw_decode(text, position)
            yield number, text[position:end], value
            position = end
        except ValueError as error:
            end = text.find("\n", position)
            end = len(text) if end < 0 else end
            yield number, text[position:end], error
            position = end
            if position >= len(text):
                return


def _blocks(values: Iterator[tuple[int, str, Any]]) -> Iterator[Block]:
    rows, numbers, unreadable = list[dict[str, str | None]](), list[int](), list[Unreadable]()
    for number, line, value in values:
        why = ""
        if not isinstance(value, dict):
            why = str(value) if isinstance(value, ValueError) else "no object"
        elif UNDECODABLE in line or ("\\u" in line and not _is_text(value)):
            why = "bad bytes"
        else:
            rows.append({key: _text(v) for key, v in value.items()})
            numbers.append(number)
        if why:
            unreadable.append(Unreadable(number, line.strip()[:MOST_KEPT], why))
        if len(rows) == ROWS_PER_BLOCK:
            yield _block(rows, numbers, unreadable)
            rows, numbers, unreadable = [], [], []
    if rows or unreadable:
        yield _block(rows, numbers, unreadable)


def _block(
    rows: list[dict[str, str | None]], numbers: list[int], unreadable: list[Unreadable]
) -> Block:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    values = ([row.get(key) for row in rows] for key in keys)
    return Block(dict(zip(unique_names(keys), values, strict=True)), numbers, unreadable, True)


def _is_text(value: dict[str, Any]) -> bool:
    """Whether a row can be encoded: JSON can name half of a letter, as no encoding can."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(value: Any) -> str | None:
    match value:
        case None | str():
            return value
        case bool():
            return "true" if value else "false"
        case _:
            return json.dumps(value, ensure_ascii=False)
