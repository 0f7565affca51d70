"""Prevents: a password in a message, a log, Dagster's records or MLflow's, because the error of a
library quotes the URL that it was given.

Each setting that may hold a secret is given one that nobody else would write, and a server that
cannot be reached, or a value that cannot be used. Then the commands that use it run.
"""

import logging
import re
import threading
import traceback
from base64 import b64encode
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import quote

import dagster as dg
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from churn_assets.cli import churn
from churn_assets.models.kinds import ESTIMATORS
from churn_assets.models.runs import ModelRuns
from churn_assets.monitoring import alerts
from churn_assets.operations.with_settings import main
from churn_assets.settings import SECRET, Settings, SettingsError, without_credentials
from churn_assets.settings import refuse_two_values as refuse_two
from churn_assets.stores import retries
from churn_assets.stores.retries import connections_are_retried
from churn_assets.stores.tracking import TrackingError
from churn_assets_tests.conftest import model_runs
from churn_assets_tests.models.test_tracking import made

MARK = "hunter2hunter2"
NOWHERE = "127.0.0.1:1"

READS = [["online", "get", "c1"]]
REDIS = [*READS, ["online", "rollback"], ["status"], ["reset", "--yes"]]
MLFLOW = [["prune"], ["status"], ["reset", "--yes"]]
SERVE = [["serve", "--host", "0.0.0.0"]]
COMMANDS = {
    "REDIS_URL": REDIS,
    "MLFLOW_TRACKING_URI": MLFLOW,
    "CHURN_ALERT_URL": [["status"]],
    "CHURN_API_KEYS": SERVE,
    "CHURN_JWT_KEY": SERVE,
}
VALUES = {
    "REDIS_URL": [
        f"redis://ann:{MARK}@{NOWHERE}/0",
        f"rediss://ann:{MARK}@{NOWHERE}?ssl_cert_reqs=nonsense",
        f"redis://{NOWHERE}?password={MARK}&username=ann",
        f"unix://ann:{MARK}@/nowhere",
        f"redis+sentinel://ann:{MARK}@{NOWHERE}/shop?sentinel_password={MARK}",
        f"redis+cluster://ann:{MARK}@{NOWHERE}",
        f"redis://ann:{MARK}/x@{NOWHERE}",
        f"redis://ann:x/{MARK}@{NOWHERE}",
        f"redis://ann:x?{MARK}@{NOWHERE}",
        f"redis://:{MARK}@[nonsense",
        f"redis://:{MARK}@host?nope=1",
        f"redis://:{MARK}@host?port=x",
        f"nonsense://:{MARK}@host",
    ],
    "MLFLOW_TRACKING_URI": [
        f"http://ann:{MARK}@{NOWHERE}",
        f"http://{MARK}@{NOWHERE}",
        f"http://ann:{MARK}/x@{NOWHERE}",
        f"http://{NOWHERE}?token={MARK}",
        f"postgresql://ann:{MARK}@{NOWHERE}/runs",
        f"postgresql://ann:{MARK}@host:port/runs",
        f"mysql+pymysql://ann:{MARK}@{NOWHERE}/runs",
        f"nonsense://ann:{MARK}@host",
    ],
    "CHURN_ALERT_URL": [
        f"nonsense://ann:{MARK}@host/{MARK}",
        f"slack://{MARK}",
        f"json://ann:{MARK}@{NOWHERE}/{MARK}",
    ],
    "CHURN_API_KEYS": [MARK, f"ann:{MARK}:features", f"ann:{'0' * 64}:{MARK}"],
    "CHURN_JWT_KEY": [MARK, f"-----BEGIN PUBLIC KEY-----\n{MARK}\n-----END PUBLIC KEY-----"],
}


