"""Point-in-time customer churn as Dagster assets, partitioned by cutoff date."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# What version 0.1 wrote names code by these modules: a pipeline of skops names a function, a model
# in MLflow its entry point.
MOVED = {
    "churn_assets.estimators": "churn_assets.models.estimators",
    "churn_assets.stores.models": "churn_assets.models.pyfunc",
}


class MovedModules(MetaPathFinder, Loader):
    """Lets a module that has moved be imported by its old name too."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        moved = vars(import_module(MOVED[module.__name__]))
        vars(module).update({k: v for k, v in moved.items() if not k.startswith("__")})


sys.meta_path.append(MovedModules())
