"""The kinds of model: how each is built, how its rounds are chosen, and what tuning may try.

Four are always there, LightGBM and CatBoost are extras. How a kind is fitted, and what stands
before its classifier, is in `models.estimators`.
"""

from typing import Any

from churn_assets.models.estimators import Estimator

# The log loss was smallest after 30 to 70 rounds on the data above. Half the learning rate needs
# twice the rounds and the time for .000 to .002 more AUC.
LEARNING_RATE = 0.1
PATIENCE = 30

# A tree of the forest draws at most so many rows: all 54,000 of the synthetic shop's two cutoffs
# instead are worth .0003 AUC, and 360,000 would cost minutes and a file of 26 MB.
ROWS_PER_TREE = 20_000


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
) -> int:
    import numpy as np

    model.set_params(early_stopping=True, n_iter_no_change=PATIENCE, tol=0.0, scoring="loss")
    model.fit(training, churned, X_val=holdout, y_val=holdout_churned)
    # Scores are negative losses; the first is of no round at all.
    rounds = int(np.argmax(model.validation_score_[1:])) + 1
    del model._predictors[rounds:]
    return rounds


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
) -> int:
    import numpy as np

    model.set_params(early_stopping_rounds=PATIENCE, eval_metric="logloss")
    model.fit(training, churned, eval_set=[(holdout, holdout_churned)], verbose=False)
    rounds = int(np.argmin(model.evals_result()["validation_0"]["logloss"])) + 1
    model._Booster = model.get_booster()[:rounds]
    return rounds


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
) -> int:
    from lightgbm import early_stopping

    model.fit(
        training,
        churned,
        eval_X=holdout,
        eval_y=holdout_churned,
        callbacks=[early_stopping(PATIENCE, verbose=False)],
    )
    # What it predicts and what is written of it end there too.
    return int(model.best_iteration_)


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
) -> int:
    import numpy as np

    model.fit(
        training,
        churned,
        eval_set=(holdout, holdout_churned),
        early_stopping_rounds=PATIENCE,
        use_best_model=False,
    )
    rounds = int(np.argmin(model.get_evals_result()["validation"]["Logloss"])) + 1
    model.shrink(ntree_end=rounds)
    return rounds


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
