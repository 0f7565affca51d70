"""The offline store: one Parquet file per table and partition, with DuckDB as the engine.

Layout: `<root>/<table>/<slice|cutoff>=<YYYY-MM-DD>/part-0.parquet`, zstd, sorted by primary key; a
table without partitions is `<root>/<table>/part-0.parquet`. The partition column is in the file
too. Every file carries its provenance in the Parquet footer: the version of the code that made it
and a digest of the files it was made from, which is how a stale partition is recognised.

A partition is published by writing beside the tables and replacing the file in one step, so a
killed run leaves the previous partition readable and runs of different partitions never meet.
Nothing here knows features or labels, and no data passes through Python.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from churn_assets.cutoffs import day_number, parse_key
from churn_assets.stores.artefacts import ArtefactStore, find_provenance
from churn_assets.stores.catalog import Catalog, OtherDefinitions
from churn_assets.stores.known_periods import known_periods
from churn_assets.stores.parquet import UnreadableFile, copy_to, damage, footer, row_count
from churn_assets.stores.partitions import Partition, Query, Scan
from churn_assets.stores.staging import staged
from churn_assets.stores.tables import Table

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# Spark has it by this name.
UNIX_MICROS = "CREATE OR REPLACE TEMP MACRO unix_micros(instant) AS epoch_us(instant)"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OfflineStore:
    """Tables under one folder.

    Args:
        home: The state folder (`CHURN_HOME`).
        tables: The declared tables, by name.
        duckdb: Settings of DuckDB; connections are in memory, because two processes cannot share a
            database file.
        allow_shrink: Whether a guarded partition may be replaced by one with fewer rows.
        gate: Raises for partitions that must not be handed on (`operations.gate.Gate`).
        catalog: What the graph declares of the assets; without it every partition that is there
            counts as one of history, under the definitions of the settings.
        identify: Called before something is published: it writes whose state the folder is where
            that is new, and raises where it is that of other settings.
    """

    home: Path
    tables: Mapping[str, Table]
    duckdb: Mapping[str, str | int] = field(default_factory=dict)
    allow_shrink: bool = False
    gate: "Callable[[OfflineStore, Table, Sequence[str | None]], None] | None" = None
    catalog: Callable[[], Catalog] | None = None
    identify: Callable[[], object] = lambda: None

    @property
    def declared(self) -> Catalog:
        """The catalog, of a store that was opened with one."""
        assert self.catalog is not None, "the store was opened without the graph"
        return self.catalog()

    @property
    def root(self) -> Path:
        return self.home / "offline_store"

    @contextmanager
    def connect(self) -> "Iterator[DuckDBPyConnection]":
        """An in-memory connection in UTC, through Dagster's DuckDB resource.

        Raises:
            UnreadableFile: A query within met a damaged file.
            OSError: The disk is full.
        """
        import duckdb
        from dagster_duckdb import DuckDBResource

        if temporary := self.duckdb.get("temp_directory"):
            # DuckDB makes the last folder only. Whoever needs it says that it cannot be made.
            with suppress(OSError):
                Path(str(temporary)).parent.mkdir(parents=True, exist_ok=True)
        resource = DuckDBResource(database=":memory:", connection_config=dict(self.duckdb))
        with resource.get_connection() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            # With statistics, a column without a NULL anywhere in the run is written as REQUIRED,
            # and a partition's bytes would depend on what was written with it.
            connection.execute("SET disabled_optimizers = 'statistics_propagation'")
            connection.execute(UNIX_MICROS)
            try:
                yield connection
            except duckdb.Error as error:
                if found := re.search('Failed to read file "(.*?)": (.*)', str(error)):
                    raise UnreadableFile(Path(found[1]), found[2]) from error
                if "No space left on device" in str(error):
                    raise OSError(
                        f"No space left on device: the disk of CHURN_HOME ({self.home}) or of "
                        "CHURN_DUCKDB_TEMP_DIRECTORY is full. What was published stays as it was; "
                        "free some space and run again."
                    ) from error
                raise

    def path(self, table: Table, key: str | None) -> Path:
        folder = self.root / table.name
        return (folder if key is None else folder / f"{table.partitioned_by}={key}") / (
            "part-0.parquet"
        )

    def keys(self, table: Table) -> list[str]:
        """The partition keys that are present and belong to history, in order."""
        return [key for key in self.on_disk(table.name) if self.belongs(table.name, key)]

    def earlier(self, table: Table, key: str) -> list[str]:
        """The partitions before `key` that it can be compared with: of the same definitions."""
        before = [k for k in self.keys(table) if k < key]
        return [k for k in before if not self.is_redefined(table.name, k)]

    def belongs(self, asset: str, key: str) -> bool:
        """Whether a partition of an asset is one of history."""
        return self.catalog is None or self.catalog().belongs(asset, key)

    def on_disk(self, asset: str) -> list[str]:
        """The partition keys of an asset that are present, whatever they belong to, in order."""
        table = self.tables.get(asset)
        if table is None:
            return ArtefactStore(self.home).cutoffs(asset)
        pattern = f"{table.partitioned_by}=*/part-0.parquet"
        return sorted(p.parent.name.split("=")[1] for p in (self.root / asset).glob(pattern))

    def has(self, table: Table, key: str | None) -> bool:
        """Whether a partition has a file that can be read; a warning names one that cannot."""
        path = self.path(table, key)
        if not path.exists():
            return False
        if why := damage(path):
            log.warning("%s", UnreadableFile(path, why))
        return not why

    def scan(self, table: Table, keys: Sequence[str] | None = None) -> Scan:
        """The given partitions of a table.

        Where no keys are given, all that are present, but for those of other definitions: a warning
        counts them.

        Raises:
            FileNotFoundError: A partition that was asked for is not there.
            UnreadableFile: Its file is damaged.
            OtherDefinitions: It was made under other definitions.
            operations.gate.HeldBack: It failed a blocking check.
        """
        wanted = self._wanted(table, keys)
        other = [key for key in wanted if self.is_redefined(table.name, key)]
        if other and keys is None:
            keys = [key for key in self.keys(table) if key not in other]
            log.warning(
                "%s: %s partitions were made under other definitions and are left out, the first "
                "is %s. `churn backfill --stale` makes them again.",
                table.name,
                len(other),
                other[0],
            )
            other = []
        # Of one that says nothing, such as a file that was put there by hand, the contract may say
        # more, so it is asked first.
        if any(self.made_from(table.name, key) for key in other):
            raise OtherDefinitions(table.name, other, len(wanted))
        scan = self.unchecked(table, keys)
        if self.gate is not None:
            self.gate(self, table, self._wanted(table, keys))
        if other:
            raise OtherDefinitions(table.name, other, len(wanted))
        return scan

    def _wanted(self, table: Table, keys: Sequence[str] | None) -> Sequence[str | None]:
        if table.partitioned_by is None:
            return [None]
        return self.keys(table) if keys is None else keys

    def is_redefined(self, asset: str, key: str | None) -> bool:
        """Whether a partition was made under other definitions than those of the settings."""
        if self.catalog is None:
            return False
        return self.catalog().redefines(asset, self.made_from(asset, key))

    def made_from(self, asset: str, key: str | None) -> Mapping[str, str] | None:
        """What a partition was made from; None where it does not say, or is not there."""
        table = self.tables.get(asset)
        if table is None:
            return find_provenance(self.artefact(asset, key))
        path = self.path(table, key)
        return footer(path).provenance if path.exists() else None

    def unchecked(self, table: Table, keys: Sequence[str] | None = None) -> Scan:
        """As `scan`, whatever checks say of the partitions: for checks, and people who look."""
        wanted = self._wanted(table, keys)
        files = tuple(self.path(table, key) for key in wanted)
        missing = [key for key, path in zip(wanted, files, strict=True) if not path.exists()]
        if missing:
            raise FileNotFoundError(
                f"{table.name} lacks {len(missing)} of {len(files)} partitions that are needed, "
                f"the first is {missing[0] or table.name}. Materialize them first, for example "
                f"with `churn backfill`; `churn status` shows what is missing."
            )
        for path in files:
            if why := damage(path):
                raise UnreadableFile(path, why)
        return Scan(table, files)

    def publish(
        self,
        connection: "DuckDBPyConnection",
        table: Table,
        query: Query,
        keys: Sequence[str | None],
        provenance: Callable[[str | None], Mapping[str, str]],
    ) -> dict[str | None, Partition]:
        """Replace every partition in `keys` by rows of a query.

        Args:
            connection: An open DuckDB connection.
            table: The table to write.
            query: Its rows; its own connection is not used.
            keys: Partition keys; `[None]` for a table without partitions.
            provenance: What to write into the footer of a partition's file.

        Raises:
            ValueError: The query gave rows outside `keys`, or would shrink a guarded partition.
            PermissionError: The state folder cannot be written.
        """
        self.identify()
        if isinstance(query.rows, str):
            self._refuse_stray_rows(connection, table, query.rows, keys)
        return {
            key: self._publish_partition(connection, table, query, key, provenance(key))
            for key in keys
        }

    def _publish_partition(
        self,
        connection: "DuckDBPyConnection",
        table: Table,
        query: Query,
        key: str | None,
        provenance: Mapping[str, str],
    ) -> Partition:
        target, rows = self.path(table, key), query.rows
        own = table.typed(rows if isinstance(rows, str) else rows[str(key)])
        if isinstance(rows, str) and key is not None:
            own = f"SELECT * FROM ({own}) WHERE {table.partitioned_by} = DATE '{key}'"
        own = f"{own} ORDER BY {', '.join(table.key)}"
        notes = {**provenance, **query.notes.get(key or "", {})}
        if key is not None and table.known_day and self.catalog:
            ends = day_number(self.catalog().calendar.shift(parse_key(key), 1))
            connection.execute(f"CREATE OR REPLACE TEMP TABLE staged AS {own}")
            notes["known_periods"] = json.dumps(known_periods(connection, table, "staged", ends))
            own = "SELECT * FROM staged"
        with staged(self.home) as path:
            connection.execute(copy_to(path, own, notes))
            connection.execute("DROP TABLE IF EXISTS staged")
            count = row_count(path)
            if not self._is_cut_otherwise(table, key, provenance):
                self._refuse_shrinking(connection, table, key, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.replace(target)
        return Partition(target, count, target.stat().st_size)

    def _refuse_stray_rows(
        self,
        connection: "DuckDBPyConnection",
        table: Table,
        rows: str,
        keys: Sequence[str | None],
    ) -> None:
        if table.partitioned_by is None:
            return
        dates = ", ".join(f"DATE '{key}'" for key in keys)
        stray = connection.execute(
            f"SELECT {table.partitioned_by}, count(*) FROM ({table.typed(rows)}) "
            f"WHERE ({table.partitioned_by} IN ({dates})) IS NOT true GROUP BY ALL LIMIT 1"
        ).fetchone()
        if stray:
            raise ValueError(
                f"{table.name}: the query gave {stray[1]} rows of partition {stray[0]}, which is "
                f"not among the partitions being written ({keys[0]} … {keys[-1]})."
            )

    def _is_cut_otherwise(
        self, table: Table, key: str | None, provenance: Mapping[str, str]
    ) -> bool:
        """Whether fewer rows than before may be due to another CHURN_START or CHURN_END.

        That is so for a slice that is or was the first or last, or only a part of its period.
        """
        before = self.made_from(table.name, key) or {}
        return "definition" in before and before.get("inputs") != provenance.get("inputs")

    def _refuse_shrinking(
        self, connection: "DuckDBPyConnection", table: Table, key: str | None, made: Path
    ) -> None:
        if not table.refuse_shrinking or self.allow_shrink or not self.has(table, key):
            return
        before, rows = (
            _current_rows(connection, Scan(table, (path,)))
            for path in (self.path(table, key), made)
        )
        if rows < before:
            raise ValueError(
                f"{table.name} {key} has {before:,} rows and would be replaced by {rows:,}: a "
                "source that lost rows usually is a delivery cut short. If it is right, run again "
                "with CHURN_ALLOW_SHRINK=1."
            )

    def artefact(self, asset: str, key: str | None) -> Path:
        """The file that says what an asset without a table is now: a model or a decision."""
        return ArtefactStore(self.home).manifest_path(asset, key)

    def content(self, asset: str, key: str | None) -> Path:
        """The file that changes whenever a partition of an asset does.

        Of a decision that is the decision, not the table of what was weighed.
        """
        artefact = self.artefact(asset, key)
        table = self.tables.get(asset)
        return artefact if table is None or artefact.exists() else self.path(table, key)

    def present(self, asset: str) -> Sequence[str | None]:
        """The partitions of an asset that have a file and belong to history, in order.

        `[None]` for a whole one.
        """
        table = self.tables.get(asset)
        if table is None:
            is_whole = ArtefactStore(self.home).read(asset, None) is not None
        else:
            is_whole = self.path(table, None).exists()
        if is_whole:
            return [None]
        return [key for key in self.on_disk(asset) if self.belongs(asset, key)]


def _current_rows(connection: "DuckDBPyConnection", scan: Scan) -> int:
    """The rows that are not withdrawn."""
    rows = connection.execute(f"SELECT count(*) - count(withdrawn_at) FROM {scan.sql}").fetchall()
    return int(rows[0][0])
