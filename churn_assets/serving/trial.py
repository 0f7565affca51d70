"""A trial of a model, in a process of its own, before a service loads it.

A damaged file may be read without an error and then end the process that predicts with it: trees
are walked by compiled code that does not look where a branch leads. What the service would do with
the model is done here first, with rows that are made up: read it, score, explain.

What is tried is the folder of a version, whatever its digests say: those of version 0.1 have none.
"""

import signal
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from churn_assets.models.artefacts import Manifest

# A trial takes some seconds, most of them for imports; a busy machine needs a multiple of that.
TRIAL_SECONDS = 120.0


def refusal(folder: Path) -> str:
    """Why a process should not use the model of a version folder; empty where it may.

    It is tried again when a file of it was replaced.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [path.stat() for path in files]
    return _refusal(folder, tuple((s.st_ino, s.st_mtime_ns, s.st_size) for s in stats))


@lru_cache(maxsize=100)
def _refusal(folder: Path, files: tuple[tuple[int, int, int], ...]) -> str:
    command = [sys.executable, "-m", __name__, str(folder)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=TRIAL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"a trial of it did not end within {TRIAL_SECONDS:.0f} s"
    if done.returncode < 0:
        return f"a process that tried it died of {signal.Signals(-done.returncode).name}"
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
        return f"a trial of it failed with {last[0].partition(':')[0].rpartition('.')[2]}"
    return ""


def made_up_rows(manifest: "Manifest") -> list[dict[str, Any]]:
    """Rows that lead into every part of a model: nothing known, the usual, and both extremes."""
    numbers = [column.name for column in manifest.columns if column.dtype != "VARCHAR"]
    texts = {c.name: "never seen" for c in manifest.columns if c.dtype == "VARCHAR"}
    extremes = [dict.fromkeys(numbers, value) | texts for value in (-1e9, 0.0, 1e9)]
    one_by_one = [{**manifest.typical, name: value} for name in numbers for value in (-1e9, 1e9)]
    return [{}, dict(manifest.typical), *extremes, *one_by_one]


def main(folder: Path) -> None:
    """Try a model; the process ends with an error where it is not fit for use."""
    import pandas as pd

    from churn_assets.models.artefacts import Manifest, read_artefact
    from churn_assets.models.contributions import Contributions
    from churn_assets.models.estimators import inputs
    from churn_assets.serving.scoring import Scorer
    from churn_assets.stores.artefacts import MANIFEST

    manifest = Manifest.from_json((folder / MANIFEST).read_text())
    model, rows = read_artefact(folder), made_up_rows(manifest)
    table = pd.DataFrame(rows, columns=[column.name for column in manifest.columns])
    for probabilities in (Scorer(model).probabilities(rows), model.probabilities(table)):
        if not ((probabilities >= 0) & (probabilities <= 1)).all():
            raise ArithmeticError("Not every probability is one.")
    Contributions(model).of(inputs(table, model.columns))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
