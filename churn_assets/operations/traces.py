"""Traces of customers in what is no table: the service's snapshots and audit log, Dagster's records
and logs, MLflow's database, and what killed runs left.

A snapshot is deleted; the service takes another within a second. An audit line stays, with the id
overwritten in place, because a running service appends to the file. In the query of a line
an id is overwritten wherever it stands, one shorter than `DISTINCT` characters only where it is a
whole word. In records and logs too, but there a short one could be any number, so it is
overwritten only where it is a cell of a table.

Nothing outside CHURN_HOME is touched but Dagster's own database. An MLflow server has no ids of
customers: models are logged to it, not rows.
"""

import json
import mmap
import re
import shutil
from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path

import dagster as dg
import sqlalchemy as db
from pydantic_core import to_json

from churn_assets.operations.forgetting import sql_storage
from churn_assets.operations.with_settings import dagster_home
from churn_assets.settings import Settings

DISTINCT = 8

# Within a text of JSON the quotes would have a backslash before them.
QUERY_OF_A_LINE = re.compile(rb'"query":("(?:[^"\\]|\\.)*")')


def erase_snapshots(home: Path, customers: Collection[str]) -> int:
    """Delete the snapshots of the service that have one of the customers, and give their number."""
    import pyarrow as pa
    import pyarrow.compute as pc

    deleted = 0
    for path in (home / "serving").glob("*.arrow"):
        try:
            with pa.memory_map(str(path)) as file:
                ids = pa.ipc.open_file(file).read_all()["customer_id"]
                has_them = pc.any(pc.is_in(ids, pa.array(list(customers), ids.type))).as_py()
        except (FileNotFoundError, pa.ArrowInvalid):
            has_them = True  # half written, or gone: nothing is lost with it
        if has_them:
            path.unlink(missing_ok=True)
            deleted += 1
    return deleted


def erase_traces(
    settings: Settings, instance: dg.DagsterInstance, customers: Collection[str]
) -> None:
    """Overwrite the ids of customers wherever else they stand, and delete what killed runs left."""
    for folder in ("staging", "duckdb_tmp"):
        shutil.rmtree(settings.home / folder, ignore_errors=True)
    erase_audit(settings.home, customers)
    written = masks(customers)
    records = dagster_home(settings)
    for path in (records / "storage").rglob("*"):
        if path.is_file() and path.suffix != ".db":
            _overwrite(path, written)
    for path in [*records.rglob("*.db"), settings.home / "mlflow.db"]:
        if path.is_file():
            _overwrite_in_sqlite(path, written)
    with sql_storage(instance).index_transaction() as connection:
        if connection.dialect.name != "sqlite":
            _overwrite_in_database(connection, written)


def erase_audit(home: Path, customers: Collection[str]) -> None:
    """Overwrite the ids of customers in the audit log: who was read, and what was queried."""
    texts = [json.dumps(customer, ensure_ascii=False)[1:-1] for customer in customers]
    written = {f'"customer_id":"{t}"': f'"customer_id":"{_mask(t)}"' for t in texts}
    for path in (home / "serving" / "audit").glob("*.jsonl"):
        _overwrite(path, written)
        _overwrite_in_queries(path, customers)


def masks(customers: Collection[str]) -> dict[str, str]:
    """How ids of customers stand in records and logs, and as many bytes to overwrite each with."""
    found = dict[str, str]()
    for customer in customers:
        for text in (customer, json.dumps(customer)[1:-1]):
            if len(customer) < DISTINCT:
                found[f"| {text} |"] = f"| {_mask(text)} |"
            else:
                found[text] = _mask(text)
    return found


def _mask(text: str) -> str:
    return "*" * len(text.encode())


def _overwrite(path: Path, written: Mapping[str, str]) -> None:
    """Overwrite texts in a file byte by byte, for whoever appends to it meanwhile."""
    if not path.stat().st_size:
        return
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        for text, mask in written.items():
            found = text.encode()
            at = content.find(found)
            while at >= 0:
                content[at : at + len(found)] = mask.encode()
                at = content.find(found, at + len(found))


def _overwrite_in_queries(path: Path, customers: Collection[str]) -> None:
    """The same in the queries of an audit file, whose other texts an id may be part of by chance.

    Known limit: an id that a query puts together from parts is not found.
    """
    if not path.stat().st_size:
        return
    found = _ids_in_sql(customers)

    def mask(match: re.Match[str]) -> str:
        return "*" * len(to_json(match[0])[1:-1])

    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        for written in QUERY_OF_A_LINE.finditer(content):
            masked = to_json(found.sub(mask, json.loads(written[1])))
            if len(masked) != len(written[1]):  # a line that somebody else wrote
                masked = to_json("*" * (len(written[1]) - 2))
            content[written.start(1) : written.end(1)] = masked


def _ids_in_sql(customers: Collection[str]) -> re.Pattern[str]:
    """Ids as SQL writes them; the longest first, because one may begin with another."""
    ids = {text for id_ in customers for text in (id_, id_.replace("'", "''"))}
    return re.compile(
        "|".join(
            re.escape(id_) if len(id_) >= DISTINCT else rf"(?<!\w){re.escape(id_)}(?!\w)"
            for id_ in sorted(ids, key=len, reverse=True)
        )
    )


def _overwrite_in_sqlite(path: Path, written: Mapping[str, str]) -> None:
    """The same in a database of one file, which is then written anew: deleted bytes stay else."""
    engine = db.create_engine(f"sqlite:///{path}", poolclass=db.pool.NullPool)
    with engine.begin() as connection:
        found = _overwrite_in_database(connection, written)
    content = path.read_bytes()
    if not found and not any(text.encode() in content for text in written):
        return
    with closing(engine.raw_connection()) as connection:
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _overwrite_in_database(connection: db.Connection, written: Mapping[str, str]) -> int:
    """Overwrite texts in every column of a database that has text; gives in how many rows."""
    known = db.MetaData()
    known.reflect(connection)
    changed = 0
    for table in known.tables.values():
        for column in table.columns:
            if not isinstance(column.type, db.String):
                continue
            for text, mask in written.items():
                changed += connection.execute(
                    table.update()
                    .where(column.contains(text, autoescape=True))
                    .values({column: db.func.replace(column, text, mask)})
                ).rowcount
    return changed
