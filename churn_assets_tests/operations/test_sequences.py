"""Prevents: changes that end well one by one, and together end in another state.

One small shop is made once. Each example copies it and takes a few steps: a setting changes, the
clock is moved, a file is deleted or damaged, a backfill is killed, the folder is copied. Then only
those commands are run that messages name. In the end every row equals that of a state which had the
last settings from the start.
"""

import datetime as dt
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from churn_assets.features import feature_groups
from churn_assets.models.kinds import ESTIMATORS
from churn_assets.online.server import stop
from churn_assets.online.store import read_version
from churn_assets.operations import remarks
from churn_assets.operations.backfill import BackfillFailed
from churn_assets.operations.forgetting import (
    foreign_partitions,
    forget,
    forget_what_is_to_come,
)
from churn_assets.operations.jobs import STAGES
from churn_assets.stores.identity import identify
from churn_assets_tests.conftest import evaluate_quickly, model_runs, online
from churn_assets_tests.operations.test_changes import ALL, State, assert_equal

JUNE = dt.datetime(2025, 6, 10, tzinfo=dt.UTC)
MOMENTS = (JUNE - dt.timedelta(days=30), JUNE, JUNE + dt.timedelta(days=30))
# What a setting may change to; the first is what the shop begins with.
CHOICES: dict[str, tuple[Any, ...]] = {
    "start": (dt.date(2025, 1, 10), dt.date(2024, 12, 20), dt.date(2025, 1, 25)),
    "horizon_days": (28, 14),
    "end": (None, dt.datetime(2025, 5, 5, tzinfo=dt.UTC)),
    "lookback_days": (30, 45),
    "training_cutoffs": (2, 1),
    "customer_value": (100.0, 20.0),
}
# Two cutoffs with models, three with labels; without CHURN_END, the clock decides.
SMALL = {"synthetic_customers": 40} | {name: values[0] for name, values in CHOICES.items()}
# Reports over everything come after the models and would only cost time.
MADE = [s for s in STAGES if s.name not in ("drift", "realised_performance")]
GROUPS = ("customer_rfm_features", "customer_activity_features", "customer_review_features")
# Commands after which a state is said never to settle.
MOST_COMMANDS = 12


class Killed(BaseException):
    """A process that ends in the middle of a run."""


@dataclass
class Installation:
    """A state folder, the settings and the clock that it is used with."""

    home: Path
    chosen: dict[str, Any] = field(default_factory=dict)
    now: dt.datetime = JUNE

    def __post_init__(self) -> None:
        self.state = State(self.home, **(SMALL | self.chosen))

    def use(self, **changed: Any) -> None:
        """Go on with other settings, as the next command does."""
        self.chosen |= changed
        self.state = State(self.home, **(SMALL | self.chosen))

    def run(self, command: str) -> str:
        """`churn COMMAND`, and why it failed."""
        state = self.state
        identify(state.settings)
        assert state.defs.resources is not None
        state.defs.resources["online_io_manager"].now = lambda: self.now
        forget_what_is_to_come(state.store, state.instance, self.now)
        try:
            match command:
                case "backfill":
                    state.backfill(now=self.now)
                case "backfill --stale":
                    state.refresh(self.now)
                case "backfill --stage topics":
                    state.backfill("topics", now=self.now)
                case "prune":
                    gone = foreign_partitions(state.store, state.instance, self.now)
                    forget(state.store, state.instance, gone)
                case _:
                    raise AssertionError(f"A message names `churn {command}`.")
        except BackfillFailed as failure:
            return str(failure)
        return ""

    def online(self) -> pa.Table:
        """What is served."""
        return read_version(online(self.state.settings))

    def said(self) -> list[str]:
        """What `churn status` says of what the stages make; of what is missing, it gives counts."""
        groups = {group for stage in MADE for group in stage.groups}
        inventory = self.state.inventory(self.now).values()
        rows = [row for row in inventory if row.group in groups]
        missing = [row.asset.path[-1] for row in rows if row.missing]
        counts = [f"{', '.join(missing)}: missing, `churn backfill`."] if missing else []
        return counts + remarks.of_status(rows)

    def settle(self) -> None:
        """Do what messages say until they say nothing."""
        done: list[str] = []
        said = self.said()
        while said:
            commands = list(dict.fromkeys(re.findall("`churn ([^`]*)`", " ".join(said))))
            print(f"  {said} -> {commands}")
            assert commands, said
            failures = []
            for command in commands:
                done.append(command)
                assert len(done) <= MOST_COMMANDS, (done, said)
                if failure := self.run(command):
                    print(f"  churn {command} failed: {failure}")
                    failures.append(failure)
                    break
            said = failures or self.said()


