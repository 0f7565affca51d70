"""Artefacts: what an asset makes that is no table, as a folder that is complete or not there.

Layout: `<home>/models/<asset>/cutoff=<YYYY-MM-DD>/<version>/` holds the files of a version and its
manifest; `manifest.json` beside that folder is a copy that names the current version and is
replaced in one step. A reader therefore sees one version or the other, never a mix, and a killed
run leaves the previous one. The version that was just replaced stays until the next, for readers
that are about to open it. An asset without partitions has no `cutoff=` folder.

What the files are is not known here.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from churn_assets.stores.staging import staged, write_text

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ArtefactStore:
    """Artefacts under one folder.

    Args:
        home: The state folder (`CHURN_HOME`).
    """

    home: Path

    def folder(self, asset: str, cutoff: str | None) -> Path:
        """The folder of an asset, or of one of its cutoffs."""
        folder = self.home / "models" / asset
        return folder if cutoff is None else folder / f"cutoff={cutoff}"

    def manifest_path(self, asset: str, cutoff: str | None) -> Path:
        """The file that names the current version, or is all that there is of a decision."""
        return self.folder(asset, cutoff) / MANIFEST

    def cutoffs(self, asset: str) -> list[str]:
        """The cutoffs of an asset that have a manifest, in order."""
        manifests = self.folder(asset, None).glob(f"cutoff=*/{MANIFEST}")
        return sorted(path.parent.name.split("=")[1] for path in manifests)

    def publish(
        self, folder: Path, version: str, manifest: str, write: Callable[[Path], None]
    ) -> None:
        """Make a version the current one of a folder, and keep the one that it replaces.

        Args:
            folder: Of the asset and partition.
            version: Names the content; one that is there already is not written again.
            manifest: JSON with a field `version`.
            write: Writes the files of the version into an empty folder.
        """
        current = folder / MANIFEST
        previous = json.loads(current.read_text())["version"] if current.exists() else ""
        target = folder / version
        if not target.exists():
            with staged(self.home) as made:
                made.mkdir()
                write(made)
                (made / MANIFEST).write_text(manifest)
                folder.mkdir(parents=True, exist_ok=True)
                _move(made, target)
        write_text(self.home, current, manifest)
        for leftover in folder.iterdir():
            if leftover.is_dir() and leftover.name not in {version, previous}:
                shutil.rmtree(leftover)


def _move(made: Path, target: Path) -> None:
    """Rename a staged folder; another run may have published the same version meanwhile."""
    for path in filter(Path.is_file, made.rglob("*")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    try:
        made.rename(target)
    except OSError:
        if not target.exists():
            raise


def find_provenance(manifest: Path) -> Mapping[str, str] | None:
    """What an artefact was made from; None where there is no such manifest, or it does not say."""
    if not manifest.exists():
        return None
    made_from: Mapping[str, str] | None = json.loads(manifest.read_text()).get("provenance")
    return made_from
