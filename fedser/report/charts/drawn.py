"""Charts as files: PNG to show, SVG to print (matplotlib)."""

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure  # not pyplot: no global state, no window
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, Locator, MaxNLocator

from fedser.report.charts import MEAN, Chart, Key, Panel, Series

DASHES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))
MARKERS = "os^DPv"
GREY = "#777777"
STEPS = (1, 2, 5, 10)  # of ticks
PLOT_STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "figure.dpi": 110,
    "savefig.dpi": 150,
    "svg.hashsalt": "fedser",  # equal figures are equal files
    "text.parse_math": False,  # class and run names are text, also with a $ in them
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """matplotlib's settings for these figures; a font or a sign that is missing is no concern of the user's."""
    fonts = logging.getLogger("matplotlib.font_manager")
    before = fonts.level
    fonts.setLevel(logging.ERROR)
    try:
        with matplotlib.rc_context(PLOT_STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            warnings.filterwarnings("ignore", message=".*layout not applied")
            yield
    finally:
        fonts.setLevel(before)


def save(figure: Figure, path: Path) -> list[Path]:
    """`path` with .png and .svg after it."""
    figure.draw_without_rendering()  # lays it out, once for both files
    figure.set_layout_engine("none")
    figure.set_dpi(matplotlib.rcParams["savefig.dpi"])
    png, svg = (path.with_name(path.name + form) for form in (".png", ".svg"))
    # Not `savefig`, which draws everything once more before each file, to lay it out.
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
    return [png, svg]


def draw(chart: Chart) -> Figure:
    """A chart's panels with their legend below them."""
    legend = _legend(chart)
    longest = max(len(str(handle.get_label())) for handle in legend)
    beside = min(chart.columns, len(chart.panels))
    columns = max(1, min(len(legend), (110 if beside > 1 else 85) // (longest + 8)))
    height = 0.35 + 0.2 * math.ceil(len(legend) / columns)
    figure, places = panels(len(chart.panels), beside, 3.9 if beside > 1 else 6.4, 2.6, height)
    for axes, panel in zip(places, chart.panels, strict=True):
        axes.set_title(panel.title)
        _draw_panel(axes, panel, chart)
    _frame(chart, places)
    figure.legend(handles=legend, loc="outside lower center", ncols=columns, fontsize=8.5)
    return figure


def panels(count: int, columns: int, width: float, height: float, extra: float) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, each so many inches wide and high, and `extra` inches of height."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(4.6, columns * width + 0.5), rows * height + extra), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(count)]


def _draw_panel(axes: Axes, panel: Panel, chart: Chart) -> None:
    for series in panel.series:
        if series.form == "bars":
            shades = panel.shades
            _draw_bars(axes, series, panel, shades.index(series.shade) - (len(shades) - 1) / 2, 0.84 / len(shades))
        elif series.form == "dots":
            look = {"color": series.colour, "alpha": 0.65, "linewidths": 0, "s": 22}
            axes.scatter(panel.places(series), series.y, marker=MARKERS[series.style], **look)
        elif series.form == "ticks":
            axes.scatter(
                panel.places(series), series.y, marker="_", s=420, color=series.colour, linewidths=1.8, zorder=3
            )
        elif series.curve in ("", MEAN) or not chart.curves:
            _draw_line(axes, series, chart.marks)


def _draw_line(axes: Axes, series: Series, marks: bool) -> None:
    if series.low and series.high:
        axes.fill_between(series.x, series.low, series.high, color=series.colour, alpha=0.13, linewidth=0)
    look = _look(series.style, series.colour, marks)
    drawn = {"drawstyle": "steps-post"} if series.form == "steps" else {}
    axes.plot(series.x, series.y, markevery=max(1, len(series.x) // 20), **look, **drawn)


def _look(style: int, colour: str, marks: bool) -> dict[str, Any]:
    dash, marker = DASHES[style % len(DASHES)], MARKERS[style % len(MARKERS)] if marks else ""
    return {"color": colour, "linestyle": dash, "marker": marker, "linewidth": 1.5, "markersize": 3.6, "alpha": 0.95}


def _draw_bars(axes: Axes, series: Series, panel: Panel, place: float, width: float) -> None:
    at = [x + place * width for x in panel.places(series)]
    axes.bar(at, series.y, width * 0.94, color=_faded(series.colour, series.shade))
    if series.low and series.high:
        ends = np.abs(np.array([series.low, series.high]) - np.array(series.y))
        axes.errorbar(at, series.y, yerr=ends, fmt="none", ecolor=whisker(series), elinewidth=0.8, capsize=0)


def whisker(series: Series) -> str:
    """A colour that is seen on the bar and, above it, on white: nearly black, on a dark bar grey."""
    red, green, blue = to_rgb(_faded(series.colour, series.shade))
    return "#222222" if 0.3 * red + 0.59 * green + 0.11 * blue > 80 / 255 else "#949494"


def _faded(colour: str, shade: float) -> str:
    """The colour mixed with white."""
    return to_hex([1 - (1 - part) * shade for part in to_rgb(colour)])


def _legend(chart: Chart) -> list[Any]:
    """A handle per model, per meaning of dash, marker or shade, and for chance."""
    form = chart.panels[0].series[0].form
    named_by_title = form == "bars" and len(chart.panels) == len(chart.models)
    models = {} if named_by_title else chart.models
    handles = [
        _handle(Key(name, form if form != "steps" else "line"), colour, chart.marks) for name, colour in models.items()
    ]
    handles += [_handle(key, GREY, chart.marks) for key in chart.keys]
    if chart.chance:
        label = f"chance ({chart.chance:.1f} %)"
        handles.append(Line2D([], [], label=label, color="#999999", linewidth=0.9, linestyle=(0, (2, 2))))
    return handles


def _handle(key: Key, colour: str, marks: bool) -> Any:
    if key.form == "bars":
        return Patch(facecolor=_faded(colour, key.shade), label=key.label)
    if key.form in ("dots", "ticks"):
        marker = "_" if key.form == "ticks" else MARKERS[key.style]
        size = 11 if key.form == "ticks" else 5
        return Line2D([], [], label=key.label, color=colour, marker=marker, markersize=size, linestyle="")
    return Line2D([], [], label=key.label, **_look(key.style, colour, marks))


def _frame(chart: Chart, panels: Sequence[Axes]) -> None:
    """The same limits in all panels that share an axis, names at the left and at the bottom."""
    columns = min(chart.columns, len(panels))
    for place, (axes, panel) in enumerate(zip(panels, chart.panels, strict=True)):
        left, bottom = place % columns == 0, place + columns >= len(panels)
        axes.set(xlabel=chart.x if bottom else "", ylabel=chart.y if left else "", ylim=chart.limits)
        axes.grid(True, axis="y" if panel.categories else "both")
        if chart.chance:
            axes.axhline(chart.chance, zorder=1, color="#999999", linewidth=0.9, linestyle=(0, (2, 2)))
        if panel.categories:
            crowded = len(panel.categories) > 5
            slanted = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
            axes.set_xticks(range(len(panel.categories)), panel.categories, fontsize=8, **slanted)
            axes.tick_params(axis="x", length=0)
            axes.set_xlim(-0.6, len(panel.categories) - 0.4)
        elif chart.ticks:
            axes.set_xscale("log")
            axes.set_xticks(list(chart.ticks), list(chart.ticks.values()))
            axes.minorticks_off()
        else:
            axes.xaxis.set_major_locator(_places(chart))
            axes.xaxis.set_major_formatter("{x:g}")


def _places(chart: Chart) -> Locator:
    """Where an axis of numbers has its ticks: at the evaluated rounds, of more than a few at round numbers."""
    if chart.x != "round":
        return MaxNLocator(7, steps=STEPS)
    evaluated = sorted({x for series in chart.series for x in series.x})
    if len(evaluated) <= 7:
        return FixedLocator(evaluated)
    return MaxNLocator(7, steps=STEPS, integer=True)
