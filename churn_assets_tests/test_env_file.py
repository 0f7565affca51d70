"""`.env`: prevents that make, Dagster and `churn` each read another value from the same line."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from dagster._core.secrets.env_file import get_env_var_dict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from churn_assets.operations.with_settings import main
from churn_assets.settings import Settings, SettingsError

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("DAGSTER_HOME", "FOLDER"):
        monkeypatch.delenv(name, raising=False)


def write(text: str | bytes) -> None:
    Path(".env").write_bytes(text if isinstance(text, bytes) else text.encode())


Environment = dict[str, str]


def as_churn(environment: Mapping[str, str]) -> Settings:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return Settings.read()


def as_dagster() -> Settings:
    """What a run of Dagster reads: each of three processes puts the file into its environment."""
    environment: Environment = {}
    with pytest.MonkeyPatch.context() as patch:
        for _ in range(3):
            environment |= get_env_var_dict(str(Path.cwd()))
            for name, value in environment.items():
                patch.setenv(name, value)
        return Settings.read()


def as_make() -> Environment:
    """The environment of what a recipe runs."""
    started: list[Environment] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.execvpe", lambda _, __, environment: started.append(dict(environment)))
        main(["true"])
    return started[0]


PLACES = st.text(st.sampled_from("abé /#'\"\\$={}:-~%"), min_size=1, max_size=8)
VALUES = st.one_of(
    PLACES,
    PLACES.map("'{}'".format),
    PLACES.map('"{}"'.format),
    PLACES.map("{} # a comment".format),
    st.sampled_from(
        [
            "${FOLDER}/x",
            "${FOLDER:-y}",
            "${CHURN_HOME}/x",
            "${CHURN_INPUT_DIR}",
            "${DAGSTER_HOME}",
            "${HOME}",
            "$HOME",
            "~/x",
            "~nobody-of-that-name/x",
            "",
        ]
    ),
)
NAMES = st.sampled_from(
    ["CHURN_HOME", "CHURN_INPUT_DIR", "FOLDER", "churn_home", "Churn_Home", "DAGSTER_HOME"]
)
LINES = st.one_of(
    st.builds(
        "{}{}{}{}".format,
        st.sampled_from(["", "", "", "export ", "  ", "\ufeff"]),
        NAMES,
        st.sampled_from(["=", "=", "=", " = ", ": "]),
        VALUES,
    ),
    st.sampled_from(["# a comment", "", "CHURN_HOME", "nonsense here", "define CHURN_HOME", "\0"]),
)
TEXTS = st.builds(
    "{}{}".format,
    st.sampled_from(["", "", "\ufeff"]),
    st.one_of(*(st.lists(LINES, max_size=5).map(end.join) for end in ("\n", "\r\n", "\r"))),
)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(TEXTS)
def test_all_read_the_same_or_it_is_refused(tmp_path_factory: pytest.TempPathFactory, text: str):
    write(text)
    with pytest.MonkeyPatch.context() as patch:
        # Nothing is made in folders that a text happens to name.
        patch.setattr(
            "churn_assets.operations.with_settings.dagster_home", lambda s: s.dagster_home
        )
        try:
            read = as_churn({})
        except SettingsError as error:
            assert ".env" in str(error) or "CHURN_" in str(error)
            return
        environment = as_make()
        assert environment["CHURN_HOME"] == str(read.home)
        assert environment["DAGSTER_HOME"] == str(read.dagster_home)
        assert as_churn(environment) == read
        assert as_dagster() == read


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nDAGSTER_HOME=/d\n", "line 2.*export DAGSTER_HOME=/d"),
        ("churn_home=/x\n", "line 1: write it as CHURN_HOME=/x"),
        ("CHURN_HOME\n", "line 1: write it as CHURN_HOME="),
        ('# a\nCHURN_HOME="/x\n', "line 2 is no NAME=value"),
        ("CHURN_HOME=${CHURN_HOME}/x\n", "line 1.*CHURN_HOME"),
        ("CHURN_HOME=${FOLDER}/x\nFOLDER=/y\n", "line 1.*Set FOLDER in a line above"),
        ("CHURN_INPUT_DIR=${CHURN_HOME}/x\n", "line 1.*Set CHURN_HOME in a line above"),
        (b"CHURN_HOME=/\xe9\n", "UTF-8"),
    ],
)
def test_a_line_that_is_read_in_two_ways_is_named(text: str | bytes, message: str) -> None:
    write(text)
    with pytest.raises(SettingsError, match=message):
        Settings.read()


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What the web UI would be started with in this folder."""
    show = "shown: ; @$(WITH_SETTINGS) printenv CHURN_HOME DAGSTER_HOME"
    others = ("CHURN_", "DAGSTER", "MAKE", "MFLAGS")  # tests may themselves be started by make
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(others)}
    return subprocess.run(
        ["make", "-f", str(ROOT / "Makefile"), "--eval", show, "shown", *arguments],
        env=inherited | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_starts_programs_in_the_folders_that_churn_reads(tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    home = tmp_path / "a $HOME 'b"
    write(f'export CHURN_HOME="{home}" # prod\r\n')
    run = make()
    assert run.stdout.splitlines() == [str(home), str(home / "dagster")], run.stderr
    assert (home / "dagster" / "dagster.yaml").exists()
    refused = make(CHURN_HOME=str(tmp_path / "other"))
    assert refused.returncode != 0
    assert f"CHURN_HOME is {tmp_path}/other in the environment and {home} in .env" in refused.stderr
    Path(".env").unlink()
    assert make().stdout.splitlines()[0] == str(tmp_path / "data" / "state")
    run = make(f"CHURN_HOME={tmp_path}/c", DAGSTER_HOME=f"{tmp_path}/d")
    assert run.stdout.splitlines() == [f"{tmp_path}/c", f"{tmp_path}/d"]


def test_make_needs_no_settings_to_install(tmp_path: Path) -> None:
    write("CHURN_CADENCE=nonsense\nno line\n")
    run = subprocess.run(
        ["make", "-n", "-f", str(ROOT / "Makefile"), "PYTHON=true", "lock"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_a_secret_that_is_set_twice_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    write("CHURN_JWT_KEY=first-secret\n")
    monkeypatch.setenv("CHURN_JWT_KEY", "second-secret")
    with pytest.raises(SystemExit) as stopped:
        main(["true"])
    assert "CHURN_JWT_KEY" in str(stopped.value)
    assert "-secret" not in str(stopped.value)
