"""Source `online_retail`: the UCI Online Retail data as published, workbook, CSV or Parquet.

One row per invoice line; an invoice whose number starts with C is a refund of its lines. Amounts
are Quantity times UnitPrice, exact; negative ones are refunds, as they are of any source. There
are no events but purchases and refunds, and no profiles, reviews or surveys.
Source: Chen, Sain and Guo (2012), CC BY 4.0.
"""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from churn_assets.sources.input_files import InputFile, input_files
from churn_assets.sources.reading import own_columns, read_files
from churn_assets.sources.source import SourceTable, require_columns

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from churn_assets.sources.tables import RawTable

COLUMNS = ("InvoiceNo", "StockCode", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID")

REFUND = "starts_with(upper(CAST(InvoiceNo AS VARCHAR)), 'C')"
# What cannot be multiplied stays text, which `raw` finds to be no number.
AMOUNT = """CASE WHEN Quantity IS NOT NULL OR UnitPrice IS NOT NULL THEN coalesce(
    CAST(TRY_CAST(Quantity AS DECIMAL(18, 4)) * TRY_CAST(UnitPrice AS DECIMAL(18, 4)) AS VARCHAR),
    concat('Quantity ', Quantity, ' of UnitPrice ', UnitPrice)) END"""


@dataclass(frozen=True)
class OnlineRetail:
    """The one file of the data set in a folder."""

    folder: str

    def read(
        self,
        connection: "DuckDBPyConnection",
        table: "RawTable",
        begin: dt.datetime,
        end: dt.datetime,
    ) -> SourceTable | None:
        if table.source_name != "events":
            return None
        file = self._file()
        lines = read_files(connection, [file], "online_retail")
        found = own_columns(connection, lines)
        require_columns({column.lower() for column in COLUMNS}, found, file.name)
        return SourceTable(
            lines,
            {
                "customer_id": "CustomerID",
                "event_timestamp": "InvoiceDate",
                "event_type": f"CASE WHEN {REFUND} THEN 'refund' ELSE 'purchase' END",
                "order_id": "InvoiceNo",
                "product_id": "StockCode",
                "quantity": "Quantity",
                "amount": AMOUNT,
            },
            located=True,
        )

    def _file(self) -> InputFile:
        found, _ = input_files(Path(self.folder))
        files = [file for file in found if _is_ours(file.path.name)]
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "none"
            raise FileNotFoundError(
                f"{self.folder} must hold exactly one Online Retail file (Online Retail.xlsx, "
                f"OnlineRetail.csv or online_retail.parquet); found: {names}. "
                "Put it there or set CHURN_INPUT_DIR."
            )
        return files[0]


def _is_ours(name: str) -> bool:
    return name.lower().replace("_", "").replace(" ", "").startswith("onlineretail")
