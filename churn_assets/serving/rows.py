"""Where a customer's features come from: the online store, or a snapshot of what it served.

Grain: one row per customer of the live version. The service keeps each version that it sees live as
an Arrow file, `CHURN_HOME/serving/<version>.arrow`, which is written once, never changed and mapped
into memory, so that all workers share one copy. While the online store is away, customers are
looked up there and the answer says `stale`. It also answers for rows that the live version has lost
(a server that evicts, or restarted empty). All rows of one answer come from one version.

One `Rows` is of one state folder: `service` makes another where the folder was replaced. The
private server and the snapshots within the folder may be deleted while it lives.

The online store is read on the event loop, where a read takes 0.1 ms. What makes that safe is that
a server which does not answer within `READ_SECONDS` is away from then on, until the watcher, in a
thread of its own, sees it answer again.
"""

import datetime as dt
import logging
import uuid
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from churn_assets.online.io_manager import open_to_read
from churn_assets.online.rows import OnlineStoreError
from churn_assets.online.server import ServerError, lock_file
from churn_assets.online.store import OnlineStore, read_version
from churn_assets.online.versions import Namespace, OnlineVersion
from churn_assets.serving.held import hold, leads_to, let_go
from churn_assets.stores.identity import Identity

# A read over a network takes about 1 ms. Longer than this, the snapshot is the better answer.
READ_SECONDS = 0.25

RETAINED = 2  # as many as the online store retains, for a rollback

log = logging.getLogger(__name__)

Row = dict[str, Any]


class Unavailable(RuntimeError):
    """There is nothing to serve from; the message says why."""


@dataclass(frozen=True)
class Found:
    """The rows of some customers, None where there is none, all of one version."""

    rows: list[Row | None]
    cutoff: dt.date
    source: str
    stale: bool


