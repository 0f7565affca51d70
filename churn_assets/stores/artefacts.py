"""Artefacts: what an asset makes that is no table, as a folder that is complete or not there.

Layout: `<home>/models/<asset>/cutoff=<YYYY-MM-DD>/<version>/` holds the files of a version, its
manifest, and `digests.json` with the SHA-256 of each of them; `manifest.json` beside that folder is
a copy that names the current version and is replaced in one step. A reader therefore sees one
version or the other, never a mix, and a killed run leaves the previous one. The version that was
just replaced stays until the next, for readers that are about to open it. An asset without
partitions has no `cutoff=` folder.

A version is whole where its files have the bytes that were written. One that is not is written
again under the same name. A manifest that cannot be read counts as not there.

A partition may be pruned: its versions are removed and its manifest stays, so that what was made of
it stays explained. The file `pruned` beside the manifest names the version that was current, which
tells this from damage.

What the files are is not known here.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from churn_assets.stores.digests import file_digest, read_once
from churn_assets.stores.staging import staged, write_text

MANIFEST = "manifest.json"
DIGESTS = "digests.json"
PRUNED = "pruned"


class DamagedArtefact(ValueError):
    """Files of an artefact are missing, or are not those that were written.

    Args:
        folder: Of the version.
        why: What is wrong with it.
        command: Makes it again.
    """

    def __init__(self, folder: Path, why: str, command: str = "churn backfill") -> None:
        within = folder.parent
        is_cutoff = within.name.startswith("cutoff=")
        name = f"{within.parent.name} {within.name[7:]}" if is_cutoff else within.name
        super().__init__(
            f"{name} is damaged: {why} (in {folder}). Run `{command}`, which makes it again."
        )


class PrunedArtefact(DamagedArtefact):
    """Files of a model were removed by `churn prune`, and its manifest was kept.

    Args:
        folder: Of the version.
    """

    def __init__(self, folder: Path) -> None:
        asset, cutoff = folder.parent.parent.name, folder.parent.name.partition("=")[2]
        ValueError.__init__(
            self,
            f"{asset} {cutoff} was pruned: its record is kept, its files are gone. "
            f"`churn backfill --stage models --from {cutoff} --to {cutoff}` makes it again.",
        )


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

    def read(self, asset: str, cutoff: str | None) -> dict[str, Any] | None:
        """The content of a manifest, or None where there is none that can be read."""
        return _read_json(self.manifest_path(asset, cutoff))

    def cutoffs(self, asset: str) -> list[str]:
        """The cutoffs of an asset that have a manifest, in order."""
        manifests = self.folder(asset, None).glob(f"cutoff=*/{MANIFEST}")
        return sorted(path.parent.name.split("=")[1] for path in manifests if _is_readable(path))

    def folders(self) -> list[tuple[str, str]]:
        """Every asset and cutoff that has a folder, with a manifest or not."""
        found = (self.home / "models").glob("*/cutoff=*")
        return [(path.parent.name, path.name.partition("=")[2]) for path in found]

    def is_whole(self, asset: str, cutoff: str | None) -> bool:
        """Whether the current version is there with exactly the bytes that were written.

        A decision, which has no version, is whole where it can be read.
        """
        content = self.read(asset, cutoff)
        if content is None:
            return False
        return "version" not in content or _holds(
            self.folder(asset, cutoff) / str(content["version"]), content
        )

    def is_there(self, asset: str, cutoff: str | None) -> bool:
        """Whether a partition counts as made: it is whole, or was pruned."""
        if self.is_whole(asset, cutoff):
            return True
        version = (self.read(asset, cutoff) or {}).get("version")
        return version is not None and is_pruned(self.folder(asset, cutoff) / version)

    def versions(self, asset: str, cutoff: str) -> list[Path]:
        """The folders of the versions of a partition that are there, also damaged ones."""
        return sorted(path for path in self.folder(asset, cutoff).glob("*") if path.is_dir())

    def prune(self, asset: str, cutoff: str) -> None:
        """Remove the versions of a partition that has a manifest, and keep that.

        The mark comes first: what a killed call leaves counts as pruned, and is removed by the
        next.
        """
        folder = self.folder(asset, cutoff)
        with _alone(folder):
            version = (_read_json(folder / MANIFEST) or {})["version"]
            write_text(self.home, folder / PRUNED, version)
            for path in self.versions(asset, cutoff):
                shutil.rmtree(path)

    def publish(
        self, folder: Path, version: str, manifest: str, write: Callable[[Path], None]
    ) -> None:
        """Make a version the current one of a folder, and keep the one that it replaces.

        Args:
            folder: Of the asset and partition.
            version: Names the content; one that is there and whole is not written again.
            manifest: JSON with a field `version`.
            write: Writes the files of the version into an empty folder.
        """
        target, content = folder / version, json.loads(manifest)
        with staged(self.home) as made:
            if not _holds(target, content):
                made.mkdir()
                write(made)
                (made / MANIFEST).write_text(manifest)
                files = sorted(path for path in made.rglob("*") if path.is_file())
                digests = {path.relative_to(made).as_posix(): file_digest(path) for path in files}
                (made / DIGESTS).write_text(json.dumps(digests, indent=2))
            folder.mkdir(parents=True, exist_ok=True)
            with _alone(folder):
                # Another run may have published the same version meanwhile: that one stays.
                if made.exists() and not _holds(target, content):
                    _move(self.home, made, target)
                previous = (_read_json(folder / MANIFEST) or {}).get("version")
                write_text(self.home, folder / MANIFEST, manifest)
                (folder / PRUNED).unlink(missing_ok=True)
                if previous not in (None, version):
                    for leftover in folder.iterdir():
                        if leftover.is_dir() and leftover.name not in {version, previous}:
                            shutil.rmtree(leftover)

    def restamp(self, asset: str, cutoff: str | None, provenance: Mapping[str, str]) -> None:
        """Have the current version say that it was made from something else of equal meaning."""
        content = self.read(asset, cutoff)
        if content is not None:
            said = json.dumps({**content, "provenance": dict(provenance)}, indent=2)
            write_text(self.home, self.manifest_path(asset, cutoff), said)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One run at a time: a version that another run has just made whole must not be moved away."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def _move(home: Path, made: Path, target: Path) -> None:
    """Rename a staged folder, and remove what is there of a damaged one."""
    for path in filter(Path.is_file, made.rglob("*")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    with staged(home) as damaged:
        if target.exists():
            target.rename(damaged)
        made.rename(target)


def damage(folder: Path) -> str:
    """Why the files of a version are not those that were written; empty where they are.

    Version 0.1 wrote no digests: what it has made is whole where the manifest can be read.
    """
    unlisted = not (folder / DIGESTS).exists()  # first: a folder that a repair moves has none
    if not folder.is_dir():
        return "its folder is gone"
    if _read_json(folder / MANIFEST) is None:
        return f"{MANIFEST} cannot be read"
    if unlisted:
        return ""
    digests = _read_json(folder / DIGESTS)
    if digests is None:
        return f"{DIGESTS} cannot be read"
    for name, digest in digests.items():
        try:
            if file_digest(folder / name) != digest:
                return f"{name} has other bytes than were written"
        except OSError:
            return f"{name} cannot be read"
    return ""


def is_pruned(folder: Path) -> bool:
    """Whether the files of a version were pruned, or are about to be."""
    try:
        return (folder.parent / PRUNED).read_text() == folder.name and bool(damage(folder))
    except OSError:
        return False


def require_whole(folder: Path, command: str = "churn backfill") -> None:
    """See that a version has the files that were written.

    Args:
        folder: Of the version.
        command: Makes it again where it is damaged.

    Raises:
        PrunedArtefact: They were pruned.
        DamagedArtefact: Some are missing or are others.
    """
    if why := damage(folder):
        raise PrunedArtefact(folder) if is_pruned(folder) else DamagedArtefact(folder, why, command)


def _holds(folder: Path, content: Mapping[str, Any]) -> bool:
    """Whether a folder has a whole version of this manifest.

    Equal content may be made again from other files: the provenance may differ.
    """
    if damage(folder):
        return False
    return _content(_read_json(folder / MANIFEST) or {}) == _content(content)


def _content(manifest: Mapping[str, Any]) -> str:
    """A manifest but for its provenance, as text, in which NaN equals NaN."""
    return json.dumps({**manifest, "provenance": None}, sort_keys=True)


def _read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None where there is none that can be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


@read_once
def _has_object(path: Path) -> bool:
    return _read_json(path) is not None


def _is_readable(path: Path) -> bool:
    """Whether a file has a JSON object."""
    try:
        return _has_object(path)
    except OSError:
        return False


@read_once
def content_digest(manifest: Path) -> str:
    """SHA-256 of what a manifest says but for its provenance: equal content may be made again."""
    content = _read_json(manifest)
    if content is None:
        return file_digest(manifest)
    return hashlib.sha256(_content(content).encode()).hexdigest()


def find_provenance(manifest: Path) -> Mapping[str, str] | None:
    """What an artefact was made from; None where no manifest can be read, or it does not say."""
    made_from: Mapping[str, str] | None = (_read_json(manifest) or {}).get("provenance")
    return made_from