# Something that happens to an installation, and whether a backfill follows.
Step = tuple[Callable[[Installation], None], bool]


@dataclass(frozen=True)
class Set:
    """Another value of a setting."""

    name: str
    value: Any

    def __call__(self, at: Installation) -> None:
        at.use(**{self.name: self.value})


@dataclass(frozen=True)
class Clock:
    """The clock says another time."""

    moment: int

    def __call__(self, at: Installation) -> None:
        at.now = MOMENTS[self.moment]


@dataclass(frozen=True)
class Lose:
    """A file or folder is deleted, or damaged.

    Args:
        what: Of the state folder, as a pattern.
        which: Of those that there are, between 0 and 1.
        damaged: Whether its end is missing, and not all of it.
    """

    what: str
    which: float = 0.0
    damaged: bool = False

    def __call__(self, at: Installation) -> None:
        found = sorted(at.home.glob(self.what))
        if not found:
            return
        path = found[int(self.which * len(found))]
        print(f"  {path.relative_to(at.home)}")
        if path.is_dir():
            shutil.rmtree(path)
        elif self.damaged:
            path.write_bytes(path.read_bytes()[:-20])
        else:
            path.unlink()
        at.use()


@dataclass(frozen=True)
class Kill:
    """A backfill is killed when it has published so many files."""

    command: str
    after: int

    def __call__(self, at: Installation) -> None:
        with killed_after(self.after):
            try:
                at.run(self.command)
            except Killed:
                print("  killed")


@dataclass(frozen=True)
class Copy:
    """The folder is copied, and the copy is used; of a move nothing stays."""

    moved: bool

    def __call__(self, at: Installation) -> None:
        stop(at.home)
        copy = at.home.parent / f"{at.home.name}+"
        shutil.copytree(at.home, copy, ignore=shutil.ignore_patterns("*.sock", "*.lock"))
        if self.moved:
            shutil.rmtree(at.home)
        at.home = copy
        at.use()


@contextmanager
def killed_after(files: int) -> Iterator[None]:
    replace, published = Path.replace, count()

    def replace_or_die(self: Path, target: Any) -> Path:
        if next(published) >= files:
            raise Killed
        return replace(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replace_or_die)
        yield


SCORED = "offline_store/scored_reviews/*/part-0.parquet"
FILES = (
    "offline_store/*/*/part-0.parquet",
    "models/*/*/manifest.json",
    "models/*/cutoff=*",
    "models/*/*/*/*",
    "models/review_topic_model",
    "models/review_topic_model/manifest.json",
    "verdicts/*/*.json",
    "text_scores/*/*.parquet",
    "text_scores",
    "online_store",
    "mlartifacts",
    "feature_registry.yaml",
)

changes = st.one_of(
    # The first example that is drawn is the simplest, so what costs no other state comes first.
    st.builds(Copy, st.booleans()),
    *(
        st.builds(Set, st.just(name), st.sampled_from(values[::-1]))
        for name, values in CHOICES.items()
    ),
    st.builds(Clock, st.sampled_from(range(len(MOMENTS)))),
    st.builds(
        Lose, st.sampled_from(FILES), st.floats(0, 1, exclude_max=True), damaged=st.booleans()
    ),
    st.builds(Lose, st.sampled_from(["installation.json", "dagster"])),
    st.builds(Kill, st.sampled_from(["backfill", "backfill --stale"]), st.integers(0, 80)),
)
sequences = st.lists(st.tuples(changes, st.booleans()), min_size=2, max_size=4)