class Snapshot:
    """One version, as it was published, in a file that is mapped into memory."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        with pa.memory_map(str(path)) as file:
            self._table = pa.ipc.open_file(file).read_all()
        self.version = path.stem
        self.cutoff = dt.date.fromisoformat(self.version[:10])
        self._ids = self._table["customer_id"].combine_chunks()
        # Of the model that made its predictions; several only where somebody else published.
        self.model_versions = frozenset(self._table["model_version"].unique().to_pylist())

    def get_many(self, customer_ids: Sequence[str]) -> list[Row | None]:
        return [self._get(customer_id) for customer_id in customer_ids]

    def _get(self, customer_id: str) -> Row | None:
        # Arrow sorts by UTF-8 bytes, which is the order of Python's strings.
        at = bisect_left(self._ids, customer_id, key=lambda id_: id_.as_py())
        if at == len(self._ids) or self._ids[at].as_py() != customer_id:
            return None
        row: Row = self._table.slice(at, 1).to_pylist()[0]
        return row


class Rows:
    """Looks customers up. `watch` is called now and then by a thread, `read` by any.

    Args:
        home: The state folder.
        url: The server; None for the private one.
        identity: Of the installation; None where there is none to serve.
        away: Why nothing can be read yet.
    """

    def __init__(self, home: Path, url: str | None, identity: Identity | None, away: str) -> None:
        self._home = home
        self._url = url
        self._identity = identity
        self._folder = home / "serving"
        self._namespace: Namespace | None = None
        self._store: OnlineStore | None = None
        self._server: int | None = None
        self.away = away
        self.snapshot = self._newest_snapshot() if identity else None

    @property
    def cutoff(self) -> dt.date | None:
        """The cutoff that is served."""
        return self.snapshot.cutoff if self.snapshot else None

    def read(self, customer_ids: Sequence[str]) -> Found:
        """The rows of some customers.

        Raises:
            Unavailable: The online store is away or empty and there is no snapshot.
        """
        import redis

        if store := self._store:
            try:
                rows = store.get_many(customer_ids)
                cutoff = next((row["cutoff"] for row in rows if row), None)
                if cutoff and None not in rows:
                    return Found(rows, cutoff, "redis", stale=False)
                live = store.live()
                if live and not self._has_lost(live, customer_ids, rows):
                    return Found(rows, cutoff or live.cutoff, "redis", stale=False)
            except (redis.RedisError, OnlineStoreError) as error:
                self._give_up(error)
        if self.snapshot is None:
            raise Unavailable(f"The online store has no answer ({self.away or 'it is empty'}).")
        rows = self.snapshot.get_many(customer_ids)
        return Found(rows, self.snapshot.cutoff, "snapshot", stale=True)

    def _has_lost(
        self, live: OnlineVersion, customer_ids: Sequence[str], rows: Sequence[Row | None]
    ) -> bool:
        """Whether the snapshot of the same version knows a customer that the online store lacks."""
        if self.snapshot is None or self.snapshot.version != live.version:
            return False
        missing = [id_ for id_, row in zip(customer_ids, rows, strict=True) if row is None]
        return any(self.snapshot.get_many(missing))

    def watch(self) -> None:
        """See whether the online store answers, and take a snapshot of a version that has none."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        if self._identity is None:
            return
        lock = lock_file(self._home)
        if not self._url and not leads_to(lock, self._server):
            self.close()  # what is connected is a server whose files were deleted
        try:
            if self._namespace is None:
                self._namespace = open_to_read(
                    self._home,
                    self._url,
                    self._identity,
                    socket_timeout=READ_SECONDS,
                    socket_connect_timeout=READ_SECONDS,
                    retry=Retry(NoBackoff(), 1),  # for a connection that the server closed as idle
                )
                self._server = None if self._url else hold(lock)
            store = self._store or OnlineStore(self._namespace)
            live = store.live()
        except (redis.RedisError, ServerError, OnlineStoreError) as error:
            self._give_up(error)
            self.close()  # so that the next round finds the server anew, or starts a private one
            return
        if self._store is None:
            log.info("The online store answers.")
        self.away, self._store = "", store
        if live and not (
            self.snapshot
            and self.snapshot.version == live.version
            and self._path(live.version).exists()
        ):
            self.snapshot = self._take_snapshot(live.version)

    def close(self) -> None:
        """Let go of the server. A request that is reading goes on, and its connection ends then."""
        self._store = self._namespace = None
        let_go(self._server)
        self._server = None

    def _give_up(self, error: Exception) -> None:
        if self._store:
            log.warning("The online store is away; its snapshot answers.")
        # Everybody may read this, so it is not the error's text, which may name the server.
        away = f"it is away: {type(error).__name__}"
        if isinstance(error, ServerError) and self.away != away:
            log.error("%s", error)
        self.away = away
        self._store = None

    def _take_snapshot(self, version: str) -> "Snapshot | None":
        """The snapshot of a version, written now if no worker has done that yet."""
        import pyarrow as pa
        from pyarrow import feather

        path = self._path(version)
        staged = self._folder / f"{uuid.uuid4().hex}.tmp"
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            snapshot = _open(path)
            if snapshot is None:
                assert self._namespace
                table = read_version(self._namespace, version)
                feather.write_feather(table, str(staged), compression="uncompressed")
                staged.replace(path)
                snapshot = Snapshot(path)
            path.touch()
            for leftover in self._snapshots()[RETAINED:]:
                leftover.unlink(missing_ok=True)
        except (OSError, pa.ArrowException, OnlineStoreError) as error:
            log.error("No snapshot of version %s: %s", version, error)
            return self.snapshot
        finally:
            staged.unlink(missing_ok=True)
        log.info("The snapshot of version %s is ready.", version)
        return snapshot

    def _path(self, version: str) -> Path:
        return self._folder / f"{version}.arrow"

    def _snapshots(self) -> list[Path]:
        """The snapshot files, the one last seen live first."""
        files = self._folder.glob("*.arrow")
        return sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)

    def _newest_snapshot(self) -> Snapshot | None:
        return next(filter(None, map(_open, self._snapshots())), None)


def _open(path: Path) -> Snapshot | None:
    """None where there is no such snapshot, or only the start of one after a power failure."""
    import pyarrow as pa

    try:
        return Snapshot(path)
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
