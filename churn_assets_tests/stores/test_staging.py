"""Prevents: a file that is there after a power failure, and empty, or not there at all."""

import os
from pathlib import Path

import pytest

from churn_assets.history import text_scores
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.staging import write_text


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was made to reach the disk, in order."""
    paths: list[Path] = []
    real = os.fsync

    def recorded(opened: int) -> None:
        paths.append(Path(f"/proc/self/fd/{opened}").readlink())
        real(opened)

    monkeypatch.setattr(os, "fsync", recorded)
    return paths


def test_content_and_name_of_a_file_and_new_folders_are_on_the_disk(
    tmp_path: Path, synced: list[Path]
) -> None:
    path = tmp_path / "verdicts" / "table" / "key.json"
    write_text(tmp_path, path, "text")
    assert path.read_text() == "text"
    staged, *folders = synced
    assert staged.parent == tmp_path / "staging"
    assert folders == [path.parent, path.parent.parent, tmp_path]
    synced.clear()
    write_text(tmp_path, path, "another")
    assert synced[1:] == [path.parent]


def test_so_are_scores_of_texts(tmp_path: Path, synced: list[Path]) -> None:
    store = OfflineStore(tmp_path, {})
    folder = tmp_path / "text_scores" / "version"
    with store.connect() as connection:
        connection.execute("CREATE TEMP TABLE scored_chunk AS SELECT 'a' AS text_hash")
        text_scores._keep(connection, store, folder)
    assert len(list(folder.glob("*.parquet"))) == 1
    staged, *folders = synced
    assert staged.parent == tmp_path / "staging"
    assert folders == [folder, folder.parent, tmp_path]
