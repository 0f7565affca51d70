"""Verdicts: what the checks found of a partition, kept beside the tables.

Layout: `<CHURN_HOME>/verdicts/<table>/<key>.json`, `whole.json` for a table without partitions. A
verdict is of one content, by its SHA-256: a partition that was replaced, by a run or by hand, has
none until the checks have seen it. A person may accept a content in spite of what was found; that
is kept with who, why and when.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from churn_assets.stores.digests import file_digest
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.staging import write_text
from churn_assets.stores.tables import Table

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Args:
        content: SHA-256 of the partition's file.
        rules: The names of the rules that were looked at.
        failures: What breaks a rule, in words, by rule; empty where the partition is sound.
        warnings: What is worth a look and breaks none.
        accepted: Who accepted the content in spite of it, why and when; None where nobody did.
    """

    content: str
    rules: tuple[str, ...]
    failures: Mapping[str, str]
    warnings: Mapping[str, str]
    accepted: Mapping[str, str] | None = None

    @property
    def holds_back(self) -> bool:
        return bool(self.failures) and self.accepted is None

    @property
    def findings(self) -> dict[str, str]:
        return {**self.failures, **self.warnings}


def verdict_path(home: Path, table: str, key: str | None) -> Path:
    return home / "verdicts" / table / f"{key or 'whole'}.json"


def read_verdict(home: Path, table: str, key: str | None) -> Verdict | None:
    """The verdict of a partition; None where the checks have not seen it, or it is damaged."""
    path = verdict_path(home, table, key)
    try:
        kept = json.loads(path.read_text())
        return Verdict(
            kept["content"],
            tuple(kept["rules"]),
            dict(kept["failures"]),
            dict(kept["warnings"]),
            dict(kept["accepted"]) if kept.get("accepted") else None,
        )
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, LookupError) as error:
        log.warning("%s is damaged (%r), so the partition is checked again.", path, error)
        return None


def write_verdict(home: Path, table: str, key: str | None, verdict: Verdict) -> None:
    """Keep what was found of a partition."""
    write_text(home, verdict_path(home, table, key), json.dumps(asdict(verdict), indent=2))


def current_verdict(store: OfflineStore, table: Table, key: str | None) -> Verdict | None:
    """The verdict of the present content of a partition; None where it has none."""
    verdict = read_verdict(store.home, table.name, key)
    of_content = verdict and verdict.content == file_digest(store.path(table, key))
    return verdict if of_content else None
