"""Prevents: an artefact that lost or changed a file and passes for whole, or is not written again.

A folder that is there proves nothing: `if not target.exists()` would keep a damaged one for good.
"""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from churn_assets.stores import artefacts
from churn_assets.stores.artefacts import (
    DIGESTS,
    MANIFEST,
    ArtefactStore,
    DamagedArtefact,
    damage,
    find_provenance,
)
from churn_assets.stores.offline import OfflineStore

ASSET, CUTOFF = "some_model", "2025-06-01"
Files = dict[str, bytes]
FILES: Files = {"pipeline.skops": b"fitted" * 100, "graded/pipeline.skops": b"earlier", "none": b""}


def publish(
    store: ArtefactStore, version: str, files: Files = FILES, provenance: str = "x", **more: object
) -> Path:
    """Publish files under a version, and give their folder."""

    def write(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)

    folder = store.folder(ASSET, CUTOFF)
    content = {"version": version, "provenance": {"inputs": provenance}, **more}
    store.publish(folder, version, json.dumps(content), write)
    return folder / version


def contents(folder: Path) -> Files:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def flip(path: Path, position: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "the folder of the partition": lambda v: shutil.rmtree(v.parent),
    "the folder of the version": shutil.rmtree,
    "a file": lambda v: (v / "pipeline.skops").unlink(),
    "an empty file": lambda v: (v / "none").unlink(),
    "the graded fit": lambda v: shutil.rmtree(v / "graded"),
    "a byte": lambda v: flip(v / "pipeline.skops"),
    "a byte further down": lambda v: flip(v / "graded/pipeline.skops", -1),
    "the end of a file": lambda v: truncate(v / "pipeline.skops"),
    "the manifest of the version": lambda v: (v / MANIFEST).unlink(),
    "half of the manifest of the version": lambda v: truncate(v / MANIFEST),
    "half of the manifest": lambda v: truncate(v.parent / MANIFEST),
    "the manifest": lambda v: (v.parent / MANIFEST).unlink(),
    "an empty manifest": lambda v: (v.parent / MANIFEST).write_text(""),
    "a manifest that is none": lambda v: (v.parent / MANIFEST).write_text("[]"),
    "a letter of the manifest": lambda v: (v.parent / MANIFEST).write_text(
        (v.parent / MANIFEST).read_text().replace("0.75", "0.85")
    ),
    "a digest": lambda v: flip(v / DIGESTS, -10),
    "the end of the digests": lambda v: truncate(v / DIGESTS),
}


