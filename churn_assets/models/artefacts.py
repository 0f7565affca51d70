"""Model artefacts: the files of a trained model, and the manifest that says what it is.

Grain: one artefact per kind of model and cutoff, in the folders of `stores.artefacts`. It holds two
fits (`models.formats`): the one that is used and, in a folder within, the earlier one that was
graded, with what that said of the hold-out's customers. Its probabilities pair it with other
models, and as an incumbent it is graded again on a later hold-out. The formats differ from write to
write (skops writes memory addresses), so the version is a digest of what the model says and of the
manifest: equal data, seed and libraries reproduce it.

Nothing here fits, grades or chooses.
"""

import datetime as dt
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from churn_assets.cutoffs import parse_key
from churn_assets.models.estimators import FittedModel, Trial
from churn_assets.models.formats import libraries, read_pipeline, write_pipeline
from churn_assets.stores.artefacts import (
    MANIFEST,
    ArtefactStore,
    DamagedArtefact,
    require_whole,
)
from churn_assets.stores.tables import Column

if TYPE_CHECKING:
    import numpy as np

HOLDOUT = "holdout.npy"
GRADED = "graded"


class FeatureMismatch(ValueError):
    """A model was asked to score features that are not those it was trained on."""


@dataclass(frozen=True)
class Manifest:
    """What a model is and where it comes from.

    What contacting a customer is worth is no part of it: predictions alone have a threshold.

    Args:
        model: The model asset's name.
        cutoff: The cutoff that it was trained for.
        columns: Its features: name, type, description and unit, in order.
        feature_versions: The version of each feature's definition.
        training_cutoffs: The cutoffs it was fitted on, the hold-out included.
        graded_cutoffs: Those of the graded fit; empty where that was not kept, as by version 0.1.
        horizon_days: The horizon of their labels; 0 where version 0.1 did not write it down.
        holdout: The cutoff on which the metrics were measured, by a fit that had not seen it.
        metrics: See `models.grades.grade`; of that earlier fit.
        rounds: Boosting rounds; 0 without boosting.
        tuned: Hyperparameters that tuning chose; empty where the defaults were kept.
        rows: Training rows.
        rows_digest: Digest of their features and labels.
        typical: Median of each number among them, for comparison in reasons.
        seed: Of everything drawn at random.
        fallback: Why it is the base rate; empty where it is not.
        libraries: Versions of the libraries that fitted it.
        state: Digest of both fits' probabilities for the customers of the hold-out.
        version: Digest of all of the above.
        provenance: What it was made from: code version and a digest of the input files.
    """

    model: str
    cutoff: str
    columns: tuple[Column, ...]
    feature_versions: Mapping[str, str]
    training_cutoffs: tuple[str, ...]
    holdout: str
    metrics: Mapping[str, float]
    rounds: int
    rows: int
    seed: int
    fallback: str
    graded_cutoffs: tuple[str, ...] = ()
    horizon_days: int = 0
    libraries: Mapping[str, str] = field(default_factory=dict)
    state: str = ""
    tuned: Mapping[str, Any] = field(default_factory=dict)
    rows_digest: str = ""
    typical: Mapping[str, float] = field(default_factory=dict)
    version: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        return cls.of(json.loads(text))

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Manifest":
        """The manifest of a JSON object."""
        content.pop("threshold", None)  # as version 0.1 wrote it
        content["columns"] = tuple(Column(**column) for column in content["columns"])
        for name in ("training_cutoffs", "graded_cutoffs"):
            content[name] = tuple(content.get(name, ()))
        return cls(**content)

    @property
    def newest_training_cutoff(self) -> dt.date:
        return parse_key(self.training_cutoffs[-1])


