"""Text files as text: unpacked and decoded, line by line.

The encoding of a file is decided once, from all its bytes: that of its byte order mark; else UTF-8
where it is UTF-8 but for a few lines; else UTF-16 by its zero bytes; else Windows-1252, which
holds Latin-1, unless so many letters are not ASCII that it is not of western Europe:
charset-normalizer names it then. A byte that does not fit costs the row that it is in.
"""

import bz2
import codecs
import gzip
import io
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from churn_assets.sources.input_files import InputFile

# Stands for a byte that could not be decoded: a code point that no text has.
UNDECODABLE = "\ufdd0"
# The longer mark of UTF-32 begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
BLOCK = 1 << 20
# Share of bytes with the eighth bit set among letters, in a file of western Europe; of fewer such
# bytes than FEW_ACCENTS nobody can tell.
MOST_ACCENTS, FEW_ACCENTS = 0.25, 200


class UnreadableInput(ValueError):
    """A file that cannot be read at all."""


@contextmanager
def open_text(file: InputFile, encoding: str) -> Iterator[IO[str]]:
    """A file as text, its line ends as they are; what cannot be decoded as UNDECODABLE.

    Args:
        file: A text file.
        encoding: See `text_encoding`.

    Raises:
        UnreadableInput: It cannot be unpacked.
    """
    with unpacked(file) as binary:
        yield io.TextIOWrapper(binary, encoding, errors="churn_assets.undecodable", newline="")


def text_encoding(file: InputFile) -> str:
    """The encoding of a file, as Python names it.

    Raises:
        UnreadableInput: It cannot be unpacked.
    """
    with unpacked(file) as binary:
        block = binary.read(BLOCK)
        for mark, name in MARKS.items():
            if block.startswith(mark):
                return name
        for name, zeros in (("utf-16-le", block[1::2]), ("utf-16-be", block[::2])):
            if len(block) > 3 and zeros.count(0) > len(zeros) / 2:
                return name
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            while block:
                decoder.decode(block)
                block = binary.read(BLOCK)
            decoder.decode(b"", final=True)
            return "utf-8"
        except UnicodeDecodeError:
            pass
    with unpacked(file) as binary:
        return _encoding_of_lines(binary)


def _encoding_of_lines(lines: Iterable[bytes]) -> str:
    """UTF-8 with bad lines, or an encoding of one byte a letter."""
    good = bad = 0
    sample, size = list[bytes](), 0
    for line in lines:
        if line.isascii():
            continue
        try:
            line.decode()
            good += 1
        except UnicodeDecodeError:
            bad += 1
            if size < BLOCK:
                sample.append(line)
                size += len(line)
    if good >= bad:
        return "utf-8"
    letters = b"".join(sample)
    accents = sum(byte > 127 for byte in letters)
    plain = sum(chr(byte).isalpha() for byte in letters if byte < 128)
    if accents < FEW_ACCENTS or accents <= MOST_ACCENTS * (accents + plain):
        return "cp1252"
    from charset_normalizer import from_bytes

    best = from_bytes(letters).best()
    return best.encoding if best else "cp1252"


def _undecodable(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return UNDECODABLE, error.end


codecs.register_error("churn_assets.undecodable", _undecodable)


@contextmanager
def unpacked(file: InputFile) -> Iterator[IO[bytes]]:
    """The bytes of a file without its compression.

    Raises:
        UnreadableInput: It is damaged, encrypted, or an archive of several files.
    """
    import pyarrow as pa

    try:
        match file.compression:
            case ".gz":
                with gzip.open(file.path) as binary:
                    yield binary  # type: ignore[misc]
            case ".bz2":
                with bz2.open(file.path) as binary:
                    yield binary
            case ".zst":
                with pa.OSFile(str(file.path)) as packed:
                    yield io.BufferedReader(pa.CompressedInputStream(packed, "zstd"))
            case ".zip":
                with (
                    zipfile.ZipFile(file.path) as archive,
                    archive.open(_member(archive)) as binary,
                ):
                    yield binary
            case _ if file.part:
                with file.path.open("rb") as binary:
                    binary.seek(file.part.begin)
                    yield io.BufferedReader(_Range(binary, file.part.size))
            case _:
                with file.path.open("rb") as binary:
                    yield binary
    except (EOFError, OSError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise UnreadableInput(f"{file.name} cannot be unpacked: {error}") from error


class _Range(io.RawIOBase):
    """At most some bytes of a file, from where it stands."""

    def __init__(self, binary: IO[bytes], size: int) -> None:
        self._binary, self._left = binary, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        read = self._binary.read(min(len(buffer), self._left))
        buffer[: len(read)] = read
        self._left -= len(read)
        return len(read)


def _member(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """The only file of an archive, but for what macOS adds to it."""
    files = [
        info
        for info in archive.infolist()
        if not info.is_dir() and not info.filename.startswith("__MACOSX/")
    ]
    if len(files) != 1:
        raise zipfile.BadZipFile(f"it holds {len(files)} files, one is needed")
    return files[0]


def archived_name(file: InputFile) -> str:
    """The name of the only file of an archive.

    Raises:
        UnreadableInput: It is damaged, or holds several files.
    """
    try:
        with zipfile.ZipFile(file.path) as archive:
            return _member(archive).filename
    except zipfile.BadZipFile as error:
        raise UnreadableInput(f"{file.name} cannot be unpacked: {error}") from error
