"""The files of an input folder: which table each belongs to, and which are not read, and why.

A file belongs to the table that it is named after, in any case: `events.csv`, `Events-2025-01.csv`,
`events_jan.csv.gz`, or any name in a folder that is named so (`events/dt=2025-02-03/part-0.csv`,
`events.parquet/part-00000.parquet`). Every other file is named as not read.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

FORMATS = {
    "parquet": (".parquet", ".pq"),
    "csv": (".csv", ".tsv", ".txt"),
    "json": (".json", ".jsonl", ".ndjson"),
    "workbook": (".xlsx", ".xls", ".xlsb", ".ods"),
}
ENDINGS = tuple(ending for endings in FORMATS.values() for ending in endings)
COMPRESSIONS = (".gz", ".zst", ".bz2", ".zip")
# Files whose numbers have a decimal point, because their format says so.
WITH_DECIMAL_POINT = (
    "[.]("
    + "|".join(ending[1:] for name in ("json", "workbook") for ending in FORMATS[name])
    + ")([.](gz|zst|bz2|zip))?$"
)
# Bytes of text from which on a part of a file is not joined with what follows it.
PART_BYTES = 16 * 2**20
# What a writer leaves beside its files: `_SUCCESS`, `.part-0.crc`, `.DS_Store`.
MARKERS = ("_", ".")


@dataclass(frozen=True)
class Part:
    """Successive rows of a text file.

    Args:
        begin: The byte at which its first row begins.
        size: Its bytes.
        line: The number of its first line.
        encoding: The encoding of the file; None where that is to be found out.
        dialect: How a CSV file is written, as JSON; None where that is to be found out.
        next_line: The number of the line after it; 0 where it is not known.
    """

    begin: int
    size: int
    line: int = 1
    next_line: int = 0
    encoding: str | None = None
    dialect: Mapping[str, Any] | None = None


def part_key(name: str, begin: int) -> str:
    """What tells a part from others: the name of its file, and of later ones where they begin."""
    return f"{name}//{begin}" if begin else name


def file_name(key: str) -> str:
    """The name of the file that a part is of; no path within a folder has two slashes."""
    return key.partition("//")[0]


@dataclass(frozen=True)
class InputFile:
    """A file that can be read.

    Args:
        path: Where it is.
        name: Its path within the input folder, as messages and quarantined rows name it.
        format: A key of FORMATS.
        compression: A suffix of COMPRESSIONS, or "".
        folders: The values of folders like `dt=2025-02-03`, by column.
        part: Which part of the file is meant; None for all of it.
    """

    path: Path
    name: str
    format: str
    compression: str = ""
    folders: Mapping[str, str] = field(default_factory=dict)
    part: Part | None = None

    @property
    def key(self) -> str:
        """The name of the file or, where only a later part of it is meant, of that part."""
        return part_key(self.name, self.part.begin if self.part else 0)


def in_parts(file: InputFile) -> InputFile:
    """A file to be read in parts, where that can be: as one, until it is known where they begin."""
    if file.format not in ("csv", "json") or file.compression:
        return file
    return replace(file, part=Part(0, file.path.stat().st_size))


@dataclass(frozen=True)
class Unread:
    """A file that is not read, and why."""

    name: str
    reason: str


def input_files(folder: Path) -> tuple[list[InputFile], list[Unread]]:
    """Every file below a folder, in the order of their names: those to read, and the others.

    Raises:
        FileNotFoundError: The folder is not there.
        ValueError: A folder is a table of Delta or Iceberg, whose files are not all valid.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"The input folder {folder} is not there. Make it and put events*.parquet, *.csv or "
            "*.jsonl there, or set CHURN_INPUT_DIR."
        )
    files, unread = list[InputFile](), list[Unread]()
    seen = set[str]()
    for root, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            folders.clear()  # a link to a folder above it
            continue
        seen.add(real)
        if kind := _table_with_log(Path(root)):
            raise ValueError(
                f"{root} is a table of {kind}: its folder also holds files that are no longer "
                "part of it. Export it as Parquet."
            )
        folders[:] = sorted(f for f in folders if not f.startswith(MARKERS))
        for name in sorted(names):
            if name.startswith(MARKERS):
                continue
            path = Path(root) / name
            found = input_file(path, path.relative_to(folder).as_posix())
            if isinstance(found, InputFile):
                files.append(found)
            else:
                unread.append(found)
    return sorted(files, key=lambda file: file.name), sorted(unread, key=lambda file: file.name)


def _table_with_log(folder: Path) -> str:
    """Which kind of table with a log of its own a folder is, or ""."""
    if (folder / "_delta_log").is_dir():
        return "Delta"
    return "Iceberg" if any((folder / "metadata").glob("*.metadata.json")) else ""


def input_file(path: Path, name: str) -> InputFile | Unread:
    """A file as its name tells to read it, or why it cannot be read."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes[-2:]]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    ending = suffixes[-1] if suffixes else ""
    file_format = next((f for f, endings in FORMATS.items() if ending in endings), "")
    # An archive may leave it to its only member.
    if not file_format and compression != ".zip":
        known, packed = " ".join(ENDINGS), " ".join(COMPRESSIONS)
        return Unread(name, f"its ending is none of {known}, alone or with {packed}")
    if compression and file_format in ("parquet", "workbook"):
        return Unread(name, f"a compressed {file_format} file is to be unpacked first")
    folders = dict(part.split("=", 1) for part in PurePosixPath(name).parts[:-1] if "=" in part)
    return InputFile(path, name, file_format, compression, folders)


def named_after(file: InputFile, table: str) -> bool | None:
    """Whether a file is named after a table; None where its columns have to decide.

    `events`, `events-2025-01`, `Events (2)` are. `events_jan` may be, as `customers_segments` may
    be something else, and `events.txt` a note.
    """
    first = file.name.partition("/")[0].lower()
    if not first.startswith(table):
        return False
    stem = first
    while (suffix := PurePosixPath(stem).suffix) in (*COMPRESSIONS, *ENDINGS):
        stem = stem.removesuffix(suffix)
    plain = re.fullmatch(r"[\W_\d]*", stem.removeprefix(table)) and ".txt" not in first
    return True if plain else None