@pytest.mark.parametrize("lost", DAMAGES)
def test_what_is_damaged_is_not_whole_and_is_written_again(lost: str, tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path)
    previous = publish(store, "before")
    version = publish(store, "now", roc_auc=0.75)
    whole = contents(version)
    assert store.is_whole(ASSET, CUTOFF)
    DAMAGES[lost](version)
    assert not store.is_whole(ASSET, CUTOFF)
    assert publish(store, "now", roc_auc=0.75) == version
    assert store.is_whole(ASSET, CUTOFF)
    assert contents(version) == whole
    if "the folder of the partition" not in lost:
        assert not damage(previous)
    assert list((tmp_path / "staging").iterdir()) == []


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    files=st.dictionaries(st.sampled_from("abcde"), st.binary(max_size=40), min_size=1),
    where=st.integers(0),
    position=st.integers(0),
)
def test_no_byte_changes_unseen(
    files: Files, where: int, position: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = ArtefactStore(tmp_path_factory.mktemp("home"))
    version = publish(store, "now", files)
    written = sorted(path for path in version.iterdir() if path.stat().st_size)
    flip(written[where % len(written)], position)
    assert not store.is_whole(ASSET, CUTOFF)
    publish(store, "now", files)
    assert store.is_whole(ASSET, CUTOFF)
    assert {name: contents(version)[name] for name in files} == files


def test_what_is_whole_is_not_written_again(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path)
    previous = publish(store, "before")
    version = publish(store, "now")
    publish(store, "now", {"other": b"bytes of an equal model"}, provenance="other files")
    assert contents(version).keys() == {*FILES, MANIFEST, DIGESTS}
    assert find_provenance(version.parent / MANIFEST) == {"inputs": "other files"}
    assert store.is_whole(ASSET, CUTOFF)
    # Nothing was replaced, so the version before stays for who opens it.
    assert not damage(previous)


def test_what_version_0_1_wrote_is_whole_where_folder_and_manifest_are_there(
    tmp_path: Path,
) -> None:
    store = ArtefactStore(tmp_path)
    version = publish(store, "old")
    (version / DIGESTS).unlink()
    assert store.is_whole(ASSET, CUTOFF)
    publish(store, "old")
    assert not (version / DIGESTS).exists()
    (version / MANIFEST).unlink()
    assert not store.is_whole(ASSET, CUTOFF)


def test_a_decision_is_whole_where_it_can_be_read(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path)
    path = store.manifest_path("champion_model", CUTOFF)
    assert not store.is_whole("champion_model", CUTOFF)
    path.parent.mkdir(parents=True)
    path.write_text('{"model": "some_model"}')
    assert store.is_whole("champion_model", CUTOFF)
    path.write_text('{"model": "some_mo')
    assert not store.is_whole("champion_model", CUTOFF)


def test_a_manifest_that_cannot_be_read_counts_as_not_there(tmp_path: Path) -> None:
    store, offline = ArtefactStore(tmp_path), OfflineStore(tmp_path, {})
    version = publish(store, "now")
    assert store.cutoffs(ASSET) == [CUTOFF] == offline.present(ASSET)
    truncate(version.parent / MANIFEST)
    assert store.cutoffs(ASSET) == [] == offline.present(ASSET)
    assert store.read(ASSET, CUTOFF) is None
    assert find_provenance(version.parent / MANIFEST) is None
    topics = store.folder("topics", None)
    topics.mkdir()
    (topics / MANIFEST).write_text("{")
    assert offline.present("topics") == []
    (topics / MANIFEST).write_text("{}")
    assert offline.present("topics") == [None]


def test_readers_of_a_whole_version_are_not_disturbed(tmp_path: Path) -> None:
    """Several runs find the same version damaged; the first that repairs it is the last to move."""
    store = ArtefactStore(tmp_path)
    before = publish(store, "before")
    version = publish(store, "now")
    stop, seen = threading.Event(), list[str]()

    def read() -> None:
        repaired = False
        while not stop.is_set():
            if why := damage(before):
                seen.append(f"before: {why}")
            why = damage(version)
            repaired = repaired or not why
            if repaired and why:
                seen.append(f"now: {why}")

    for _ in range(20):
        (version / "pipeline.skops").unlink()
        barrier = threading.Barrier(4)

        def repair(barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            publish(store, "now")

        stop.clear()
        threads = [threading.Thread(target=repair) for _ in range(4)]
        reader = threading.Thread(target=read)
        for thread in (reader, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        reader.join()
        assert store.is_whole(ASSET, CUTOFF)
    assert seen == []


def test_a_kill_between_the_two_renames_leaves_what_can_be_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtefactStore(tmp_path)
    before, version = publish(store, "before"), publish(store, "now")
    (version / "pipeline.skops").unlink()

    def killed(home: Path, made: Path, target: Path) -> None:
        shutil.rmtree(target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(artefacts, "_move", killed)
        with pytest.raises(KeyboardInterrupt):
            publish(store, "now")
    assert not store.is_whole(ASSET, CUTOFF)
    assert not damage(before)
    publish(store, "now")
    assert store.is_whole(ASSET, CUTOFF)


def test_the_error_names_the_partition_and_the_command(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path)
    said = str(DamagedArtefact(store.folder(ASSET, CUTOFF) / "now", "x is missing"))
    assert f"{ASSET} {CUTOFF} is damaged: x is missing" in said
    assert "`churn backfill`" in said
    assert "topics is damaged" in str(DamagedArtefact(store.folder("topics", None) / "v", "it"))
