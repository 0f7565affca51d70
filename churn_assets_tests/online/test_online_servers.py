"""The online store against the servers that people run: a cluster, a failover, TLS, users with few
rights. Real servers, each test its own.

They prevent the simplification of trying one plain server, whose every key is in one place and
whose every command is allowed. Other versions are tried by putting them first on PATH.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.cluster import RedisCluster

from benchmarks.torture import Versions, leftovers, torture
from churn_assets.online import publishing, server, versions
from churn_assets.online import store as online
from churn_assets.online.io_manager import connect
from churn_assets.operations.reset import delete_online
from churn_assets_tests.online.test_online import (
    CUSTOMERS,
    NAME,
    at,
    live_edition,
    publish_edition,
    stopped,
)


def free_port() -> int:
    """A port whose cluster bus port, 10,000 above it, is free too."""
    while True:
        with closing(socket.socket()) as probe, closing(socket.socket()) as bus:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
            with suppress(OSError, OverflowError):
                bus.bind(("127.0.0.1", port + 10_000))
                return port


def wait_for(condition: Callable[[], Any]) -> None:
    """Waits until the condition holds; a connection that fails does not hold yet."""
    until = time.monotonic() + 20
    while True:
        with suppress(redis.RedisError):
            if condition():
                return
        assert time.monotonic() < until
        time.sleep(0.05)


@contextmanager
def running(folder: Path, *options: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A server on a port of loopback."""
    port = free_port()
    (folder / str(port)).mkdir()
    common = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder / str(port))]
    command = [server.server_binary(), *options, *common, "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: answers(port))
            yield port, process
        finally:
            process.kill()


def answers(port: int) -> bool:
    with redis.Redis(port=port) as client:
        try:
            return bool(client.ping())
        except redis.AuthenticationError:
            return True


def use(tmp_path: Path, url: str) -> versions.Namespace:
    """Every operation of the store once."""
    namespace = versions.Namespace(connect(tmp_path, url), NAME)
    store = online.OnlineStore(namespace)
    publish_edition(namespace, 2)
    assert publish_edition(namespace, 4).published
    assert not publish_edition(namespace, 1).published
    assert live_edition(store.get_many(CUSTOMERS)) == 4
    publishing.roll_back(namespace)
    assert live_edition(store.get_many(CUSTOMERS)) == 2
    with pytest.MonkeyPatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(publishing._Upload, "keep", stopped)
        publish_edition(namespace, 6)
    assert publish_edition(namespace, 6).uploaded == 0
    assert publish_edition(namespace, 7).uploaded == 200
    assert live_edition(store.get_many(CUSTOMERS)) == 7
    assert set(online.read_version(namespace)["edition"].to_pylist()) == {7}
    return namespace


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    with ExitStack() as stack:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
        ports = [stack.enter_context(running(tmp_path, *options))[0] for _ in range(3)]
        nodes = [redis.Redis(port=port, decode_responses=True) for port in ports]
        for i, node in enumerate(nodes):
            slots = range(i * 16384 // 3, (i + 1) * 16384 // 3)
            node.execute_command("CLUSTER ADDSLOTS", *slots)
            node.execute_command("CLUSTER SET-CONFIG-EPOCH", i + 1)
            node.execute_command("CLUSTER MEET", "127.0.0.1", ports[0])
        wait_for(lambda: all(is_whole(node.execute_command("CLUSTER INFO")) for node in nodes))
        for node in nodes:
            node.close()
        yield f"redis+cluster://127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}"


def is_whole(info: Any) -> bool:
    fields = info if isinstance(info, dict) else dict(line.split(":") for line in str(info).split())
    return fields["cluster_state"] == "ok" and fields["cluster_known_nodes"] == "3"


def test_a_reset_deletes_its_keys_on_every_node_of_a_cluster(tmp_path: Path, cluster: str) -> None:
    client = connect(tmp_path, cluster)
    for name in ("a", "b"):
        for i in range(300):
            client.set(f"churn:{name}:{i}", i)
    assert delete_online(tmp_path, cluster, "a") == 300
    assert sum(1 for _ in client.scan_iter()) == 300


def test_a_cluster(cluster: str, tmp_path: Path) -> None:
    client: Any = use(tmp_path, cluster).client
    assert isinstance(client, RedisCluster)
    sizes = [client.dbsize(target_nodes=node) for node in client.get_primaries()]
    assert min(sizes) > 0


def test_readers_of_a_cluster_see_no_mixture(cluster: str) -> None:
    counts = torture(cluster, Versions, 5, {"publish whole": 0, "kills": 10})
    assert counts["publish whole"] > 0
    assert_nothing_wrong(counts)
    assert leftovers(cluster) == set()


def assert_nothing_wrong(counts: dict[str, int]) -> None:
    wrong = {
        "mixed rows",
        "mixed batches",
        "steps back in time",
        "stale values where NULL",
        "customers lost",
        "publishers that failed",
    }
    assert {name: count for name, count in counts.items() if name in wrong and count} == {}
    assert counts["reads"] > 50
    assert counts["kills"] > 10


def test_a_failover(tmp_path: Path) -> None:
    with ExitStack() as stack:
        options = ("--repl-diskless-sync-delay", "0")
        port, primary = stack.enter_context(running(tmp_path, *options))
        replica, _ = stack.enter_context(
            running(tmp_path, *options, "--replicaof", "127.0.0.1", str(port))
        )
        with redis.Redis(port=port) as client:
            wait_for(lambda: client.info("replication").get("slave0", {}).get("state") == "online")
        conf = tmp_path / "sentinel.conf"
        conf.write_text(
            f"sentinel monitor shop 127.0.0.1 {port} 1\n"
            "sentinel down-after-milliseconds shop 300\n"
            "requirepass 'a secret'\n"
        )
        sentinel, _ = stack.enter_context(running(tmp_path, str(conf), "--sentinel"))
        nodes = f"127.0.0.1:{free_port()},127.0.0.1:{sentinel}"
        url = f"redis+sentinel://{nodes}/shop/0?sentinel_password=a%20secret"
        with redis.Redis(port=sentinel, password="a secret") as watched:
            wait_for(lambda: watched.sentinel_slaves("shop"))  # it asks at once, then every 10 s
        namespace = use(tmp_path, url)
        store = online.OnlineStore(namespace)
        assert live_edition(store.get_many(CUSTOMERS)) == 7
        assert namespace.client.wait(1, 10_000) == 1
        primary.kill()
        wait_for(lambda: live_edition(store.get_many(CUSTOMERS)) == 7)
        wait_for(lambda: publish_edition(namespace, 8).published)
        assert live_edition(store.get_many(CUSTOMERS)) == 8
        with redis.Redis(port=replica) as promoted:
            assert promoted.role()[0] == b"master"


@contextmanager
def encrypted(port: int, folder: Path) -> Iterator[tuple[int, Path]]:
    """A port where TLS ends and the server's begins, and the certificate that it shows."""
    certificate, key = self_signed(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ssl.SSLError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, to_writer), copy(to_reader, writer))

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    started = asyncio.run_coroutine_threadsafe(
        asyncio.start_server(relay, "127.0.0.1", 0, ssl=context), loop
    ).result()
    try:
        yield started.sockets[0].getsockname()[1], certificate
    finally:
        loop.call_soon_threadsafe(started.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def self_signed(folder: Path) -> tuple[Path, Path]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([loopback]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder / "certificate.pem", folder / "key.pem"


def test_tls(tmp_path: Path) -> None:
    with running(tmp_path) as (plain, _), encrypted(plain, tmp_path) as (port, certificate):
        use(tmp_path, f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}")
        with pytest.raises(server.ServerError, match="cannot be used") as refused:
            connect(tmp_path, f"rediss://user:secret@127.0.0.1:{port}?ssl_ca_certs={os.devnull}")
        assert "secret" not in str(refused.value)


READER = "+ping +hget +get"
PUBLISHER = (
    f"{READER} +eval +time +hmget +hset +hkeys +hincrby +hdel +hlen +hgetall +exists +set "
    "+expireat +persist +unlink"
)


def test_users_need_the_rights_that_are_documented_and_no_others(tmp_path: Path) -> None:
    documented = " ".join((versions.__doc__ or "").split())
    assert READER in documented
    assert PUBLISHER.removeprefix(f"{READER} ") in documented
    with running(tmp_path) as (port, _):
        with redis.Redis(port=port) as admin:
            for user, rights in (("reader", READER), ("publisher", PUBLISHER)):
                rules = ["reset", "on", ">secret", f"~churn:{NAME}:*", *rights.split()]
                admin.execute_command("ACL SETUSER", user, *rules)
        use(tmp_path, f"redis://publisher:secret@127.0.0.1:{port}")
        reader = at(f"redis://reader:secret@127.0.0.1:{port}")
        assert live_edition(online.OnlineStore(reader).get_many(CUSTOMERS)) == 7
        with pytest.raises(redis.exceptions.NoPermissionError):
            publish_edition(reader, 8)


@pytest.mark.parametrize(
    "url",
    [
        "memcached://secret@host",
        "redis+proxy://secret@host",
        "redis+sentinel://secret@host",
        "redis+cluster://host:secret",
        "redis://host:secret",
    ],
)
def test_a_url_that_names_no_server_is_not_quoted(tmp_path: Path, url: str) -> None:
    with pytest.raises(server.ServerError, match="none of the forms") as refused:
        connect(tmp_path, url)
    assert "secret" not in str(refused.value)