def test_every_setting_that_may_hold_a_secret_is_tried() -> None:
    named = {
        field.alias or (name if name.startswith(("redis", "mlflow")) else f"churn_{name}")
        for name, field in Settings.model_fields.items()
        if re.search("url|uri|key|token|pass|secret", name)
    }
    assert {name.upper() for name in named} == SECRET == COMMANDS.keys() == VALUES.keys()


@pytest.fixture
def said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """Gives all that anybody could read of what happened so far, and of the errors given."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    for name, value in (
        ("CHURN_HOME", str(tmp_path / "state")),
        ("CHURN_SOURCE", "files"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0"),
        ("MLFLOW_SQLALCHEMYSTORE_MAX_RETRIES", "0"),
        ("MLFLOW_TRACKING_USERNAME", ""),
        ("MLFLOW_TRACKING_PASSWORD", ""),
    ):
        monkeypatch.setenv(name, value)

    def everything(*errors: BaseException | None) -> str:
        logging.captureWarnings(False)
        chains = [line for error in errors if error for line in traceback.format_exception(error)]
        return "".join([*capfd.readouterr(), caplog.text, *chains])

    return everything


TRIED = [(name, value) for name, values in VALUES.items() for value in values]


@pytest.mark.parametrize(("name", "value"), TRIED, ids=lambda text: text.replace(MARK, "…"))
def test_a_secret_is_shown_nowhere(
    name: str, value: str, said: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(name, value)
    # It is refused before that, or tried here.
    monkeypatch.setattr("churn_assets.serving.run.run", lambda *_: None)
    # All of them at an outage; one where the value is at fault.
    for command in COMMANDS[name] if value == VALUES[name][0] else COMMANDS[name][:1]:
        result = CliRunner().invoke(churn, command)
        shown = said(result.exception) + result.output
        assert MARK not in shown, shown
        assert not isinstance(result.exception, TypeError | KeyError | AttributeError), shown
        if command in READS:
            assert result.exit_code and "REDIS_URL" in str(result.exception)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if MARK.encode() in path.read_bytes()] == []


def test_an_unknown_option_is_named(monkeypatch: pytest.MonkeyPatch, said: Callable) -> None:
    for form in (
        "redis://h?nope=1",
        "redis+sentinel://h/s?nope=1",
        "redis+sentinel://h/s?x=1&db=0",
    ):
        monkeypatch.setenv("REDIS_URL", form)
        result = CliRunner().invoke(churn, READS[0])
        assert "REDIS_URL has an option that redis-py does not know" in str(result.exception)


def test_a_file_of_settings_is_not_quoted(tmp_path: Path, said: Callable[..., str]) -> None:
    for name in SECRET:
        for line in (f"{name.lower()}={MARK}", f"{name}={MARK}\nx y z\n", f"x={MARK}\n{name}=${{x"):
            (tmp_path / ".env").write_text(line)
            try:
                Settings.read()
            except SettingsError as error:
                assert MARK not in said(error)
        (tmp_path / ".env").write_text(f"{name}=a{MARK}\n")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(name, f"b{MARK}")
            with pytest.raises(SettingsError, match="one value in the environment") as refused:
                refuse_two(tmp_path / ".env")
            with pytest.raises(SystemExit) as ended:
                main(["true"])
        assert MARK not in said(refused.value, ended.value)


def test_settings_do_not_show_them() -> None:
    made_up = dict.fromkeys(("redis_url", "mlflow_tracking_uri", "api_keys", "jwt_key"), MARK)
    assert MARK not in repr(Settings(_env_file=None, **made_up))  # type: ignore[arg-type]


@pytest.mark.parametrize("url", VALUES["MLFLOW_TRACKING_URI"])
def test_a_run_of_dagster_does_not_record_them(
    url: str, said: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "SECONDS_BETWEEN", 0.1)  # the server never comes back
    runs = ModelRuns(tmp_path / "state", url, model_runs(tmp_path / "state").identity)
    manifest = made(runs, ESTIMATORS[0], "2025-06-01")

    @dg.asset
    def model() -> None:
        with connections_are_retried():
            runs.record(manifest, {})

    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        result = dg.materialize([model], instance=instance, raise_on_error=False)
        assert not result.success
        events = str([instance.all_logs(result.run_id), instance.get_run_by_id(result.run_id)])
    assert MARK not in events + said()
    if NOWHERE in url and url.startswith("http://ann"):
        assert "STEP_UP_FOR_RETRY" in events or MARK + "/x" in url


def test_a_link_to_a_run_and_what_is_recorded_have_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[..., str]
) -> None:
    server = f"sqlite:///{tmp_path}/server.db"
    runs = ModelRuns(tmp_path / "state", server, model_runs(tmp_path / "state").identity)
    manifest = made(runs, ESTIMATORS[0], "2025-06-01")
    run = runs.record(manifest, {})
    kept = str(runs.client.get_run(run).to_dictionary())
    for url in VALUES["MLFLOW_TRACKING_URI"]:
        shown = ModelRuns(tmp_path / "state", url, runs.identity)
        vars(shown)["_opened"] = (runs.client, runs.experiment_id)
        link = shown.run_url(run)
        assert MARK not in link + kept
        if url == f"http://ann:{MARK}@{NOWHERE}":
            assert link == f"http://{NOWHERE}/#/experiments/{runs.experiment_id}/runs/{run}"
            assert shown.tracking_uri == f"http://{NOWHERE}"
            assert shown._account == ("ann", MARK)
    with pytest.raises(TrackingError) as failed, runs.locked():
        bad = ModelRuns(tmp_path / "state", f"postgresql://ann:{MARK}@h/d", runs.identity)
        with bad._told_safely():
            raise ValueError(f"cannot parse postgresql://ann:{MARK}@h/d")
    assert "postgresql://h/d" in str(failed.value) and MARK not in said(failed.value)


def test_a_server_that_asks_for_a_password_gets_it(
    tmp_path: Path, said: Callable[..., str]
) -> None:
    asked: list[str | None] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Authorization"])
            self.send_error(403)

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://ann:{quote(MARK + '@/', safe='')}@127.0.0.1:{server.server_port}"
        runs = ModelRuns(tmp_path / "state", url, model_runs(tmp_path / "state").identity)
        with pytest.raises(Exception, match="403") as refused:
            assert runs.client
        server.shutdown()
    assert asked[0] == "Basic " + b64encode(f"ann:{MARK}@/".encode()).decode()
    assert MARK not in said(refused.value)


@pytest.mark.parametrize("url", VALUES["CHURN_ALERT_URL"])
def test_an_alert_that_cannot_be_delivered_does_not_log_them(
    url: str, said: Callable[..., str]
) -> None:
    with pytest.raises(ConnectionError, match="CHURN_ALERT_URL") as failed:
        alerts.send(url, alerts.Message("title", "body"))
    shown = said(failed.value)
    assert MARK not in shown
    assert "apprise" in shown or url.startswith("slack")


SIGNS = st.text(st.sampled_from("ab1:/@?#&=;%[] +é"), max_size=8)


@given(
    st.sampled_from(["redis", "rediss", "postgresql+psycopg2", "redis+cluster", "http"]),
    SIGNS,
    SIGNS,
    st.sampled_from(["", "?password=", "?x=1&token=", "?"]),
)
def test_no_password_is_shown(scheme: str, before: str, after: str, option: str) -> None:
    """Whatever signs it has, also where it should have been written with %."""
    secret = f"{before}{MARK}{after}"
    account = f"{scheme}://ann:{secret}@host/0"
    for uri in (account, f"{account}{option}{'x' if option else ''}"):
        assert MARK not in without_credentials(uri)
    if option.endswith("="):
        assert MARK not in without_credentials(f"{scheme}://host/0{option}{secret}")
    assert without_credentials(f"{scheme}://ann:{MARK}@host:7/0?x=1") == f"{scheme}://host:7/0?***"
