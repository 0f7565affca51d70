"""What Dagster's pages show, as Markdown: tables, and pictures within the text."""

import base64
from collections.abc import Iterable, Sequence


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def markdown_image(image: bytes, description: str) -> str:
    """Markdown that carries a PNG within itself, for `dg.MetadataValue.md`."""
    return f"![{description}](data:image/png;base64,{base64.b64encode(image).decode()})"
