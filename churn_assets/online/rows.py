"""Packs the features of one customer at one cutoff into bytes, for the online store.

Grain: one row per customer and cutoff. A row is little-endian:

    format (1 byte) | schema id (4) | cutoff, days since 1970 (4) | null bitmap |
    a number per column, 0 where NULL, lengths for strings | the strings in UTF-8

A codec belongs to one table: it stores each column in the narrowest number that keeps every bit of
that table. Its `schema` is published with the rows, and a reader builds its codec from that.
Every value comes back exactly: NULL, NaN, ±0.0, infinities, empty strings.

This module must not talk to a server.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

FORMAT = 1  # of rows and of their schema; a reader refuses any other

ROWS_PER_CHUNK = 16_384  # about 6 MB: no second copy of a large table, and few calls

UNIX_DAY = date(1970, 1, 1)
UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# Arrow type → the struct and numpy code of the numbers it is made of (for strings: lengths).
PHYSICAL = {
    "int32": "i",
    "int64": "q",
    "double": "d",
    "bool": "b",
    "string": "q",
    "date32[day]": "i",
    "timestamp[us, tz=UTC]": "q",
}
# The codes of numbers in a row, as `_narrowest` chooses them.
STORAGES = frozenset("bhiqfd")

# Integers and strings need no conversion.
TO_PYTHON: dict[str, Callable[[Any], Any]] = {
    "double": float,
    "bool": bool,
    "date32[day]": lambda days: UNIX_DAY + timedelta(days=days),
    "timestamp[us, tz=UTC]": lambda micros: UNIX_EPOCH + timedelta(microseconds=micros),
}


class OnlineStoreError(RuntimeError):
    """The store or a table cannot be used; the message says what, why and how to fix it."""


def not_as_published(what: str) -> OnlineStoreError:
    """Of what somebody else wrote, which the message does not repeat."""
    return OnlineStoreError(
        f"{what} in the online store is not as it was published: something else wrote there. "
        "Publish again: materialize online_features of the newest cutoff."
    )


@dataclass(frozen=True)
class Column:
    """`dtype` is the Arrow type, `storage` the code of the number that a row has for it."""

    name: str
    dtype: str
    storage: str


@dataclass(frozen=True)
class RowCodec:
    """Encodes and decodes the rows of one table of one cutoff."""

    columns: tuple[Column, ...]
    cutoff: date

    @classmethod
    def from_schema(cls, schema: dict[str, Any], cutoff: date) -> RowCodec:
        """The inverse of `schema`. Raises OnlineStoreError for an unknown format or column."""
        if schema["format"] != FORMAT:
            raise OnlineStoreError(
                f"The rows have format {schema['format']}, this code reads format {FORMAT}: "
                "another release published them. Use that one, or publish again with this one."
            )
        columns = tuple(Column(*column) for column in schema["columns"])
        names = [column.name for column in columns]
        if not all(
            isinstance(c.name, str) and c.dtype in PHYSICAL and c.storage in STORAGES
            for c in columns
        ) or len({*names}) < len(names):
            raise not_as_published("The list of columns")
        return cls(columns, cutoff)

    @cached_property
    def schema(self) -> dict[str, Any]:
        """Format and columns, for JSON."""
        columns = [[column.name, column.dtype, column.storage] for column in self.columns]
        return {"format": FORMAT, "columns": columns}

    @cached_property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    @cached_property
    def converted(self) -> list[Column]:
        """The columns whose value is not the number that a row has for them."""
        kinds = {"string", *TO_PYTHON}
        return [c for c in self.columns if c.dtype in kinds and c.storage not in "fd"]

    @cached_property
    def header(self) -> bytes:
        """What every row starts with: format, schema id, cutoff."""
        schema_id = hashlib.sha256(json.dumps(self.schema).encode()).digest()[:4]
        return struct.pack("<B4si", FORMAT, schema_id, (self.cutoff - UNIX_DAY).days)

    @cached_property
    def fixed(self) -> struct.Struct:
        """The fixed-width part of a row: header, null bitmap, numbers."""
        codes = "".join(column.storage for column in self.columns)
        return struct.Struct(f"<{len(self.header)}s{math.ceil(len(codes) / 8)}s{codes}")

    @cached_property
    def fixed_dtype(self) -> np.dtype[Any]:
        """The same for numpy: fields `header`, `nulls`, and `0`, `1`, … for the columns."""
        import numpy as np

        numbers = [(str(i), f"<{column.storage}") for i, column in enumerate(self.columns)]
        nulls = ("nulls", "u1", (math.ceil(len(numbers) / 8),))
        return np.dtype([("header", f"V{len(self.header)}"), nulls, *numbers])

    @classmethod
    def encode(cls, features: pa.Table, cutoff: date) -> tuple[RowCodec, pa.ChunkedArray]:
        """The codec that fits `features`, and one packed row per row of it."""
        import pyarrow as pa

        for field in features.schema:
            if str(field.type) not in PHYSICAL:
                raise OnlineStoreError(
                    f"Column {field.name} is {field.type}, which has no form in the online store. "
                    f"Cast it to one of: {', '.join(PHYSICAL)}."
                )
        starts = range(0, max(1, len(features)), ROWS_PER_CHUNK)
        parts = [features.slice(start, ROWS_PER_CHUNK) for start in starts]
        with ThreadPoolExecutor(2) as threads:
            storages = threads.map(lambda values: _narrowest(_numbers(values)), features.columns)
            columns = (
                Column(field.name, str(field.type), storage)
                for field, storage in zip(features.schema, storages, strict=True)
            )
            codec = cls(tuple(columns), cutoff)
            return codec, pa.chunked_array(list(threads.map(codec._pack, parts)))

    def _pack(self, features: pa.Table) -> pa.Array:
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        fixed = np.empty(len(features), self.fixed_dtype)
        fixed["header"] = np.void(self.header)
        nulls = np.array([values.is_null().to_numpy() for values in features.columns], bool)
        fixed["nulls"] = np.packbits(nulls, axis=0, bitorder="little").T
        for i, values in enumerate(features.columns):
            fixed[str(i)] = _numbers(values)
        ends = np.arange(len(fixed) + 1, dtype=np.int64) * self.fixed.size
        buffers = [None, pa.py_buffer(ends), pa.py_buffer(fixed.view("u1"))]
        parts = [pa.Array.from_buffers(pa.large_binary(), len(fixed), buffers)]
        for values in features.columns:
            if values.type == pa.string():
                text = values.combine_chunks().cast(pa.large_binary())
                parts.append(pc.fill_null(text, b""))
        return pc.binary_join_element_wise(*parts, pa.scalar(b"", pa.large_binary()))

    def decode(self, row: bytes) -> dict[str, Any]:
        """The features of one packed row. Raises OnlineStoreError for a row of another kind."""
        self._require_header(row)
        _, nulls, *numbers = self.fixed.unpack_from(row)
        features: dict[str, Any] = dict(zip(self.names, numbers, strict=True))
        end = self.fixed.size
        try:
            for column in self.converted:
                value = features[column.name]
                if column.dtype == "string":
                    start, end = end, end + value
                    features[column.name] = row[start:end].decode()
                    if value < 0:
                        raise not_as_published("A row")
                else:
                    features[column.name] = TO_PYTHON[column.dtype](value)
        except (ValueError, OverflowError):  # a text that is no UTF-8, a day that is none
            raise not_as_published("A row") from None
        if end != len(row):
            raise not_as_published("A row")
        null_bits = int.from_bytes(nulls, "little")
        while null_bits:
            last = null_bits.bit_length() - 1
            features[self.names[last]] = None
            null_bits -= 1 << last
        return features

    def decode_table(self, rows: Sequence[bytes]) -> pa.Table:
        """The inverse of `encode`. Raises OnlineStoreError for a row of another kind."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        for row in rows:
            self._require_header(row)
        size = self.fixed.size
        fixed = np.frombuffer(b"".join(row[:size] for row in rows), self.fixed_dtype)
        nulls = np.unpackbits(fixed["nulls"], axis=1, bitorder="little").astype(bool)

        # All strings as one flat Arrow array, row by row; each column is every k-th of them.
        texts = [i for i, column in enumerate(self.columns) if column.dtype == "string"]
        lengths = np.array([fixed[str(i)] for i in texts], np.int64).T
        lengths = lengths.reshape(len(rows), len(texts))
        # Arrow reads at these places without looking.
        if (lengths < 0).any() or [*map(len, rows)] != (size + lengths.sum(axis=1)).tolist():
            raise not_as_published("A row")
        ends = np.concatenate([[0], np.cumsum(lengths)])
        buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(row[size:] for row in rows))]
        flat = pa.Array.from_buffers(pa.large_binary(), lengths.size, buffers)

        schema = _arrow_schema(self.columns)
        arrays = []
        for i, field in enumerate(schema):
            null = nulls[:, i]
            if i in texts:
                text = flat.take(pa.array(np.arange(texts.index(i), len(flat), len(texts))))
                values = pc.if_else(pa.array(null), None, text)
            else:
                code = PHYSICAL[self.columns[i].dtype]
                values = pa.array(fixed[str(i)].astype(f"<{code}"), mask=null)
            try:
                arrays.append(values.cast(field.type))
            except ValueError:
                raise not_as_published("A row") from None
        return pa.table(arrays, schema=schema)

    def _require_header(self, row: bytes) -> None:
        if row[: len(self.header)] != self.header or len(row) < self.fixed.size:
            raise OnlineStoreError(
                f"A row starts with {row[: len(self.header)].hex()}, its version with "
                f"{self.header.hex()} (format, schema id, cutoff): something else wrote into "
                "this version. Delete its keys, churn:<installation>:<version>:*, and publish "
                "again."
            )


