"""Draw charts as SVG inside the page with matplotlib, in the page's CSS colours, which have a light and a dark form.

All functions return markup in which text is already escaped.
"""

import html
import io
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.refusal import printable, shortened
from tl_dist.scores.curves import Bin

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # x and y by name

MAX_SERIES = 8  # most curves of one chart: more colours could not be told apart
_STAND_INS = {"#010101": "currentColor", "#020202": "var(--line)"} | {
    f"#{k:02x}0303": f"var(--series-{k})" for k in range(1, MAX_SERIES + 1)
}
_, _LINE, *_SERIES = _STAND_INS
_STYLES = ("-", "--", "-.", ":")
_SIZE = (4.6, 3.4)  # inches: at the width of a phone, text is as large as the page's small print
_STYLE = Path(__file__).with_name("charts.mplstyle")  # in the colours of _STAND_INS


def lines(series: Series, *, x: str, y: str, what: str, percent: bool = False, diagonal: bool = False) -> str:
    """Draw a line for each of at most MAX_SERIES series; `what` describes the chart for screen readers."""

    def draw(axes: Any) -> None:
        if diagonal:
            axes.plot([0, 1], [0, 1], color=_LINE, linestyle="--", linewidth=1)
        for k, (name, (xs, ys)) in enumerate(list(series.items())[:MAX_SERIES]):
            marker = "o" if len(xs) < 15 else None
            # matplotlib leaves out labels that begin with an underscore.
            label = shortened(printable(name), 40).removeprefix("_") or "?"
            style = {"color": _SERIES[k], "linestyle": _STYLES[k % 4], "marker": marker, "markersize": 3.5}
            axes.plot(xs, ys, label=label, **style)
        axes.set(xlabel=x, ylabel=y)
        _finish(axes, len(series), percent)

    return _drawn(draw, what)


def points(xs: NDArray[Any], ys: NDArray[Any], *, x: str, y: str, what: str, diagonal: bool = False) -> str:
    """Draw a point for each example, with a line where both are equal, or at 0."""

    def draw(axes: Any) -> None:
        ends = np.array([xs.min(), xs.max()], float)
        axes.plot(ends, ends if diagonal else 0 * ends, color=_LINE, linestyle="--", linewidth=1)
        axes.scatter(xs, ys, 12, color=_SERIES[0], alpha=0.5, linewidths=0)
        axes.set(xlabel=x, ylabel=y)

    return _drawn(draw, what)


def reliability(bins: Sequence[Bin], what: str) -> str:
    """Draw accuracy by confidence with intervals; the area of a point grows with its share of the examples."""

    def draw(axes: Any) -> None:
        _, _, nums, confidence, accuracy, bounds = map(np.array, zip(*bins, strict=True))
        axes.plot([0, 1], [0, 1], color=_LINE, linestyle="--", linewidth=1)
        errors = np.abs(bounds.T - accuracy)
        axes.errorbar(confidence, accuracy, errors, fmt="none", ecolor=_SERIES[0], elinewidth=1.2)
        sizes = 20 + 400 * nums / nums.sum()
        axes.scatter(confidence, accuracy, sizes, color=_SERIES[0], alpha=0.85, linewidths=0)
        axes.set(xlabel="confidence", ylabel="accuracy", ylim=(-0.03, 1.05))
        axes.set_xlim(min(0.5, float(confidence.min()) - 0.05), 1.03)

    return _drawn(draw, what)


def shares(parts: Mapping[str, NDArray[np.floating]], steps: Sequence[float], what: str) -> str:
    """Draw the parts of a whole over the steps as stacked areas."""

    def draw(axes: Any) -> None:
        axes.stackplot(
            steps, *parts.values(), labels=list(parts), colors=_SERIES[: len(parts)], alpha=0.85, linewidth=0
        )
        axes.set(xlabel="step", ylabel="share of the step's time", ylim=(0, 1))
        _finish(axes, len(parts), percent=True)

    return _drawn(draw, what)


def _drawn(draw: Callable[[Any], None], what: str) -> str:
    """Draw on axes, and return an element of the page: labelled, as wide as its container, in the page's colours."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    content = io.BytesIO()
    with rc_context({"svg.hashsalt": what}, _STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained", facecolor="none")
        canvas = FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        canvas.print_svg(content, metadata={"Date": None, "Creator": None})
    head, body = content.getvalue().decode().split("<svg", 1)[1].split(">", 1)
    body = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'font-family: [^;"]*; ?', "", body)  # so that the page's font applies
    for stand_in, colour in _STAND_INS.items():
        body = body.replace(stand_in, colour)
    # Ids must be unique in a page, but two charts may have the same clip paths and markers.
    salt = f"c{zlib.crc32(what.encode('utf-8', 'surrogatepass')):x}"
    body = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{salt}-", body)
    label, box = html.escape(printable(what)), "".join(re.findall(r'viewBox="[^"]*"', head))
    return f'<svg class="chart" role="img" aria-label="{label}" {box}>{body}'


def _finish(axes: Any, number: int, percent: bool) -> None:
    """Add the legend of several series below the axes, where it hides nothing, and percentages beside them."""
    from matplotlib.ticker import PercentFormatter

    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if number > 1:
        axes.figure.legend(loc="outside lower center", ncols=2 if number < 5 else 3, handlelength=2.2)
