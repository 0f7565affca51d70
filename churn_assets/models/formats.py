"""How fitted pipelines are written: in formats that run no code when they are opened.

scikit-learn pipelines are written by skops: a pickle would run whatever it contains, skops builds
only the types named here. XGBoost, LightGBM and CatBoost have formats of their own that later
versions still read.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from churn_assets.models.kinds import EXTRA_ESTIMATORS

PIPELINE = "pipeline.skops"
# The file of a classifier with a format of its own, by the package of its class.
CLASSIFIERS = {
    "xgboost": "classifier.ubj",
    "lightgbm": "classifier.txt",
    "catboost": "classifier.cbm",
}

TRUSTED_TYPES = [
    "churn_assets.estimators.signed_log",  # as version 0.1 wrote it
    "churn_assets.models.estimators.signed_log",
    "numpy.dtype",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
]


def write_pipeline(pipeline: Any, folder: Path) -> None:
    """Write a fitted pipeline, or a base rate, into an empty folder."""
    import zipfile

    import skops.io
    from sklearn.pipeline import Pipeline

    compressed = {"compression": zipfile.ZIP_DEFLATED, "compresslevel": 1}
    if isinstance(pipeline, Pipeline) and (package := package_of(pipeline[-1])) in CLASSIFIERS:
        classifier = pipeline[-1].booster_ if package == "lightgbm" else pipeline[-1]
        classifier.save_model(folder / CLASSIFIERS[package])
        pipeline = pipeline[:-1]
    skops.io.dump(pipeline, folder / PIPELINE, **compressed)


def read_pipeline(folder: Path) -> Any:
    """The pipeline, or base rate, that `write_pipeline` wrote into a folder.

    Raises:
        ModuleNotFoundError: The package of its classifier is not installed.
    """
    import skops.io

    pipeline = skops.io.load(folder / PIPELINE, trusted=TRUSTED_TYPES)
    for package, file in CLASSIFIERS.items():
        if (folder / file).exists():
            pipeline.steps.append(("classifier", _read_classifier(package, folder / file)))
    return pipeline


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


def libraries(pipeline: Any) -> dict[str, str]:
    """Versions of the libraries that decide what a fit of the pipeline gives."""
    from importlib.metadata import version

    names = ["numpy", "pandas", "scikit-learn", "xgboost"]
    if hasattr(pipeline, "steps") and (own := package_of(pipeline[-1])) in EXTRA_ESTIMATORS:
        names.append(own)
    return {name: version(name) for name in names}
