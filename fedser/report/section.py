"""One corpus on the page: its tables, figures and checks, in the page's order."""

import base64
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedser.report import interactive, tables, words
from fedser.report.charts import Chart, all_charts
from fedser.report.figures import GREY
from fedser.report.html import Markup, bullets, join, tag
from fedser.report.models import Corpus
from fedser.report.pictures import PICTURES, Picture
from fedser.report.tabular import Table, html

# Which of the sanity checks concern which table: the first place whose pattern a flag's name and title hold.
CHECKS = {
    "oblivious-adaptive": r"adaptive|draws",
    "budget-curves": r"monoton|\beps|ε|chance",
    "budgets": r"gradient|budget|breach",
    "matrix": r"",
}


Links = list[tuple[str, str]]  # the id and the title of each part


@dataclass
class Content:
    """What a corpus gives to the page and to the folders beside it; `prefix` tells its files from other corpora's."""

    corpus: Corpus
    prefix: str = ""
    tables: dict[str, Table] = field(default_factory=dict)
    charts: dict[str, Chart] = field(default_factory=dict)
    pictures: dict[str, Picture] = field(default_factory=dict)


def content(corpus: Corpus, alone: bool) -> Content:
    """Works out every table and figure of a corpus."""
    prefix = "" if alone else re.sub(r"[^\w.-]+", "-", corpus.name).strip("-") + "-"
    made = [*tables.all_tables(corpus), words.threats(corpus)]
    pictures = [picture for draw in PICTURES if (picture := draw(corpus))]

    def named(things: Iterable) -> dict:
        return {thing.name: replace(thing, name=prefix + thing.name) for thing in things}

    return Content(corpus, prefix, named(filter(None, made)), named(all_charts(corpus)), named(pictures))


def section(content: Content, plots: list[dict], drawn: Path, single: bool) -> tuple[Links, Markup]:
    """The links to its parts, and the section; what its plots show is added to `plots`."""
    write = _Writer(content, plots, drawn)
    parts = [(title, join(part)) for title, build in SECTIONS.items() if any(part := list(filter(None, build(write))))]
    places = [(f"{content.prefix}{_slug(title)}", title) for title, _ in parts]
    level = "h2" if single else "h3"
    sections = [
        tag("section", tag(level, title), part, id=place)
        for (place, _), (title, part) in zip(places, parts, strict=True)
    ]
    head = None if single else tag("h2", content.corpus.name)
    return places, tag("section", head, sections, class_="corpus")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


@dataclass
class _Writer:
    """Puts a corpus's tables and figures into HTML by their names; nothing where there is no such one."""

    content: Content
    plots: list[dict]
    drawn: Path

    def table(self, name: str) -> Markup | None:
        table = self.content.tables.get(name)
        return html(table) if table else None

    def tables(self, start: str) -> list[Markup]:
        return [html(table) for name, table in self.content.tables.items() if name.startswith(start)]

    def chart(self, name: str) -> Markup | None:
        """A figure that can be hovered and filtered, with its caption and files; None without anything to draw."""
        chart = self.content.charts.get(name)
        if chart is None:
            return None
        boxes = []
        for panel, plot in zip(chart.panels, interactive.plots(chart), strict=True):
            place = f"plot-{len(self.plots)}"
            self.plots.append({"id": place} | plot)
            drawn = tag("div", id=place, class_="plot", role="img", aria_label=f"{panel.title}. {chart.alt}")
            boxes.append(tag("div", tag("h4", panel.title), drawn, class_="panel"))
        grid = tag("div", boxes, class_="panels one" if len(boxes) == 1 else "panels")
        caption = tag("figcaption", tag("strong", f"{chart.title}. "), chart.caption)
        return tag("figure", caption, _chips(chart), _keys(chart), grid, _files(chart.name, HINT), id=chart.name)

    def picture(self, name: str) -> Markup | None:
        picture = self.content.pictures.get(name)
        if picture is None:
            return None
        source = _data_uri(self.drawn / f"{picture.name}.{picture.form}")
        image = tag("img", src=source, alt=picture.alt, style=f"--width:{105 * picture.figure.get_figwidth():.0f}px")
        caption = tag("figcaption", tag("strong", f"{picture.title}. "), picture.caption)
        box = tag("div", image, class_="picture", tabindex="0", role="region", aria_label=picture.title)
        return tag("figure", caption, box, _files(picture.name), id=picture.name)

    def checks(self, place: str | None = None) -> Markup | None:
        """The sanity checks that concern what stands above, or all."""
        found = [(model, flag) for model in self.content.corpus.models for flag in tables.model_flags(model)]
        chosen = [(model.label, flag) for model, flag in found if place in (None, _place(flag))]
        if not chosen:
            return None
        raised = [each for each in chosen if each[1]["status"] == "raised"]
        clear = sum(flag["status"] == "clear" for _, flag in chosen)
        kind, count = ("raised", f"{len(raised)} raised") if raised else ("clear", "none raised")
        badge = tag("span", count, class_=f"badge {kind}")
        rest = f" {clear} clear, {len(chosen) - len(raised) - clear} not checked"
        rows = bullets([tag("strong", f"{label}: {flag['title']}. "), flag["detail"]] for label, flag in raised)
        link = tag("a", "all checks", href=f"#{self.content.prefix}flags-table")
        head = tag("div", "Sanity checks: ", badge, f"{rest} (", link, ")")
        return tag("div", head, rows if raised else None, class_="checks raised" if raised else "checks")


