"""Every setting of the project: `CHURN_*` environment variables, also read from `.env`.

Settings are read once, when the code location loads or a command starts, and a wrong value stops
both with a message that names the variable. Nothing else in the package reads the environment.
"""

import datetime as dt
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, unquote_plus

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from churn_assets.cutoffs import Cadence, Calendar

DATA = Path("data")
ENV_FILE = Path(".env")

# Options of URLs that hold a secret, by a part of their name.
SECRET_OPTION = "pass|pwd|token|key|secret|auth|cred"


class SettingsError(ValueError):
    """A setting has no valid value; the message names its variable."""


class Settings(BaseSettings):
    """The settings of one installation; see the table in the README."""

    model_config = SettingsConfigDict(
        env_prefix="CHURN_",
        env_file=ENV_FILE,
        env_file_encoding="utf-8",  # as Dagster reads it, whatever the locale
        extra="ignore",
        frozen=True,
        populate_by_name=True,
    )

    home: Path = Field(
        DATA / "state", description="where all state lives; delete it to start clean"
    )
    installation: str = Field(
        "",
        pattern="^([a-z0-9][a-z0-9-]{0,31})?$",
        description="name in Redis, MLflow and the audit log; empty: drawn at random, once",
    )
    source: Literal["synthetic", "files", "online_retail"] = Field(
        "synthetic", description="where raw data comes from"
    )
    input_dir: Path | None = Field(None, description="folder of the input files")
    start: dt.date = Field(dt.date(2025, 1, 1), description="where data begins")
    end: Annotated[dt.datetime | None, NoDecode] = Field(
        None, description="instant at which history stops; without it, now counts"
    )
    cadence: Cadence = Field(Cadence.MONTHLY, description="how often there is a cutoff")
    horizon_days: int = Field(28, ge=1, le=730, description="how far labels look ahead")
    # Shares compare the last 30 days with the lookback.
    lookback_days: int = Field(
        90, ge=30, le=730, description="activity window and population rule, at least 30"
    )
    training_cutoffs: int = Field(12, ge=1, le=1000, description="cutoffs a model is trained on")
    extra_models: Annotated[tuple[Literal["lightgbm", "catboost"], ...], NoDecode] = Field(
        (), description="kinds of model beside the four; each is an extra to install"
    )
    tuning: int = Field(
        0, ge=0, le=1000, description="candidates that are tried beside the defaults; 0: none"
    )
    customer_value: float = Field(60.0, gt=0, description="margin of a customer who stays")
    contact_cost: float = Field(6.0, ge=0, description="cost of contacting a customer")
    save_rate: float = Field(
        0.2, gt=0, le=1, description="share of contacted churners who stay because of it"
    )
    synthetic_customers: int = Field(
        10_000, ge=1, description="customers of the synthetic shop after 18 months"
    )
    seed: int = Field(7, ge=0, description="seed of everything that is drawn at random")
    review_vectors: Literal["none", "lsa", "minilm"] = Field(
        "none", description="how review texts become vectors, which are features then"
    )
    allow_shrink: bool = Field(
        False, description="let a raw partition be replaced by one with fewer rows"
    )
    duckdb_memory_limit: str = Field("", description="e.g. 8GB; empty: 4GB, at most half of all")
    duckdb_temp_directory: Path | None = Field(None, description="where DuckDB spills")
    duckdb_threads: int = Field(0, ge=0, description="0: one per core")
    redis_url: str | None = Field(
        None, validation_alias=AliasChoices("REDIS_URL", "redis_url"), repr=False
    )
    mlflow_tracking_uri: str | None = Field(
        None,
        validation_alias=AliasChoices("MLFLOW_TRACKING_URI", "mlflow_tracking_uri"),
        repr=False,
    )

    alert_url: SecretStr | None = Field(
        None, description="where alerts go, as apprise URLs; without it they are only logged"
    )
    api_keys: SecretStr | None = Field(
        None, description="callers of the service: name:sha256:scope+scope, separated by commas"
    )
    jwt_key: SecretStr | None = Field(
        None, description="verifies bearer tokens: a public key (PEM) or a shared secret"
    )
    jwt_audience: str = Field("churn-assets", description="the `aud` that tokens must have")
    rate_limit: int = Field(
        1000, ge=0, description="customers a caller reads per second and worker; 0: no limit"
    )

    @field_validator("home", "input_dir", "duckdb_temp_directory", mode="before")
    @classmethod
    def _no_object_storage(cls, path: object) -> object:
        # As a path, s3://bucket is a folder s3: of the current one.
        if "://" in str(path):
            raise ValueError(
                "object storage cannot be used yet, this has to be a folder. Mount the bucket, or "
                "copy the files"
            )
        return path

    @field_validator("home", "input_dir", "duckdb_temp_directory")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        # A run launched from another folder must find the same state.
        try:
            return path and path.expanduser().absolute()
        except RuntimeError:
            raise ValueError("there is no user of that name; write the folder out") from None

    @field_validator("home")
    @classmethod
    def _openable(cls, home: Path) -> Path:
        # DuckDB takes what follows ? for options and *[] for patterns, Dagster's storage %41 for A.
        if found := re.search(r"[?*\[\]\\]|%[0-9A-Fa-f]{2}", str(home)):
            raise ValueError(
                f"DuckDB and SQLite cannot open a path with {found[0]} in it, name another folder"
            )
        return home

    @field_validator("extra_models", mode="before")
    @classmethod
    def _separated(cls, names: object) -> object:
        if not isinstance(names, str):
            return names
        return tuple(dict.fromkeys(n.strip() for n in names.split(",") if n.strip()))

    @field_validator("extra_models")
    @classmethod
    def _installed(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        missing = ",".join(name for name in names if find_spec(name) is None)
        if missing:
            raise ValueError(
                f"{missing} is not installed. Run `pip install 'churn-assets[{missing}]'`, or "
                "leave it out of CHURN_EXTRA_MODELS"
            )
        return names

    @field_validator("alert_url")
    @classmethod
    def _deliverable(cls, url: SecretStr | None) -> SecretStr | None:
        if url is None or not url.get_secret_value():
            return None
        if find_spec("apprise") is None:
            raise ValueError(
                "apprise is not installed. Run `pip install 'churn-assets[alerts]'`, or unset it"
            )
        import apprise

        # Of a URL that it does not take, it logs all.
        with without_logs("apprise"):
            taken = apprise.Apprise().add(url.get_secret_value())
        if not taken:
            raise ValueError(
                "no service takes this. It is a URL such as jsons://host/path (a webhook), "
                "mailtos://user:password@host or slack://…; https://appriseit.com lists them"
            )
        return url

    @field_validator("end", mode="before")
    @classmethod
    def _no_end(cls, value: object) -> object:
        return value or None

    @field_validator("end")
    @classmethod
    def _utc(cls, end: dt.datetime | None) -> dt.datetime | None:
        if end is None:
            return None
        return end.replace(tzinfo=dt.UTC) if end.tzinfo is None else end.astimezone(dt.UTC)

    @classmethod
    def read(cls) -> "Settings":
        """The settings of this process.

        Raises:
            SettingsError: A variable has no valid value, or another one for Dagster.
        """
        refuse_ambiguous(ENV_FILE)
        try:
            settings = cls()
            settings.calendar()
        except ValidationError as error:
            wrong = [
                f"{name}={'***' if name in SECRET else repr(e['input'])}: {e['msg']}"
                for e in error.errors()
                for name in [_variable(str(e["loc"][0]))]
            ]
            raise SettingsError("; ".join(wrong)) from None
        return settings

    @property
    def input_folder(self) -> str:
        """Where input files are looked for: `CHURN_INPUT_DIR`, or `input` beside the state."""
        return str(self.input_dir or self.home.parent / "input")

    @property
    def dagster_home(self) -> Path:
        """Dagster's own storage, inside the state so that deleting the state is a clean start."""
        return self.home / "dagster"

    def duckdb_config(self) -> dict[str, str | int]:
        """How DuckDB is to use the machine."""
        config: dict[str, str | int] = {
            "temp_directory": str(self.duckdb_temp_directory or self.home / "duckdb_tmp"),
            "memory_limit": self.duckdb_memory_limit or f"{default_memory() // 2**20}MiB",
        }
        if self.duckdb_threads:
            config["threads"] = self.duckdb_threads
        return config

    def calendar(self) -> Calendar:
        """The partitions that these settings define."""
        return Calendar(
            start=self.start,
            end=self.end,
            cadence=self.cadence,
            lookback_days=self.lookback_days,
            horizon_days=self.horizon_days,
            training_cutoffs=self.training_cutoffs,
        )


def refuse_ambiguous(path: Path) -> None:
    """Refuse an `.env` from which Dagster and `churn` would not read the same.

    Both read it with python-dotenv. But Dagster puts the values into the environment and reads the
    file again there, takes names as they are written, and needs DAGSTER_HOME earlier.

    Raises:
        SettingsError: With the line, and what to write instead.
    """
    from dotenv.parser import parse_stream

    if not path.is_file():
        return
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8: {error}. Save it as UTF-8.") from None
    known = {_variable(name) for name in Settings.model_fields}
    lines = list(parse_stream(StringIO(text, newline=None)))
    # Where each name is set first. Commands that are started by others find these two set.
    first = {"CHURN_HOME": len(lines), "DAGSTER_HOME": len(lines)}
    for number, line in reversed(list(enumerate(lines))):
        first |= {line.key: number} if line.key else {}
    for number, line in enumerate(lines):
        written, name = line.original.string, line.key or ""
        # A line is given with the empty ones above it.
        above = written[: len(written) - len(written.lstrip())].count("\n")
        where = f"{path}, line {line.original.line + above}"
        if line.error or "\0" in written:
            raise SettingsError(f"{where} is no NAME=value. Correct it, or put # before it.")
        if name == "DAGSTER_HOME":
            raise SettingsError(
                f"{where}: Dagster needs DAGSTER_HOME before it reads this file. Take it out, and "
                f"`export DAGSTER_HOME={line.value or ''}` in the shell; without it, Dagster's "
                "storage is in CHURN_HOME."
            )
        if name.upper() in known and (name not in known or line.value is None):
            value = "…" if name.upper() in SECRET else line.value or ""
            raise SettingsError(f"{where}: write it as {name.upper()}={value}")
        for other in re.findall(r"\$\{([^}:]*)", line.value or ""):
            if first.get(other, -1) >= number:
                raise SettingsError(
                    f"{where}: ${{{other}}} has no value there yet, and another one when the file "
                    f"is read again. Set {other} in a line above it, or write its value."
                )


def refuse_two_values(path: Path) -> None:
    """Refuse an environment that says otherwise than `.env`: Dagster takes the file, `churn` not.

    Raises:
        SettingsError: With both values.
    """
    from dotenv import dotenv_values

    for name in map(_variable, Settings.model_fields):
        values = os.environ.get(name), dotenv_values(path).get(name)
        if None not in values and values[0] != values[1]:
            shown = ("one value", "another") if name in SECRET else values
            raise SettingsError(
                f"{name} is {shown[0]} in the environment and {shown[1]} in {path}. Dagster would "
                "take the second and `churn` the first. Unset one of them."
            )


def environment_variable(name: str) -> str:
    """A variable that is no setting, such as a password that a query names; also from `.env`.

    Raises:
        SettingsError: It is not set.
    """
    from dotenv import dotenv_values

    value = os.environ.get(name) or dotenv_values(ENV_FILE).get(name)
    if not value:
        raise SettingsError(f"The environment variable {name} is not set.")
    return value


def _variable(field: str) -> str:
    return (
        field.upper() if field.upper().startswith(("REDIS", "MLFLOW")) else f"CHURN_{field.upper()}"
    )


# Variables whose value is never shown as it is: secrets, and URLs that may have one in them.
SECRET = {
    _variable(name)
    for name, field in Settings.model_fields.items()
    if field.annotation == SecretStr | None or not field.repr
}


def without_credentials(uri: str) -> str:
    """A URI as it may be shown: without user, password and options.

    A password that is not written as a URI wants it may hold any sign, so of two readings the
    shorter is shown.
    """
    address, question, options = uri.partition("?")
    host = address.removeprefix(_scheme(uri)).rpartition("@")[2]
    if "@" in options:  # the password has a question mark in it, or an option an address
        host = question = ""
    return f"{_scheme(uri)}{host}{question}{'***' if options else ''}"


def without_secrets(text: object, uri: str | None) -> str:
    """A text, such as that of a library's error, without what a URI holds of secrets."""
    shown, parts = str(text), _secrets_of(uri or "")
    if uri:
        shown = shown.replace(uri, without_credentials(uri))
    for part in sorted(parts, key=len, reverse=True):
        shown = shown.replace(part, "***")
    return shown


def _scheme(uri: str) -> str:
    scheme = re.match("[A-Za-z][A-Za-z0-9+.-]*://", uri)
    return scheme[0] if scheme else ""


def _secrets_of(uri: str) -> set[str]:
    """The passwords of a URI, as they are written there and as they are meant."""
    account = uri.removeprefix(_scheme(uri)).rpartition("@")[0]
    options = re.findall("[?&;]([^=&;]*)=([^&;]*)", uri)
    found = {account, account.partition(":")[2]}
    if ":" not in account and not uri.startswith("http"):
        found = set()  # a user without a password; over HTTP it may be a token
    found |= {value for name, value in options if re.search(SECRET_OPTION, name, re.IGNORECASE)}
    return {text for part in found if part for text in (part, unquote(part), unquote_plus(part))}


@contextmanager
def without_logs(logger: str) -> Iterator[None]:
    """Drop what a library logs meanwhile."""
    before, found = logging.getLogger(logger).disabled, logging.getLogger(logger)
    found.disabled = True
    try:
        yield
    finally:
        found.disabled = before


def default_memory() -> int:
    """Bytes that DuckDB may use where nobody says: 4 GB, or half of the machine if that is less."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # of a container; without a limit it is no number
        machine = min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(4 * 10**9, machine // 2)
