"""The report's folder: index.html, figures/ and tables/."""

import html
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from fedser.errors import InputError
from fedser.report import figures, overview, page
from fedser.report.latex import latex
from fedser.report.models import corpora
from fedser.report.runs import Run
from fedser.report.section import Content, content
from fedser.report.tabular import Table, markdown

log = logging.getLogger(__name__)
LINK = re.compile(r'href="((?:figures|tables)/[^"/]+\.(?:png|svg|csv|md|tex))"')


def write(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Everything, in files; returns their paths, index.html first. Raises `InputError` if they cannot be written."""
    found = corpora(runs)
    index = folder / "index.html"
    earlier = _written_before(index)
    try:
        for each in (folder / "figures", folder / "tables"):
            each.mkdir(parents=True, exist_ok=True)
        with figures.quiet():
            contents = [content(corpus, alone=len(found) == 1) for corpus in found]
            drawn = [path for each in contents for path in _figures(each, folder / "figures")]
            runs_table = overview.runs_table(found)
            index.write_text(page.page(contents, runs_table, folder / "figures"), encoding="utf-8")
        tables = [table for each in contents for table in each.tables.values()]
        written = [index, *drawn, *_tables([*tables, runs_table], folder / "tables")]
        for stale in set(earlier) - set(written):
            stale.unlink(missing_ok=True)
        return written
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{folder}: cannot be written to ({reason}); choose another --output") from error


def _written_before(index: Path) -> list[Path]:
    """The files of the report that was here before, as its page links them; none if there was no report."""
    try:
        text = index.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    links = LINK.findall(text) if page.MADE_BY in text else []
    return [index.parent / html.unescape(link) for link in dict.fromkeys(links)]


def _figures(each: Content, folder: Path) -> list[Path]:
    charts = {chart.name: figures.draw(chart) for chart in each.charts.values()}
    pictures = {picture.name: picture.figure for picture in each.pictures.values()}
    if not charts:
        log.warning("%s: no run has an evaluated round: no curves to draw", each.corpus.name)
    return [path for name, figure in (charts | pictures).items() for path in figures.save(figure, folder / name)]


def _tables(tables: Iterable[Table], folder: Path) -> list[Path]:
    written = []
    for table in tables:
        for ending, text in (
            (".csv", table.data.to_csv(index=False)),
            (".md", markdown(table)),
            (".tex", latex(table)),
        ):
            path = folder / f"{table.name}{ending}"
            path.write_text(text, encoding="utf-8")
            written.append(path)
    return written
