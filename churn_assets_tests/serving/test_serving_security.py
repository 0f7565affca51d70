"""Attacks on the service, over HTTP. They prevent: trusting a token for its shape, rights that only
the page knows, an audit log that reads can pass by, and errors that tell what they were asked.
"""

import base64
import datetime as dt
import http.client
import json
import logging
import os
import secrets
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jwt
import pyarrow as pa
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from fastapi import HTTPException
from pydantic import SecretStr

from churn_assets.features import feature_columns, sensitive_features
from churn_assets.features.profile import PROFILE
from churn_assets.online.publishing import publish
from churn_assets.online.server import redis_url, stop
from churn_assets.serving import rows as serving_rows
from churn_assets.serving.access import (
    LOCAL_SCOPES,
    SCOPES,
    Caller,
    RateLimit,
    is_loopback,
    new_key,
    parse_keys,
)
from churn_assets.serving.audit import AuditLog, audit_query
from churn_assets.serving.schemas import MAX_BODY_BYTES, MAX_CUSTOMERS
from churn_assets.serving.telemetry import LOGGING, JsonLines
from churn_assets.serving.token_key import token_key
from churn_assets.settings import Settings, SettingsError
from churn_assets.sources.tables import CUSTOMERS
from churn_assets.stores.identity import identify
from churn_assets_tests.conftest import GROUPS, make_settings, online, query
from churn_assets_tests.served_shop import CUTOFF, Client, eventually, running

SECRET = "a shared secret of more than the 64 bytes that the longest of the hashes asks for"
AUDIENCE = "churn-assets"
IDS = ["alice@example.org", "bob"]


