"""What fault tests share: `churn` as a process that can be killed, and what it published.

Prevents the simplification of comparing two backfills by what was convenient to look at.
"""

import datetime as dt
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import copy, copytree, ignore_patterns
from typing import IO

import dagster as dg
import pyarrow as pa

from churn_assets.definitions import build_definitions
from churn_assets.models.runs import ModelRuns
from churn_assets.monitoring.inventory import AssetInventory, inventory
from churn_assets.online.store import read_version
from churn_assets.operations.backfill import run_batch
from churn_assets.operations.installation import offline_store
from churn_assets.operations.plans import backfill_batches, stages
from churn_assets.operations.with_settings import DAGSTER_YAML
from churn_assets.settings import Settings
from churn_assets.stores.identity import adopt, identify
from churn_assets.stores.tracking import ASSET_TAG, PARTITION_TAG
from churn_assets_tests.conftest import make_settings, online

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)  # history ends before
# Four cutoffs with features, three with labels, one with a model and its realised performance.
SHOP = {
    "source": "synthetic",
    "synthetic_customers": 150,
    "start": dt.date(2025, 1, 1),
    "end": dt.datetime(2025, 6, 29, tzinfo=dt.UTC),
}
# The command, with models graded as in `quick_evaluation`.
CHURN = """
import joblib
from churn_assets import cli, definitions
from churn_assets.models import evaluation
definitions.ESTIMATORS = (definitions.ESTIMATORS[0], definitions.ESTIMATORS[-1])
joblib.cpu_count = lambda **_: 1
for name in ("baselines", "random_split", "importance", "pictures"):
    setattr(evaluation, name, lambda *_: {})
cli.main()
"""


@dataclass
class Churn:
    """`churn` as a process of its own."""

    process: subprocess.Popen[bytes]
    printed: IO[str]

    def result(self, code: int = 0) -> str:
        """What it printed, once it ended with exit code `code`."""
        ended = self.process.wait()
        self.printed.seek(0)
        text = self.printed.read()
        assert ended == code, text
        assert "Traceback" not in text, text
        return text


def churn(home: Path, *arguments: str, **settings: str) -> Churn:
    """Start the command on the state folder `home`."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("CHURN_", "DAGSTER"))}
    environment |= {f"CHURN_{name.upper()}": str(value) for name, value in SHOP.items()}
    # Not a pipe: what a killed run leaves behind would keep it open.
    printed = tempfile.TemporaryFile("w+")  # noqa: SIM115 (read when the process is over)
    process = subprocess.Popen(
        [sys.executable, "-c", CHURN, *arguments],
        env=environment | {"CHURN_HOME": str(home), "NO_COLOR": "1"} | settings,
        stdout=printed,
        stderr=subprocess.STDOUT,
    )
    return Churn(process, printed)


@dataclass
class Shop:
    """An installation in this process.

    Args:
        home: The state folder.
        redis_url: As the setting.
    """

    home: Path
    redis_url: str | None = None

    def __post_init__(self) -> None:
        self.settings: Settings = make_settings(
            self.home.parent, **SHOP, redis_url=self.redis_url, home=self.home
        )
        self.defs, self.store = build_definitions(self.settings), offline_store(self.settings)
        self.settings.dagster_home.mkdir(parents=True, exist_ok=True)
        copy(DAGSTER_YAML, self.settings.dagster_home)
        self.instance = dg.DagsterInstance.from_config(str(self.settings.dagster_home))

    @property
    def tracking(self) -> ModelRuns:
        return ModelRuns(self.home, None, partial(identify, self.settings))

    def copy(self, home: Path, redis_url: str | None = None) -> "Shop":
        """An installation that goes on from here, with nothing online."""
        copytree(self.home, home, ignore=ignore_patterns("mlartifacts", "online_store"))
        adopt(self.settings.model_copy(update={"home": home}), copied=True)
        return Shop(home, redis_url)

    def complete(self) -> list[str]:
        """Make what is missing, and say what that was."""
        ran = []
        for batch in backfill_batches(
            stages(()), self.defs, self.store, self.settings.calendar(), self.instance, NOW
        ):
            run_batch(batch, self.defs, self.instance, lambda step, what: None)
            ran.append(f"{batch.label}: {', '.join(a.path[-1] for a in batch.assets)}")
        return ran

    def inventory(self, defs: dg.Definitions | None = None) -> dict[str, AssetInventory]:
        rows = inventory(
            defs or self.defs, self.store, self.settings.calendar(), self.instance, NOW
        )
        return {row.asset.path[-1]: row for row in rows}

    def published(self) -> dict[Path, bytes]:
        """Everything that was published: partitions, manifests, decisions and reports."""
        kinds = ("offline_store/**/*.parquet", "models/*/**/manifest.json", "reports/*")
        paths = [path for kind in kinds for path in self.home.glob(kind)]
        return {path.relative_to(self.home): path.read_bytes() for path in sorted(paths)}

    def online(self) -> pa.Table:
        """The rows that are served."""
        return read_version(online(self.settings))

    def mlflow_runs(self) -> Counter[tuple[str, str]]:
        """How many active runs each asset and partition has."""
        tracking = self.tracking
        runs = tracking.client.search_runs([tracking.experiment_id])
        assert {run.info.status for run in runs} <= {"FINISHED"}
        return Counter((run.data.tags[ASSET_TAG], run.data.tags[PARTITION_TAG]) for run in runs)
