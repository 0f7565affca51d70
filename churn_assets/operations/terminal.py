"""The terminal that commands write to. All that they show of data goes through it as it is.

Rich takes `[bold]` and `[/…]` in a text for its own markup, and `:bell:` for a picture. A value of
somebody's file may look like that. So no text is markup here; a style is given beside the text.
"""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


def terminal() -> "Console":
    """A console as wide as the terminal; 140 columns where the output goes elsewhere."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 140
    return Console(width=width, markup=False, emoji=False)


def marked(mark: str, style: str, text: str) -> "Text":
    """A line with a mark before it, such as a yellow `!`."""
    from rich.text import Text

    return Text.assemble((mark, style), " ", text)
