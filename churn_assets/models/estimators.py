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
from itertools import islice
from typing import TYPE_CHECKING, Any

from churn_assets.models.metrics import has_both_classes
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

# The log loss was smallest after 30 to 70 rounds on the data above. Half the learning rate needs
# twice the rounds and the time for .000 to .002 more AUC.
LEARNING_RATE = 0.1
MAX_ROUNDS = 400
PATIENCE = 30
# For a hold-out that cannot judge, because it has one class only.
DEFAULT_ROUNDS = 40

# A tree of the forest draws at most so many rows: all 54,000 of the synthetic shop's two cutoffs
# instead are worth .0003 AUC, and 360,000 would cost minutes and a file of 26 MB.
ROWS_PER_TREE = 20_000


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
        early_stopping: For boosting: fits, and gives the rounds with the smallest log loss on the
            hold-out, and P(churn) there after that many rounds.
        library: The distribution that has the classifier.
        space: Hyperparameters that `churn_assets.tuning` may choose, with the values it may try.
        parameters: What it chose, in place of what `build` gives.
    """

    name: str
    description: str
    build: Callable[[int, int, int], Any]
    scaled: bool = False
    early_stopping: "Callable[..., tuple[int, np.ndarray]] | None" = None
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
        with _one_thread():
            probabilities = self.pipeline.predict_proba(inputs(features, self.columns))
        return np.asarray(probabilities[:, 1], dtype="float64")


@dataclass(frozen=True)
class Trial:
    """A fit that was tried on a hold-out.

    Args:
        probabilities: P(churn) of the hold-out's rows.
        rounds: The boosting rounds with the smallest log loss there; 0 without boosting.
        fallback: Why it is the base rate; empty where it is not.
    """

    probabilities: "np.ndarray"
    rounds: int
    fallback: str = ""


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
    with _one_thread():
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
        return Trial(model.probabilities(holdout.features), rounds, model.fallback)
    pipeline = _pipeline(estimator, columns, table, seed, MAX_ROUNDS)
    with _one_thread():
        rounds, probabilities = estimator.early_stopping(
            pipeline["classifier"],
            pipeline["inputs"].fit_transform(table),
            training.churned,
            pipeline["inputs"].transform(inputs(holdout.features, columns)),
            holdout.churned,
        )
    return Trial(probabilities, rounds)


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


def _one_thread() -> Any:
    """BLAS and OpenMP on one thread, so that sums of floats are made in one order."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=1)


