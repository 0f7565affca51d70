"""The IO manager of the online store: Dagster's way to publish a cutoff and to read it back."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from churn_assets.cutoffs import Calendar, parse_key, utc_now
from churn_assets.online.rows import OnlineStoreError
from churn_assets.online.server import ServerError, open_client, redis_url
from churn_assets.settings import without_secrets
from churn_assets.stores.identity import Identity
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.partitions import Query
from churn_assets.stores.retries import connections_are_retried

if TYPE_CHECKING:
    import pyarrow as pa
    import redis

    from churn_assets.online.versions import Namespace


def connect(home: Path, url: str | None, **options: Any) -> redis.Redis:
    """A client of the server that `url` names, or else of the private server of `home`.

    `options` are those of `redis.Redis`, such as timeouts.

    Raises ServerError where there is none, or where it does not answer.
    """
    import redis

    try:
        client = open_client(redis_url(home, url), **options)
        client.ping()
    except (redis.RedisError, redis.exceptions.RedisClusterException) as error:
        # Never the URL itself: it may hold a password.
        raise ServerError(
            f"The server that REDIS_URL names cannot be used: {without_secrets(error, url)} Start "
            "it, or unset REDIS_URL to use a private one."
        ) from None
    return client


def open_to_read(home: Path, url: str | None, identity: Identity, **options: Any) -> Namespace:
    """What an installation has online, for a caller who changes nothing; see `connect`."""
    from churn_assets.online.versions import Namespace

    namespace = Namespace(connect(home, url, **options), identity.name)
    if not url:
        namespace.take_over_unnamed()
    return namespace


def open_to_publish(home: Path, url: str | None, identity: Identity) -> Namespace:
    """What an installation has online, for a caller who changes what is live.

    Raises:
        AnotherInstallation: `url` names a server, and the state folder was moved or copied: the
            original may publish there under the same name. A private server is of its folder.
        ServerError: There is no server, or it does not answer.
    """
    if url:
        identity.require_at_home(home, "Redis")
    return open_to_read(home, url, identity)


class OnlineIOManager(dg.IOManager):
    """Publishes the rows of a `Query` as the online version of their cutoff, and reads one back.

    An older cutoff than the live one is refused without an error: `published` is false in the
    metadata of its partition. Of a range, only the newest cutoff is published. One without
    customers is an error, and so is publishing to `url` from a state folder that is not at home.

    Args:
        store: Where the rows come from.
        calendar: Says which cutoffs exist.
        url: The server; None for the private one.
        identity: Gives the identity of the installation. It may write it, so it is called only
            when something is published or read.
        now: The clock. A live cutoff after the newest that exists by it is replaced by any other.
    """

    def __init__(
        self,
        store: OfflineStore,
        calendar: Calendar,
        url: str | None,
        identity: Callable[[], Identity],
        now: Callable[[], dt.datetime] = utc_now,
    ) -> None:
        self.store = store
        self.calendar = calendar
        self.url = url
        self.identity = identity
        self.now = now

    def handle_output(self, context: dg.OutputContext, obj: Query) -> None:
        import redis

        from churn_assets.online.publishing import publish

        began = time.monotonic()
        *older, newest = sorted(context.asset_partition_keys)
        existing = self.calendar.keys(self.calendar.scored_cutoffs, self.now())
        with self.store.connect() as connection:
            table = connection.sql(str(obj.rows)).to_arrow_table()
        if not table.num_rows:
            raise OnlineStoreError(
                f"There is nobody to serve at {newest}: nobody was active in the lookback before "
                "it. What was live stays live. `churn inspect` shows whether events are missing."
            )
        with connections_are_retried():
            namespace = open_to_publish(self.store.home, self.url, self.identity())
            try:
                published = publish(
                    namespace,
                    table,
                    parse_key(newest),
                    newest=parse_key(max([newest, *existing])),
                )
            except redis.RedisError as error:
                raise ServerError(
                    f"The sync of {newest} broke off: {without_secrets(error, self.url)} What was "
                    "live stays live. See that the server runs and has memory and disk left, and "
                    "run again: the sync goes on."
                ) from None
        context.log.info(f"{published.version}: {published.rows:,} rows, {published.reason}")
        metadata = {
            "dagster/row_count": published.rows,
            "uploaded_rows": published.uploaded,
            "published": published.published,
            "version": published.version,
            "reason": published.reason,
            "seconds": round(time.monotonic() - began, 4),
        }
        context.step_context.add_asset_metadata(metadata, context.asset_key, newest)
        for key in older:
            superseded = {"published": False, "reason": f"{newest} of the same run is newer"}
            context.step_context.add_asset_metadata(superseded, context.asset_key, key)

    def loss_of(self, version: str) -> str:
        """Why a version that was published is not online as it was; empty where it is.

        Raises:
            ServerError: There is no server, or it does not answer.
        """
        import redis

        from churn_assets.online.publishing import damage_of

        namespace = open_to_read(self.store.home, self.url, self.identity())
        try:
            if version not in namespace.retained():
                return "it is neither live nor retained"
            return damage_of(namespace, version)
        except redis.RedisError as error:
            why = without_secrets(error, self.url)
            raise ServerError(f"The online store does not answer: {why}") from None

    def load_input(self, context: dg.InputContext) -> pa.Table | None:
        """What is live, as `read_version` gives it; None where it is not of the newest partition
        that is asked for, because a newer cutoff was published or an older one rolled back to.
        """
        from churn_assets.online.store import OnlineStore, read_version

        with connections_are_retried():
            namespace = open_to_read(self.store.home, self.url, self.identity())
            live = OnlineStore(namespace).live()
            if live is None or live.cutoff.isoformat() != max(context.asset_partition_keys):
                return None
            return read_version(namespace, live.version)
