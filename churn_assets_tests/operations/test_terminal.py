"""Prevents: a value of somebody's file that restyles what a command shows, or breaks it."""

import ast
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.table import Table

import churn_assets
from churn_assets.operations.inspection import InspectedColumn, InspectedTable, Inspection
from churn_assets.operations.inspection_text import show
from churn_assets.operations.jobs import Stage
from churn_assets.operations.plans import Batch
from churn_assets.operations.progress import shown_progress
from churn_assets.operations.terminal import marked, terminal

PACKAGE = Path(churn_assets.__file__).parent

PIECES = ("[", "]", "[/", "[bold]", "[/bold]", "[/x]", "[link=", "\\", ":bell:", "a", "é", "7")
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join)


@settings(deadline=None)
@given(TEXTS)
@example("[/…]")
@example("[bold]")
@example("\\[red]")
@example("[@click=app.bell]x")
def test_a_text_is_shown_as_it_is(text: str) -> None:
    table = Table(text, text, title=text)
    table.add_row(text, "x", style="bold")
    console = terminal()
    with console.capture() as captured:
        console.print(table)
        console.print(text, highlight=False)
        console.print(marked("!", "yellow", text))
    assert captured.get().count(text) == 6


@settings(deadline=None)
@given(TEXTS)
@example("[/…]")
def test_what_a_file_holds_is_shown_as_it_is(text: str) -> None:
    column = InspectedColumn(name=f"c{text}", given=2, usable=1, first_unusable=f"v{text}")
    table = InspectedTable(
        name=f"t{text}",
        unread=[(f"f{text}", f"r{text}")],
        columns=[column],
        others=[f"o{text}"],
        problem=f"p{text}",
    )
    console = terminal()
    with console.capture() as captured:
        show(console, Inspection(tables=[table], outlook=[], settings={}))
    for mark in "cvtfrop":
        assert f"{mark}{text}" in captured.get()


@settings(deadline=None, max_examples=20)
@given(TEXTS)
def test_a_warning_of_a_run_is_shown_as_it_is(text: str) -> None:
    console = terminal()
    batch = Batch(Stage(f"b{text}", (), "slices"), (), ())
    with console.capture() as captured, shown_progress(console, batch) as on_step:
        on_step(f"w{text}", "warned")
    assert f"w{text}" in captured.get() and f"b{text}" in captured.get()


def test_no_other_console_is_made() -> None:
    """One with markup would take values for it."""
    makers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Console"
    }
    assert makers == {"operations/terminal.py"}
