"""Where raw rows come from: `CHURN_SOURCE` names one of the sources here.

`history.raw` reads the four tables of `sources.tables` from it. Only events are required.
"""

from churn_assets.settings import Settings
from churn_assets.sources.files import Files
from churn_assets.sources.online_retail import OnlineRetail
from churn_assets.sources.source import Source
from churn_assets.sources.synthetic import Synthetic


def open_source(settings: Settings) -> Source:
    """The source that `CHURN_SOURCE` names."""
    match settings.source:
        case "synthetic":
            return Synthetic(settings.synthetic_customers, settings.seed, settings.start)
        case "files":
            return Files(settings.input_folder)
        case "online_retail":
            return OnlineRetail(settings.input_folder)