def _place(flag: dict) -> str:
    text = f"{flag['flag']} {flag['title']}".lower()
    return next(place for place, pattern in CHECKS.items() if re.search(pattern, text.replace("_", " ")))


def _chips(chart: Chart) -> list[Markup]:
    """A switch per model, which is its legend too, and one per kind of curve."""
    models = [
        tag("label", tag("input", type="checkbox", checked=True, data_model=model), tag("span", model), class_="chip",
            style=f"--colour:{colour}")
        for model, colour in chart.models.items()
    ]  # fmt: skip
    curves = [
        tag("label", tag("input", type="checkbox", checked=number == 0, data_curve=curve), curve, class_="chip")
        for number, curve in enumerate(chart.curves)
    ]
    rows = [tag("fieldset", tag("legend", "Models"), models, class_="controls")]
    if curves:
        rows.append(tag("fieldset", tag("legend", "Runs"), curves, class_="controls"))
    return rows


def _keys(chart: Chart) -> Markup | None:
    """What dashes, markers and shades mean."""
    entries = [tag("li", _swatch(key.form, key.style, key.shade), key.label) for key in chart.keys]
    if chart.chance:
        entries.append(tag("li", _line("2 3", "#999999"), f"chance ({chart.chance:.1f} %)"))
    return tag("ul", entries, class_="keys") if entries else None


SVG_DASHES = ("", "7 4", "2 3", "7 3 2 3", "12 4", "12 3 2 3")
SVG_MARKERS = (
    '<circle cx="17" cy="7" r="4"/>',
    '<rect x="13" y="3" width="8" height="8"/>',
    '<path d="M17 2l5 9h-10z"/>',
    '<path d="M17 2l5 5-5 5-5-5z"/>',
    '<path d="M15 2h4v3h3v4h-3v3h-4v-3h-3v-4h3z"/>',
    '<path d="M17 12l5-9h-10z"/>',
)


def _swatch(form: str, style: int, shade: float) -> Markup:
    if form == "bars":
        return _svg(f'<rect x="9" width="16" height="14" fill="{GREY}" fill-opacity="{shade}"/>')
    if form == "ticks":
        return _svg(f'<path d="M5 7h24" stroke="{GREY}" stroke-width="2.5"/>')
    marker = f'<g fill="{GREY}">{SVG_MARKERS[style % len(SVG_MARKERS)]}</g>'
    return _svg(marker) if form == "dots" else _line(SVG_DASHES[style % len(SVG_DASHES)], GREY, marker)


def _line(dash: str, colour: str, marker: str = "") -> Markup:
    return _svg(f'<path d="M0 7h34" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>{marker}')


def _svg(inside: str) -> Markup:
    return Markup(f'<svg width="34" height="14" aria-hidden="true">{inside}</svg>')


HINT = ". Point at a curve for its numbers; drag to zoom, double-click to go back."


def _files(name: str, hint: str = "") -> Markup:
    links = [tag("a", f"figures/{name}{form}", href=f"figures/{name}{form}") for form in (".png", ".svg")]
    return tag("p", "Files: ", links[0], " · ", links[1], hint, class_="files")


def _data_uri(path: Path) -> str:
    kind = {".png": "image/png", ".svg": "image/svg+xml"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


# --- The parts, in their order ---------------------------------------------------------------------------------------


def _what(write: _Writer) -> list:
    corpus = write.content.corpus
    found = words.findings(corpus)
    box = tag("div", tag("strong", "In short"), bullets(found), class_="box") if found else None
    notes = tag("div", bullets(corpus.notes), class_="box warn") if corpus.notes else None
    return [words.facts(corpus), notes, box, write.table("at-a-glance")]


def _curves(write: _Writer) -> list:
    return [write.chart("fig4-rounds"), write.chart("fig5-conditions"), write.picture("fig6-confusion")]


def _budget_curves(write: _Writer) -> list:
    chart = write.chart("budget-curves")
    checks = write.checks("budget-curves") if chart else None
    return [chart, checks, write.chart("distance-curves"), write.table("flips")]


def _tests(write: _Writer) -> list:
    return [write.table(name) for name in ("tests-models", "tests-defence")]


SECTIONS: dict[str, Callable[[_Writer], list]] = {
    "What was run": _what,
    "Threat model": lambda write: [words.terms(), write.table("threats")],
    "Table 3": lambda write: [*write.tables("table3"), write.checks()],
    "Trained against × tested under": lambda write: [*write.tables("matrix"), write.checks("matrix")],
    "One utterance": lambda write: [write.picture("fig2-example")],
    "Learning curves and confusions": _curves,
    "Adaptive attackers": lambda write: [write.chart("oblivious-adaptive"), write.checks("oblivious-adaptive")],
    "Budget and distance": _budget_curves,
    "Budgets in speech units": lambda write: [write.table("budgets"), write.checks("budgets")],
    "Speakers": lambda write: [write.chart("speakers-strip"), write.table("speakers")],
    "Classes": lambda write: [write.table("recall")],
    "Paired tests": _tests,
    "Sanity checks": lambda write: [write.table("flags")],
    "All numbers": lambda write: [write.table("all-numbers")],
}
