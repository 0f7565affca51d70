"""Contracts in Dagster: one asset check per table, and the acceptance of a broken one by a person.

All rules of a table are one check, because an evaluation is as expensive to record as a
materialization, and a backfill has one per partition.
"""

import getpass
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dagster as dg

from churn_assets.cutoffs import Calendar, utc_now
from churn_assets.operations.contracts import SCHEMA, rules_of
from churn_assets.operations.gate import audit, held_back
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.pages import markdown
from churn_assets.stores.tables import Table
from churn_assets.stores.verdicts import Verdict, write_verdict

CONTRACT = "data_contract"


def accept(
    store: OfflineStore,
    calendar: Calendar,
    name: str,
    key: str | None,
    reason: str,
    instance: dg.DagsterInstance,
) -> Verdict:
    """Let the present content of a partition pass in spite of what was found, and record that.

    Raises:
        ValueError: There is no such table, it breaks no rule, or no reason is given.
        FileNotFoundError: There is no such partition.
    """
    table = store.tables.get(name)
    if table is None:
        raise ValueError(f"There is no table {name}. Tables are {', '.join(store.tables)}.")
    store.unchecked(table, [key or ""])
    verdict = audit(store, calendar, table, [key])[key]
    if not verdict.failures:
        raise ValueError(f"{name} {key or ''} breaks no rule: there is nothing to accept.")
    if not reason.strip():
        raise ValueError("Say why the partition is right as it is: --reason WHY.")
    by = {"by": getpass.getuser(), "reason": reason, "at": utc_now().isoformat(timespec="seconds")}
    accepted = replace(verdict, accepted=by)
    write_verdict(store.home, name, key, accepted)
    instance.report_runless_asset_event(evaluation(table, key, accepted))
    return accepted


def evaluation(table: Table, key: str | None, verdict: Verdict) -> dg.AssetCheckEvaluation:
    """A verdict as Dagster shows it."""
    accepted = dict(verdict.accepted or {})
    found = {rule: verdict.findings.get(rule, "") for rule in verdict.rules}
    if SCHEMA.name in verdict.failures:
        found |= {rule: "not looked at" for rule in found if rule != SCHEMA.name}
    return dg.AssetCheckEvaluation(
        dg.AssetKey(table.name),
        CONTRACT,
        passed=not verdict.findings or bool(accepted),
        severity=(dg.AssetCheckSeverity.ERROR if verdict.failures else dg.AssetCheckSeverity.WARN),
        description="; ".join(f"{rule}: {what}" for rule, what in verdict.findings.items()) or None,
        metadata={
            "rules": dg.MetadataValue.md(
                markdown(["rule", "found"], [[r, what or "✓"] for r, what in found.items()])
            ),
            **{f"accepted {what}": text for what, text in accepted.items()},
        },
        blocking=True,
        partition=key,
    )


def definitions(
    assets: Sequence[dg.AssetsDefinition], calendar: Calendar, store: OfflineStore
) -> list[dg.AssetChecksDefinition]:
    """The check of every table that one of the assets makes."""
    specs = {spec.key.path[-1]: spec for asset in assets for spec in asset.specs}
    return [
        _definition(table, specs[name].partitions_def, calendar, store)
        for name, table in store.tables.items()
        if name in specs
    ]


def _definition(
    table: Table,
    partitions: dg.PartitionsDefinition | None,
    calendar: Calendar,
    store: OfflineStore,
) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=table.name,
        name=CONTRACT,
        description="\n".join(f"- {rule.name}: {rule.description}" for rule in rules_of(table)),
        blocking=True,
        partitions_def=partitions,
    )
    def data_contract(context: dg.AssetCheckExecutionContext) -> Any:
        run = context.op_execution_context
        wanted: list[str | None] = [*sorted(run.partition_keys)] if run.has_partitions else [None]
        # A step may leave a partition for later, such as reviews without a topic model.
        keys = [key for key in wanted if store.path(table, key).exists()]
        verdicts = audit(store, calendar, table, keys)
        # The check result of a range belongs to no partition; these do.
        for key, verdict in verdicts.items():
            run.log_event(evaluation(table, key, verdict))  # type: ignore[arg-type]
        refused = [
            held_back(table, key, verdict)
            for key, verdict in verdicts.items()
            if verdict.holds_back
        ]
        if refused:
            raise dg.Failure("\n".join(refused), allow_retries=False)
        yield dg.Output(None)

    return data_contract
