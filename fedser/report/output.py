"""The report's folder: index.html, figures/ (PNG, SVG) and tables/ (CSV, Markdown, LaTeX)."""

import base64
import html
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from fedser.errors import InputError
from fedser.report import cards, overview, tables, text
from fedser.report.analysis.card import Card
from fedser.report.analysis.card import cards as cards_of
from fedser.report.analysis.claims import Claim, claims
from fedser.report.analysis.flags import Check, checks
from fedser.report.analysis.models import Corpus, corpora
from fedser.report.analysis.runs import Run
from fedser.report.cells import Cell, Table
from fedser.report.charts import Chart, Panel, build, drawn, plots
from fedser.report.charts.pictures import Picture, all_pictures
from fedser.report.listening import Listening, listening

log = logging.getLogger(__name__)
MADE_BY = "Made by fedser-report"
LINK = re.compile(r'href="((?:figures|tables|cards/[^"/]+)/[^"/]+\.(?:png|svg|csv|md|tex|html|safetensors))"')


@dataclass
class Content:
    """What a corpus gives to the page and to the files beside it; `prefix` tells its files from other corpora's."""

    corpus: Corpus
    prefix: str
    tables: dict[str, Table]  # by the name that they have without the prefix
    charts: dict[str, Chart]
    pictures: dict[str, Picture]
    claims: Sequence[Claim]
    checks: Sequence[Check]
    cards: dict[str, Card]  # by their folders
    listening: Listening | None = None


def write(runs: Sequence[Run], folder: str | Path) -> list[Path]:
    """Everything, in files; returns their paths, index.html first. Raises `InputError` if they cannot be written."""
    folder, found = Path(folder), corpora(runs)
    index = folder / "index.html"
    earlier = _written_before(index)
    try:
        for each in (folder / "figures", folder / "tables"):
            each.mkdir(parents=True, exist_ok=True)
        with drawn.quiet():
            contents = [content(corpus, alone=len(found) == 1) for corpus in found]
            figures = [path for each in contents for path in _figures(each, folder / "figures")]
            trusted = [file for each in contents for file in _cards(each, folder / "cards")]
            runs_table = overview.runs_table(found)
            index.write_text(page(contents, runs_table, folder / "figures"), encoding="utf-8")
        made = [*(table for each in contents for table in each.tables.values()), runs_table]
        written = [index, *figures, *trusted, *(path for table in made for path in _table(table, folder / "tables"))]
        for stale in set(earlier) - set(written):
            stale.unlink(missing_ok=True)
        return written
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{folder}: cannot be written to ({reason}); choose another --output") from error


def content(corpus: Corpus, alone: bool) -> Content:
    """Works out every table and figure of a corpus."""
    prefix = "" if alone else re.sub(r"[^\w.-]+", "-", corpus.name).strip("-") + "-"

    def named(things: Iterable) -> dict:
        return {thing.name: replace(thing, name=prefix + thing.name) for thing in things}

    made = map(named, (tables.all_tables(corpus), build.all_charts(corpus), all_pictures(corpus)))
    trusted = cards_of(corpus)
    folders = dict(zip(cards.names(trusted, prefix), trusted, strict=True))
    return Content(corpus, prefix, *made, claims(corpus), checks(corpus), folders, listening(corpus))


def _cards(each: Content, folder: Path) -> list[Path]:
    return [path for name, card in each.cards.items() for path in cards.write(each.corpus, card, folder / name)]


def _written_before(index: Path) -> list[Path]:
    """The files of the report that was here before, as its page links them; none if there was no report."""
    try:
        page = index.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    links = LINK.findall(page) if MADE_BY in page else []
    return [index.parent / html.unescape(link) for link in dict.fromkeys(links)]


def _figures(each: Content, folder: Path) -> list[Path]:
    charts = {chart.name: drawn.draw(chart) for chart in each.charts.values()}
    pictures = {picture.name: picture.figure for picture in each.pictures.values()}
    if not each.charts:
        log.warning("%s: no run has an evaluated round: no curves to draw", each.corpus.name)
    return [path for name, figure in (charts | pictures).items() for path in drawn.save(figure, folder / name)]


