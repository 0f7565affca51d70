"""Model artefacts: what a model is made of, on disk, complete or not there.

Layout: `<home>/models/<model>/cutoff=<YYYY-MM-DD>/<version>/` holds the model's files and its
manifest; `manifest.json` beside that folder is a copy that names the current version and is
replaced in one step. A reader therefore sees one model or the other, never a mix, and a killed run
leaves the previous one. The version that was just replaced stays until the next, for readers that
are about to open it.

scikit-learn pipelines are written by skops: a pickle would run whatever it contains when it is
opened, skops builds only the types named here. XGBoost, LightGBM and CatBoost have formats of their
own that later versions still read. The formats differ from write to write (skops writes memory
addresses), so the version is a digest of what the model says and of the manifest: equal data, seed
and libraries reproduce it.
"""

import datetime as dt
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from churn_assets.cutoffs import parse_key
from churn_assets.estimators import EXTRA_ESTIMATORS, FittedModel
from churn_assets.stores.staging import staged
from churn_assets.tables import Column

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

MANIFEST = "manifest.json"
PIPELINE = "pipeline.skops"
# The file of a classifier with a format of its own, by the package of its class.
CLASSIFIERS = {
    "xgboost": "classifier.ubj",
    "lightgbm": "classifier.txt",
    "catboost": "classifier.cbm",
}
HOLDOUT = "holdout.npy"
TRUSTED_TYPES = [
    "churn_assets.estimators.signed_log",
    "numpy.dtype",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
]


class FeatureMismatch(ValueError):
    """A model was asked to score features that are not those it was trained on."""


@dataclass(frozen=True)
class Manifest:
    """What a model is and where it comes from.

    Args:
        model: The model asset's name.
        cutoff: The cutoff that it was trained for.
        columns: Its features: name, type, description and unit, in order.
        feature_versions: The version of each feature's definition.
        training_cutoffs: The cutoffs it was fitted on, the hold-out included.
        holdout: The cutoff on which the metrics were measured, by a fit that had not seen it.
        metrics: See `churn_assets.metrics.grade`; of that earlier fit.
        threshold: The probability from which a customer counts as CHURN RISK.
        rounds: Boosting rounds; 0 without boosting.
        tuned: Hyperparameters that tuning chose; empty where the defaults were kept.
        rows: Training rows.
        rows_digest: Digest of their features and labels.
        typical: Median of each number among them, for comparison in reasons.
        seed: Of everything drawn at random.
        fallback: Why it is the base rate; empty where it is not.
        libraries: Versions of the libraries that fitted it.
        state: Digest of its probabilities for the customers of the hold-out.
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
    threshold: float
    rounds: int
    rows: int
    seed: int
    fallback: str
    libraries: Mapping[str, str] = field(default_factory=dict)
    state: str = ""
    tuned: Mapping[str, Any] = field(default_factory=dict)
    rows_digest: str = ""
    typical: Mapping[str, float] = field(default_factory=dict)
    version: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        content: dict[str, Any] = json.loads(text)
        content["columns"] = tuple(Column(**column) for column in content["columns"])
        content["training_cutoffs"] = tuple(content["training_cutoffs"])
        return cls(**content)

    @property
    def newest_training_cutoff(self) -> dt.date:
        return parse_key(self.training_cutoffs[-1])


@dataclass(frozen=True)
class ModelStore:
    """Model artefacts and champion decisions under one folder.

    Args:
        home: The state folder (`CHURN_HOME`).
    """

    home: Path

    def folder(self, asset: str, cutoff: str | None) -> Path:
        folder = self.home / "models" / asset
        return folder if cutoff is None else folder / f"cutoff={cutoff}"

    def write(
        self, manifest: Manifest, model: FittedModel, holdout: "np.ndarray | None" = None
    ) -> Manifest:
        """Publish a model, and give its manifest with libraries, digests and version filled in.

        Args:
            manifest: What the model is.
            model: The fitted model.
            holdout: P(churn) of the hold-out's customers by the fit that was graded, for pairing.
        """
        import numpy as np

        def write_files(folder: Path) -> None:
            _write_pipeline(model.pipeline, folder)
            np.save(folder / HOLDOUT, [] if holdout is None else holdout, allow_pickle=False)

        manifest = replace(manifest, libraries=libraries(model.pipeline))
        content = json.dumps(asdict(replace(manifest, provenance={})), sort_keys=True)
        manifest = replace(manifest, version=hashlib.sha256(content.encode()).hexdigest()[:16])
        self.publish(
            self.folder(manifest.model, manifest.cutoff),
            manifest.version,
            json.dumps(asdict(manifest), indent=2),
            write_files,
        )
        return manifest

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
        self.write_text(current, manifest)
        for leftover in folder.iterdir():
            if leftover.is_dir() and leftover.name not in {version, previous}:
                shutil.rmtree(leftover)

    def write_text(self, path: Path, text: str) -> None:
        """Replace a file in one step."""
        with staged(self.home) as made:
            with made.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            path.parent.mkdir(parents=True, exist_ok=True)
            made.replace(path)

    def find(self, model: str, cutoff: str) -> Manifest | None:
        """The manifest of a model, or None where there is no such model."""
        path = self.folder(model, cutoff) / MANIFEST
        return Manifest.from_json(path.read_text()) if path.exists() else None

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
        """What the graded fit said of the hold-out, in the order of its customers."""
        import numpy as np

        probabilities: np.ndarray = np.load(self.artefact(manifest) / HOLDOUT, allow_pickle=False)
        return probabilities

    def artefact(self, manifest: Manifest) -> Path:
        """The folder with a model's files."""
        return self.folder(manifest.model, manifest.cutoff) / manifest.version

    def load(self, manifest: Manifest, feature_versions: Mapping[str, str]) -> FittedModel:
        """A model, provided that the features are still those it was trained on.

        Args:
            manifest: Says which.
            feature_versions: The version of every feature as it is defined now.

        Raises:
            FeatureMismatch: A feature was changed or removed since.
        """
        refuse_other_features(manifest, feature_versions)
        return read_artefact(self.artefact(manifest))


