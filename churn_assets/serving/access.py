"""Who may do what: API keys and JSON web tokens, scopes, and how much a caller may read.

Both travel as `Authorization: Bearer …`. A key is configured by its SHA-256 only, so neither the
environment nor a core dump of it gives one away; keys are drawn by `churn api-key` with 256 bits,
which need no slow hash. A token is verified with one key and only the algorithm of that kind of key
(`token_key`), must expire, and must name this service as its audience.

Without any key or token configured there is one caller, `local`, who must come from the loopback
interface, without a proxy, and ask for a loopback host name (a page of another site that rebinds
its name to 127.0.0.1 does not), from no page of another site, and does not see sensitive features.
"""

import hashlib
import ipaddress
import re
import secrets
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import jwt
from fastapi import HTTPException
from starlette.requests import HTTPConnection

from churn_assets.serving.schemas import MAX_CUSTOMERS, MAX_ID_LENGTH
from churn_assets.serving.token_key import TokenKey, token_key
from churn_assets.settings import Settings, SettingsError

SCOPES = {
    "features": "read features",
    "predict": "score customers or raw features",
    "refresh": "recompute a customer's features from the offline store",
    "sensitive": "see age, gender, location, income, education and the like",
    "metrics": "read metrics",
}

LOCAL_SCOPES = frozenset(SCOPES) - {"sensitive"}

# Callers whose rates a worker remembers before it looks whom it may forget.
MOST_BUCKETS = 1_000

PROXY_HEADERS = (
    *("forwarded", "via", "x-real-ip"),
    *("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"),
)

KEY_FORMAT = "name:sha256:scope+scope, several separated by commas"


@dataclass(frozen=True)
class Caller:
    """Who asks, and what they may."""

    name: str
    scopes: frozenset[str]


LOCAL = Caller("local", LOCAL_SCOPES)


def new_key(name: str, scopes: Collection[str]) -> tuple[str, str]:
    """A fresh key for a caller, and its entry for CHURN_API_KEYS."""
    key = secrets.token_urlsafe(32)
    entry = f"{name}:{_sha256(key)}:{'+'.join(scopes)}"
    parse_keys(entry)
    return key, entry


def parse_keys(text: str) -> dict[str, Caller]:
    """The callers of CHURN_API_KEYS by the SHA-256 of their keys.

    Raises:
        SettingsError: An entry is malformed. The message shows its position, never its text.
    """
    callers: dict[str, Caller] = {}
    for number, entry in enumerate(filter(None, map(str.strip, text.split(","))), 1):
        match entry.split(":"):
            case [name, digest, scopes] if (
                _is_name(name)
                and re.fullmatch("[0-9a-f]{64}", digest)
                and digest not in callers
                and set(scopes.split("+")) <= set(SCOPES)
            ):
                callers[digest] = Caller(name, frozenset(scopes.split("+")))
            case _:
                raise SettingsError(
                    f"CHURN_API_KEYS: entry {number} is no {KEY_FORMAT}, or its key was there "
                    f"before. Scopes are {', '.join(SCOPES)}. `churn api-key NAME SCOPE…` makes an "
                    "entry."
                )
    return callers


