"""The gate of the offline store: a partition that breaks its contract is not handed on.

What was found is kept as the verdict of the file's content (`stores.verdicts`): whoever asks for a
partition, in this run or a later one, in a backfill, the service or a command, is refused while a
rule is broken. A content without a verdict is audited in that moment, so neither a run that was
killed between writing and checking nor a file that was replaced by hand makes a way around.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from churn_assets.cutoffs import Calendar
from churn_assets.operations.contracts import SCHEMA, Rule, rules_of, schema_findings
from churn_assets.operations.subjects import Subject, cleared
from churn_assets.stores.digests import file_digest
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.parquet import row_count
from churn_assets.stores.tables import Table
from churn_assets.stores.verdicts import Verdict, current_verdict, read_verdict, write_verdict


class HeldBack(ValueError):
    """A partition was asked for that failed a blocking rule."""


def audit(
    store: OfflineStore, calendar: Calendar, table: Table, keys: Sequence[str | None]
) -> dict[str | None, Verdict]:
    """Look at partitions of a table and keep the verdicts.

    A partition whose columns are not as declared fails by that alone: nothing else can be asked.
    """
    rules = rules_of(table)
    names = tuple(rule.name for rule in rules)
    contents = {key: file_digest(store.path(table, key)) for key in keys}
    failures: dict[str | None, dict[str, str]] = {key: {} for key in keys}
    warnings: dict[str | None, dict[str, str]] = {key: {} for key in keys}
    for key in keys:
        if found := schema_findings(store.path(table, key), table):
            failures[key][SCHEMA.name] = found
    sound = [key for key in keys if not failures[key]]
    if sound:
        with store.connect() as connection:
            subject = Subject(store, calendar, table, sound, connection)
            for rule, unclear in _unclear(subject, rules):
                for find, found_by in ((rule.find, failures), (rule.warning, warnings)):
                    for key, words in find(unclear) if find else ():
                        found_by[key][rule.name] = words
    verdicts = {key: Verdict(contents[key], names, failures[key], warnings[key]) for key in keys}
    for key, verdict in verdicts.items():
        before = read_verdict(store.home, table.name, key)
        if before and before.accepted and before.content == verdict.content:
            verdicts[key] = verdict = replace(verdict, accepted=before.accepted)
        write_verdict(store.home, table.name, key, verdict)
    return verdicts


def _unclear(subject: Subject, rules: Sequence[Rule]) -> Iterator[tuple[Rule, Subject]]:
    """The rules that have to be asked, each with the partitions of which one pass told nothing."""
    conditions = {rule.name: rule.holds(subject) for rule in rules if rule.holds}
    held = cleared(subject, conditions)
    # Conditions are of partitions with rows. Without one there is nothing that they could break.
    empty = {k for k in subject.keys if row_count(subject.store.path(subject.table, k)) == 0}
    for rule in rules:
        clear = held[rule.name] | empty if rule.name in conditions else set()
        if keys := [key for key in subject.keys if key not in clear]:
            yield rule, subject.only(keys)


@dataclass(frozen=True)
class Gate:
    """Refuses partitions that break a rule; looks at those that nobody has looked at."""

    calendar: Calendar

    def __call__(self, store: OfflineStore, table: Table, keys: Sequence[str | None]) -> None:
        """Let `keys` of a table pass.

        Raises:
            HeldBack: One of them breaks a rule, and nobody accepted it.
        """
        rules = tuple(rule.name for rule in rules_of(table))
        known = {key: current_verdict(store, table, key) for key in keys}
        verdicts = {key: found for key, found in known.items() if found and found.rules == rules}
        if unseen := [key for key in keys if key not in verdicts]:
            verdicts |= audit(store, self.calendar, table, unseen)
        for key in keys:
            if verdicts[key].holds_back:
                raise HeldBack(held_back(table, key, verdicts[key]))


def held_back(table: Table, key: str | None, verdict: Verdict) -> str:
    """What was found, why that matters and what to do."""
    found = "; ".join(f"{rule} ({what})" for rule, what in verdict.failures.items())
    name = f"{table.name} {key}" if key else table.name
    return (
        f"{name} is held back, nothing is made from it: {found}. Mend its source and materialize "
        f"it again; if it is right as it is, `churn accept {name} --reason WHY` lets it pass."
    )
