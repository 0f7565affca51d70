"""Where raw rows come from: `CHURN_SOURCE` names one of the sources here.

`history.raw` reads the four tables of `sources.tables` from it. Only events are required.
"""

from churn_assets.settings import Settings
from churn_assets.sources.source import Source
from churn_assets.sources.synthetic import Synthetic


def open_source(settings: Settings) -> Source:
    """The source that `CHURN_SOURCE` names."""
    # Each loads what it reads with: a shop that is synthetic reads no files.
    match settings.source:
        case "synthetic":
            return Synthetic(settings.synthetic_customers, settings.seed, settings.start)
        case "files":
            from churn_assets.sources.files import Files

            return Files(settings.input_folder)
        case "online_retail":
            from churn_assets.sources.online_retail import OnlineRetail

            return OnlineRetail(settings.input_folder)