@pytest.fixture(autouse=True, scope="module")
def patient() -> Iterator[None]:
    """No outage because the machine is busy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving_rows, "READ_SECONDS", 30)
        yield


@pytest.fixture(scope="module")
def keys() -> Mapping[str, tuple[str, str]]:
    """Key and entry of callers with different rights."""
    rights = {"full": list(SCOPES), "plain": ["features", "predict"], "blind": ["predict"]}
    return {name: new_key(name, scopes) for name, scopes in rights.items()}


@pytest.fixture(scope="module")
def settings(
    tmp_path_factory: pytest.TempPathFactory, keys: Mapping[str, tuple[str, str]]
) -> Iterator[Settings]:
    """Two customers in a Redis of their own, and three keys."""
    folder = tmp_path_factory.mktemp("security")
    redis_home = folder / "redis"
    types = {"VARCHAR": pa.string(), "DOUBLE": pa.float64(), "BOOLEAN": pa.bool_()}
    columns = {
        c.name: pa.array([1 if c.dtype == "INTEGER" else None] * 2, types.get(c.dtype, pa.int64()))
        for c in feature_columns(GROUPS)
    }
    columns["income"] = pa.array(["SECRET INCOME", None])
    prediction = {"churn_probability": [0.5] * 2, "prediction": ["RETAIN"] * 2}
    table = pa.table({"customer_id": IDS, **columns, **prediction, "model_version": ["v"] * 2})
    url = redis_url(redis_home)
    settings = make_settings(
        folder,
        redis_url=url,
        api_keys=SecretStr(",".join(entry for _, entry in keys.values())),
        jwt_key=SecretStr(SECRET),
    )
    publish(online(settings), table, CUTOFF, newest=CUTOFF)
    yield settings
    stop(redis_home)


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[Client]:
    with running(settings) as client:
        yield client


@pytest.fixture
def full(client: Client, keys: Mapping[str, tuple[str, str]]) -> Client:
    return Client(client.port, client.service, keys["full"][0])


ENDPOINTS: list[tuple[str, str, Any, str]] = [
    ("GET", f"/features/{IDS[0]}", None, "features"),
    ("POST", "/features:batch", {"customer_ids": IDS}, "features"),
    ("POST", f"/predict/{IDS[0]}", None, "predict"),
    ("POST", "/predict", {"customer_ids": IDS}, "predict"),
    ("POST", "/predict", {"rows": [{}]}, "predict"),
    ("POST", f"/refresh/{IDS[0]}", None, "refresh"),
    ("GET", "/metrics", None, "metrics"),
]


# --------------------------------------------------------------------------- who may


@pytest.mark.parametrize(("method", "path", "body", "scope"), ENDPOINTS)
def test_every_endpoint_asks_who_and_whether(
    client: Client, method: str, path: str, body: Any, scope: str
):
    assert client.ask(method, path, body)[0] == 401
    assert client.headers["WWW-Authenticate"] == "Bearer"
    for token in ("wrong", "a.b.c", "ü", " ", token_of(scope=scope) + "x"):
        assert client.ask(method, path, body, token=token.encode().decode("latin-1"))[0] == 401
    others = " ".join(set(SCOPES) - {scope})
    status, answer = client.ask(method, path, body, token=token_of(scope=others))
    assert (status, scope in answer["detail"]) == (403, True)
    assert client.ask(method, path, body, token=token_of(scope=scope))[0] not in (401, 403)


def claims(**changes: Any) -> dict[str, Any]:
    now = dt.datetime.now(dt.UTC)
    usual = {
        "sub": "ann",
        "aud": AUDIENCE,
        "exp": now + dt.timedelta(hours=1),
        "scope": "features sensitive",
    }
    return {name: value for name, value in (usual | changes).items() if value is not None}


def token_of(secret: Any = SECRET, algorithm: str = "HS256", **changes: Any) -> str:
    return jwt.encode(claims(**changes), secret, algorithm)


def spliced(signed: str, claims: str) -> str:
    """A token with the signature of one and the claims of another."""
    head, _, signature = signed.split(".")
    return ".".join([head, claims.split(".")[1], signature])


PAST = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
FUTURE = dt.datetime(2100, 1, 1, tzinfo=dt.UTC)
FORGED = {
    "expired": token_of(exp=PAST),
    "never expires": token_of(exp=None),
    "not yet valid": token_of(nbf=FUTURE),
    "another secret": token_of("another secret of more than 32 bytes"),
    "another audience": token_of(aud="payroll"),
    "no audience": token_of(aud=None),
    "nobody": token_of(sub=None),
    "half a surrogate": token_of(sub="\ud800"),
    "unsigned": jwt.encode(claims(), "", "none"),
    "another algorithm": token_of(algorithm="HS512"),
    "changed": spliced(token_of(scope="x"), token_of()),
}


@pytest.mark.parametrize("token", FORGED.values(), ids=FORGED.keys())
def test_a_bad_token_is_nobody(client: Client, token: str):
    path = f"/features/{IDS[0]}"
    assert client.get(path, token=token_of())[0] == 200
    assert client.get(path, token=token)[0] == 401


@pytest.mark.parametrize(
    ("private", "algorithm"),
    [
        (rsa.generate_private_key(65537, 2048), "RS256"),
        (ec.generate_private_key(ec.SECP256R1()), "ES256"),
    ],
    ids=["RS256", "ES256"],
)
def test_a_public_key_verifies_and_is_no_shared_secret(
    settings: Settings, private: Any, algorithm: str
):
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    pem = private.public_key().public_bytes(encoding, form)
    path = f"/features/{IDS[0]}"
    with running(settings, jwt_key=SecretStr(pem.decode())) as client:
        assert client.get(path, token=token_of(private, algorithm))[0] == 200
        assert client.get(path, token=token_of())[0] == 401
        assert client.get(path, token=hmac_token(pem))[0] == 401


def hmac_token(key: bytes) -> str:
    """A token signed with the public key as if it were a secret; PyJWT itself refuses to."""
    import base64
    import hashlib
    import hmac

    def encoded(content: bytes) -> bytes:
        return base64.urlsafe_b64encode(content).rstrip(b"=")

    payload = claims() | {"exp": int(FUTURE.timestamp())}
    parts = [encoded(json.dumps(part).encode()) for part in ({"alg": "HS256"}, payload)]
    signed = b".".join(parts)
    return (signed + b"." + encoded(hmac.digest(key, signed, hashlib.sha256))).decode()


def der(public: Any) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(public.public_bytes(serialization.Encoding.DER, form))


def pem(public: Any) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(public.public_bytes(serialization.Encoding.PEM, form)).decode()


def private_pem(private: Any) -> str:
    form = serialization.PrivateFormat.PKCS8
    none = serialization.NoEncryption()
    return bytes(private.private_bytes(serialization.Encoding.PEM, form, none)).decode()


ED = ed25519.Ed25519PrivateKey.generate()
RSA, EC = rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256R1())
NO_KEYS = {
    "blank": " " * 40,
    "short": "x7#kQ",
    "repeated": "secret" * 10,
    "Base64 of DER": base64.b64encode(der(RSA.public_key())).decode(),
    "in lines": "\n".join(textwrap.wrap(base64.b64encode(der(EC.public_key())).decode(), 64)),
    "URL-safe": base64.urlsafe_b64encode(der(RSA.public_key())).rstrip(b"=").decode(),
    "JWK": json.dumps({"kty": "oct", "k": "c2VjcmV0" * 9, "alg": "HS256"}),
    "JWKS": json.dumps({"keys": [{"kty": "RSA", "n": "AQAB" * 99, "e": "AQAB"}]}),
    "SSH": RSA.public_key()
    .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    .decode(),
    "half a PEM": pem(RSA.public_key())[:200],
    "a PEM without its middle": pem(RSA.public_key()).replace("A", "", 9),
    "private": private_pem(EC),
    "certificate": "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    "weak RSA": pem(rsa.generate_private_key(65537, 1024).public_key()),
    "another curve": pem(ec.generate_private_key(ec.SECP384R1()).public_key()),
}


@pytest.mark.parametrize("text", NO_KEYS.values(), ids=NO_KEYS.keys())
def test_what_is_no_key_for_tokens_is_refused_at_start(text: str):
    with pytest.raises(SettingsError, match="CHURN_JWT_KEY") as refused:
        token_key(text)
    told = str(refused.value)
    assert not any(part in told for part in text.split() if len(part) > 12 and "-----" not in part)


def test_a_key_may_be_written_in_one_line():
    for private, algorithm in ((RSA, "RS256"), (EC, "ES256"), (ED, "EdDSA")):
        for text in (pem(private.public_key()), pem(private.public_key()).replace("\n", r"\n")):
            found = token_key(text)
            assert found.algorithm == algorithm
            claims = jwt.decode(
                token_of(private, algorithm), found.key, [algorithm], audience=AUDIENCE
            )
            assert claims["sub"] == "ann"
    assert token_key(secrets.token_urlsafe(32)).algorithm == "HS256"


@pytest.mark.parametrize(
    "changes",
    [
        {"scope": ["features"]},
        {"scope": {"features": True}},
        {"scope": 1},
        {"sub": ""},
        {"sub": "  "},
        {"sub": "ann\nbob"},
        {"sub": "x" * 300},
    ],
    ids=str,
)
def test_a_token_that_leaves_something_to_guess_is_nobody(client: Client, changes: dict[str, Any]):
    assert client.get(f"/features/{IDS[0]}", token=token_of(**changes))[0] == 401


def test_sensitive_features_need_the_right(client: Client, keys: Mapping[str, tuple[str, str]]):
    assert {"age", "gender", "location", "income", "education"} <= sensitive_features(GROUPS)
    for method, path, body, _ in ENDPOINTS[:2]:
        for name, allowed in (("full", True), ("plain", False)):
            status, answer = client.ask(method, path, body, token=keys[name][0])
            row = answer["rows"][0] if body else answer
            assert status == 200
            assert ("SECRET INCOME" in json.dumps(answer)) is allowed
            assert sensitive_features(GROUPS).isdisjoint(row["features"]) is not allowed
            assert (set(answer["withheld"]) == sensitive_features(GROUPS)) is not allowed
        assert client.ask(method, path, body, token=keys["blind"][0])[0] == 403


def test_what_leaves_the_raw_layer_of_a_profile_is_declared():
    """Whoever adds a column of personal data has to add it here as well."""
    raw = {column.name for column in CUSTOMERS.columns}
    assert raw == {
        *("customer_id", "updated_at", "signup_at", "birth_date", "gender", "location", "income"),
        *("education", "loyalty_status", "premium", "device", "known_at"),
    }
    assert {feature.name: feature.sensitive for feature in PROFILE.features} == {
        **dict.fromkeys(("age", "gender", "location", "income", "education"), True),
        **dict.fromkeys(("loyalty_status", "premium", "device", "account_age_days"), False),
    }


# --------------------------------------------------------------------------- without keys


def test_without_keys_this_machine_only_and_nothing_sensitive(settings: Settings):
    with running(settings, api_keys=None, jwt_key=SecretStr("")) as client:
        path = f"/features/{IDS[0]}"
        status, answer = client.get(path)
        assert (status, {*answer["withheld"]}) == (200, {*sensitive_features(GROUPS)})
        for host in ("evil.example", "127.0.0.1.evil.example", "10.0.0.1:80", "[::"):
            assert client.get(path, headers={"Host": host})[0] == 403
    assert "sensitive" not in LOCAL_SCOPES


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Forwarded", "for=10.0.0.1"),
        ("Via", "1.1 proxy"),
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Forwarded-Host", "shop.example"),
        ("X-Forwarded-Proto", "https"),
        ("X-Real-IP", "127.0.0.1"),
        ("Origin", "https://evil.example"),
        ("Origin", "null"),
        ("Origin", "http://localhost:1"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
    ],
)
def test_without_keys_no_proxy_and_no_page_of_another_site(
    settings: Settings, name: str, value: str
):
    path = f"/refresh/{IDS[0]}"
    with running(settings, api_keys=None, jwt_key=None) as client:
        assert client.post(path, headers={name: value})[0] == 403
        own = {"Origin": f"http://127.0.0.1:{client.port}", "Sec-Fetch-Site": "same-origin"}
        assert client.post(path, headers=own)[0] != 403
    # With keys it is the key that counts: there may be a proxy, and tools of a browser send one.
    with running(settings) as client:
        assert client.get(f"/features/{IDS[0]}", token=token_of(), headers={name: value})[0] == 200


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *((host, True) for host in ("localhost", "localhost:80", "127.0.0.1:8", "::1", "[::1]:8")),
        *((host, False) for host in ("", "0.0.0.0", "::", "192.168.0.1", "localhost.evil", "a:b")),
    ],
)
def test_loopback(host: str, loopback: bool):
    assert is_loopback(host) is loopback


@pytest.mark.parametrize("scopes", ["everything", "", "features+root"])
def test_a_malformed_key_is_not_shown(scopes: str):
    _, entry = new_key("ann", ["features"])
    with pytest.raises(SettingsError, match="entry 2") as refused:
        parse_keys(f"{entry}, bob:{'0' * 64}:{scopes}")
    assert "0" * 64 not in str(refused.value)


def test_secrets_are_not_printed():
    settings = make_settings(Path(), api_keys="hunter2", jwt_key="hunter2")
    assert "hunter2" not in repr(settings)


# --------------------------------------------------------------------------- what is sent

NAN_ROW = b'{"rows": [{"monetary": NaN}]}'
HUGE = b'{"rows": [{"total_events": 1' + b"0" * 400 + b"}]}"
DEEP = b'{"customer_ids": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BAD_BODIES = {
    "not json": b"{",
    "bytes": b"\xff\xfe",
    "nan": NAN_ROW,
    "infinite": b'{"rows": [{"monetary": 1e999}]}',
    "huge integer": HUGE,
    "more digits than Python reads": HUGE.replace(b"0" * 400, b"0" * 5000),
    "deep": DEEP,
    "half a surrogate": b'{"customer_ids": ["\\ud800"]}',
    "a list": b"[]",
    "null": b"null",
    "both kinds": json.dumps({"customer_ids": IDS, "rows": [{}]}).encode(),
    "no ids": b'{"customer_ids": []}',
    "an object for an id": b'{"customer_ids": [{"$ne": null}]}',
    "a number for an id": b'{"customer_ids": [1]}',
    "a long id": json.dumps({"customer_ids": ["x" * 257]}).encode(),
    "too many": json.dumps({"customer_ids": ["x"] * (MAX_CUSTOMERS + 1)}).encode(),
    "unknown feature": b'{"rows": [{"churned": 1}]}',
    "text for a number": b'{"rows": [{"monetary": "1"}]}',
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
@pytest.mark.parametrize("path", ["/predict", "/features:batch"])
def test_a_bad_body_is_refused(full: Client, path: str, body: bytes):
    status, answer = full.post(path, body)
    assert status in (400, 422)
    assert all(id_ not in json.dumps(answer) for id_ in IDS)


def test_a_large_body_is_refused_before_it_is_read(full: Client):
    body = b" " * (MAX_BODY_BYTES + 1)
    connection = http.client.HTTPConnection("127.0.0.1", full.port)
    token = token_of(scope="predict", sub="somebody with a full allowance")
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    connection.request("POST", "/predict", body, headers)
    assert connection.getresponse().status == 413
    connection.close()
    chunks = iter([body[: 2**16]] * (1 + MAX_BODY_BYTES // 2**16))
    connection.request("POST", "/predict", chunks, headers, encode_chunked=True)
    assert connection.getresponse().status == 413


STRANGE_IDS = [
    "' OR '1'='1",
    "$customer_id",
    "..%2f..%2fetc%2fpasswd",
    "../metrics",
    "%00",
    "%ff%fe",
    "%0d%0aSet-Cookie:%20a=b",
    "churn:pointer",
    "{{7*7}}",
    "<script>alert(1)<%2fscript>",
    "x" * 256,
]


@pytest.mark.parametrize("id_", STRANGE_IDS)
def test_a_strange_id_is_just_unknown(full: Client, id_: str):
    path = id_.replace(" ", "%20")
    for method, kind in (("GET", "features"), ("POST", "predict")):
        status, answer = full.ask(method, f"/{kind}/{path}")
        assert status == 404
        assert answer["detail"] in ("The served version has no such customer.", "Not Found")
        assert "Set-Cookie" not in full.headers


@pytest.mark.parametrize(
    "path", ["/..%2f..%2f.env", "/page.js/../../app.py", "//etc/passwd", "/static/app.py", "/docs"]
)
def test_no_other_file_is_served(full: Client, path: str):
    assert full.get(path)[0] == 404


def test_the_page_may_load_nothing_from_elsewhere(full: Client):
    for path in ("/", "/page.js", "/page.css"):
        assert full.get(path, token="")[0] == 200
        assert "default-src 'self'" in full.headers["Content-Security-Policy"]
    assert "Access-Control-Allow-Origin" not in full.headers


def test_a_customer_is_in_no_error_metric_or_log(full: Client):
    lines: list[str] = []

    class Capture(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    assert LOGGING["formatters"]["json"]["()"].endswith(JsonLines.__name__)
    handler, logger = Capture(), logging.getLogger("churn_assets.serving")
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    asked = set()
    wrong = [("GET", f"/{IDS[0]}", None, ""), ("POST", "/predict", {"customer_ids": [*IDS, 1]}, "")]
    try:
        for method, path, body, _ in [*ENDPOINTS, *wrong]:
            status, answer = full.ask(method, path, body)
            asked.add(full.headers["X-Request-ID"])
            if status >= 400:
                assert all(id_ not in json.dumps(answer) for id_ in IDS)
        eventually(lambda: asked <= {json.loads(line).get("request_id") for line in lines})
    finally:
        logger.removeHandler(handler)
    text = "".join(lines) + full.get("/metrics")[1]
    assert all(id_ not in text for id_ in IDS)
    assert full.token not in text


def test_a_failure_says_nothing_of_itself(full: Client, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise RuntimeError(f"{IDS[0]} has a strange row")

    monkeypatch.setattr(full.service.rows, "read", fail)
    status, answer = full.get(f"/features/{IDS[0]}")
    assert status == 500
    assert IDS[0] not in answer["detail"]
    assert full.headers["X-Request-ID"] in answer["detail"]


def test_a_logged_exception_has_kinds_and_places_but_no_text():
    def look_up() -> None:
        try:
            dict[str, str]()[IDS[0]]
        except KeyError as error:
            raise ValueError(f"nothing about {IDS[0]}") from error

    try:
        look_up()
    except ValueError:
        record = logging.LogRecord("x", 40, __file__, 1, "It failed.", None, sys.exc_info())
    line = JsonLines().format(record)
    assert IDS[0] not in line
    kinds = [told for told in json.loads(line)["exception"] if " " not in told]
    assert kinds == ["KeyError", "ValueError"]
    assert line.count("look_up") == 2


# --------------------------------------------------------------------------- how much, and who did


def test_a_caller_over_the_rate_waits_and_others_do_not(
    settings: Settings, keys: Mapping[str, tuple[str, str]]
):
    body = {"customer_ids": ["bob"] * MAX_CUSTOMERS}
    with running(settings, rate_limit=1) as client:
        assert client.post("/features:batch", body, token=keys["full"][0])[0] == 200
        status, _ = client.post("/features:batch", body, token=keys["full"][0])
        assert status == 429
        assert int(client.headers["Retry-After"]) >= 1
        assert client.get("/features/bob", token=keys["plain"][0])[0] == 200
        assert (
            'churn_refusals_total{status="429"}' in client.get("/metrics", token=keys["full"][0])[1]
        )


@pytest.mark.parametrize(("per_second", "burst"), [(2, MAX_CUSTOMERS), (5000, 5000)])
def test_idle_time_adds_up_to_no_more_than_one_burst(per_second: int, burst: int):
    now = 0.0
    limit = RateLimit(per_second, clock=lambda: now)
    ann = Caller("ann", frozenset())
    limit.charge(ann, 1)
    now = 1e6
    limit.charge(ann, burst)
    with pytest.raises(HTTPException) as refused:
        limit.charge(ann, 1)
    assert refused.value.status_code == 429


def test_every_read_is_in_the_audit_log(settings: Settings, keys: Mapping[str, tuple[str, str]]):
    with running(settings) as client:
        asked = {}
        for name, path, body in (
            ("full", "/features:batch", {"customer_ids": ["bob", "nobody"]}),
            ("plain", "/features:batch", {"customer_ids": ["bob"]}),
        ):
            assert client.post(path, body, token=keys[name][0])[0] == 200
            asked[name] = client.headers["X-Request-ID"]
        client.get("/features/bob", token="wrong")
    log = query(audit_query(settings.home))
    rows = [row for row in log if row["request_id"] in asked.values()]
    assert [
        (row["caller"], row["action"], row["customer_id"], row["found"], row["sensitive"])
        for row in rows
    ] == [
        ("full", "features", "bob", True, True),
        ("full", "features", "nobody", False, True),
        ("plain", "features", "bob", True, False),
    ]
    assert {(row["source"], row["cutoff"]) for row in rows} == {("redis", CUTOFF)}
    assert all(row["read_at"] for row in rows)
    assert {row["installation"] for row in rows} == {identify(settings).name}
    (file,) = (settings.home / "serving" / "audit").iterdir()
    assert file.stat().st_mode & 0o077 == 0
    assert file.parent.parent.stat().st_mode & 0o077 == 0


def test_what_cannot_be_recorded_is_not_answered(tmp_path: Path, settings: Settings):
    with running(settings, home=tmp_path / "state", api_keys=None, jwt_key=None) as client:
        folder = tmp_path / "state" / "serving" / "audit"
        folder.rmdir()
        folder.touch()
        status, answer = client.get("/features/bob")
        assert status == 503
        assert "features" not in answer


def test_a_line_that_a_full_disk_cut_short_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    worker, other = AuditLog(tmp_path), AuditLog(tmp_path)
    write = os.write
    record_one(worker, "first")
    monkeypatch.setattr(os, "write", lambda file, text: write(file, text[:50]))
    with pytest.raises(OSError, match="disk is full"):
        record_one(worker, "refused")
    assert worker.problem == "it cannot be written: the disk is full"
    monkeypatch.undo()
    record_one(other, "second")
    worker.retry()
    assert not worker.problem
    record_one(worker, "third")
    log = query(audit_query(tmp_path))
    assert [row["customer_id"] for row in log] == ["first", "second", "third"]
    worker.close()
    other.close()


def record_one(log: AuditLog, customer: str) -> None:
    log.record("shop", "r", "ann", "features", False, "redis", CUTOFF, [(customer, True)])


@pytest.mark.parametrize("way", ["deleted", "folder deleted", "moved", "replaced", "emptied"])
def test_a_file_that_somebody_takes_away_loses_the_past_only(tmp_path: Path, way: str):
    log = AuditLog(tmp_path)
    record_one(log, "before")
    (file,) = (tmp_path / "serving" / "audit").iterdir()
    if way == "deleted":
        file.unlink()
    elif way == "folder deleted":
        shutil.rmtree(tmp_path / "serving")
    elif way == "emptied":
        os.truncate(file, 0)
    else:
        file.rename(file.with_name("rotated.jsonl"))
        if way == "replaced":
            file.touch()
    record_one(log, "after")
    found = [row["customer_id"] for row in query(audit_query(tmp_path))]
    assert sorted(found) == (["after", "before"] if way in ("moved", "replaced") else ["after"])
    log.close()


def test_a_file_that_is_deleted_during_a_write_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    log, write = AuditLog(tmp_path), os.write
    record_one(log, "before")
    (file,) = (tmp_path / "serving" / "audit").iterdir()

    def delete_and_write(opened: int, text: bytes) -> int:
        file.unlink()
        monkeypatch.undo()
        return write(opened, text)

    monkeypatch.setattr(os, "write", delete_and_write)
    record_one(log, "meanwhile")
    assert [row["customer_id"] for row in query(audit_query(tmp_path))] == ["meanwhile"]
    log.close()


def test_a_request_without_customers_is_one_row(tmp_path: Path):
    log = AuditLog(tmp_path)
    old = (
        b'\n{"read_at":"2025-01-01T00:00:00Z","customers":[{"customer_id":"old","found":true}]}\n\n'
    )
    (tmp_path / "serving" / "audit" / "2025-01-01.jsonl").write_bytes(old)
    log.record("shop", "r", "cli:ann", "sql", True, "offline", None, [], query="SELECT 1")
    record_one(log, "bob")
    rows = query(audit_query(tmp_path))
    assert [(row["customer_id"], row["found"], row["query"]) for row in rows] == [
        ("old", True, None),
        (None, None, "SELECT 1"),
        ("bob", True, None),
    ]
    log.close()


def test_an_empty_audit_log_is_a_table(tmp_path: Path):
    assert query(audit_query(tmp_path)) == []
