"""Takes the screenshots of the docs, in headless Chromium, from what is served right now.

    make demo && make dev      # in one terminal
    make serve                 # in a second one
    python docs/screenshots.py

Needs `chromium` on PATH. Pages are those of the newest scored cutoff.
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from churn_assets.models.artefacts import ModelStore
from churn_assets.models.champion import newest_champion
from churn_assets.online.io_manager import connect
from churn_assets.online.store import read_version
from churn_assets.settings import Settings

IMAGES = Path(__file__).parent / "images"


def pages(dagster: str, service: str, settings: Settings) -> dict[str, tuple[str, int]]:
    """URL and height of each page, by the name of its picture."""
    champion = newest_champion(ModelStore(settings.home))
    if champion is None:
        raise SystemExit("There is no champion yet: `make demo` first.")
    customer = read_version(connect(settings.home, settings.redis_url))["customer_id"][0].as_py()
    asset = f"{dagster}/assets"
    cutoff = f"view=partitions&partition={champion.cutoff}"
    return {
        "graph": (f"{dagster}/asset-groups", 700),
        "asset": (f"{asset}/customer_rfm_features", 1500),
        "partition": (f"{asset}/customer_review_features?{cutoff}", 1250),
        "model": (f"{asset}/{champion.model}?{cutoff}", 2450),
        "check": (f"{asset}/customer_rfm_features?view=checks", 700),
        "inventory": (f"{asset}/asset_inventory", 1720),
        "drift": (f"{asset}/drift_report?{cutoff}", 1150),
        "report": ((settings.home / "reports" / "walk_forward.html").resolve().as_uri(), 1320),
        "runs": (f"{dagster}/runs", 700),
        "service": (f"{service}/#{customer}", 1400),
    }


def take(url: str, height: int, picture: Path) -> None:
    """A picture of a page."""
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                shutil.which("chromium") or "chromium-browser",
                *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                *("--disable-background-networking", "--disable-component-update"),
                *("--hide-scrollbars", f"--user-data-dir={profile}"),
                *(f"--window-size=1600,{height}", "--virtual-time-budget=25000"),
                *(f"--screenshot={picture}", url),
            ],
            check=True,
            capture_output=True,
            timeout=180,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dagster", default="http://localhost:3000")
    parser.add_argument("--service", default="http://localhost:8000")
    parser.add_argument("--only", nargs="*", help="names of pictures")
    arguments = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    found = pages(arguments.dagster, arguments.service, Settings.read())
    for name in arguments.only or found:
        url, height = found[name]
        take(url, height, IMAGES / f"{name}.png")
        print(name, url, flush=True)


if __name__ == "__main__":
    main()
