"""The page: everything in one file that needs neither a server nor a network."""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from fedser.report import overview
from fedser.report.html import Markup, bullets, tag
from fedser.report.runs import Run
from fedser.report.section import Content, Links, section
from fedser.report.tabular import Table, html

ASSETS = files("fedser.report") / "assets"
MADE_BY = "Made by fedser-report"


def page(contents: Sequence[Content], runs_table: Table, drawn: Path) -> str:
    """The whole of index.html; `drawn` is the folder with the pictures' files."""
    plots: list[dict] = []
    bodies = [section(each, plots, drawn, single=len(contents) == 1) for each in contents]
    names = ", ".join(each.corpus.name for each in contents)
    heading = tag("h1", f"Robustness of federated speech emotion recognition: {names}")
    runs = [run for each in contents for run in each.corpus.runs]
    top = tag("header", heading, _lead(contents), _contents_list(bodies, contents), _problems(runs))
    main = tag("main", [body for _, body in bodies], _all_runs(runs_table), _configurations(contents))
    foot = tag("footer", tag("p", f"{MADE_BY}. Figures as PNG and SVG lie in figures/, tables in tables/."))
    quiet = tag("noscript", tag("p", "The curves need JavaScript; figures/ holds them as pictures.", class_="box"))
    body = tag("body", top, quiet, main, foot, _scripts(plots))
    return "<!doctype html>\n" + tag("html", _head(f"fedser report: {names}"), body, lang="en")


def _head(title: str) -> Markup:
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),  # or else a browser asks for one
        tag("style", Markup((ASSETS / "page.css").read_text(encoding="utf-8"))),
    )


def _scripts(plots: Sequence[dict]) -> list[Markup]:
    """What is plotted, plotly itself, and what joins them."""
    from plotly.offline import get_plotlyjs

    data = json.dumps(plots, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return [
        tag("script", Markup(data), type="application/json", id="plots"),
        tag("script", Markup(get_plotlyjs())),
        tag("script", Markup((ASSETS / "page.js").read_text(encoding="utf-8"))),
    ]


def _lead(contents: Sequence[Content]) -> Markup:
    counts = [len(each.corpus.runs) for each in contents]
    told = [
        f"{count} run{'s' if count != 1 else ''} on {each.corpus.name}"
        for count, each in zip(counts, contents, strict=True)
    ]
    apart = " Each corpus has a section of its own: their numbers do not compare." if len(contents) > 1 else ""
    text = (
        f"{', '.join(told)}. The tables and figures of Chang et al. (2022), and next to each the evidence that it "
        f"lacks: attackers who know of the defence, intervals, tests and checks.{apart}"
    )
    return tag("p", text, class_="lead")


def _contents_list(bodies: Sequence[tuple[Links, Markup]], contents: Sequence[Content]) -> Markup:
    lists = []
    for (links, _), each in zip(bodies, contents, strict=True):
        name = tag("li", tag("strong", each.corpus.name)) if len(contents) > 1 else None
        lists.append(tag("ul", name, [tag("li", tag("a", text, href=f"#{place}")) for place, text in links]))
    end = [("all-runs", "All runs"), ("configurations", "Configurations")]
    lists.append(tag("ul", [tag("li", tag("a", text, href=f"#{place}")) for place, text in end]))
    return tag("nav", lists, aria_label="Contents")


def _problems(runs: Sequence[Run]) -> Markup | None:
    """What is missing from the report, and why."""
    told = [problem for run in runs for problem in run.problems]
    told_of = ("finished", "damaged", "unknown")  # the latter two among the problems
    unfinished = [run for run in runs if run.status not in told_of]
    told += [f"{run.name} is not finished ({run.status}): only its curves, as far as they got." for run in unfinished]
    told += overview.errors(runs)
    if not told:
        return None
    return tag("div", tag("strong", "Not everything is here"), bullets(told), class_="box warn")


def _all_runs(table: Table) -> Markup:
    return tag("section", tag("h2", "All runs"), html(table), id="all-runs")


def _configurations(contents: Sequence[Content]) -> Markup:
    """Settings and environment of each run, folded up."""
    models = {run: model.label for each in contents for model in each.corpus.models for run in model.runs}
    runs = [run for each in contents for run in each.corpus.runs]
    boxes = []
    for run in runs:
        line = f"{models.get(run, 'no model')}, seed {run.setting('seed')}, {run.status}: {run.name}"
        told = [[tag("dt", key), tag("dd", str(value))] for key, value in _environment(run).items()]
        facts = tag("dl", told, class_="facts")
        boxes.append(tag("details", tag("summary", line), facts, _settings(run), class_="run"))
    return tag("section", tag("h2", "Configurations and environments"), boxes, id="configurations")


def _environment(run: Run) -> dict:
    """What summary.json says beside metrics."""
    plain = {key: value for key, value in run.summary.items() if "/" not in key and not isinstance(value, dict | list)}
    return plain | {"folder": run.folder}


def _settings(run: Run) -> Markup | None:
    path = run.folder / "config.yaml"
    if not run.config or not path.is_file():
        return None
    return tag("pre", path.read_text(encoding="utf-8"), tabindex="0")
