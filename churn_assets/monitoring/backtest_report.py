"""The walk-forward backtest over all realised cutoffs: one page to send, and its summary.

It reads `realised_performance` and nothing else.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from churn_assets.models.bootstrap import Interval
from churn_assets.monitoring.performance import REALISED_PERFORMANCE
from churn_assets.stores.offline import OfflineStore
from churn_assets.stores.pages import markdown
from churn_assets.stores.staging import write_text


@dataclass(frozen=True)
class WalkForwardReport:
    """The backtest over all cutoffs, in two forms of the same content.

    Args:
        markdown: With the plot as an image within.
        html: The same as one file that a browser opens without any other.
        summary: Means over the cutoffs, by name; what nobody knows is left out.
    """

    markdown: str
    html: str
    summary: Mapping[str, float]


COLUMNS = {
    "cutoff": "cutoff",
    "model": "champion",
    "customers": "customers",
    "churn_rate": "churned",
    "estimated_roc_auc": "AUC promised",
    "roc_auc": "AUC realised",
    "recency_roc_auc": "recency rule",
    "best_roc_auc": "best possible",
    "gap_closed": "gap closed",
    "log_loss": "log loss",
    "best_log_loss": "best log loss",
    "calibration_error": "calibration error",
    "lift_at_10_percent": "lift at 10 %",
    "profit_per_customer": "profit per customer",
}


def walk_forward_report(rows: Sequence[Mapping[str, Any]]) -> WalkForwardReport:
    """The report over rows of `REALISED_PERFORMANCE`, oldest first."""
    from churn_assets.monitoring.backtest_picture import WalkForward, walk_forward
    from churn_assets.stores.figures import png
    from churn_assets.stores.pages import markdown_image

    plotted = [
        WalkForward(
            cutoff=row["cutoff"],
            champion=row["model"].removesuffix("_model"),
            estimated=row["estimated_roc_auc"],
            realised=row["roc_auc"],
            interval=(
                Interval(row["roc_auc_low"], row["roc_auc_high"])
                if row["roc_auc_low"] is not None
                else None
            ),
            best=row["best_roc_auc"],
            recency=row["recency_roc_auc"],
        )
        for row in rows
    ]
    span = f"{rows[0]['cutoff']} … {rows[-1]['cutoff']}" if rows else "no cutoff yet"
    image = markdown_image(png(walk_forward(plotted, span)), "AUC over cutoffs")
    shown = {
        name: title for name, title in COLUMNS.items() if any(row[name] is not None for row in rows)
    }
    cells = [[_cell(row[name]) for name in shown] for row in rows]
    means = {name: _mean([row[name] for row in rows]) for name in shown}
    summary = {name: value for name, value in means.items() if value is not None}
    cells.append(["mean", *(_cell(summary.get(name)) for name in list(shown)[1:])])
    title = f"Walk-forward backtest, {span}"
    note = (
        "Each cutoff was predicted by a model that had seen no label of it. Promised is the AUC on "
        "the hold-out when the champion was chosen, realised that of its predictions against what "
        "customers did."
    )
    text = f"# {title}\n\n{note}\n\n{image}\n\n{markdown(list(shown.values()), cells)}\n"
    return WalkForwardReport(text, _page(title, note, image, list(shown.values()), cells), summary)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}" if value < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value).removesuffix("_model")


def _mean(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if isinstance(value, int | float)]
    return sum(known) / len(known) if known else None


def _page(
    title: str, note: str, image: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    source = image[image.index("(") + 1 : -1]

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    table = line(header, "th") + "".join(line(row, "td") for row in rows)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        "<style>body{font:15px system-ui,sans-serif;margin:2em auto;max-width:84em;padding:0 1em}"
        "table{border-collapse:collapse}td,th{padding:.3em .7em;text-align:right;"
        "border-bottom:1px solid #ddd}td{white-space:nowrap}td:first-child,th:first-child,"
        "td:nth-child(2),th:nth-child(2){text-align:left}tr:last-child{font-weight:bold}img{max-width:100%}</style>"
        f'<h1>{html.escape(title)}</h1><p>{html.escape(note)}</p><img alt="{html.escape(title)}" '
        f'src="{source}"><table>{table}</table></html>'
    )


def realised_rows(store: OfflineStore) -> list[dict[str, Any]]:
    """All rows of `REALISED_PERFORMANCE`, oldest first."""
    with store.connect() as connection:
        rows: list[dict[str, Any]] = (
            connection.sql(f"FROM {store.scan(REALISED_PERFORMANCE).sql} ORDER BY cutoff")
            .to_arrow_table()
            .to_pylist()
        )
    return rows


def assets(store: OfflineStore) -> list[dg.AssetsDefinition]:
    """The report over all realised cutoffs."""

    @dg.asset(
        name="walk_forward_report",
        description="The walk-forward backtest over all realised cutoffs, as a page to send.",
        deps=[REALISED_PERFORMANCE.name],
        kinds={"html"},
        group_name="monitoring",
        owners=["team:ml"],
        tags={"layer": "monitoring"},
    )
    def report(context: dg.AssetExecutionContext) -> None:
        made = walk_forward_report(realised_rows(store))
        for suffix, text in (("html", made.html), ("md", made.markdown)):
            path = store.home / "reports" / f"walk_forward.{suffix}"
            write_text(store.home, path, text)
            context.add_output_metadata({suffix: dg.MetadataValue.path(str(path))})
        context.add_output_metadata(
            {
                **{f"mean_{name}": value for name, value in made.summary.items()},
                "report": dg.MetadataValue.md(made.markdown),
            }
        )

    return [report]
