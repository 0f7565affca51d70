"""Runs in MLflow of models that were pruned, and runs that a later one has replaced.

In the database of CHURN_HOME they are deleted for good: rows and artifacts, with the logged model
and its registered version. On a server they go to MLflow's bin; to empty that, with `mlflow gc`, is
up to its owner. Only the installation's own experiment is looked at, and what an alias of its
registered model names stays.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from churn_assets.models.runs import ModelRuns
from churn_assets.stores.tracking import ASSET_TAG, PARTITION_TAG


@dataclass(frozen=True)
class OldRun:
    """A run to delete.

    Args:
        run_id: The run.
        models: The models that it has logged, by id.
        versions: Those of the registered model that it has made.
        artifacts: The folders of the run and of its models.
    """

    run_id: str
    models: tuple[str, ...]
    versions: tuple[str, ...]
    artifacts: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        """Of its artifacts that lie on this machine."""
        files = (file for folder in self.artifacts for file in folder.rglob("*"))
        return sum(file.stat().st_size for file in files if file.is_file())


def old_runs(tracking: ModelRuns, is_gone: Callable[[str, str], bool]) -> list[OldRun]:
    """The runs to delete; of a server, those that are not in its bin yet.

    Args:
        tracking: The runs of the installation.
        is_gone: Whether a model, by kind and cutoff, was pruned or is about to be.
    """
    if not tracking.uri and not (tracking.home / "mlflow.db").exists():
        return []
    client, home = tracking.client, (tracking.home / "mlartifacts").resolve()
    from mlflow.entities import LifecycleStage, ViewType

    by_run: dict[str, list[Any]] = {}
    for model in _pages(client.search_logged_models, experiment_ids=[tracking.experiment_id]):
        by_run.setdefault(str(model.source_run_id), []).append(model)
    versions: dict[str, list[str]] = {}
    for version in _pages(client.search_model_versions, filter_string=f"name = '{tracking.name}'"):
        versions.setdefault(version.run_id, []).append(str(version.version))
    named = {
        str(version)
        for model in client.search_registered_models(f"name = '{tracking.name}'")
        for version in model.aliases.values()
    }
    view = ViewType.ACTIVE_ONLY if tracking.uri else ViewType.ALL
    found = []
    for run in _pages(
        client.search_runs, experiment_ids=[tracking.experiment_id], run_view_type=view
    ):
        run_id, tags = run.info.run_id, run.data.tags
        replaced = run.info.lifecycle_stage == LifecycleStage.DELETED and ASSET_TAG in tags
        gone = is_gone(tags.get(ASSET_TAG, ""), tags.get(PARTITION_TAG, ""))
        if not (replaced or gone) or named.intersection(versions.get(run_id, ())):
            continue
        logged = by_run.get(run_id, [])
        places = [run.info.artifact_uri, *(model.artifact_location for model in logged)]
        # The folder of a run's artifacts is the only one in that of the run.
        folders = [_local(places[0]).parent, *map(_local, places[1:])]
        found.append(
            OldRun(
                run_id,
                tuple(model.model_id for model in logged),
                tuple(versions.get(run_id, ())),
                tuple(folder for folder in folders if home in folder.resolve().parents),
            )
        )
    return found


def delete_runs(tracking: ModelRuns, runs: list[OldRun]) -> None:
    """Delete runs; a call that was killed can be repeated.

    Raises:
        AnotherInstallation: The state folder was moved or copied, and others may use the server.
    """
    if not runs:
        return
    tracking.require_at_home()
    client = tracking.client  # Opened first: that takes the lock too.
    with tracking.locked():
        for run in runs:
            if tracking.uri:
                for model in run.models:
                    client.delete_logged_model(model)
                client.delete_run(run.run_id)
            else:
                _delete_for_good(client, tracking.name, run)


def _delete_for_good(client: Any, name: str, run: OldRun) -> None:
    """Delete a run as `mlflow gc` does, which can name runs, but none of their models.

    The run goes last, because whatever is left is found by it.
    """
    for version in run.versions:
        client.delete_model_version(name, version)
    for folder in run.artifacts:
        shutil.rmtree(folder, ignore_errors=True)
    store = client._tracking_client.store
    for model in run.models:
        store._hard_delete_logged_model(model)
    store._hard_delete_run(run.run_id)


def _local(place: str) -> Path:
    """The folder that a place is, where it is one of this machine."""
    return Path(unquote(urlsplit(place).path))


def _pages(search: Callable[..., Any], **arguments: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(**arguments, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