@dataclass
class Shops:
    """States that had their settings from the start, each made when it is first asked for."""

    folder: Path
    made: dict[str, Installation] = field(default_factory=dict)
    copies: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        # MLflow takes seconds to make its tables.
        model_runs(self.folder / "empty").client.search_experiments()
        self.empty_mlflow = self.folder / "empty" / "mlflow.db"

    def fresh(self, chosen: dict[str, Any], now: dt.datetime) -> Installation:
        name = f"{now:%m} {SMALL | chosen}"
        if name not in self.made:
            home = self.folder / f"fresh{len(self.made)}"
            home.mkdir()
            shutil.copy(self.empty_mlflow, home)
            shop = Installation(home, dict(chosen), now)
            assert not shop.run("backfill")
            self.made[name] = shop
        return self.made[name]

    @contextmanager
    def copy(self) -> Iterator[Installation]:
        """A copy of the shop as it begins."""
        folder = self.folder / f"copy{next(self.copies)}"
        folder.mkdir()
        home = folder / "state"
        shutil.copytree(
            self.fresh({}, JUNE).home, home, ignore=shutil.ignore_patterns("*.sock", "*.lock")
        )
        shop = Installation(home)
        try:
            yield shop
        finally:
            stop(shop.home)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shops]:
    with pytest.MonkeyPatch.context() as patch:
        evaluate_quickly(patch)
        patch.setattr("churn_assets.definitions.ESTIMATORS", ESTIMATORS[:1])
        patch.setattr("churn_assets.operations.plans.STAGES", MADE)
        # Nobody looks at pictures here, and what is read is checked when it is read.
        patch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)
        patch.setattr("churn_assets.operations.contract_checks.definitions", lambda *_: [])
        # What is all-time, what has a window, and what topics are for.
        groups = [g for g in feature_groups() if g.table.name in GROUPS]
        for module in ("definitions", "operations.installation"):
            patch.setattr(f"churn_assets.{module}.feature_groups", lambda *_: groups)
        shops = Shops(tmp_path_factory.mktemp("shops"))
        yield shops
        for shop in shops.made.values():
            stop(shop.home)


# What once ended in another state, or nowhere.
FOUND: list[Sequence[Step]] = [
    # What a clock that was ahead has published stayed online.
    [(Clock(2), True), (Clock(0), False)],
    # Scores that are kept were read though they were damaged, and every ingestion failed.
    [(Lose("text_scores/*/*.parquet", damaged=True), False), (Lose(SCORED, 0.5), True)],
    # Slices of one synthetic shop lay beside those of another.
    [(Set("start", dt.date(2025, 1, 25)), True)],
]


def take(shops: Shops, steps: Sequence[Step]) -> None:
    """Take the steps from the small shop, do what messages say, and compare."""
    with shops.copy() as shop:
        for step, is_backfilled in steps:
            print(f"{step}{', then backfill' if is_backfilled else ''}")
            step(shop)
            if is_backfilled and (failure := shop.run("backfill")):
                print(f"  failed: {failure}")
                assert "`churn " in failure
        print("in the end:")
        shop.settle()
        fresh = shops.fresh(shop.chosen, shop.now)
        assert_equal(shop.state, fresh.state)
        assert shop.online().equals(fresh.online())
        assert shop.state.backfill(now=shop.now) == []


@settings(
    max_examples=20 if ALL else 2,
    deadline=None,
    # To shrink a sequence would take a state for each attempt.
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(sequences)
def test_whatever_happens_ends_in_the_state_that_it_would_have_been_from_the_start(
    shops: Shops, steps: Sequence[Step]
) -> None:
    take(shops, steps)


@pytest.mark.parametrize("steps", FOUND if ALL else [])
def test_what_once_ended_elsewhere(shops: Shops, steps: Sequence[Step]) -> None:
    take(shops, steps)
