"""Arrays of the synthetic shop: draws, windows, and columns of instants, names, ids and money."""

from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Array = npt.NDArray[Any]

DAY_US = 86_400_000_000
EPOCH = date(1970, 1, 1)

INSTANT = pa.timestamp("us", tz="UTC")
MONEY = pa.decimal128(18, 4)


def geometric(rng: np.random.Generator, first: Array, more: Array | float, most: int) -> Array:
    """`first`, and one more with probability `more` again and again, up to `most`."""
    extra = np.log1p(-rng.random(len(first))) / np.log(np.clip(more, 1e-6, 0.95))
    lines: Array = np.minimum(first + np.floor(extra), most).astype(np.int64)
    return lines


def expand(counts: Array) -> tuple[Array, Array]:
    """Per row of groups of these sizes: the group, and the position in it."""
    group = np.repeat(np.arange(len(counts)), counts)
    return group, np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)


def within(at: Array, begin: date, end: date, also: Array | bool = True) -> Array:
    """The rows of the window, by time."""
    rows = np.flatnonzero((at >= microseconds(begin)) & (at < microseconds(end)) & also)
    return rows[np.argsort(at[rows], kind="stable")]


def microseconds(day: date) -> int:
    return (day - EPOCH).days * DAY_US


def yyyymmdd(day: date) -> int:
    return int(f"{day:%Y%m%d}")


def instants(microseconds: Array) -> pa.Array:
    return pa.array(microseconds).cast(INSTANT)


def names_of(names: Sequence[str], index: Array, known: Array | None = None) -> pa.Array:
    return pa.array(names).take(pa.array(index, mask=None if known is None else ~known))


def ids_of(prefix: str, *numbers: Array, known: Array | None = None) -> pa.Array:
    """`<prefix><number>-<number>…`, NULL where not known."""
    mask = None if known is None else ~known
    first, *rest = (pa.array(number, mask=mask).cast(pa.string()) for number in numbers)
    first = pc.binary_join_element_wise(prefix, first, "")
    return pc.binary_join_element_wise(first, *rest, "-") if rest else first


def money(cents: Array, known: Array) -> pa.Array:
    """Exact decimals from cents: Arrow keeps them as 128-bit integers of 1/10,000."""
    words = np.zeros((len(cents), 2), dtype="<i8")
    words[:, 0] = cents * 100
    validity = np.packbits(known, bitorder="little")
    return pa.Array.from_buffers(MONEY, len(cents), [pa.py_buffer(validity), pa.py_buffer(words)])
