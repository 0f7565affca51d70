"""Prevents: a rule that changes and leaves what it decided fresh, and a comment that retrains.

What decides a value is listed beside its asset. These tests follow the names in the listed code to
what it uses, and change the text of the listed modules.
"""

import ast
import importlib.util
import inspect
import sys
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from churn_assets.cutoffs import Calendar
from churn_assets.definitions import build_definitions
from churn_assets.models import candidates, champion
from churn_assets.models.metrics import Economics
from churn_assets.monitoring import performance
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.provenance import code_digest
from churn_assets_tests.conftest import GROUPS, make_settings, model_runs
from churn_assets_tests.models.test_models import CALENDAR

# What listed code uses and is not listed itself, with the reason.
NOT_LISTED = {
    "Manifest": "holds what the listed code puts into it",
    "Trained": "likewise",
    "Rows": "likewise",
    "Champion": "likewise",
    "Incumbent": "likewise",
    "ModelIdentity": "likewise",
    "ChampionReplaced": "an error",
    "DamagedArtefact": "an error",
    "parse_key": "the date of a key",
    "find_champion": "reads a decision",
    "MODELS": "the kinds are in the graph: a kind more is a dependency more",
    "Column": "declares a column",
    "sql_version": "makes versions",
    "SYNTHETIC_TRUTH": "a table, which is in the graph",
    "CHURN_PREDICTIONS": "likewise",
    "DAILY_ORDERS": "likewise",
    "TRAINING_DATASET": "likewise",
    "CHURN_LABELS": "likewise",
    "LABEL_COLUMNS": "the labels are in the graph",
    "Fold": "two dates",
    "Settings": "where economics are read, whose values are in the version",
}

VERSIONED = [
    pytest.param(candidates.CODE, {"TARGET", "MOST_TRAINING_ROWS"}, id="models"),
    pytest.param(champion.CODE, {"TARGET", "MOST_TRAINING_ROWS", "GRADES"}, id="champion_model"),
    pytest.param(performance.CODE, {"METRICS", "NEVER", "in_horizon"}, id="realised_performance"),
]


class Names(ast.NodeVisitor):
    """The names that code uses and imports when it runs; annotations decide nothing."""

    def __init__(self) -> None:
        self.found: set[str] = set()
        self.imported: dict[str, str] = {}

    def visit_Name(self, node: ast.Name) -> None:
        self.found.add(node.id)

    def visit_arg(self, node: ast.arg) -> None:
        pass

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for part in (*node.decorator_list, *node.args.defaults, *node.body):
            self.visit(part)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.imported |= {alias.asname or alias.name: str(node.module) for alias in node.names}


def defined_in(module: ModuleType, name: str) -> ModuleType | None:
    """The module of the package that gives a name of `module` its value."""
    if not module.__name__.startswith("churn_assets"):
        return None
    names = Names()
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ImportFrom):
            names.visit(node)
    if name not in names.imported:
        return module if name in vars(module) else None
    origin = names.imported[name]
    return sys.modules[origin] if origin.startswith("churn_assets") else None


def unlisted(code: Sequence[Any], constants: Collection[str]) -> set[str]:
    """What the code uses of the package, in other modules or beside it, that is not listed."""
    modules = [part for part in code if inspect.ismodule(part)]
    found = set()
    for part in code:
        names = Names()
        names.visit(ast.parse(textwrap.dedent(inspect.getsource(part))))
        module = part if inspect.ismodule(part) else sys.modules[part.__module__]
        for name in names.found:
            near = sys.modules.get(names.imported.get(name, module.__name__))
            origin = defined_in(near, name) if near else None
            if origin is None or origin in modules or name in constants or name in NOT_LISTED:
                continue
            value = vars(origin).get(name)
            if not any(value is listed for listed in code) and not inspect.ismodule(value):
                found.add(f"{part.__name__} uses {name} of {origin.__name__}")
    return found


@pytest.mark.parametrize(("code", "constants"), VERSIONED)
def test_all_that_decides_is_listed(code: Sequence[Any], constants: Collection[str]) -> None:
    assert unlisted(code, constants) == set()


def test_what_is_left_out_of_a_list_is_found() -> None:
    fewer = [part for part in candidates.CODE if part.__name__ not in ("mature_at", "drawn")]
    assert unlisted(fewer, {"TARGET"}) == {
        "training_plan uses mature_at of churn_assets.models.training_plan",
        "training_rows uses drawn of churn_assets.models.training_rows",
    }


# Changed text


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("changed_"):
            del sys.modules[name]


def changed(folder: Path, module: str, old: str, new: str) -> ModuleType:
    """A copy of a module with another text."""
    original = importlib.import_module(f"churn_assets.{module}")
    source = inspect.getsource(original)
    assert old in source, old
    path = folder / f"changed_{module.replace('.', '_')}.py"
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = copy
    spec.loader.exec_module(copy)
    return copy


def with_copy(code: Sequence[Any], module: str, copy: ModuleType) -> list[Any]:
    """The listed code, with that of a module taken from a copy."""
    name = f"churn_assets.{module}"
    return [
        copy
        if inspect.ismodule(part) and part.__name__ == name
        else getattr(copy, part.__name__)
        if getattr(part, "__module__", "") == name
        else part
        for part in code
    ]


