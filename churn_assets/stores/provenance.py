"""Provenance: what a partition was made from, and how a stale one is recognised.

It is the version of the code that made it and a digest of the files that were read. A partition
whose provenance differs from what it would have now is stale. Comments, docstrings, imports and the
place of code do not count as code (`code_digest`).
"""

import ast
import hashlib
import inspect
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import dagster as dg

from churn_assets.cutoffs import Calendar, parse_key
from churn_assets.stores.offline import OfflineStore, file_digest


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
    if isinstance(node, list):
        return f"[{', '.join(_meaning(n) for n in node if not _is_text(n))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
    return f"{type(node).__name__}({', '.join(f'{n}={_meaning(v)}' for n, v in fields)})"


def _is_text(node: object) -> bool:
    """Whether a statement is a text that stands alone, such as a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def upstream_keys(
    calendar: Calendar,
    mapping: dg.PartitionMapping | None,
    key: str | None,
    existing: Sequence[str | None],
) -> Sequence[str | None]:
    """The upstream partitions, of those that exist, that partition `key` is made from.

    An asset without partitions names those that it reads; the registry, which names none, reads
    declarations only.
    """
    if None in existing:
        return existing
    keys = [k for k in existing if k is not None]
    if isinstance(mapping, dg.SpecificPartitionsPartitionMapping):
        return [k for k in keys if k in mapping.partition_keys]
    if key is None:
        return []
    if not isinstance(mapping, dg.TimeWindowPartitionMapping):
        return [key] if key in keys else []
    first = calendar.shift(parse_key(key), mapping.start_offset).isoformat()
    last = calendar.shift(parse_key(key), mapping.end_offset).isoformat()
    return [k for k in keys if first <= k <= last]


def current_provenance(
    store: OfflineStore,
    calendar: Calendar,
    spec: dg.AssetSpec,
    key: str | None,
    present: Callable[[str], Sequence[str | None]],
) -> dict[str, str]:
    """The provenance that partition `key` of an asset has if it is made now.

    A file with another one is stale: its code changed, or a file that it was made from did.
    `present` gives the partitions of an asset; for many keys it looks into the folders once.
    """
    digest = hashlib.sha256()
    for dep in sorted(spec.deps, key=lambda dep: dep.asset_key):
        upstream = dep.asset_key.path[-1]
        for upstream_key in upstream_keys(calendar, dep.partition_mapping, key, present(upstream)):
            content = file_digest(store.content(upstream, upstream_key))
            digest.update(f"{upstream} {upstream_key} {content}\n".encode())
    return {"code_version": spec.code_version or "", "inputs": digest.hexdigest()[:32]}


def provenances(
    store: OfflineStore, calendar: Calendar, context: dg.AssetExecutionContext
) -> Callable[[str | None], dict[str, str]]:
    """The provenance of each partition that a run of an asset without a table makes."""
    spec, present = context.assets_def.get_asset_spec(), cache(store.present)
    return lambda key: current_provenance(store, calendar, spec, key, present)
