"""What a backfill shows while it runs: a bar per run, its warnings, a line when the run is over."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from churn_assets.cutoffs import utc_now
from churn_assets.operations.plans import Batch
from churn_assets.operations.terminal import marked

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def shown_progress(console: "Console", batch: Batch) -> Iterator[Callable[[str, str], None]]:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    began = utc_now()
    running: list[str] = []
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[step]}", markup=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(batch.label, total=batch.steps, step="")

        def on_step(step: str, what: str) -> None:
            if what == "warned":
                progress.console.print(marked("!", "yellow", step), highlight=False)
                return
            if what == "started":
                running.append(step)
            else:
                running.remove(step)
                progress.advance(task)
            progress.update(task, step=", ".join(running))

        yield on_step
    seconds = (utc_now() - began).total_seconds()
    what = f"{batch.label}: {len(batch.assets)} assets in {seconds:.1f} s"
    console.print(marked("✓", "green", what))
