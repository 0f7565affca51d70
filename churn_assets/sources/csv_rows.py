"""Rows of CSV files.

The dialect of a file is decided once, from its header and content, and is the same for all of its
lines. Python's csv module parses, strictly: a line that it refuses, or that has another number of
fields than the header, is unreadable and costs nothing but itself. Fields may be left out at the
end of a row where that is the habit of the file (`Dialect.short`).
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice, zip_longest
from typing import IO, Any

from churn_assets.sources.rows import MOST_KEPT, Block, Lines, Unreadable, unique_names
from churn_assets.sources.text import UNDECODABLE

LINES_PER_BLOCK = 50_000
# A quote that is still open after so many lines was never meant to be one.
MOST_LINES_OF_A_ROW = 1_000
# A shorter row is a habit of its file if at least one row in so many is as short.
HABIT = 20
EVIDENCE_LINES, MOST_REFUSED, LONG_LINE = 2_000, 100, 100_000
# A less likely way to read quotes has to make so many more rows right.
BETTER = 0.1
LINE_END = re.compile(r"\r\n|\n|\r")
# Excel writes it above the header.
SEPARATOR_LINE = re.compile(r"sep=(.)\s*", re.IGNORECASE)

# Wider than any field: the module's own bound is 128 KiB.
csv.field_size_limit(2**31 - 1)


@dataclass(frozen=True)
class Dialect:
    """How a CSV file is written.

    Args:
        delimiter: Between fields.
        quote: Around fields that hold a delimiter, a quote or a line end; "" if there are none.
        escape: Before a quote inside quotes, where quotes are not doubled, or "".
        header: The names of the columns, none empty or twice.
        header_lines: How many lines the header ends after.
        short: The lengths that rows have which leave out fields at their end.
    """

    delimiter: str
    quote: str
    escape: str
    header: tuple[str, ...]
    header_lines: int
    short: frozenset[int]

    def reader(self, lines: Iterator[str]) -> "csv._reader":  # type: ignore[name-defined]
        return _reader(lines, self.delimiter, self.quote, self.escape)


def as_json(dialect: Dialect) -> dict[str, Any]:
    """A dialect in the types of JSON."""
    return asdict(dialect) | {"header": list(dialect.header), "short": sorted(dialect.short)}


def as_dialect(kept: Mapping[str, Any] | None) -> Dialect | None:
    """The dialect of `as_json`."""
    if kept is None:
        return None
    sets = {"header": tuple(kept["header"]), "short": frozenset(kept["short"])}
    return Dialect(**{**kept, **sets})


def _reader(lines: Iterator[str], delimiter: str, quote: str, escape: str) -> "csv._reader":  # type: ignore[name-defined]
    return csv.reader(
        lines,
        delimiter=delimiter,
        quotechar=quote or None,
        escapechar=escape or None,
        doublequote=True,
        quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
        strict=True,
    )


def find_dialect(text: IO[str]) -> Dialect | None:
    """The dialect under which most rows have as many fields as the header; None without lines."""
    lines = list(islice(text, EVIDENCE_LINES))
    lines += islice((line for line in text if '"' in line or "'" in line), EVIDENCE_LINES)
    # Of long lines none is needed to tell, and each would be read for every possible dialect.
    lines = [line for n, line in enumerate(lines) if len(line) < LONG_LINE or not n]
    skipped = 0
    while lines and not lines[0].strip():
        lines.pop(0)
        skipped += 1
    if not lines:
        return None
    delimiters = ",;\t|"
    if said := SEPARATOR_LINE.fullmatch(lines[0]):
        lines.pop(0)
        skipped += 1
        delimiters = said[1]
    best, most = None, (-1.0, 0, 0)
    for delimiter in delimiters:
        for likelihood, (quote, escape) in enumerate(_quotes(lines, delimiter)):
            rows, refused, ended = _evidence(lines, delimiter, quote, escape)
            if not rows:
                continue
            width = len(rows[0])
            lengths = Counter(len(row) for row in rows[1:])
            short = frozenset(
                length
                for length, count in lengths.items()
                if length < width and count > 1 and count * HABIT >= len(rows) - 1
            )
            right = lengths[width] / max(len(rows) - 1 + refused, 1) if width > 1 else 0.0
            score = (right - likelihood * BETTER, -_still_quoted(rows), width)
            if score > most:
                most = score
                names = unique_names(rows[0])
                best = Dialect(delimiter, quote, escape, names, skipped + ended, short)
    return best


def _quotes(lines: list[str], delimiter: str) -> list[tuple[str, str]]:
    """Quotes and what stands before one that is part of a value, the likely ones first."""
    around = {
        quote: sum(line.count(delimiter + quote) + line.startswith(quote) for line in lines)
        for quote in "\"'"
    }
    first, second = sorted(around, key=lambda quote: -around[quote])
    return [(first, ""), (first, "\\"), (second, ""), (second, "\\"), ("", "")]


def _still_quoted(rows: list[list[str]]) -> int:
    """How many values have quotes around them that were to be taken off.

    Those that hold doubled quotes, and those of columns in which every value has quotes.
    """
    found = 0
    for column in zip_longest(*rows[1:]):
        cells = [cell for cell in column if cell]
        for quote in "\"'":
            around = [c for c in cells if len(c) > 1 and c[0] == c[-1] == quote]
            doubled = [c for c in around if quote * 2 in c[1:-1]]
            found += len(around if len(around) == len(cells) else doubled)
    return found


def _evidence(
    lines: list[str], delimiter: str, quote: str, escape: str
) -> tuple[list[list[str]], int, int]:
    """Rows of some lines without blank ones, how many lines are refused, and those of the first."""
    rows, refused, first, position = list[list[str]](), 0, 0, 0
    while position < len(lines) and refused < MOST_REFUSED:
        reader = _reader(iter(lines[position:]), delimiter, quote, escape)
        ended = 0
        try:
            for row in reader:
                ended = reader.line_num
                first = first or ended
                if row:
                    rows.append(row)
            break
        except csv.Error:
            if not rows:
                return [], 0, 0
            refused += 1
            position += ended + 1
    return rows, refused, first


def csv_blocks(
    text: IO[str], dialect: Dialect, line: int = 1, encoding: str | None = None
) -> Iterator[Block]:
    """The rows below the header, some at a time; the first block has the columns alone.

    Args:
        text: The file, or what it has from a row on.
        dialect: How it is written.
        line: The number of its first line; from the second on there is no header.
        encoding: That of the text, where bytes are to be counted.
    """
    yield Block(dict.fromkeys(dialect.header, ()), ())
    lines = Lines(text, line, encoding)
    if line == 1:
        lines.peek(dialect.header_lines)
        lines.go_on(dialect.header_lines)
    while lines.peek(1):
        block = _block(lines, dialect)
        block.end, block.next_line = lines.end, lines.number
        yield block


def _block(lines: Lines, dialect: Dialect) -> Block:
    """The next rows, up to the first line that is refused or to LINES_PER_BLOCK."""
    if plain := _plain_block(lines, dialect):
        return plain
    ahead = lines.peek(LINES_PER_BLOCK + MOST_LINES_OF_A_ROW)
    reader = dialect.reader(iter(ahead))
    rows, refused = list[list[str]](), ""
    try:
        while reader.line_num < LINES_PER_BLOCK:
            before = reader.line_num
            rows.extend(islice(reader, LINES_PER_BLOCK - before))
            if reader.line_num == before:
                break
    except csv.Error as error:
        refused = str(error)
    width = len(dialect.header)
    kept, numbers, unreadable = list[list[str | None]](), list[int](), list[Unreadable]()
    position = 0
    for row in rows:
        span = 1 + sum(len(LINE_END.findall(cell)) for cell in row if "\n" in cell or "\r" in cell)
        while len(row) > width and not row[-1]:
            row.pop()
        wrong = len(row) != width and len(row) not in dialect.short
        number = lines.number + position
        if not row:
            pass
        elif wrong and span > 1:
            # A quote that should not be there has swallowed the lines below.
            refused = f"{len(row)} fields, the header has {width}"
            break
        elif wrong or any(UNDECODABLE in cell for cell in row):
            why = f"{len(row)} fields, the header has {width}" if wrong else "bad bytes"
            line = "".join(ahead[position : position + span]).rstrip("\r\n")
            unreadable.append(Unreadable(number, line[:MOST_KEPT], why))
        else:
            kept.append([*row, *[None] * (width - len(row))])
            numbers.append(number)
        position += span
    if refused:
        line = ahead[position].rstrip("\r\n")[:MOST_KEPT]
        unreadable.append(Unreadable(lines.number + position, line, refused))
        position += 1
    lines.go_on(position)
    values = zip(*kept, strict=True) if kept else ((),) * width
    return Block(dict(zip(dialect.header, values, strict=True)), numbers, unreadable)


def _plain_block(lines: Lines, dialect: Dialect) -> Block | None:
    """The next lines, where each is a row and no field has quotes: Arrow splits them 20 x faster.

    Without quotes there is one way only to split a line.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    ahead = lines.peek(LINES_PER_BLOCK)
    text = "".join(ahead)
    marks = (dialect.quote, dialect.escape, UNDECODABLE)
    if any(mark and mark in text for mark in marks):
        return None
    try:
        rows = arrow_csv.read_csv(
            pa.py_buffer(text.encode()),
            read_options=arrow_csv.ReadOptions(
                column_names=dialect.header, block_size=len(text) * 4
            ),
            parse_options=arrow_csv.ParseOptions(delimiter=dialect.delimiter, quote_char=False),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(dialect.header, pa.string())
            ),
        )
    except pa.ArrowInvalid:
        return None
    if rows.num_rows != len(ahead):
        return None
    first = lines.number
    lines.go_on(len(ahead))
    columns = dict(zip(dialect.header, rows.itercolumns(), strict=True))
    return Block(columns, range(first, first + len(ahead)))
