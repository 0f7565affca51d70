"""The estimators: what each is, how its inputs are prepared and how it is fitted.

Whatever is learned from rows (medians, scales, categories) is learned inside the fitted pipeline,
so scoring cannot see anything that training did not. Neither class weights nor a calibrator: both
bend probabilities, and the threshold is chosen for profit. Nothing here knows cutoffs or files.

Fits are equal to the last bit for equal rows in equal order and an equal seed, whatever the number
of cores: sums of floats depend on how threads share them, so only the forest, whose trees are
independent, is fitted on all cores, and it too predicts on one. One thread is also the faster
choice wherever several models train at once: on a machine with both cores busy, XGBoost took 0.2 s
with one thread and 15 s with two, which wait for each other.

Hyperparameters were chosen on data from before every cutoff they are judged on: the UCI cutoffs
2011-03-01 -> 2011-04-01 and cross-validation by customer within these two, and the synthetic shop
up to 2025-11-01, also thinned to a twelfth. They favour strong regularisation; what was compared
is beside each estimator as (UCI forward, UCI cross-validated, synthetic thinned, synthetic) AUC.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from churn_assets.models.grades import has_both_classes
from churn_assets.stores.tables import Column

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

# What a missing category becomes: not knowing is a category of its own.
MISSING = "(missing)"

# Trees compare in float32, which ends at 3.4e38. Nothing a shop counts comes near: a larger value,
# like an infinite one, is a mistake upstream and treated as missing.
LARGEST = 1e30

# A category with fewer training rows shares one column with the other rare ones.
MIN_CATEGORY_ROWS = 20

# Durations act on the chance to return about linearly; counts, money and ratios are skewed and act
# by their logarithm. Log of all but durations .741 .735 .748 .752, log of all .741 .734 .743 .747,
# of none .717 .724 .747 .751, normal quantiles .706 .732 .737 .743.
DURATION_UNITS = {"days", "years"}

# With fewer rows of the rarer class not even one coefficient can be told from noise (the rule of
# thumb is ten events per parameter), and the base rate is the honest model.
MIN_CLASS_ROWS = 10

# The most rounds of boosting that are tried.
MAX_ROUNDS = 400

# For a hold-out that cannot judge, because it has one class only.
DEFAULT_ROUNDS = 40


@dataclass(frozen=True)
class Rows:
    """Customers at one or more cutoffs: features (one column each) and 1 where they churned."""

    features: "pd.DataFrame"
    churned: "np.ndarray"

    def __len__(self) -> int:
        return len(self.churned)

    def select(self, numbers: "np.ndarray") -> "Rows":
        """The rows of the given numbers, in their order."""
        return Rows(self.features.iloc[numbers], self.churned[numbers])


@dataclass(frozen=True)
class Estimator:
    """One kind of model.

    Args:
        name: Also the asset's name.
        description: For people.
        build: The unfitted scikit-learn classifier, from a seed, boosting rounds and rows.
        scaled: Whether inputs are imputed, made symmetric and scaled; trees take them as they are.
        early_stopping: For boosting: fits, ends the model after the rounds with the smallest log
            loss on the hold-out, and gives their number.
        library: The distribution that has the classifier.
        space: Hyperparameters that `churn_assets.tuning` may choose, with the values it may try.
        parameters: What it chose, in place of what `build` gives.
    """

    name: str
    description: str
    build: Callable[[int, int, int], Any]
    scaled: bool = False
    early_stopping: Callable[..., int] | None = None
    library: str = "scikit-learn"
    space: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FittedModel:
    """A fitted pipeline of inputs and classifier.

    Args:
        columns: The features that it takes, in order.
        pipeline: A scikit-learn pipeline whose second class is churn.
        fallback: Why it is the base rate instead of what was asked for; empty where it is not.
    """

    columns: tuple[Column, ...]
    pipeline: Any
    fallback: str = ""

    @property
    def is_base_rate(self) -> bool:
        """Whether it says the same of everybody; `fallback` may also be that of the graded fit."""
        return not hasattr(self.pipeline, "named_steps")

    def probabilities(self, features: "pd.DataFrame") -> "np.ndarray":
        """P(churn) of every row, shape (n,). Columns are found by name, others ignored."""
        import numpy as np

        if features.empty:
            return np.empty(0)
        with one_thread():
            probabilities = self.pipeline.predict_proba(inputs(features, self.columns))
        return np.asarray(probabilities[:, 1], dtype="float64")


@dataclass(frozen=True)
class Trial:
    """A fit that was tried on a hold-out.

    Args:
        model: The fit.
        probabilities: What it says of the hold-out's rows.
        rounds: The boosting rounds with the smallest log loss there; 0 without boosting.
    """

    model: FittedModel
    probabilities: "np.ndarray"
    rounds: int


def inputs(features: "pd.DataFrame", columns: Sequence[Column]) -> "pd.DataFrame":
    """The columns as numbers (float64, NaN where missing) and categories (text)."""
    import pandas as pd

    def named(is_category: bool) -> "pd.DataFrame":
        # All of a kind at once: column by column, one customer takes 15 ms instead of 2.
        return features[[c.name for c in columns if (c.dtype == "VARCHAR") is is_category]]

    categories = named(True).astype(object)
    numbers = named(False).astype("float64")
    table = pd.concat(
        [
            categories.where(categories.notna(), MISSING),
            numbers.where(numbers.abs() < LARGEST),
        ],
        axis="columns",
    )
    return table[[column.name for column in columns]]


def fit(
    estimator: Estimator, columns: Sequence[Column], rows: Rows, seed: int, rounds: int
) -> FittedModel:
    """Fit one estimator, or the base rate where the rows cannot carry it."""
    table = inputs(rows.features, columns)
    fallback = reason_for_base_rate(rows, table)
    if fallback:
        return FittedModel(tuple(columns), _base_rate(rows), fallback)
    pipeline = _pipeline(estimator, columns, table, seed, rounds)
    with one_thread():
        pipeline.fit(table, rows.churned)
    if "n_jobs" in pipeline["classifier"].get_params():
        pipeline.set_params(classifier__n_jobs=1)
    return FittedModel(tuple(columns), pipeline)


def trial(
    estimator: Estimator, columns: Sequence[Column], training: Rows, holdout: Rows, seed: int
) -> Trial:
    """Fit on the training rows and predict the hold-out; boosting stops where that is best."""
    table = inputs(training.features, columns)
    boosted = estimator.early_stopping is not None
    judged = has_both_classes(holdout.churned) and not reason_for_base_rate(training, table)
    if estimator.early_stopping is None or not judged:
        rounds = DEFAULT_ROUNDS if boosted else 0
        model = fit(estimator, columns, training, seed, rounds)
    else:
        pipeline = _pipeline(estimator, columns, table, seed, MAX_ROUNDS)
        with one_thread():
            rounds = estimator.early_stopping(
                pipeline["classifier"],
                pipeline["inputs"].fit_transform(table),
                training.churned,
                pipeline["inputs"].transform(inputs(holdout.features, columns)),
                holdout.churned,
            )
        model = FittedModel(tuple(columns), pipeline)
    return Trial(model, model.probabilities(holdout.features), rounds)


def reason_for_base_rate(rows: Rows, table: "pd.DataFrame") -> str:
    """Why no estimator can be fitted, or nothing where one can."""
    rarer = int(min(rows.churned.sum(), (1 - rows.churned).sum()))
    if rarer >= MIN_CLASS_ROWS:
        return "" if table.notna().any(axis=None) else "base rate: no feature has a value"
    return (
        f"base rate: the {len(rows):,} training rows have {rarer} of the rarer class, "
        f"{MIN_CLASS_ROWS} are needed"
    )


def _base_rate(rows: Rows) -> Any:
    """The share of churners by Laplace's rule of succession, which is never exactly 0 or 1."""
    import numpy as np
    from sklearn.dummy import DummyClassifier

    churned = [*rows.churned, 0, 1]
    return DummyClassifier(strategy="prior").fit(np.zeros((len(churned), 1)), churned)


