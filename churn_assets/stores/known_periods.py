"""Known periods: what a partition holds by the day on which it became known, as digests.

A cutoff sees only what was known before it. What is made from a slice at a cutoff is therefore
another only where something else became known before: rows that come late make a new period, and
leave the digests of those before as they are. The footer of a slice's file keeps the digests.

What became known before the slice was over is one period, 0, because no cutoff lies between.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from churn_assets.stores.digests import text_digest
from churn_assets.stores.parquet import footer
from churn_assets.stores.tables import Table

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def known_periods(
    connection: "DuckDBPyConnection", table: Table, rows: str, slice_ends: int
) -> dict[str, str]:
    """Digests of what became known or was replaced, by day number; 0 is before `slice_ends`.

    A digest is of the set of rows: their number, the sum and the exclusive or of 64-bit hashes.

    Args:
        connection: Sees the rows.
        table: Says which columns they have; `known_day` and `replaced_day` may be SQL of it.
        rows: A relation.
        slice_ends: The day on which the slice of the rows is over.
    """
    content = ", ".join(n for n in table.column_names if n not in ("replaced_day", "withdrawn_at"))
    key = ", ".join(table.key)
    found = connection.execute(
        f"""SELECT CASE WHEN day < {slice_ends} THEN 0 ELSE day END AS period,
            count(*), sum(CAST(row_hash AS HUGEINT)), bit_xor(row_hash)
        FROM (
            SELECT {table.known_day} AS day, hash({content}) AS row_hash FROM {rows}
            UNION ALL
            SELECT {table.replaced_day}, hash({key}, 'replaced') FROM {rows}
            WHERE {table.replaced_day} IS NOT NULL
        ) GROUP BY 1 ORDER BY 1"""
    ).fetchall()
    return {str(period): text_digest(repr(of_rows)) for period, *of_rows in found}


def known_before(path: Path, day: int) -> str | None:
    """A digest of what of a partition's file was known before a day; None where it does not say."""
    said = footer(path).notes.get("known_periods")
    if said is None:
        return None
    return text_digest(
        repr(sorted((int(p), d) for p, d in json.loads(said).items() if int(p) < day))
    )
