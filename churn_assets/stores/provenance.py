"""Provenance: what a partition was made from, and how a stale one is recognised.

It is the version of the code that made it, a digest of what was read, and the definition under
which it was made (`stores.catalog`). A partition whose provenance differs from what it would have
now is stale. Comments, docstrings, imports and the place of code do not count as code
(`code_digest`).
"""

import ast
import hashlib
import inspect
from collections.abc import Callable
from functools import cache, partial
from types import ModuleType
from typing import Any

from churn_assets.stores.artefacts import MANIFEST, ArtefactStore, content_digest
from churn_assets.stores.catalog import Present
from churn_assets.stores.digests import file_digest
from churn_assets.stores.known_periods import known_before
from churn_assets.stores.offline import OfflineStore


def code_digest(*code: ModuleType | Callable[..., Any]) -> str:
    """What the code of modules and functions means, as 12 hex digits.

    Comments, docstrings, imports and the order and module of definitions do not count, so code may
    be moved between the modules, or a module renamed.
    """
    statements = set().union(*(_statements(inspect.getsource(part)) for part in code))
    return hashlib.sha256("\n".join(sorted(statements)).encode()).hexdigest()[:12]


@cache
def _statements(source: str) -> frozenset[str]:
    return frozenset(
        _meaning(statement)
        for statement in _parsed(source).body
        if not isinstance(statement, ast.Import | ast.ImportFrom | ast.Expr)
        and not (isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test))
    )


def _parsed(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except SystemError:
        # Python 3.11 counts the depth of a tree that another thread builds meanwhile as its own.
        return ast.parse(source)


def _meaning(node: object) -> str:
    """A syntax tree as text without docstrings; `ast.dump` differs between versions of Python."""
    if isinstance(node, ast.AST):
        # A loop: a comprehension takes half as long again, and every Dagster process waits for it.
        fields = []
        for name in node._fields:
            value = getattr(node, name, None)
            if value is not None and value != []:
                fields.append(f"{name}={_meaning(value)}")
        return f"{type(node).__name__}({', '.join(fields)})"
    if isinstance(node, list):
        return f"[{', '.join([_meaning(part) for part in node if not _is_text(part)])}]"
    return repr(node)


def _is_text(node: object) -> bool:
    """Whether a statement is a text that stands alone, such as a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def current_provenance(
    store: OfflineStore, asset: str, key: str | None, present: Present | None = None
) -> dict[str, str]:
    """The provenance that a partition has if it is made now.

    One with another provenance is stale: its code changed, or something that it was made from did.

    Args:
        store: Where files are, and the catalog.
        asset: The asset.
        key: The partition; None for an asset without partitions.
        present: Gives the partitions of an asset; for many keys it looks into the folders once.
    """
    catalog = store.declared
    digest = hashlib.sha256()
    day = catalog.known_before(asset, key)
    for upstream, upstream_key in catalog.upstream(asset, key, present or store.present):
        path = store.content(upstream, upstream_key)
        if path.name == MANIFEST:
            content: str | None = content_digest(path)
        else:
            content = (known_before(path, day) if day else None) or file_digest(path)
        digest.update(f"{upstream} {upstream_key} {content}\n".encode())
    digest.update(catalog.reading(asset, key).encode())
    digest.update(_incumbent(store, asset, catalog.previous(asset, key)).encode())
    return {
        "code_version": catalog.specs[asset].code_version or "",
        "inputs": digest.hexdigest()[:32],
        "definition": catalog.definitions[asset],
    }


def _incumbent(store: OfflineStore, asset: str, previous: str | None) -> str:
    """Which model the decision before chose; empty where that is none to decide against."""
    decision = previous and ArtefactStore(store.home).read(asset, previous)
    if not decision or store.is_redefined(decision["model"], decision["model_cutoff"]):
        return ""
    return " ".join(decision[name] for name in ("model", "model_cutoff", "model_version"))


def provenances(store: OfflineStore, asset: str) -> Callable[[str | None], dict[str, str]]:
    """The provenance of each partition that a run of an asset makes."""
    return partial(current_provenance, store, asset, present=cache(store.present))
