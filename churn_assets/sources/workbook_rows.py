"""Rows of workbooks: every sheet that has a header, its cells as text."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from churn_assets.sources.rows import Block, unique_names
from churn_assets.sources.text import UnreadableInput


def workbook_blocks(path: Path, name: str) -> Iterator[Block]:
    """The rows of a workbook, sheet by sheet; a row's number is that of its sheet.

    Raises:
        UnreadableInput: It is damaged or protected by a password.
    """
    from python_calamine import CalamineError, CalamineWorkbook

    try:
        with CalamineWorkbook.from_path(path) as workbook:
            for sheet in workbook.sheet_names:
                rows = workbook.get_sheet_by_name(sheet).to_python(skip_empty_area=False)
                yield from _sheet(rows)
    except CalamineError as error:
        raise UnreadableInput(f"{name} cannot be read as a workbook: {error}") from error


def _sheet(rows: list[list[Any]]) -> Iterator[Block]:
    numbered = [(n, row) for n, row in enumerate(rows, 1) if any(cell != "" for cell in row)]
    if not numbered:
        return
    (_, header), *body = numbered
    names = unique_names([_text(cell) for cell in header])
    values = zip(*([_text(cell) for cell in row] for _, row in body), strict=True)
    columns = dict(zip(names, values if body else ((),) * len(names), strict=True))
    yield Block(columns, [number for number, _ in body])


def _text(cell: Any) -> str:
    match cell:
        case bool():
            return "true" if cell else "false"
        case float() if cell.is_integer():
            return str(int(cell))
        case dt.datetime() | dt.date() | dt.time():
            return cell.isoformat()
        case _:
            return str(cell)
