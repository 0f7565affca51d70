"""The input manifest: which files of the source were seen, when each first was, and what they span.

`CHURN_HOME/input_manifest.json` keeps, for each source table and file, its size, time and digest,
the moment at which this content was first seen, the one at which anything was first seen under its
name, and what a reading has found in it: the times that its rows span, how its columns are written.
A file whose size and time are as before is not opened to find that out. What was read into which
slice is in the footers of the raw tables, so a run that is killed between both is found by
comparing them. Nothing here reads rows.
"""

import datetime as dt
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from churn_assets.cutoffs import epoch_us
from churn_assets.sources.input_files import InputFile
from churn_assets.sources.source import Window
from churn_assets.stores.digests import file_digest, text_digest
from churn_assets.stores.staging import write_text

MANIFEST = "input_manifest.json"


@dataclass(frozen=True)
class Contents:
    """What a reading of a whole file has found in it; instants are microseconds since 1970.

    Args:
        rows: How many rows it has, lines that are none included.
        untimed: How many of them have no usable time.
        first_untimed: The first of these, in words.
        first: The earliest time of its rows; None where no row has one.
        last: The latest.
        dtypes: The type of each column of ours that it has.
        ways: How columns are written: for each the ways, with the first value of each and its line.
        read_by: A digest of the definitions by which all this was found.
    """

    rows: int
    untimed: int
    first_untimed: str | None
    first: int | None
    last: int | None
    dtypes: Mapping[str, str]
    ways: Mapping[str, Sequence[tuple[str, str, int]]]
    read_by: str


@dataclass(frozen=True)
class SeenFile:
    """What is known of a file; instants are microseconds since 1970.

    Args:
        size: In bytes.
        modified_ns: When it was written, as the file system says.
        digest: SHA-256 of its content.
        first_seen: When a file of its name was first seen.
        seen: When this content was.
        contents: What is in it; None where nobody knows without the other files.
        untimed_slice: Which slice's quarantine has its rows without a usable time.
    """

    size: int
    modified_ns: int
    digest: str
    first_seen: int
    seen: int
    contents: Contents | None = None
    untimed_slice: str | None = None

    def meets(self, window: Window) -> bool:
        """Whether it may have rows of a window of times."""
        if self.contents is None:
            return True
        first, last = self.contents.first, self.contents.last
        if first is None or last is None:
            return False
        begins_before = window.end is None or first < epoch_us(window.end)
        return begins_before and (window.begin is None or last >= epoch_us(window.begin))

    @property
    def is_unplaced(self) -> bool:
        """Whether it has rows without a usable time that no slice has yet."""
        return self.contents is not None and self.contents.untimed > 0 and not self.untimed_slice

    def has_untimed_of(self, key: str) -> bool:
        """Whether a slice may have rows of it without a usable time."""
        return self.contents is None or (self.contents.untimed > 0 and self.untimed_slice == key)


# By the name of a file.
Seen = Mapping[str, SeenFile]


def read_manifest(home: Path) -> dict[str, dict[str, SeenFile]]:
    """What is kept, by source table and file.

    A manifest that cannot be read is as none: rows that are in the raw tables keep the moment at
    which they became known, and files count as seen when they are looked at next.
    """
    try:
        kept = json.loads((home / MANIFEST).read_text())
        return {
            table: {name: _seen_file(entry) for name, entry in files.items()}
            for table, files in kept.items()
        }
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return {}


def _seen_file(entry: dict[str, Any]) -> SeenFile:
    found = entry.pop("contents")
    if found:
        ways = {c: tuple((n, v, int(line)) for n, v, line in w) for c, w in found["ways"].items()}
        found = Contents(**found | {"ways": ways})
    return SeenFile(**entry, contents=found)


def look(home: Path, table: str, files: Iterable[InputFile], now: dt.datetime) -> Seen:
    """What is known of the files that a table has now; nothing is written.

    Args:
        home: The state folder.
        table: The source table.
        files: Its files.
        now: The moment at which a new content is seen.
    """
    kept, moment = read_manifest(home).get(table, {}), epoch_us(now)
    found: dict[str, SeenFile] = {}
    for file in files:
        stat = file.path.stat()
        before = kept.get(file.name)
        if before and (before.size, before.modified_ns) == (stat.st_size, stat.st_mtime_ns):
            found[file.name] = before
            continue
        digest = file_digest(file.path)
        if before and before.digest == digest:
            found[file.name] = replace(before, modified_ns=stat.st_mtime_ns)
            continue
        found[file.name] = SeenFile(
            stat.st_size,
            stat.st_mtime_ns,
            digest,
            before.first_seen if before else moment,
            moment,
            untimed_slice=before.untimed_slice if before else None,
        )
    return found


def record(home: Path, table: str, seen: Seen) -> Seen:
    """Keep what is known of files of a table; returns that with what is known of its other files.

    A file that is gone is no delivery: what was read from it stays as it was read.
    """
    kept = read_manifest(home)
    known = {**kept.get(table, {}), **seen}
    if known == kept.get(table, {}):
        return known
    kept[table] = known
    text = json.dumps(
        {
            name: {file: asdict(entry) for file, entry in files.items()}
            for name, files in kept.items()
        }
    )
    write_text(home, home / MANIFEST, text)
    return known


def files_digest(seen: Seen, key: str, window: Window) -> str:
    """A digest of the contents of which a slice may have rows, of its window or without a time."""
    kept = (name for name, file in seen.items() if file.meets(window) or file.has_untimed_of(key))
    return text_digest(repr([(name, seen[name].digest) for name in sorted(kept)]))
