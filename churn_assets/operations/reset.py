"""What a reset deletes: all that this project made, under CHURN_HOME and on the Redis server.

`MADE` is the one list of it. A file that matches nothing there is somebody's own and stays, and so
does what lies elsewhere: input files, Dagster's records under another DAGSTER_HOME, an MLflow
server's runs.

Every step can be repeated, and the identity of the folder goes last, so a reset that was killed is
run again.
"""

import os
import shutil
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path

from churn_assets.online.io_manager import connect
from churn_assets.online.server import ServerError, stop
from churn_assets.online.versions import Namespace
from churn_assets.operations.disk_space import size
from churn_assets.operations.instance import dagster_instance
from churn_assets.operations.killed_runs import going_on
from churn_assets.operations.with_settings import DAGSTER_YAML, dagster_home
from churn_assets.settings import Settings, without_secrets
from churn_assets.stores.identity import FILE, AnotherInstallation, find_identity

# By layer, each path below CHURN_HOME: a folder stands for all that is in it. The last three are
# what a state folder is known by.
MADE = (
    "staging",
    "duckdb_tmp",
    "offline_store.duckdb",
    "offline_store.duckdb.wal",
    "verdicts/*/*.json",
    "text_scores/*/*.parquet",
    "feature_registry.yaml",
    "input_manifest.json",
    "models/*/cutoff=*",
    "models/*/manifest.json",
    "models/*/" + "[0-9a-f]" * 16,
    "mlflow.db",
    "mlflow.db-*",
    "mlflow.lock",
    "mlartifacts",
    "online_store",
    "serving/*.arrow",
    "serving/*.tmp",
    "serving/audit/*.jsonl",
    "reports/walk_forward.*",
    "offline_store/*/part-0.parquet",
    "offline_store/*/*=*/part-0.parquet",
    "dagster/*",
    FILE,
)

KEYS_AT_ONCE = 1_000


class StillRunning(RuntimeError):
    """A Dagster run of the state folder goes on."""


def made(home: Path) -> list[Path]:
    """What a reset deletes, in that order; nothing where the folder is no state folder."""
    known_by = (home / FILE, home / "offline_store" / "raw_events", home / "dagster")
    if not any(path.exists() for path in known_by):
        return []
    return [
        path
        for pattern in MADE
        for path in sorted(home.glob(pattern))
        if not _is_own_configuration(path)
    ]


def _is_own_configuration(path: Path) -> bool:
    """Whether somebody changed the configuration of Dagster, for example to use PostgreSQL."""
    return path.name == DAGSTER_YAML.name and path.read_bytes() != DAGSTER_YAML.read_bytes()


def kept(home: Path) -> list[Path]:
    """The files under CHURN_HOME that a reset does not delete."""
    deleted = set(made(home))
    return sorted(
        path
        for path in home.rglob("*")
        if not path.is_dir() and not deleted.intersection((path, *path.parents))
    )


def sizes(home: Path) -> dict[str, int]:
    """Bytes of what a reset deletes, by the first name of its path."""
    total: dict[str, int] = {}
    for path in made(home):
        name = path.relative_to(home).parts[0]
        total[name] = total.get(name, 0) + size(path)
    return total


def name_of(settings: Settings) -> str | None:
    """The installation's name; None where only its damaged file would say it."""
    try:
        identity = find_identity(settings.home)
    except AnotherInstallation:
        return settings.installation or None
    return identity.name if identity else None


def refuse_while_running(settings: Settings) -> None:
    """See that no Dagster run of the installation goes on.

    Raises:
        StillRunning: One does; the message says how to end it.
        OSError: Dagster's storage cannot be used.
    """
    if not (dagster_home(settings) / DAGSTER_YAML.name).exists():
        return
    with dagster_instance(settings) as instance:
        runs = going_on(instance)
    if runs:
        raise StillRunning(
            f"The Dagster run {runs[0].run_id} of job {runs[0].job_name} goes on"
            + (f", and {len(runs) - 1} more" if len(runs) > 1 else "")
            + ". End it in the web UI, or with Ctrl-C where it was started. If its process is gone "
            f"and Dagster does not know, `dagster run delete --force {runs[0].run_id}` with "
            f"DAGSTER_HOME={dagster_home(settings)} deletes its record."
        )


def reset(settings: Settings, name: str | None) -> None:
    """Delete what this project made.

    Args:
        settings: The settings.
        name: The installation's name in Redis; None leaves what is there.

    Raises:
        ServerError: Redis does not answer, or the private server does not stop.
        OSError: A file cannot be deleted.
    """
    home = settings.home
    if settings.redis_url and name:
        delete_online(home, settings.redis_url, name)
    if (home / "online_store").exists():
        stop(home)
    folders = {home / Path(pattern).parts[0] for pattern in MADE}
    for path in made(home):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for folder in folders:
        for parent, _, _ in os.walk(folder, topdown=False):
            with suppress(OSError):  # somebody's own file is in it
                Path(parent).rmdir()
    with suppress(OSError):  # the same, or a volume is mounted there
        home.rmdir()


def delete_online(home: Path, url: str, name: str) -> int:
    """Delete every key of an installation on a Redis server or cluster, and give their number.

    Raises:
        ServerError: The server does not answer.
    """
    import redis

    deleted = 0
    with closing(connect(home, url)) as client:
        try:
            keys = client.scan_iter(match=Namespace(client, name).pattern, count=KEYS_AT_ONCE)
            while some := list(islice(keys, KEYS_AT_ONCE)):
                deleted += int(client.unlink(*some))
        except redis.RedisError as error:
            why = without_secrets(error, url)
            raise ServerError(
                f"Deleting churn:{name}:* on the server that REDIS_URL names broke off: {why} "
                "Run `churn reset --yes` again, or unset REDIS_URL to leave the keys there."
            ) from None
    return deleted
