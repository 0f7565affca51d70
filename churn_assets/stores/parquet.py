"""Files of the offline store: their rows, their provenance, and what is wrong with them.

What is read is kept per path, time and size, so a file is read again only when it was replaced.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from churn_assets.stores.digests import read_once
from churn_assets.stores.sql import quoted

# What a footer says a file was made from, see `stores.provenance`.
PROVENANCE = ("code_version", "inputs", "definition")
# What it says of the reading of a raw slice: when it was first read, from which files and by which
# query.
OF_READING = ("first_read", "files", "query")
# Of rows that cutoffs see it also has digests of what became known when (`stores.known_periods`).
NOTES = ("known_periods", *OF_READING)


class UnreadableFile(ValueError):
    """A file of the offline store is damaged."""

    def __init__(self, path: Path, why: str) -> None:
        folder, _, key = path.parent.name.partition("=")
        partition = f"{path.parents[1].name} {key}" if key else folder
        super().__init__(
            f"{path} cannot be read: {why.strip().rstrip('.')}. Delete it and run "
            f"`churn backfill`, which makes {partition} again from what it was made from."
        )


@dataclass(frozen=True)
class Footer:
    """What the end of a Parquet file says of it.

    Args:
        rows: How many it has.
        provenance: What it was made from.
        columns: Their names.
        notes: What else is said of them.
        damage: Why it cannot be read; empty where it can.
    """

    rows: int = 0
    provenance: Mapping[str, str] = field(default_factory=dict)
    damage: str = ""
    columns: frozenset[str] = frozenset()
    notes: Mapping[str, str] = field(default_factory=dict)


@read_once
def footer(path: Path) -> Footer:
    """The footer of a Parquet file, which may be damaged.

    Raises:
        FileNotFoundError: There is no such file.
    """
    import pyarrow.parquet as pq
    from pyarrow import ArrowInvalid

    try:
        metadata = pq.read_metadata(path)
    except (ArrowInvalid, OSError) as error:
        return Footer(damage=str(error))
    said = {name.decode(): value for name, value in (metadata.metadata or {}).items()}
    return Footer(
        int(metadata.num_rows),
        {name: said[name].decode() for name in PROVENANCE if name in said},
        notes={name: said[name].decode() for name in NOTES if name in said},
        columns=frozenset(metadata.schema.to_arrow_schema().names),
    )


def copy_to(path: Path, select: str, notes: Mapping[str, str]) -> str:
    """The statement that writes the rows of a SELECT, and what is said of them, to a file."""
    said = ", ".join(f"{name}: '{quoted(value)}'" for name, value in notes.items())
    footer = f", KV_METADATA {{{said}}}" if said else ""
    return f"COPY ({select}) TO '{quoted(path)}' (FORMAT parquet, COMPRESSION zstd{footer})"


def row_count(path: Path) -> int:
    """Rows of a Parquet file, from its footer.

    Raises:
        UnreadableFile: It is damaged.
    """
    found = footer(path)
    if found.damage:
        raise UnreadableFile(path, found.damage)
    return found.rows


def damage(path: Path) -> str:
    """Why the footer of a Parquet file cannot be read; empty where it can."""
    return footer(path).damage