EMBARGO = ("mature_at(calendar, refit[-1])", "refit[:-1]")
ROW_CHOICE = ("md5(customer_id)[:8]", "md5(customer_id)[1:9]")
RULES = [
    *[(candidates.CODE, "models.training_plan", *EMBARGO)],
    *[(candidates.CODE, "models.training_plan", "1 - calendar.training", "2 - calendar.training")],
    *[(candidates.CODE, "models.training_rows", *ROW_CHOICE)],
    *[(candidates.CODE, "models.training_rows", "ORDER BY cutoff,", "ORDER BY")],
    *[(candidates.CODE, "models.grades", "LIFT_SHARE = 0.1", "LIFT_SHARE = 0.2")],
    *[(candidates.CODE, "models.kinds", "LEARNING_RATE = 0.1", "LEARNING_RATE = 0.2")],
    *[(candidates.CODE, "models.estimators", "MIN_CLASS_ROWS = 10", "MIN_CLASS_ROWS = 20")],
    *[(candidates.CODE, "models.candidates", "read(plan.refit)", "read(plan.fit)")],
    *[(champion.CODE, "models.training_plan", "(False, manifest", "(True, manifest")],
    *[(champion.CODE, "models.training_rows", *ROW_CHOICE)],
    *[(champion.CODE, "models.promotion", "SWITCH_MARGIN = 0.005", "SWITCH_MARGIN = 0.01")],
    *[(champion.CODE, "models.bootstrap", "RESAMPLES = 500", "RESAMPLES = 50")],
    *[(champion.CODE, "models.champion", "calendar.shift(cutoff, -1)", "cutoff")],
    *[(performance.CODE, "monitoring.performance", "(roc_auc - rule)", "roc_auc")],
    *[(performance.CODE, "models.metrics", "- contacted *", "+ contacted *")],
]


@pytest.mark.parametrize(("code", "module", "old", "new"), RULES)
def test_another_rule_is_another_version(
    code: Sequence[Any], module: str, old: str, new: str, folder: Path
) -> None:
    copy = changed(folder, module, old, new)
    assert code_digest(*with_copy(code, module, copy)) != code_digest(*code)


MODULES = sorted({(id(code), module) for code, module, *_ in RULES}, key=lambda pair: pair[1])
LISTS = {id(code): code for code, *_ in RULES}


@pytest.mark.parametrize(("which", "module"), MODULES, ids=[module for _, module in MODULES])
def test_a_comment_is_not(which: int, module: str, folder: Path) -> None:
    code = LISTS[which]
    source = inspect.getsource(importlib.import_module(f"churn_assets.{module}"))
    first = next(line for line in source.splitlines() if line.startswith("def "))
    copy = changed(folder, module, f"\n{first}", f"\n# Why it does so.\n{first}  # Typo.")
    assert code_digest(*with_copy(code, module, copy)) == code_digest(*code)


def test_the_errors_of_a_listed_module_do_not_retrain(folder: Path) -> None:
    """Of modules that also hold what decides nothing, the functions are listed."""
    copy = changed(folder, "models.training_plan", "Use a model of", "Take a model of")
    listed = with_copy(candidates.CODE, "models.training_plan", copy)
    assert code_digest(*listed) == code_digest(*candidates.CODE)


# Of assets


def of_assets(home: Path, **overrides: Any) -> Mapping[str, str]:
    defs = build_definitions(make_settings(home, source="synthetic", **overrides))
    return {s.key.path[-1]: s.code_version or "" for s in defs.resolve_all_asset_specs()}


def of_models(home: Path, calendar: Calendar = CALENDAR) -> str:
    store = OfflineStore(home, {})
    first, *_ = candidates.assets(GROUPS, calendar, store, model_runs(home), Economics(), 7)
    return str(next(iter(first.code_versions_by_key.values())))


@pytest.mark.parametrize(("name", "value"), [("MOST_TRAINING_ROWS", 9), ("TARGET", "other")])
def test_constants_that_functions_use_count(
    name: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = of_models(tmp_path)
    monkeypatch.setattr(candidates, name, value)
    assert of_models(tmp_path) != before


def test_settings_change_the_code_of_what_they_decide(tmp_path: Path) -> None:
    before = of_assets(tmp_path)
    assert all(before[name] for name in ("online_features", "synthetic_truth"))
    for overrides, some, others in (
        ({"seed": 8}, {"xgboost_model", "synthetic_truth", "realised_performance"}, set()),
        ({"horizon_days": 14}, {"synthetic_truth"}, {"online_features", "champion_model"}),
        ({"training_cutoffs": 3}, {"xgboost_model"}, {"champion_model", "synthetic_truth"}),
        ({"synthetic_customers": 77}, {"synthetic_truth"}, {"online_features", "xgboost_model"}),
        ({"review_vectors": "lsa"}, {"online_features", "xgboost_model"}, {"synthetic_truth"}),
    ):
        after = of_assets(tmp_path, **overrides)
        now = {name for name in before if before[name] != after[name]}
        assert some <= now, overrides
        assert not others & now, overrides
