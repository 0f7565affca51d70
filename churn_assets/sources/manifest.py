"""The input manifest: which files of the source were seen, when each first was, and what they span.

`CHURN_HOME/input_manifest.json` keeps, for each source table and file, and for each part of a text
file that grows, its size, time and digest, the moment at which this content was first seen, the one
at which anything was first seen under its name, and what a reading has found in it: the times that
its rows span, how its columns are written. A file whose size and time are as before is not opened
to find that out. What was read into which slice is in the footers of the raw tables, so a run that
is killed between both is found by comparing them. Nothing here reads rows.
"""

import datetime as dt
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from churn_assets.cutoffs import epoch_us
from churn_assets.sources import input_files
from churn_assets.sources.input_files import InputFile, Part, file_name, part_key
from churn_assets.sources.source import Window
from churn_assets.stores.digests import file_digest, range_digest, text_digest
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

    def meets(self, window: Window) -> bool:
        """Whether there may be rows of a window of times."""
        if self.first is None or self.last is None:
            return False
        begins_before = window.end is None or self.first < epoch_us(window.end)
        return begins_before and (window.begin is None or self.last >= epoch_us(window.begin))


@dataclass(frozen=True)
class SeenFile:
    """What is known of a file, or of a part of one; instants are microseconds since 1970.

    Args:
        size: Bytes of the file.
        modified_ns: When it was written, as the file system says.
        digest: SHA-256 of its content, or of that of the part.
        first_seen: When a file of its name was first seen.
        seen: When this content was.
        contents: What is in it; None where nobody knows without the other files.
        untimed_slice: Which slice's quarantine has its rows without a usable time.
        part: Which part of the file this is; None of a file that is read as a whole.
    """

    size: int
    modified_ns: int
    digest: str
    first_seen: int
    seen: int
    contents: Contents | None = None
    untimed_slice: str | None = None
    part: Part | None = None

    @property
    def begin(self) -> int:
        return self.part.begin if self.part else 0

    @property
    def line(self) -> int:
        """The number of its first line."""
        return self.part.line if self.part and self.part.begin else 0

    @property
    def is_unplaced(self) -> bool:
        """Whether it has rows without a usable time that no slice has yet."""
        return self.contents is not None and self.contents.untimed > 0 and not self.untimed_slice

    def has_untimed_of(self, key: str) -> bool:
        """Whether a slice may have rows of it without a usable time."""
        return self.contents is None or (self.contents.untimed > 0 and self.untimed_slice == key)

    def is_needed(self, window: Window, keys: Iterable[str]) -> bool:
        """Whether it may have rows of a window of times, or without a time of slices."""
        if self.contents is None or self.contents.meets(window):
            return True
        return any(map(self.has_untimed_of, keys))


# By `input_files.part_key`: the name of a file, or a part of it.
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


def _as_json(file: SeenFile) -> dict[str, Any]:
    contents, part = file.contents and vars(file.contents), file.part and vars(file.part)
    return {**vars(file), "contents": contents, "part": part}


def _seen_file(entry: dict[str, Any]) -> SeenFile:
    found = entry.pop("contents")
    if found:
        ways = {c: tuple((n, v, int(line)) for n, v, line in w) for c, w in found["ways"].items()}
        found = Contents(**found | {"ways": ways})
    part = entry.pop("part")
    return SeenFile(**entry, contents=found, part=Part(**part) if part else None)


def look(home: Path, table: str, files: Iterable[InputFile], now: dt.datetime) -> Seen:
    """What is known of the files that a table has now; nothing is written.

    Args:
        home: The state folder.
        table: The source table.
        files: Its files.
        now: The moment at which a new content is seen.
    """
    kept, moment = read_manifest(home).get(table, {}), epoch_us(now)
    of_file: dict[str, list[SeenFile]] = {}
    for key in sorted(kept, key=lambda key: kept[key].begin):
        of_file.setdefault(file_name(key), []).append(kept[key])
    found: dict[str, SeenFile] = {}
    for file in files:
        before, stat = of_file.get(file.name, []), file.path.stat()
        size, modified_ns = stat.st_size, stat.st_mtime_ns
        if before and (before[0].size, before[0].modified_ns) == (size, modified_ns):
            parts = before
        elif file.part is not None and all(part.part for part in before):
            parts = _continued(file, before, size, modified_ns, moment)
        else:
            parts = [_looked_at(file, before[0] if before else None, size, modified_ns, moment)]
        found |= {part_key(file.name, part.begin): part for part in parts}
    return found


