"""Time: cutoffs, slices, windows and the five partition definitions. All date arithmetic is here.

A cutoff `C` is a UTC midnight at which we pretend to stand; a slice is one cadence period of raw
data, `[K, next K)`. Windows are half-open: features see `[C - N days, C)`, labels see
`[C, C + horizon)`. Because every boundary is a UTC midnight, windows of whole days are exact on
the integer `day` (days since 1970-01-01) of the rollups.

With `end` set, history is closed and the partitions depend on `end` alone. Without it they follow
the clock that Dagster passes in (`now` is an argument of every function that needs one).
"""

import datetime as dt
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import dagster as dg

KEY_FORMAT = "%Y-%m-%d"
DAY_US = 86_400_000_000
EPOCH = dt.date(1970, 1, 1)

# Groups with all-time features depend on every earlier slice. Dagster has no mapping without a
# bound, and walks the periods one by one: twenty years cost it 10 ms (monthly) to 45 ms (weekly).
HISTORY_YEARS = 20


class Cadence(StrEnum):
    """How often there is a cutoff."""

    MONTHLY = "monthly"
    WEEKLY = "weekly"
    DAILY = "daily"

    @property
    def cron(self) -> str:
        """The cron schedule whose ticks are the boundaries: month firsts, Mondays or midnights."""
        return {"monthly": "0 0 1 * *", "weekly": "0 0 * * 1", "daily": "0 0 * * *"}[self]

    @property
    def periods_per_year(self) -> int:
        return {"monthly": 12, "weekly": 53, "daily": 366}[self]


def parse_key(key: str) -> dt.date:
    """The date of a partition key `YYYY-MM-DD`."""
    return dt.date.fromisoformat(key)


def day_number(day: dt.date) -> int:
    """Days since 1970-01-01: how rollups and feature queries count days."""
    return (day - EPOCH).days


def from_day_number(number: int | None) -> dt.date | None:
    """The day of a number that `day_number` gave."""
    return None if number is None else EPOCH + dt.timedelta(days=number)


def utc_now() -> dt.datetime:
    """The present, for callers that are not given another one."""
    return dt.datetime.now(dt.UTC)


def epoch_us(instant: dt.datetime) -> int:
    """Microseconds since 1970-01-01: how instants are kept as numbers."""
    return (instant - midnight(EPOCH)) // dt.timedelta(microseconds=1)


def midnight(day: dt.date) -> dt.datetime:
    """The UTC instant at which `day` begins."""
    return dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC)


def _midnights_until(instant: dt.datetime) -> dt.date:
    """The first day whose midnight is at or after `instant`."""
    return (instant.astimezone(dt.UTC) + dt.timedelta(days=1, microseconds=-1)).date()