@dataclass(frozen=True)
class Access:
    """Who is let in.

    Args:
        keys: Callers by the SHA-256 of their API keys.
        token_key: Verifies tokens; None where there are none.
        audience: The `aud` that a token must have.
    """

    keys: Mapping[str, Caller]
    token_key: TokenKey | None = None
    audience: str = ""

    @classmethod
    def from_settings(cls, settings: Settings) -> "Access":
        """Raises SettingsError where a secret is unusable; the message does not show it."""
        keys = settings.api_keys.get_secret_value() if settings.api_keys else ""
        text = settings.jwt_key.get_secret_value() if settings.jwt_key else ""
        key = token_key(text) if text else None
        return cls(parse_keys(keys), key, settings.jwt_audience)

    @property
    def open(self) -> bool:
        """Whether nobody has to say who they are."""
        return not (self.keys or self.token_key)

    def caller(self, connection: HTTPConnection, token: str | None, scope: str) -> Caller:
        """Who asks, provided that they have the scope.

        Raises:
            HTTPException: 401 for nobody, 403 without the right.
        """
        caller = self._identify(connection, token)
        if scope not in caller.scopes:
            raise HTTPException(403, f"This needs the scope `{scope}`, which the caller lacks.")
        return caller

    def _identify(self, connection: HTTPConnection, token: str | None) -> Caller:
        if self.open:
            if why := _not_local(connection):
                raise HTTPException(403, f"Without CHURN_API_KEYS or CHURN_JWT_KEY {why}.")
            return LOCAL
        caller = token and (self.keys.get(_sha256(token)) or self._verify(token))
        if not caller:
            raise HTTPException(
                401,
                "Send a valid key or token as `Authorization: Bearer …`.",
                {"WWW-Authenticate": "Bearer"},
            )
        return caller

    def _verify(self, token: str) -> Caller | None:
        if not self.token_key:
            return None
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self.token_key.key,
                algorithms=[self.token_key.algorithm],
                audience=self.audience,
                options={"require": ["exp", "sub", "aud"]},
            )
        except (jwt.PyJWTError, ValueError):
            return None
        subject, scope = claims["sub"], claims.get("scope", "")
        # RFC 8693 has scopes in one text. Of anything else the service would have to guess.
        if not (isinstance(scope, str) and isinstance(subject, str) and _is_name(subject)):
            return None
        return Caller(f"token:{subject}", frozenset(scope.split()) & set(SCOPES))


def _is_name(text: str) -> bool:
    """Whether a text can stand for a caller in logs: not blank, printable, not too long."""
    return bool(text.strip()) and text.isprintable() and len(text) <= MAX_ID_LENGTH


@lru_cache
def is_loopback(host: str) -> bool:
    """Whether a host name or address, with or without a port, is this machine's loopback."""
    try:
        name = host if host.count(":") > 1 and "[" not in host else urlsplit(f"//{host}").hostname
        return name == "localhost" or ipaddress.ip_address(name or "").is_loopback
    except ValueError:
        return False


def _not_local(connection: HTTPConnection) -> str:
    """Why a request is not one of a program or person on this machine; empty where it is.

    A proxy on this machine that adds no header of its own cannot be told from one.
    """
    client = connection.client.host if connection.client else ""
    headers, host = connection.headers, connection.headers.get("host", "")
    if not (is_loopback(client) and is_loopback(host)):
        return "only this machine is served"
    if any(name in headers for name in PROXY_HEADERS):
        return "nobody is served through a proxy"
    # A browser says where a page is from that asks; of a page of another site it hides the answer
    # from the page, and no more.
    site, origin = headers.get("sec-fetch-site", "none"), headers.get("origin")
    if site not in ("none", "same-origin") or origin not in (None, f"http://{host}"):
        return "no page of another site is served"
    return ""


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


@dataclass
class RateLimit:
    """A token bucket per caller, in customers; full, it allows one batch or one second.

    Each worker process counts for itself, because a shared count would make every answer depend on
    one more server.
    """

    per_second: float
    clock: Callable[[], float] = time.monotonic
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def charge(self, caller: Caller, customers: int) -> None:
        """Raises HTTPException 429, with the seconds to wait, where the caller has to."""
        if not self.per_second:
            return
        full = max(self.per_second, MAX_CUSTOMERS)
        now = self.clock()
        with self._lock:
            if len(self._buckets) > MOST_BUCKETS:
                # Who has a full bucket again is as one who never asked.
                self._buckets = {
                    name: (left, since)
                    for name, (left, since) in self._buckets.items()
                    if left + (now - since) * self.per_second < full
                }
            left, since = self._buckets.get(caller.name, (full, now))
            left = min(full, left + (now - since) * self.per_second)
            if left >= customers:
                self._buckets[caller.name] = (left - customers, now)
                return
        seconds = max(1, round((customers - left) / self.per_second))
        raise HTTPException(
            429,
            f"Too many customers per second; try again in {seconds} s.",
            {"Retry-After": str(seconds)},
        )
