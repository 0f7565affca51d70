"""Alerts: what went wrong, told once when it begins and once when it is over.

A problem is an asset with failed, stale or held-back partitions, or a blocking check whose latest
evaluation failed. A failed run is an event: told once, never over. The sensor remembers in its
cursor what it has told, so a tick without a change says nothing, and what could not be delivered is
tried again.

A message names assets, partitions, counts and runs, and nothing else: an error's text, or what a
check found, may hold data of customers.
"""

import datetime as dt
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import quote, unquote

import dagster as dg

from churn_assets.cutoffs import Calendar, utc_now
from churn_assets.monitoring.inventory import AssetInventory, inventory
from churn_assets.monitoring.refresh_log import started_by
from churn_assets.stores.catalog import WHOLE
from churn_assets.stores.offline import OfflineStore

TICK_SECONDS = 300


@dataclass(frozen=True)
class Message:
    """What is sent."""

    title: str
    body: str


def problems(inventories: Sequence[AssetInventory]) -> dict[str, str]:
    """What is wrong with partitions: by kind and asset, how many and the first."""
    found = {}
    for row in inventories:
        for kind, keys in (
            ("failed", row.failed),
            ("stale", row.stale),
            ("held back", row.held_back),
        ):
            if keys:
                first = min(keys)
                which = "" if first == WHOLE else f", the first is {first}"
                found[f"{kind}: {row.asset.path[-1]}"] = (
                    f"{len(keys)} of {len(row.existing)} partitions{which}"
                )
    return found


def failed_checks(defs: dg.Definitions, instance: dg.DagsterInstance) -> dict[str, str]:
    """The blocking checks whose latest evaluation failed, by check; the run that found it."""
    graph = defs.resolve_asset_graph()
    blocking = [key for key in graph.asset_check_keys if graph.get_check_spec(key).blocking]
    summaries = instance.event_log_storage.get_asset_check_summary_records(blocking)
    found = {}
    for key in sorted(blocking, key=str):
        record = summaries[key].last_completed_check_execution_record
        evaluation = record and record.evaluation
        if (
            record
            and evaluation
            and not evaluation.passed
            and evaluation.severity == dg.AssetCheckSeverity.ERROR
        ):
            found[f"check failed: {key.asset_key.path[-1]} {key.name}"] = f"in run {record.run_id}"
    return found


def failed_runs(instance: dg.DagsterInstance, after: dt.datetime, until: dt.datetime) -> list[str]:
    """The runs that failed within `[after, until)`, oldest first."""
    failed = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.FAILURE], updated_after=after, updated_before=until
    )
    return [
        f"run failed: {record.dagster_run.job_name} {record.dagster_run.run_id}, started by "
        f"{started_by(record.dagster_run)}"
        for record in instance.get_run_records(failed, ascending=True)
    ]


def changes(
    before: Mapping[str, str], now: Mapping[str, str], runs: Sequence[str]
) -> Message | None:
    """What to tell; None where nothing changed.

    A problem is the same while its kind and asset are, however many partitions it has.
    """
    new = [f"{name}: {detail}" for name, detail in now.items() if name not in before]
    over = [f"over: {name}" for name in before if name not in now]
    if not (new or over or runs):
        return None
    open_problems = f"{len(now)} open" if now else "nothing open"
    title = f"churn-assets: {len(new) + len(runs)} new, {len(over)} over, {open_problems}"
    return Message(title, "\n".join([*new, *runs, *over]))


def send(urls: str, message: Message) -> None:
    """Send a message.

    Args:
        urls: Where to, as apprise reads it: one or more URLs, separated by commas.
        message: What.

    Raises:
        ConnectionError: It could not be delivered.
    """
    import apprise

    target = apprise.Apprise()
    with _safe_logs(urls):
        target.add(urls)
        delivered = target.notify(title=message.title, body=message.body)
    if not delivered:
        raise ConnectionError(
            f"The alert {message.title!r} could not be delivered: the code location's log says "
            "why. The next tick tries again. CHURN_ALERT_URL says where to."
        )


@contextmanager
def _safe_logs(urls: str) -> Iterator[None]:
    """Keep the parts of URLs out of what is logged of a delivery: any may be a token."""
    written = re.split(r"[\s,:/@?&;=]+", re.sub(r"\b[a-z0-9]+://", "", urls))
    parts = {text for part in written for text in (part, unquote(part)) if len(text) > 3}
    parts |= {quote(part) for part in parts}

    def show(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        for part in sorted(parts, key=len, reverse=True):
            text = text.replace(part, "***")
        record.msg, record.args, record.exc_info, record.exc_text = text, (), None, None
        return record.levelno >= logging.WARNING

    loggers = [logging.getLogger(name) for name in ("apprise", "urllib3.connectionpool")]
    for logger in loggers:
        logger.addFilter(show)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(show)


def sensor(
    definitions: Callable[[], dg.Definitions],
    store: OfflineStore,
    calendar: Calendar,
    urls: str | None,
    now: Callable[[], dt.datetime] = utc_now,
) -> dg.SensorDefinition:
    """Looks for changes every five minutes.

    Args:
        definitions: Gives the code location, which the sensor is part of.
        store: Where files are.
        calendar: Where partitions lie.
        urls: Where to send; None only logs what would be sent.
        now: Decides which partitions exist.
    """

    @dg.sensor(
        name="alert",
        minimum_interval_seconds=TICK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=__doc__,
    )
    def alert(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        defs, instance, until = definitions(), context.instance, now()
        told = json.loads(context.cursor) if context.cursor else {"problems": {}}
        after = dt.datetime.fromisoformat(told.get("until", until.isoformat()))
        found = problems(inventory(defs, store, calendar, instance, until))
        found |= failed_checks(defs, instance)
        message = changes(told["problems"], found, failed_runs(instance, after, until))
        if message and urls:
            send(urls, message)
        elif message:
            context.log.info(
                f"Not sent, because CHURN_ALERT_URL is not set: {message.title}\n{message.body}"
            )
        context.update_cursor(json.dumps({"problems": found, "until": until.isoformat()}))
        return dg.SkipReason(message.title if message else "Nothing changed.")

    return alert