def find_provenance(manifest: Path) -> Mapping[str, str] | None:
    """What a model or decision was made from; None where there is none, or it does not say."""
    if not manifest.exists():
        return None
    made_from: Mapping[str, str] | None = json.loads(manifest.read_text()).get("provenance")
    return made_from


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


def read_artefact(folder: Path) -> FittedModel:
    """The model in an artefact folder, whatever the features are now."""
    import skops.io

    manifest = Manifest.from_json((folder / MANIFEST).read_text())
    pipeline = skops.io.load(folder / PIPELINE, trusted=TRUSTED_TYPES)
    for package, file in CLASSIFIERS.items():
        if (folder / file).exists():
            pipeline.steps.append(("classifier", _read_classifier(package, folder / file)))
    return FittedModel(manifest.columns, pipeline, manifest.fallback)


def _write_pipeline(pipeline: Any, folder: Path) -> None:
    import zipfile

    import skops.io
    from sklearn.pipeline import Pipeline

    compressed = {"compression": zipfile.ZIP_DEFLATED, "compresslevel": 1}
    if isinstance(pipeline, Pipeline) and (package := package_of(pipeline[-1])) in CLASSIFIERS:
        classifier = pipeline[-1].booster_ if package == "lightgbm" else pipeline[-1]
        classifier.save_model(folder / CLASSIFIERS[package])
        pipeline = pipeline[:-1]
    skops.io.dump(pipeline, folder / PIPELINE, **compressed)


def _read_classifier(package: str, file: Path) -> Any:
    """A classifier from its own format.

    Raises:
        ModuleNotFoundError: Its package is not installed.
    """
    try:
        library = import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{file.parent} was trained by {package}, which is not installed. Run `pip install "
            f"'churn-assets[{package}]'`."
        ) from error
    if package == "lightgbm":
        text = file.read_text()
        columns = library.Booster(model_str=text).num_feature()
        # Only a booster can be read, and a classifier has one once it is fitted on anything.
        classifier = library.LGBMClassifier(n_estimators=1, n_jobs=1, verbosity=-1)
        classifier.fit([[0.0] * columns] * 2, [0, 1]).booster_.model_from_string(text)
        return classifier
    if package == "xgboost":
        classifier = library.XGBClassifier(n_jobs=1)
    else:
        classifier = library.CatBoostClassifier(thread_count=1)
    classifier.load_model(file)
    return classifier


def package_of(classifier: Any) -> str:
    """The package that a classifier is from, found without importing any."""
    return type(classifier).__module__.partition(".")[0]


def _move(made: Path, target: Path) -> None:
    """Rename a staged folder; another run may have published the same version meanwhile."""
    for path in made.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    try:
        made.rename(target)
    except OSError:
        if not target.exists():
            raise


def libraries(pipeline: Any) -> dict[str, str]:
    """Versions of the libraries that decide what a fit of the pipeline gives."""
    from importlib.metadata import version

    names = ["numpy", "pandas", "scikit-learn", "xgboost"]
    if hasattr(pipeline, "steps") and (own := package_of(pipeline[-1])) in EXTRA_ESTIMATORS:
        names.append(own)
    return {name: version(name) for name in names}


class _ScoringModel:
    """What MLflow loads: features in, P(churn) out."""

    def __init__(self, folder: Path) -> None:
        self.model = read_artefact(folder)

    def predict(self, features: "pd.DataFrame", params: object = None) -> Any:
        return self.model.probabilities(features)


def _load_pyfunc(path: str) -> _ScoringModel:
    """MLflow's entry point (`loader_module`)."""
    return _ScoringModel(Path(path))