def _looked_at(
    file: InputFile, before: SeenFile | None, size: int, modified_ns: int, moment: int
) -> SeenFile:
    """A file that is new or was written since it was looked at."""
    digest = file_digest(file.path)
    if before and before.digest == digest:
        return replace(before, modified_ns=modified_ns)
    return SeenFile(
        size,
        modified_ns,
        digest,
        before.first_seen if before else moment,
        moment,
        untimed_slice=before.untimed_slice if before else None,
        part=file.part,
    )


def _continued(
    file: InputFile, before: Sequence[SeenFile], size: int, modified_ns: int, moment: int
) -> list[SeenFile]:
    """The parts of a file that was written: those that are as they were, and all that follows.

    A part that is short is read again with what follows it, so that a file which grows every day
    has few parts; so is one whose last line has no end.
    """
    parts = [seen.part for seen in before if seen.part]
    with ThreadPoolExecutor() as pool:  # a digest needs no lock of Python's
        now = pool.map(lambda part: range_digest(file.path, part.begin, part.size), parts)
        digests = list(now)
    kept = list[SeenFile]()
    for seen, digest in zip(before, digests, strict=True):
        if seen.digest != digest:
            break
        kept.append(replace(seen, size=size, modified_ns=modified_ns))
    ends = kept[-1].part.begin + kept[-1].part.size if kept and kept[-1].part else 0
    if kept and len(kept) == len(before) and ends == size:
        return kept
    while kept and len(kept) == len(before) and _is_open(file, kept[-1]):
        kept.pop()
    following = before[len(kept)] if len(kept) < len(before) else None
    part, last = Part(0, size), kept[-1].part if kept else None
    if last is not None:
        begin = last.begin + last.size
        part = replace(last, begin=begin, size=size - begin, line=last.next_line, next_line=0)
    new = SeenFile(
        size,
        modified_ns,
        range_digest(file.path, part.begin, part.size),
        before[0].first_seen if before else moment,
        moment,
        untimed_slice=following.untimed_slice if following else None,
        part=part,
    )
    return [*kept, new] if part.size or not kept else kept


def _is_open(file: InputFile, seen: SeenFile) -> bool:
    """Whether what follows a part is read together with it."""
    assert seen.part is not None
    if not seen.part.next_line or seen.part.size < input_files.PART_BYTES:
        return True
    with file.path.open("rb") as binary:
        binary.seek(seen.part.begin + seen.part.size - 1)
        return binary.read(1) not in b"\r\n"


def split(seen: Seen, read: Mapping[str, Sequence[Part]], files: Iterable[InputFile]) -> Seen:
    """What was looked at, with the parts that it was read in."""
    paths = {file.name: file.path for file in files}
    found: dict[str, SeenFile] = {}
    for key, file in seen.items():
        parts = read.get(key, ())
        if file.part in parts or not parts:
            found[key] = file
            continue
        for part in parts:
            digest = range_digest(paths[file_name(key)], part.begin, part.size)
            new = replace(file, digest=digest, part=part)
            found[part_key(file_name(key), part.begin)] = new
    return found


def as_files(files: Iterable[InputFile], seen: Seen) -> list[InputFile]:
    """The files as they are to be read: each of their parts, in order."""
    parts: dict[str, list[SeenFile]] = {}
    for key, found in seen.items():
        parts.setdefault(file_name(key), []).append(found)
    return [
        replace(file, part=part.part)
        for file in files
        for part in sorted(parts.get(file.name, ()), key=lambda found: found.begin)
    ]


def as_whole(seen: Seen, name: str) -> Seen:
    """What was looked at, where a file is to be read as one part again."""
    of_file = {key: file for key, file in seen.items() if file_name(key) == name}
    whole = replace(of_file[name], contents=None, part=Part(0, of_file[name].size))
    others = {key: file for key, file in seen.items() if key not in of_file}
    return {**others, name: whole}


def record(home: Path, table: str, seen: Seen) -> Seen:
    """Keep what is known of files of a table; returns that with what is known of its other files.

    A file that is gone is no delivery: what was read from it stays as it was read.
    """
    kept, names = read_manifest(home), {file_name(key) for key in seen}
    gone = {k: file for k, file in kept.get(table, {}).items() if file_name(k) not in names}
    known = {**gone, **seen}
    if known == kept.get(table, {}):
        return known
    kept[table] = known
    text = json.dumps(
        {name: {key: _as_json(file) for key, file in files.items()} for name, files in kept.items()}
    )
    write_text(home, home / MANIFEST, text)
    return known


def files_digest(seen: Seen, key: str, window: Window) -> str:
    """A digest of the contents of which a slice may have rows, of its window or without a time."""
    kept = (name for name, file in seen.items() if file.is_needed(window, [key]))
    return text_digest(repr([(name, seen[name].digest) for name in sorted(kept)]))
