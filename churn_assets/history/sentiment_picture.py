"""The histogram of sentiment scores that the pages of reviews show."""

from typing import TYPE_CHECKING

from churn_assets.stores.figures import BLUE, GREY, VERMILLION, sentence, titled_figure

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure


BINS = 40


def sentiment_histogram(values: "np.ndarray", subject: str) -> "Figure":
    """Sentiment scores from -1 to 1, NaN left out."""
    import numpy as np

    known = values[~np.isnan(values)]
    if not len(known):
        return sentence("Sentiment", subject, "There are no reviews with a sentiment.")
    figure, axes = titled_figure("Sentiment", subject, height=4)
    axes.hist(known, BINS, range=(-1, 1), color=BLUE)
    axes.axvline(0, color=GREY, linestyle=":", label="neutral")
    axes.axvline(known.mean(), color=VERMILLION, linestyle="--", label=f"mean {known.mean():.3f}")
    axes.set(xlabel="sentiment", ylabel=f"number of {len(known):,}", xlim=(-1, 1))
    axes.legend(frameon=False)
    return figure
