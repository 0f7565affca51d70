"""The style of all pictures: colours, size, titles, legends, and the image that a page carries.

Figures are made without pyplot, which keeps every figure alive and is not safe in threads. They
are made for a column of 800 pixels. What is drawn is decided by the modules that know the numbers.
"""

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito (2008): told apart with every kind of colour blindness. Lines differ in style too.
BLUE, VERMILLION, GREEN, PURPLE, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"
GREY = "#767676"
LINES = ((BLUE, "-"), (VERMILLION, "--"), (GREEN, "-."), (PURPLE, "-"), (BLACK, ":"))

WIDTH_INCHES = 8.0
PIXELS_PER_INCH = 100


def png(figure: "Figure") -> bytes:
    """The figure as an image that is small enough to stand in an event log.

    A palette makes four curves 28 kB instead of 120 kB; no colour is visibly off.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba())
    small = io.BytesIO()
    image = drawn.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE)
    image.save(small, format="png", optimize=True)
    return small.getvalue()


def titled_figure(name: str, subject: str, height: float = 5, **grid: Any) -> "tuple[Figure, Any]":
    """A titled figure with its axes."""
    from matplotlib.figure import Figure

    size = (WIDTH_INCHES, height)
    figure = Figure(figsize=size, dpi=PIXELS_PER_INCH, layout="constrained")
    figure.suptitle(f"{name}\n{subject}", fontsize=12)
    axes = figure.subplots(**grid)
    for one in figure.axes:
        one.grid(alpha=0.3)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def sentence(name: str, subject: str, why: str) -> "Figure":
    """What stands in place of a plot that cannot be drawn."""
    figure, axes = titled_figure(name, subject, height=2)
    write_sentence(axes, why)
    return figure


def write_sentence(axes: "Axes", why: str) -> None:
    """A sentence in place of what the axes would show."""
    axes.clear()
    axes.set_axis_off()
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", fontsize=13)


def legend_below(figure: "Figure", axes: "Axes", title: str = "") -> None:
    """The legend under the plot, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, title=title)


def as_percent(*axis: Any) -> None:
    """Label axes in percent."""
    from matplotlib.ticker import PercentFormatter

    for one in axis:
        one.set_major_formatter(PercentFormatter(1))
