"""Blocks of a text file or workbook: how it is written, its rows, and where parts of it begin.

A file that grows is read on from where it ended. For that it is read in parts, each of which begins
with a row, and how it is written is kept with them, so that nothing before a part is read again.
"""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, replace

from churn_assets.sources import input_files
from churn_assets.sources.csv_rows import (
    MOST_LINES_OF_A_ROW,
    Dialect,
    as_dialect,
    as_json,
    csv_blocks,
    find_dialect,
)
from churn_assets.sources.input_files import InputFile, Part, input_file, part_key
from churn_assets.sources.json_rows import json_blocks
from churn_assets.sources.rows import Block
from churn_assets.sources.text import UnreadableInput, archived_name, open_text, text_encoding
from churn_assets.sources.workbook_rows import workbook_blocks

# Encodings in which the bytes of a line follow from its text, and the bytes before the first line.
COUNTED = {"utf-8": 0, "utf-8-sig": len(codecs.BOM_UTF8), "cp1252": 0}


@dataclass(frozen=True)
class Written:
    """How a text file is written, of the files that have to be found out about.

    Args:
        encoding: As Python names it.
        dialect: Of a CSV file that has lines.
    """

    encoding: str
    dialect: Dialect | None = None


def written(file: InputFile) -> Written | None:
    """How a text file is written; None of a workbook.

    Raises:
        UnreadableInput: It cannot be unpacked.
    """
    if file.format == "workbook":
        return None
    if file.part and file.part.encoding:
        return Written(file.part.encoding, as_dialect(file.part.dialect))
    encoding = text_encoding(file)
    if file.format == "json":
        return Written(encoding)
    with open_text(file, encoding) as text:
        return Written(encoding, find_dialect(text))


def blocks(file: InputFile) -> Iterator[Block]:
    """The rows of a text file or workbook, some at a time."""
    file = member(file)
    yield from blocks_of(file, written(file))


def blocks_of(file: InputFile, how: Written | None) -> Iterator[Block]:
    """As `blocks`, of a file of which it is known how it is written."""
    if how is None:
        yield from workbook_blocks(file.path, file.name)
        return
    counted = how.encoding.removesuffix("-sig") if file.part and how.encoding in COUNTED else None
    line = file.part.line if file.part else 1
    with open_text(file, how.encoding) as text:
        if file.format == "json":
            yield from json_blocks(text, line, counted)
        elif how.dialect:
            yield from csv_blocks(text, how.dialect, line, counted)


def member(file: InputFile) -> InputFile:
    """The file, but an archive that says nothing of its format as its only member."""
    if file.compression != ".zip" or file.format:
        return file
    name = archived_name(file)
    found = input_file(file.path, name)
    if not isinstance(found, InputFile) or found.format in ("", "parquet", "workbook"):
        raise UnreadableInput(f"{file.name} holds {name}, which is no CSV or JSON file. Unpack it.")
    return replace(file, format=found.format)


class Cuts:
    """Where the parts of a file begin, as it is read.

    None begins soon after a line that is no row: what follows may close a quote that is open there.
    """

    def __init__(self, file: InputFile, how: Written | None) -> None:
        self._file, self._how = file, how
        self._begins = [(file.part.begin, file.part.line)] if file.part else []
        self._end: tuple[int, int] | None = None
        self._bad_line = -MOST_LINES_OF_A_ROW

    @property
    def key(self) -> str:
        """The part that the next block is of."""
        if self._begins and self._end:
            begin, line = self._end
            if begin - self._begins[-1][0] >= input_files.PART_BYTES:
                self._begins.append((begin, line))
        return part_key(self._file.name, self._begins[-1][0] if self._begins else 0)

    def behind(self, block: Block) -> None:
        """Tell that a block was read."""
        self._end = None
        self._bad_line = max([self._bad_line, *(row.line for row in block.unreadable)])
        is_final = block.next_line - self._bad_line > MOST_LINES_OF_A_ROW
        if self._file.part and self._how and block.end is not None and is_final:
            marks = COUNTED[self._how.encoding] if not self._file.part.begin else 0
            self._end = (self._file.part.begin + marks + block.end, block.next_line)

    def parts(self) -> list[Part]:
        """The parts, all of them known to the end."""
        whole, how = self._file.part, self._how
        assert whole is not None
        assert how is not None
        follow = [*self._begins[1:], (whole.begin + whole.size, self._end[1] if self._end else 0)]
        dialect = as_json(how.dialect) if how.dialect else None
        return [
            Part(begin, after - begin, line, next_line, how.encoding, dialect)
            for (begin, line), (after, next_line) in zip(self._begins, follow, strict=True)
        ]
