"""Source `online_retail`: the UCI Online Retail data as published, read by the preset of that name.

There are no events but purchases and refunds, and no profiles, reviews or surveys.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from churn_assets.sources.input_files import InputFile, input_files
from churn_assets.sources.presets import preset
from churn_assets.sources.source import SourceTable

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from churn_assets.sources.tables import RawTable


@dataclass(frozen=True)
class OnlineRetail:
    """The one file of the data set in a folder."""

    folder: str

    def looked_at(self) -> "OnlineRetail":
        return self

    def input_files(self, table: "RawTable") -> Sequence[InputFile]:
        return [self._file()] if table.source_name == "events" else []

    def read(
        self,
        connection: "DuckDBPyConnection",
        table: "RawTable",
        begin: dt.datetime,
        end: dt.datetime,
        only: Sequence[InputFile] | None = None,
    ) -> SourceTable | None:
        if table.source_name != "events":
            return None
        return preset("online_retail").read(connection, [self._file()], table, begin, end, only)

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
