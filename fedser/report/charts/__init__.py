"""Charts: what is drawn where, in one description that both the files and the page are drawn from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

# Okabe & Ito's palette; black is nature's, yellow is left out since it vanishes on white.
COLOURS = ("#333333", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MEAN = "mean over seeds"


@dataclass(frozen=True)
class Series:
    """One line, set of bars or cloud of dots; `low` and `high` are the ends of its intervals."""

    name: str
    model: str
    colour: str
    x: Sequence
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    form: Literal["line", "steps", "bars", "dots", "ticks"] = "line"
    style: int = 0  # which dash and marker
    shade: float = 1.0  # of bars: how full the colour is; bars of one shade have one place in each category
    curve: str = ""  # MEAN or a seed, where a chart shows single runs too
    texts: Sequence[str] = ()  # of each point; none: made of x and y


@dataclass(frozen=True)
class Panel:
    title: str
    series: Sequence[Series]
    categories: Sequence[str] = ()  # of the x axis; none: it is one of numbers

    @property
    def shades(self) -> list[float]:
        """Of its bars, as they stand beside each other."""
        return sorted({series.shade for series in self.series if series.form == "bars"})

    def places(self, series: Series) -> list[float]:
        """Where a series lies among the categories; dots are shifted, always the same, to keep neighbours apart."""
        places = [self.categories.index(x) for x in series.x]
        if series.form != "dots":
            return places
        return [place + round(0.4 * ((number * 0.618) % 1) - 0.2, 3) for number, place in enumerate(places)]


@dataclass(frozen=True)
class Key:
    """What a dash, marker or shade means."""

    label: str
    form: str
    style: int = 0
    shade: float = 1.0


@dataclass(frozen=True, eq=False)
class Chart:
    name: str  # of its files
    title: str
    caption: str
    alt: str
    panels: Sequence[Panel]
    x: str
    chance: float | None
    y: str = "UAR (%)"
    keys: Sequence[Key] = field(default_factory=tuple)
    columns: int = 2
    marks: bool = True  # a marker at each point of a line
    ticks: Mapping[float, str] = field(default_factory=dict)  # of a logarithmic x axis; none: it is linear

    def __bool__(self) -> bool:
        return bool(self.panels)

    @property
    def series(self) -> list[Series]:
        return [series for panel in self.panels for series in panel.series]

    @property
    def limits(self) -> tuple[float, float]:
        """Of the y axis, the same in all panels."""
        ends = [y for series in self.series for part in (series.y, series.high) for y in part or ()]
        return -2, min(102, max([*ends, self.chance or 0]) + 6)

    @property
    def models(self) -> dict[str, str]:
        """Colours by model, in order."""
        return {series.model: series.colour for series in self.series}

    @property
    def curves(self) -> list[str]:
        """The kinds of curve one can choose from; empty where there is no choice."""
        found = list(dict.fromkeys(series.curve for series in self.series if series.curve))
        return sorted(found, key=lambda name: name != MEAN) if len(found) > 1 else []