@dataclass(frozen=True)
class ModelStore(ArtefactStore):
    """The models of an installation."""

    def write(self, manifest: Manifest, model: FittedModel, tried: Trial | None = None) -> Manifest:
        """Publish a model, and give its manifest with libraries, digests and version filled in.

        Args:
            manifest: What the model is.
            model: The fit that is used.
            tried: The fit that was graded, where it is kept.
        """
        import numpy as np

        def write_files(folder: Path) -> None:
            write_pipeline(model.pipeline, folder)
            np.save(folder / HOLDOUT, tried.probabilities if tried else [], allow_pickle=False)
            if tried:
                (folder / GRADED).mkdir()
                write_pipeline(tried.model.pipeline, folder / GRADED)

        manifest = versioned(replace(manifest, libraries=libraries(model.pipeline)))
        self.publish(
            self.folder(manifest.model, manifest.cutoff),
            manifest.version,
            json.dumps(asdict(manifest), indent=2),
            write_files,
        )
        return manifest

    def find(self, model: str, cutoff: str) -> Manifest | None:
        """The manifest of a model, or None where there is no such model."""
        content = self.read(model, cutoff)
        return None if content is None else Manifest.of(content)

    def of_version(self, version: str) -> Manifest | None:
        """The manifest of the model of a version, or None where no current one has it."""
        newest_first = sorted(self.folders(), key=lambda found: found[1], reverse=True)
        contents = (self.read(asset, cutoff) for asset, cutoff in newest_first)
        return next((Manifest.of(c) for c in contents if c and c.get("version") == version), None)

    def manifest(self, model: str, cutoff: str) -> Manifest:
        """The manifest of a model.

        Raises:
            FileNotFoundError: There is no such model.
        """
        manifest = self.find(model, cutoff)
        if manifest is None:
            raise FileNotFoundError(
                f"There is no {model} for cutoff {cutoff} in {self.home / 'models'}. Materialize "
                f"{model} {cutoff} first, for example with `churn backfill --stage models`."
            )
        return manifest

    def holdout_probabilities(self, manifest: Manifest) -> "np.ndarray":
        """What the graded fit said of the hold-out, in the order of its customers.

        Raises:
            PrunedArtefact: Its files were pruned.
            DamagedArtefact: The model is not as it was written.
        """
        import numpy as np

        folder = self.artefact(manifest)
        require_whole(folder)
        probabilities: np.ndarray = np.load(folder / HOLDOUT, allow_pickle=False)
        return probabilities

    def artefact(self, manifest: Manifest) -> Path:
        """The folder with a model's files."""
        return self.folder(manifest.model, manifest.cutoff) / manifest.version

    def load(
        self, manifest: Manifest, feature_versions: Mapping[str, str], graded: bool = False
    ) -> FittedModel:
        """A model, provided that the features are still those it was trained on.

        Args:
            manifest: Says which.
            feature_versions: The version of every feature as it is defined now.
            graded: Gives the fit that was graded instead of the one that is used.

        Raises:
            FeatureMismatch: A feature was changed or removed since.
            PrunedArtefact: Its files were pruned.
            DamagedArtefact: It is not as it was written.
        """
        refuse_other_features(manifest, feature_versions)
        return read_artefact(self.artefact(manifest), graded)


def versioned(manifest: Manifest) -> Manifest:
    """The manifest with its version: a digest of all of it but the provenance."""
    content = json.dumps(asdict(replace(manifest, provenance={})), sort_keys=True)
    return replace(manifest, version=hashlib.sha256(content.encode()).hexdigest()[:16])


def refuse_other_features(manifest: Manifest, feature_versions: Mapping[str, str]) -> None:
    """Raise unless every feature of the model is defined as it was when it was trained."""
    changed = [
        name
        for name, version in manifest.feature_versions.items()
        if feature_versions.get(name) != version
    ]
    if changed:
        raise FeatureMismatch(
            f"{manifest.model} {manifest.cutoff} cannot score: it was trained on other versions of "
            f"{len(changed)} features, the first is {changed[0]}. Materialize the features, the "
            "training data and then the model again, for example with `churn backfill`."
        )


def unusable(folder: Path, why: str) -> DamagedArtefact:
    """Of a version that counts as whole, so that it is made again only without its folder."""
    return DamagedArtefact(folder, why, f"rm -r {quote(str(folder))}; churn backfill")


def read_artefact(folder: Path, graded: bool = False) -> FittedModel:
    """The model in an artefact folder, whatever the features are now; see `ModelStore.load`.

    Raises:
        PrunedArtefact: Its files were pruned.
        DamagedArtefact: It is not as it was written, or cannot be read.
        ModuleNotFoundError: The package of its classifier is not installed.
    """
    require_whole(folder)
    manifest = Manifest.from_json((folder / MANIFEST).read_text())
    try:
        pipeline = read_pipeline(folder / GRADED if graded else folder)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # each library has its own for a file that is cut short
        why = f"{type(error).__name__} when it was read: {error}"
        raise unusable(folder, why) from error
    return FittedModel(manifest.columns, pipeline, manifest.fallback)
