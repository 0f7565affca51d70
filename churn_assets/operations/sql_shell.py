"""Reading SQL from a terminal, or from a file that is piped in."""

from collections.abc import Iterator


def statements(prompt: str) -> Iterator[str]:
    """Statements from standard input, each ended by a semicolon."""
    text = ""
    while True:
        try:
            text += input(prompt if not text else "  ...> " if prompt else "") + "\n"
        except EOFError:
            if text.strip():
                yield text
            return
        if text.rstrip().endswith(";"):
            yield text
            text = ""
