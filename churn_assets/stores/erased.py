"""Who was erased: `CHURN_HOME/erased.json`, by which the source never brings them back.

It holds a random key and, of each erased customer, the SHA-256 of that key and the id: who does not
have the file cannot try ids against it, and nobody reads an id out of it. It outlives a reset.

What is in the source stays there: its owner erases it. Until then its rows are left out wherever
the source is read, and counted.
"""

import hashlib
import json
import secrets
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from churn_assets.stores.sql import quoted
from churn_assets.stores.staging import write_text

FILE = "erased.json"

# What stands between the values of a line or of JSON.
SEPARATORS = r"[\s,;|\"\'{}\[\]]+"


@dataclass(frozen=True)
class Erased:
    """The erased customers of an installation.

    Args:
        key: What ids are hashed with.
        customers: The hashes.
        unfinished: While an erasure is not over, the partitions that were stale before it, by
            asset; None otherwise.
    """

    key: str
    customers: frozenset[str] = frozenset()
    unfinished: Mapping[str, Collection[str]] | None = field(default=None)

    @classmethod
    def read(cls, home: Path) -> "Erased":
        """Those of a state folder.

        Raises:
            ValueError: The file is damaged. Nothing is read of the source then, because erased
                customers could come back.
        """
        path = home / FILE
        try:
            kept = json.loads(path.read_text())
            return cls(kept["key"], frozenset(kept["customers"]), kept["unfinished"])
        except FileNotFoundError:
            return cls(secrets.token_hex(16))
        except (ValueError, TypeError, LookupError) as error:
            raise ValueError(
                f"{path} says who was erased, and cannot be read ({error!r}). Restore it from a "
                "backup. If nobody was ever erased, delete it."
            ) from error

    def write(self, home: Path) -> None:
        """Replace the file in one step."""
        kept = asdict(self) | {"customers": sorted(self.customers)}
        write_text(home, home / FILE, json.dumps(kept, indent=2))

    def hash_of(self, customer_id: str) -> str:
        """The hash of an id."""
        return hashlib.sha256(f"{self.key}{customer_id}".encode()).hexdigest()

    def has(self, customer_id: str) -> str:
        """SQL for whether an expression is the id of one of them; NULL is none."""
        return f"coalesce(sha256('{self.key}' || {customer_id}) IN ({self._hashes}), false)"

    def is_in(self, text: str) -> str:
        """SQL for whether a text, such as a line or JSON, has the id of one of them as a value."""
        values = (
            f"list_concat(regexp_split_to_array({text}, '{quoted(SEPARATORS)}'), "
            f'regexp_extract_all({text}, \'"([^"]*)"\', 1))'
        )
        hashes = f"list_transform({values}, lambda value: sha256('{self.key}' || value))"
        return f"coalesce(list_has_any({hashes}, [{self._hashes}]), false)"

    @property
    def _hashes(self) -> str:
        return ", ".join(f"'{customer}'" for customer in sorted(self.customers)) or "''"
