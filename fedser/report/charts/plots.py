"""Charts as what plotly draws on the page: one plot per panel, in plain JSON."""

from collections.abc import Iterable
from html import escape
from typing import Any

from fedser.report.charts import MEAN, Chart, Panel, Series
from fedser.report.charts.drawn import whisker

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif'
GRID = "#e7e7e7"


def plots(chart: Chart) -> list[dict[str, Any]]:
    """`data` and `layout` of each panel. A trace's `meta` says which model and curve it belongs to."""
    return [{"data": list(_traces(panel, chart)), "layout": _layout(panel, chart)} for panel in chart.panels]


def _traces(panel: Panel, chart: Chart) -> Iterable[dict[str, Any]]:
    for series in panel.series:
        shown = not chart.curves or series.curve in ("", MEAN) or MEAN not in chart.curves
        meta = {"model": series.model, "curve": series.curve}
        same = {"meta": meta, "visible": shown, "showlegend": False, "name": series.name}
        if series.form in ("line", "steps") and series.low and series.high:
            yield _band(series) | same
        yield _trace(series, panel, chart) | _hover(series, chart) | same


def _band(series: Series) -> dict[str, Any]:
    """The area between both ends."""
    return {
        "x": [*series.x, *reversed(series.x)],
        "y": _rounded([*series.high, *reversed(series.low)]),
        "fill": "toself",
        "fillcolor": _transparent(series.colour, 0.13),
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
    }


def _trace(series: Series, panel: Panel, chart: Chart) -> dict[str, Any]:
    y = _rounded(series.y)
    marker = {"color": series.colour, "symbol": MARKERS[series.style % len(MARKERS)], "size": 6}
    if series.form == "bars":
        colour = _transparent(series.colour, series.shade)
        bars = {"type": "bar", "x": list(series.x), "y": y, "offsetgroup": f"{series.shade:g}"}
        return bars | {"marker": {"color": colour}, "error_y": _whiskers(series)}
    if series.form == "dots":
        return {"x": panel.places(series), "y": y, "mode": "markers", "marker": marker | {"size": 8, "opacity": 0.65}}
    if series.form == "ticks":
        flat = {"symbol": "line-ew", "size": 26, "line": {"width": 2.5, "color": series.colour}}
        return {"x": panel.places(series), "y": y, "mode": "markers", "marker": flat}
    line = {"color": series.colour, "dash": DASHES[series.style % len(DASHES)]}
    line |= {"shape": "hv"} if series.form == "steps" else {}
    line |= {"width": 2 if series.curve in ("", MEAN) else 1}
    mode = "lines+markers" if chart.marks else "lines"
    return {"x": list(series.x), "y": y, "mode": mode, "line": line, "marker": marker}


def _whiskers(series: Series) -> dict[str, Any] | None:
    if not (series.low and series.high):
        return None
    above = _rounded(high - y for high, y in zip(series.high, series.y, strict=True))
    below = _rounded(y - low for low, y in zip(series.low, series.y, strict=True))
    look = {"color": whisker(series), "thickness": 1, "width": 0}
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below} | look


def _hover(series: Series, chart: Chart) -> dict[str, Any]:
    """What is shown where the pointer is."""
    told = series.texts or [_told(series, place, chart) for place in range(len(series.x))]
    head = f"<b>{escape(series.name, quote=False)}</b><br>"
    return {"text": [escape(text, quote=False) for text in told], "textposition": "none",
            "hovertemplate": head + "%{text}<extra></extra>"}  # fmt: skip


def _told(series: Series, place: int, chart: Chart) -> str:
    x = series.x[place]
    where = x if isinstance(x, str) else f"{chart.x} {x:g}"
    ends = f" [{series.low[place]:.1f}, {series.high[place]:.1f}]" if series.low and series.high else ""
    return f"{where}: {series.y[place]:.1f} %{ends}"


def _layout(panel: Panel, chart: Chart) -> dict[str, Any]:
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": "#888888", "ticks": "", "automargin": True}
    x = axis | {"title": {"text": chart.x}, "fixedrange": bool(panel.categories), "showgrid": not panel.categories}
    if any(series.form == "dots" for series in panel.series):
        x |= {"tickvals": list(range(len(panel.categories))), "ticktext": list(panel.categories)}
        x |= {"range": [-0.5, len(panel.categories) - 0.5]}
    elif chart.ticks:
        x |= {"type": "log", "tickvals": list(chart.ticks), "ticktext": list(chart.ticks.values())}
    elif panel.categories:
        x |= {"categoryorder": "array", "categoryarray": list(panel.categories)}
        x |= {"tickangle": -40} if sum(map(len, panel.categories)) > 45 else {}
    y = axis | {"title": {"text": chart.y}, "range": list(chart.limits)}
    return {
        "xaxis": x,
        "yaxis": y,
        "font": {"family": FONT, "size": 12, "color": "#333333"},
        "margin": {"l": 50, "r": 12, "t": 8, "b": 44},
        "height": 300,
        "hovermode": "closest",
        "barmode": "group",
        "bargap": 0.16,
        "bargroupgap": 0.04,
        "plot_bgcolor": "rgba(0,0,0,0)",  # as the page
        "paper_bgcolor": "rgba(0,0,0,0)",
        "shapes": _chance_line(chart.chance),
    }


def _chance_line(chance: float | None) -> list[dict[str, Any]]:
    if chance is None:
        return []
    line = {"color": "#999999", "width": 1, "dash": "dot"}
    return [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": chance, "y1": chance, "line": line}]


def _transparent(colour: str, share: float) -> str:
    return f"{colour}{round(255 * share):02x}"


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(float(value), 3) for value in values]