def _pipeline(
    estimator: Estimator, columns: Sequence[Column], table: "pd.DataFrame", seed: int, rounds: int
) -> Any:
    """The unfitted pipeline for the features that have a value in `table`.

    HistGradientBoosting cannot bin a column without any value, and no model can learn from one.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

    known = [column for column in columns if table[column.name].notna().any()]
    categories = [column.name for column in known if column.dtype == "VARCHAR"]
    numbers = [column for column in known if column.dtype != "VARCHAR"]
    one_hot = OneHotEncoder(
        handle_unknown="infrequent_if_exist", min_frequency=MIN_CATEGORY_ROWS, sparse_output=False
    )
    steps: list[tuple[str, Any, list[str]]]
    if estimator.scaled:
        log = FunctionTransformer(signed_log, feature_names_out="one-to-one")
        scale = (SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
        durations = [c.name for c in numbers if c.unit in DURATION_UNITS]
        others = [c.name for c in numbers if c.unit not in DURATION_UNITS]
        steps = [
            # Centred like the numbers: a contribution is the distance from the training mean.
            ("categories", make_pipeline(one_hot, StandardScaler(with_std=False)), categories),
            ("durations", make_pipeline(*scale), durations),
            ("others", make_pipeline(log, *scale), others),
        ]
    else:
        steps = [
            ("categories", one_hot, categories),
            ("numbers", "passthrough", [column.name for column in numbers]),
        ]
    classifier = estimator.build(seed, rounds, len(table)).set_params(**estimator.parameters)
    pipeline = make_pipeline(ColumnTransformer(steps), classifier)
    pipeline.steps = [("inputs", pipeline[0]), ("classifier", pipeline[1])]
    return pipeline


def signed_log(values: Any) -> Any:
    """log(1 + |x|) with the sign of x: symmetric where a difference can be negative."""
    import numpy as np

    return np.sign(values) * np.log1p(np.abs(values))


def one_thread() -> Any:
    """BLAS and OpenMP on one thread, so that sums of floats are made in one order."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=1)
