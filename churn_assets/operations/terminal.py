"""The terminal that commands write to."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def terminal() -> "Console":
    """A console as wide as the terminal; 140 columns where the output goes elsewhere."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140)