def page(contents: Sequence[Content], runs_table: Table, figures: Path) -> str:
    """The whole of index.html, which needs neither a server nor a network; `figures` is the pictures' folder."""
    shown: list[dict] = []

    def plot(chart: Chart) -> list[tuple[str, Panel]]:
        """A place for each panel; what is plotted there is added to the page's data."""
        places = [f"plot-{len(shown) + number}" for number in range(len(chart.panels))]
        shown.extend({"id": place} | each for place, each in zip(places, plots.plots(chart), strict=True))
        return list(zip(places, chart.panels, strict=True))

    def data_uri(picture: Picture) -> str:
        kind = {"png": "image/png", "svg": "image/svg+xml"}[picture.form]
        content = (figures / f"{picture.name}.{picture.form}").read_bytes()
        return f"data:{kind};base64,{base64.b64encode(content).decode()}"

    template = text.environment().get_template("page.html")
    views = {"text": text, "errors": overview.errors, "plot": plot, "plots": shown, "data_uri": data_uri}
    runs = [run for each in contents for run in each.corpus.runs]
    facts = {"contents": contents, "runs": runs, "runs_table": runs_table, "made_by": MADE_BY}
    return template.render(facts, plotly=Markup(get_plotlyjs()), **views)


def _table(table: Table, folder: Path) -> list[Path]:
    forms = {"csv": table.data.to_csv(index=False), "md": markdown(table), "tex": latex(table)}
    for ending, content in forms.items():
        (folder / f"{table.name}.{ending}").write_text(content, encoding="utf-8")
    return [folder / f"{table.name}.{ending}" for ending in forms]


def markdown(table: Table) -> str:
    """A Markdown document with this table."""
    head = [f"{over} {column}".strip() for over, column in zip(table.over, table.columns, strict=True)]
    rule = ["---"] * table.words + ["---:"] * (len(head) - table.words)
    rows = [head, rule, *(map(_markdown_cell, row) for row in table.cells)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    notes = "".join(f"\n- {note}" for note in table.notes)
    return f"**{table.title}.** {table.caption}\n\n" + "\n".join(lines) + "\n" + (f"{notes}\n" if notes else "")


def _markdown_cell(cell: Cell) -> str:
    return f"**{cell.plain()}**" if cell.kind == "significant" else cell.plain()


# What LaTeX takes for commands, and signs that its fonts lack.
SIGNS = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "ε": r"$\varepsilon$", "σ": r"$\sigma$", "δ": r"$\delta$",
    "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "∞": r"$\infty$", "≤": r"$\leq$", "≥": r"$\geq$", "‖": r"$\|$",
    "−": r"$-$", "–": "--", "→": r"$\to$", "₀": "$_0$", "₁": "$_1$", "…": r"\dots{}", "<": r"$<$", ">": r"$>$",
    "Σ": r"$\Sigma$", "²": "$^2$",
})  # fmt: skip


SIZES = {6: "", 8: "\\small", 10: "\\footnotesize", 1000: "\\scriptsize"}  # of type, for at most so many columns


def latex(table: Table) -> str:
    """A `table`, or a `longtable` where there are many rows; the first line names the packages that it needs."""
    lines = [[_latex_cell(cell, place, table) for place, cell in enumerate(row)] for row in table.cells]
    heads = [escape(column) for column in table.columns]
    groups = [(escape(over), head) for over, head in zip(table.over, heads, strict=True)]
    frame = pd.DataFrame(lines, columns=range(len(heads)))
    frame.columns = pd.MultiIndex.from_tuples(groups) if table.groups else heads
    sides = ["p{30em}" if n in table.wrapped else "l" if n < table.words else "r" for n in range(len(heads))]
    title = re.sub(r"^Table \d+\s*", "", table.title).strip("()")  # a paper counts its tables itself
    said = " ".join(filter(None, [f"{title}." if title else "", table.caption, *table.notes]))
    made = frame.style.hide(axis="index").to_latex(
        column_format="".join(sides),
        environment="longtable" if table.long else "table*" if len(heads) > 6 else "table",
        position_float=None if table.long else "centering",
        hrules=True,
        multicol_align="c",
        caption=escape(said),
        label=f"tab:{re.sub(r'[^a-z0-9]+', '-', table.name.lower())}",
    )
    size = next(size for most, size in SIZES.items() if len(heads) <= most)
    made = f"{{{size}\n{made}}}\n" if table.long and size else made.replace("\\centering", f"\\centering{size}", 1)
    return f"% \\usepackage{{booktabs, makecell{', longtable' * table.long}}}\n{made}"


def _latex_cell(cell: Cell, column: int, table: Table) -> str:
    """Its notes stand below it in small type, as on the page."""
    words = escape(cell.text)
    words = "{}" + words if words.startswith(("[", "*")) else words  # after a \\ these would be its arguments
    words = f"\\textbf{{{words}}}" if cell.kind == "significant" else words
    lines = [words, *(f"{{\\scriptsize {escape(note)}}}" for note in cell.notes)]
    if len(lines) == 1 or column in table.wrapped:
        return " ".join(lines)
    return f"\\makecell[t{'l' if column < table.words else 'r'}]{{" + r"\\".join(lines) + "}"


def escape(words: str) -> str:
    return words.translate(SIGNS)