def _numbers(values: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """What a row has for each value in its fixed-width part, before it is made narrow."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if values.type == pa.string():
        values = pc.binary_length(values)
    elif values.type != pa.float64():
        values = values.cast(pa.int32() if PHYSICAL[str(values.type)] == "i" else pa.int64())
    numbers: np.ndarray[Any, Any] = pc.fill_null(values, 0).to_numpy()
    return numbers


def _narrowest(numbers: np.ndarray[Any, Any]) -> str:
    """The first code that keeps every bit of `numbers`. Many features are counts and days, which
    fit one or two bytes; 70 columns of 8 bytes alone would exceed 0.45 KB per customer.
    """
    import numpy as np

    bits = f"u{numbers.itemsize}"
    codes = "bhifd" if numbers.dtype.kind == "f" else "bhiq"
    with np.errstate(invalid="ignore", over="ignore"):
        for code in codes[:-1]:
            restored = numbers.astype(code).astype(numbers.dtype)
            if np.array_equal(restored.view(bits), numbers.view(bits)):
                return code
    return codes[-1]


def _arrow_schema(columns: Sequence[Column]) -> pa.Schema:
    import pyarrow as pa

    types = [pa.int32(), pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.date32()]
    by_name = {str(dtype): dtype for dtype in [*types, pa.timestamp("us", "UTC")]}
    return pa.schema([(column.name, by_name[column.dtype]) for column in columns])