@dataclass(frozen=True)
class Calendar:
    """The boundaries, windows and partitions that follow from the settings.

    Args:
        start: Day on which data begins; rows before it are not history.
        end: Instant at which history stops, or None: then "now" counts.
        cadence: How often there is a cutoff.
        lookback_days: Activity window and population rule, in days.
        horizon_days: How far labels look ahead, in days.
        training_cutoffs: The number of mature cutoffs that a model is trained on.
    """

    start: dt.date
    end: dt.datetime | None = None
    cadence: Cadence = Cadence.MONTHLY
    lookback_days: int = 90
    horizon_days: int = 28
    training_cutoffs: int = 12

    def __post_init__(self) -> None:
        if self.end is not None and self.end <= midnight(self.start):
            raise ValueError(
                f"CHURN_END ({self.end:%Y-%m-%d %H:%M}) is not after CHURN_START ({self.start}): "
                "there is no history between them. Set CHURN_END later or CHURN_START earlier."
            )

    # Boundaries

    def floor(self, day: dt.date) -> dt.date:
        """The cadence boundary at or before `day`."""
        match self.cadence:
            case Cadence.MONTHLY:
                return day.replace(day=1)
            case Cadence.WEEKLY:
                return day - dt.timedelta(days=day.weekday())
            case Cadence.DAILY:
                return day

    def is_boundary(self, key: str) -> bool:
        """Whether a partition key is one of this cadence."""
        return self.floor(parse_key(key)) == parse_key(key)

    def ceil(self, day: dt.date) -> dt.date:
        """The cadence boundary at or after `day`."""
        boundary = self.floor(day)
        return boundary if boundary == day else self.shift(boundary, 1)

    def shift(self, boundary: dt.date, periods: int) -> dt.date:
        """The boundary that is `periods` later (earlier where negative)."""
        match self.cadence:
            case Cadence.MONTHLY:
                months = boundary.year * 12 + boundary.month - 1 + periods
                return dt.date(months // 12, months % 12 + 1, 1)
            case Cadence.WEEKLY:
                return boundary + dt.timedelta(weeks=periods)
            case Cadence.DAILY:
                return boundary + dt.timedelta(days=periods)

    def between(self, first: dt.date, last: dt.date) -> Iterator[dt.date]:
        """The boundaries from `first` to `last`, both included."""
        while first <= last:
            yield first
            first = self.shift(first, 1)

    def _periods_covering(self, days: int) -> int:
        """The smallest number of periods that lasts at least `days` wherever it begins."""
        match self.cadence:
            case Cadence.MONTHLY:
                # 2097 to 2103 has no leap day, so no run of months is shorter than its shortest.
                starts = [dt.date(2097, month, 1) for month in range(1, 13)]
                periods = 1
                while min((self.shift(s, periods) - s).days for s in starts) < days:
                    periods += 1
                return periods
            case Cadence.WEEKLY:
                return math.ceil(days / 7)
            case Cadence.DAILY:
                return days

    @cached_property
    def lag(self) -> int:
        """Periods after which the labels of any cutoff are mature."""
        return self._periods_covering(self.horizon_days)

    def contiguous(self, keys: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """The blocks of successive partition keys, which one run can make as a range."""
        block: list[str] = []
        for key in keys:
            if block and self.shift(parse_key(block[-1]), 1) != parse_key(key):
                yield tuple(block)
                block = []
            block.append(key)
        if block:
            yield tuple(block)

    def slice_of(self, timestamp: str) -> str:
        """SQL for the slice of a TIMESTAMPTZ, which is slow to truncate as such."""
        unit = {"monthly": "month", "weekly": "week", "daily": "day"}[self.cadence]
        return f"CAST(date_trunc('{unit}', make_timestamp(epoch_us({timestamp}))) AS DATE)"

    # The first and, with `end`, the last partition of every definition

    @property
    def first_slice(self) -> dt.date:
        return self.floor(self.start)

    @property
    def first_cutoff(self) -> dt.date:
        """The first cutoff whose whole lookback has data."""
        return self.ceil(self.start + dt.timedelta(days=self.lookback_days))

    @property
    def first_scored(self) -> dt.date:
        """The first cutoff with a mature hold-out and, an embargo before it, a training cutoff."""
        return self.shift(self.first_cutoff, 2 * self.lag)

    def _partitions(
        self, first: dt.date, end_offset: int, last: dt.date | None
    ) -> dg.TimeWindowPartitionsDefinition:
        if self.end is None:
            return dg.TimeWindowPartitionsDefinition(
                start=first.isoformat(),
                fmt=KEY_FORMAT,
                cron_schedule=self.cadence.cron,
                end_offset=end_offset,
            )
        assert last is not None
        keys = len(list(self.between(first, last)))
        # Dagster drops a window that is not over yet, and counts `end_offset` from now: an offset
        # as large as the definition itself makes `end` the only bound.
        return dg.TimeWindowPartitionsDefinition(
            start=first.isoformat(),
            end=(self.shift(last, 1) if keys else first).isoformat(),
            fmt=KEY_FORMAT,
            cron_schedule=self.cadence.cron,
            end_offset=keys,
        )

    @property
    def last_slice(self) -> dt.date | None:
        """The last period that begins before `end`."""
        if self.end is None:
            return None
        return self.floor(_midnights_until(self.end) - dt.timedelta(days=1))

    @property
    def _last_cutoff(self) -> dt.date | None:
        return self.end and self.floor(self.end.date())

    @property
    def _last_labeled(self) -> dt.date | None:
        return self.end and self.floor((self.end - dt.timedelta(days=self.horizon_days)).date())

    # Partition definitions

    @cached_property
    def slices(self) -> dg.TimeWindowPartitionsDefinition:
        """Periods that have ended; with `end`, those that begin before it."""
        return self._partitions(self.first_slice, 0, self.last_slice)

    @cached_property
    def cutoffs(self) -> dg.TimeWindowPartitionsDefinition:
        """Every cutoff up to now, the newest included."""
        return self._partitions(self.first_cutoff, 1, self._last_cutoff)

    @cached_property
    def labeled_cutoffs(self) -> dg.TimeWindowPartitionsDefinition:
        """Cutoffs whose labels are mature; an immature partition does not exist."""
        return self._partitions(self.first_cutoff, 1 - self.lag, self._last_labeled)

    @cached_property
    def scored_cutoffs(self) -> dg.TimeWindowPartitionsDefinition:
        """Cutoffs for which a model can be trained on labels that were mature by then."""
        return self._partitions(self.first_scored, 1, self._last_cutoff)

    @cached_property
    def realised_cutoffs(self) -> dg.TimeWindowPartitionsDefinition:
        """Scored cutoffs whose own labels are mature by now."""
        return self._partitions(self.first_scored, 1 - self.lag, self._last_labeled)

    # Partition mappings, read as "a partition at C needs …"

    def slices_before(self, days: float) -> dg.TimeWindowPartitionMapping:
        """The slices of `[C - days, C)`; every slice before `C`, up to `HISTORY_YEARS`, for inf."""
        periods = (
            HISTORY_YEARS * self.cadence.periods_per_year
            if math.isinf(days)
            else self._periods_covering(int(days))
        )
        return dg.TimeWindowPartitionMapping(
            start_offset=-periods, end_offset=-1, allow_nonexistent_upstream_partitions=True
        )

    @property
    def horizon_slices(self) -> dg.TimeWindowPartitionMapping:
        """The slices of `[C, C + horizon)`."""
        return dg.TimeWindowPartitionMapping(
            start_offset=0,
            end_offset=self.lag - 1,
            allow_nonexistent_upstream_partitions=True,
        )

    @property
    def same_cutoff(self) -> dg.TimeWindowPartitionMapping:
        """The partition of `C` itself."""
        return dg.TimeWindowPartitionMapping()

    @property
    def same_and_previous_cutoff(self) -> dg.TimeWindowPartitionMapping:
        """The partitions of `C` and of the cutoff before, where there is one."""
        return dg.TimeWindowPartitionMapping(
            start_offset=-1, allow_nonexistent_upstream_partitions=True
        )

    @property
    def mature_cutoffs(self) -> dg.TimeWindowPartitionMapping:
        """The cutoffs that a model at `C` may learn from: never nearer than `C - lag`."""
        return dg.TimeWindowPartitionMapping(
            # The hold-out, the embargo before it, and the training cutoffs before that.
            start_offset=-(2 * self.lag + self.training_cutoffs - 1),
            end_offset=-self.lag,
            allow_nonexistent_upstream_partitions=True,
        )

    # Questions

    def _is_of_labels(self, definition: dg.TimeWindowPartitionsDefinition) -> bool:
        # By identity: definitions with the same keys are equal, and mean different things.
        return definition is self.labeled_cutoffs or definition is self.realised_cutoffs

    def keys(self, definition: dg.TimeWindowPartitionsDefinition, now: dt.datetime) -> list[str]:
        """The partition keys that exist at `now`.

        During the period before the first cutoff, Dagster already lists it: with a positive
        `end_offset` it takes the first window to be the current one. Here it waits for its moment.
        """
        keys = definition.get_partition_keys(current_time=now)
        return [key for key in keys if self.end is not None or midnight(parse_key(key)) <= now]

    def outlook(self, now: dt.datetime) -> list[tuple[str, dt.date, list[str]]]:
        """What history allows for: the name, the day from which it exists, its cutoffs by now."""
        return [
            ("features", self.first_cutoff, self.keys(self.cutoffs, now)),
            ("labels", self.matures_on(self.first_cutoff), self.keys(self.labeled_cutoffs, now)),
            ("models", self.first_scored, self.keys(self.scored_cutoffs, now)),
        ]

    def require_arrived(self, keys: Sequence[str], now: dt.datetime) -> None:
        """Refuse cutoffs that are still to come.

        Raises:
            ValueError: A cutoff is later than `now`.
        """
        for key in keys:
            if self.end is None and midnight(parse_key(key)) > now:
                raise ValueError(
                    f"Cutoff {key} is still to come, now is {now:%Y-%m-%d %H:%M}: what is known by "
                    f"then is not known yet. Materialize it from {key} on."
                )

    def require_past_end(self, now: dt.datetime) -> None:
        """Refuse a `CHURN_END` that is still to come: its partitions would exist before their data.

        Raises:
            ValueError: History is set to stop in the future.
        """
        if self.end is not None and self.end > now:
            raise ValueError(
                f"CHURN_END ({self.end:%Y-%m-%d %H:%M}) lies in the future, now is "
                f"{now:%Y-%m-%d %H:%M}. Unset it: without CHURN_END, history goes up to now."
            )

    def first_training_cutoff(self, cutoff: dt.date) -> dt.date:
        """The oldest cutoff that a model at `cutoff` may learn from."""
        return self.shift(cutoff, -(2 * self.lag + self.training_cutoffs - 1))

    def slice_window(self, key: str) -> tuple[dt.datetime, dt.datetime]:
        """`[begin, end)` of a slice; the last one ends where history stops."""
        first = parse_key(key)
        after = midnight(self.shift(first, 1))
        return midnight(first), after if self.end is None else min(after, self.end)

    def labels_known_before(self, cutoff: dt.date) -> dt.date:
        """The day before which a row became known that counts for the labels of `cutoff`."""
        return self.shift(cutoff, self.lag) if self.end is None else _midnights_until(self.end)

    def matures_on(self, cutoff: dt.date) -> dt.date:
        """The day from whose midnight on the labels of `cutoff` may exist."""
        ends = cutoff + dt.timedelta(days=self.horizon_days)
        return ends if self.end is not None else self.shift(cutoff, self.lag)

    def require(
        self,
        definition: dg.TimeWindowPartitionsDefinition,
        keys: Sequence[str],
        now: dt.datetime,
    ) -> None:
        """Refuse partition keys that do not exist, saying what, why and from when.

        Raises:
            ValueError: A key is no boundary, lies outside history, or is not mature yet.
        """
        existing = self.keys(definition, now)
        for key in keys:
            if key in existing:
                continue
            day = parse_key(key)
            newest = f"{existing[0]} … {existing[-1]}" if existing else "none"
            moment = f"CHURN_END is {self.end:%Y-%m-%d}" if self.end else f"today is {now:%Y-%m-%d}"
            if day != self.floor(day):
                why = f"{self.cadence} cutoffs are at {self.floor(day)} and {self.ceil(day)}"
            elif self._is_of_labels(definition) and day > (
                parse_key(existing[-1]) if existing else dt.date.min
            ):
                why = f"its labels mature on {self.matures_on(day)}; {moment}"
            else:
                why = f"it lies outside history (CHURN_START is {self.start}; {moment})"
            raise ValueError(f"There is no partition {key}: {why}. Existing partitions: {newest}.")
