"""Prevents: a feature that has to be written down in a second place, and a guide that is not true.

The declaration is read from the guide and added to a copy of the package.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import churn_assets

PACKAGE = Path(churn_assets.__file__).parent
GUIDE = PACKAGE.parent / "docs" / "extending.md"
NAME = "largest_daily_spend"
LOOK = """
import datetime as dt, json, sys
from pathlib import Path
import pytest
from churn_assets_tests.conftest import evaluate_quickly, make_settings, materialize, online, stored
from churn_assets.serving.app import create_app
from churn_assets.online.server import stop
from churn_assets.online.store import OnlineStore, read_version
from churn_assets_tests.served_shop import running

folder, name = Path(sys.argv[1]), sys.argv[2]
settings = make_settings(
    folder, source="synthetic", synthetic_customers=300, start=dt.date(2025, 1, 1),
    end=dt.datetime(2025, 6, 10, tzinfo=dt.UTC),
)
with pytest.MonkeyPatch.context() as patch:
    evaluate_quickly(patch)
    materialize(settings, "ingest", "2025-01-01", "2025-06-01")
    materialize(settings, "features", "2025-04-01", "2025-06-01")
    materialize(settings, "training_data", "2025-04-01", "2025-05-01")
    for job in ("models", "drift"):
        materialize(settings, job, "2025-06-01", "2025-06-01")
try:
    served = read_version(online(settings))
    customer = OnlineStore(online(settings)).get(served["customer_id"][0].as_py())
    with running(settings) as service:
        status, answer = service.get(f"/features/{customer['customer_id']}")
    schema = create_app(settings).openapi()["components"]["schemas"]
finally:
    stop(settings.home)
print(json.dumps({
    "training": [row[name] for row in stored(settings, "training_dataset")],
    "online": served.column(name).to_pylist(),
    "one": customer[name],
    "api": answer["features"][name],
    "schema": [s["properties"][name] for s in schema.values() if name in s.get("properties", {})],
    "registry": [r["unit"] for r in stored(settings, "feature_registry") if r["feature"] == name],
    "yaml": (settings.home / "feature_registry.yaml").read_text().count(f"name: {name}"),
    "drift": [r["level"] for r in stored(settings, "drift_report") if r["feature"] == name],
    "model": name in (settings.home / "models" / "xgboost_model" / "cutoff=2025-06-01" /
                      "manifest.json").read_text(),
}))
"""


def test_a_feature_is_one_declaration_in_one_file(tmp_path: Path) -> None:
    section = GUIDE.read_text().split("## Add a feature\n")[1]
    declaration = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    for package in (PACKAGE, Path(__file__).parent):
        shutil.copytree(package, tmp_path / package.name)
    group = tmp_path / "churn_assets" / "features" / "behavior.py"
    before, end = group.read_text().rsplit("    ),\n)", 1)
    declared = textwrap.indent(declaration.rstrip(), " " * 8)
    group.write_text(f"{before}{declared},\n    ),\n){end}")

    looked = subprocess.run(
        [sys.executable, "-c", LOOK, str(tmp_path), NAME],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert looked.returncode == 0, looked.stderr[-3000:]
    found = json.loads(looked.stdout.splitlines()[-1])
    spent = [value for value in found["training"] if value is not None]
    assert len(spent) > 20
    assert min(spent) > 0
    assert any(value is not None for value in found["online"])
    assert found["api"] == found["one"]
    assert found["schema"][0]["x-unit"] == "currency"
    assert found["schema"][0]["description"].startswith("Largest purchase amount of a day")
    assert found["registry"] == ["currency"]
    assert found["yaml"] == 1
    assert found["drift"] != []
    assert found["model"]
