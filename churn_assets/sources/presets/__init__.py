"""Presets: queries for exports that many shops have, each a commented SQL file beside this one.

`churn init` writes one into the input folder, where it is the shop's own to change.
"""

from importlib.resources import files
from pathlib import Path

from churn_assets.sources.input_files import input_files
from churn_assets.sources.queries import SourceQuery

# By preset, columns that its export has and nothing else has together; in lower case.
PRESETS = {
    "shopify_orders": {"name", "created at", "lineitem quantity", "lineitem price"},
    "woocommerce_orders": {"line_items", "date_created_gmt", "billing"},
    "ga4_events": {"event_name", "user_pseudo_id", "event_timestamp"},
    "segment_tracks": {"messageid", "type", "timestamp"},
    "online_retail": {"invoiceno", "stockcode", "invoicedate", "unitprice"},
}


def preset(name: str) -> SourceQuery:
    """The query of a preset."""
    text = (files(__package__) / f"{name}.sql").read_text(encoding="utf-8")
    return SourceQuery(f"{name}.sql", text)


def preset_for(columns: list[str]) -> str | None:
    """The preset whose export has these columns."""
    found = {column.lower() for column in columns}
    return next((name for name, known in PRESETS.items() if known <= found), None)


def write_preset(name: str, folder: str) -> tuple[Path, list[str]]:
    """Write the query of a preset into an input folder; returns its path and the files it reads.

    Raises:
        FileExistsError: There is a query already.
    """
    path = Path(folder) / "events.sql"
    if path.exists():
        raise FileExistsError(f"{path} is there already. Move it away first: it may be changed.")
    path.parent.mkdir(parents=True, exist_ok=True)
    query = preset(name)
    path.write_text(query.text, encoding="utf-8")
    return path, [file.name for file in query.files(input_files(path.parent)[0])]
