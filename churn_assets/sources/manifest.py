"""The input manifest: which files of the source were seen, when each first was, and what they span.

`CHURN_HOME/input_manifest.json` keeps, for each source table and file, its size, time and digest,
the moment at which this content was first seen, the one at which anything was first seen under its
name, and the time that its rows span. A file whose size and time are as before is not opened. What
was read into which slice is in the footers of the raw tables, so a run that is killed between both
is found by comparing them. Nothing here reads rows.
"""

import datetime as dt
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from churn_assets.cutoffs import epoch_us
from churn_assets.sources.input_files import InputFile
from churn_assets.stores.digests import file_digest, text_digest
from churn_assets.stores.staging import write_text

MANIFEST = "input_manifest.json"


@dataclass(frozen=True)
class SeenFile:
    """What is known of a file; instants are microseconds since 1970.

    Args:
        size: In bytes.
        modified_ns: When it was written, as the file system says.
        digest: SHA-256 of its content.
        first_seen: When a file of its name was first seen.
        seen: When this content was.
        first: The earliest time of its rows; None where that is not known, or no row has one.
        last: The latest.
        spanned: Whether `first` and `last` are known.
    """

    size: int
    modified_ns: int
    digest: str
    first_seen: int
    seen: int
    first: int | None = None
    last: int | None = None
    spanned: bool = False

    def meets(self, begin: int, end: int) -> bool:
        """Whether it may have rows of `[begin, end)`."""
        if not self.spanned:
            return True
        return (
            self.first is not None
            and self.last is not None
            and (self.first < end and self.last >= begin)
        )


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
            table: {name: SeenFile(**entry) for name, entry in files.items()}
            for table, files in kept.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


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
        first_seen = before.first_seen if before else moment
        found[file.name] = SeenFile(stat.st_size, stat.st_mtime_ns, digest, first_seen, moment)
    return found


def with_spans(seen: Seen, spans: Mapping[str, tuple[int | None, int | None]]) -> Seen:
    """The files with the times that their rows span, where it was found."""
    return {
        name: replace(file, first=spans[name][0], last=spans[name][1], spanned=True)
        if name in spans
        else file
        for name, file in seen.items()
    }


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


def files_digest(seen: Seen, begin: int, end: int) -> str:
    """A digest of the contents that may have rows of `[begin, end)`."""
    meeting = sorted((name, f.digest) for name, f in seen.items() if f.meets(begin, end))
    return text_digest(repr(meeting))