def _logistic_regression(seed: int, rounds: int, rows: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    # C .003 .741 .735 .748 .752, .01 .732 .734 .749 .752, .03 .722 .732 .748 .751
    return LogisticRegression(C=0.003, max_iter=1000)


def _random_forest(seed: int, rounds: int, rows: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    # Leaves of 80 .744 .735 .745 .752, 40 .737 .735 .744 .751, 20 .730 .733 .741 .750,
    # 10 .725 .727 .737 .748; 30 % of the features per split instead of the root: .001 to .004 less
    return RandomForestClassifier(
        n_estimators=60,
        min_samples_leaf=80,
        max_features="sqrt",
        max_samples=min(rows, ROWS_PER_TREE),
        random_state=seed,
        n_jobs=-1,
    )


def _gradient_boosting(seed: int, rounds: int, rows: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    # Depth 3 with leaves of 80 .742 .731 .746 .753, of 40 .737 .730 .747 .753; depth 2 .744 .731
    # .746 .752, 4 .730 .730 .743 .753, 6 .735 .726 .739 .753; all features per split .718 .725
    # .745 .753
    return HistGradientBoostingClassifier(
        learning_rate=LEARNING_RATE,
        max_iter=max(rounds, 1),
        max_depth=3,
        min_samples_leaf=80,
        l2_regularization=20.0,
        max_features=0.3,
        early_stopping=False,
        random_state=seed,
    )


def _gradient_boosting_stopped(
    model: Any, training: Any, churned: Any, holdout: Any, holdout_churned: Any
) -> "tuple[int, np.ndarray]":
    import numpy as np

    model.set_params(early_stopping=True, n_iter_no_change=PATIENCE, tol=0.0, scoring="loss")
    model.fit(training, churned, X_val=holdout, y_val=holdout_churned)
    # Scores are negative losses; the first is of no round at all.
    rounds = int(np.argmax(model.validation_score_[1:])) + 1
    after_rounds = next(islice(model.staged_predict_proba(holdout), rounds - 1, None))
    return rounds, after_rounds[:, 1]


def _xgboost(seed: int, rounds: int, rows: int) -> Any:
    from xgboost import XGBClassifier

    # Depth 3 .741 .734 .747 .752, 2 .745 .733 .748 .752, 4 .740 .732 .746 .753, 6 .735 .731 .744
    # .752; children of 1 without sampling .722 .724 .744 .752
    return XGBClassifier(
        learning_rate=LEARNING_RATE,
        n_estimators=max(rounds, 1),
        max_depth=3,
        min_child_weight=20,
        subsample=0.8,
        colsample_bytree=0.5,
        reg_lambda=5.0,
        tree_method="hist",
        random_state=seed,
        n_jobs=1,
    )


def _xgboost_stopped(
    model: Any, training: Any, churned: Any, holdout: Any, holdout_churned: Any
) -> "tuple[int, np.ndarray]":
    import numpy as np

    model.set_params(early_stopping_rounds=PATIENCE, eval_metric="logloss")
    model.fit(training, churned, eval_set=[(holdout, holdout_churned)], verbose=False)
    rounds = int(np.argmin(model.evals_result()["validation_0"]["logloss"])) + 1
    return rounds, model.predict_proba(holdout, iteration_range=(0, rounds))[:, 1]


def _lightgbm(seed: int, rounds: int, rows: int) -> Any:
    from lightgbm import LGBMClassifier

    # Depth 3 .743 .733 .757 .779, 2 .742 .737 .761 .779, 4 .743 .734 .756 .780; leaves of 20 .739
    # .734 .755 .780; without sampling .739 .730 .758 .779. XGBoost has .745 .734 .759 .779 on the
    # same rows, which are not those of the others' figures.
    return LGBMClassifier(
        learning_rate=LEARNING_RATE,
        n_estimators=max(rounds, 1),
        max_depth=3,
        num_leaves=64,  # as many as the deepest tree of the space has: the depth decides
        min_child_samples=80,
        subsample=0.8,
        subsample_freq=1,
        colsample_bytree=0.5,
        reg_lambda=20.0,
        deterministic=True,
        force_col_wise=True,
        random_state=seed,
        n_jobs=1,
        verbosity=-1,
    )


def _lightgbm_stopped(
    model: Any, training: Any, churned: Any, holdout: Any, holdout_churned: Any
) -> "tuple[int, np.ndarray]":
    from lightgbm import early_stopping

    model.fit(
        training,
        churned,
        eval_X=holdout,
        eval_y=holdout_churned,
        callbacks=[early_stopping(PATIENCE, verbose=False)],
    )
    # What it predicts ends there too.
    return model.best_iteration_, model.predict_proba(holdout)[:, 1]


def _catboost(seed: int, rounds: int, rows: int) -> Any:
    from catboost import CatBoostClassifier

    # As for LightGBM: depth 4 .748 .737 .765 .780, 3 .744 .739 .765 .779, 2 .745 .736 .762 .779,
    # 6 .739 .736 .765 .780; all features per split .746 .740 .767 .779 at depth 3
    return CatBoostClassifier(
        learning_rate=LEARNING_RATE,
        iterations=max(rounds, 1),
        depth=4,
        bootstrap_type="Bernoulli",
        subsample=0.8,
        rsm=0.5,
        l2_leaf_reg=20.0,
        random_seed=seed,
        thread_count=1,
        logging_level="Silent",
        allow_writing_files=False,
    )


def _catboost_stopped(
    model: Any, training: Any, churned: Any, holdout: Any, holdout_churned: Any
) -> "tuple[int, np.ndarray]":
    import numpy as np

    model.fit(
        training,
        churned,
        eval_set=(holdout, holdout_churned),
        early_stopping_rounds=PATIENCE,
        use_best_model=False,
    )
    rounds = int(np.argmin(model.get_evals_result()["validation"]["Logloss"])) + 1
    return rounds, model.predict_proba(holdout, ntree_end=rounds)[:, 1]


ESTIMATORS = (
    Estimator(
        "logistic_regression_model",
        "Logistic regression on imputed, symmetric and scaled features.",
        _logistic_regression,
        scaled=True,
        space={"C": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)},
    ),
    Estimator(
        "random_forest_model",
        "A forest of 100 probability trees.",
        _random_forest,
        space={"min_samples_leaf": (20, 40, 80, 160), "max_features": ("sqrt", 0.2, 0.3)},
    ),
    Estimator(
        "gradient_boosting_model",
        "Gradient boosting on histograms, by scikit-learn.",
        _gradient_boosting,
        early_stopping=_gradient_boosting_stopped,
        space={
            "learning_rate": (0.05, 0.1),
            "max_depth": (2, 3, 4, 6),
            "min_samples_leaf": (20, 40, 80, 160),
            "l2_regularization": (1.0, 5.0, 20.0, 80.0),
            "max_features": (0.15, 0.3, 0.6),
        },
    ),
    Estimator(
        "xgboost_model",
        "Gradient boosting by XGBoost.",
        _xgboost,
        early_stopping=_xgboost_stopped,
        library="xgboost",
        space={
            "learning_rate": (0.05, 0.1),
            "max_depth": (2, 3, 4, 6),
            "min_child_weight": (5, 20, 40),
            "reg_lambda": (1.0, 5.0, 20.0, 80.0),
            "colsample_bytree": (0.25, 0.5, 0.8),
        },
    ),
)

# By the name that `CHURN_EXTRA_MODELS` gives them, which is also that of the extra to install.
EXTRA_ESTIMATORS = {
    "lightgbm": Estimator(
        "lightgbm_model",
        "Gradient boosting by LightGBM.",
        _lightgbm,
        early_stopping=_lightgbm_stopped,
        library="lightgbm",
        space={
            "learning_rate": (0.05, 0.1),
            "max_depth": (2, 3, 4, 6),
            "min_child_samples": (20, 40, 80, 160),
            "reg_lambda": (1.0, 5.0, 20.0, 80.0),
            "colsample_bytree": (0.25, 0.5, 0.8),
        },
    ),
    "catboost": Estimator(
        "catboost_model",
        "Gradient boosting on symmetric trees by CatBoost.",
        _catboost,
        early_stopping=_catboost_stopped,
        library="catboost",
        space={
            "learning_rate": (0.05, 0.1),
            "depth": (2, 3, 4, 6),
            "l2_leaf_reg": (1.0, 5.0, 20.0, 80.0),
            "rsm": (0.25, 0.5, 0.8),
        },
    ),
}
