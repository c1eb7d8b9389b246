"""The report as a command: which files it makes, what it says of input that is damaged, missing or does not compare."""

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from runs import CLASSES, MODELS, PAPER, Made, make_run

from fedser import report
from fedser.errors import InputError

FIGURES = [
    "worst-attacks",
    "fig4-rounds",
    "fig5-conditions",
    "oblivious-adaptive",
    "budget-curves",
    "distance-curves",
    "speakers-strip",
    "fig2-example",
    "fig6-confusion",
]


HEAD = "utterance,client,speaker,sex,emotion"


@pytest.fixture(scope="module")
def grid(reported):
    return reported[0]


@pytest.fixture(scope="module")
def written(reported):
    return reported[1:]


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, balanced, and the text outside of scripts."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.open, self.words, self.folded = [], [], [], []
        self.feed(Path(path).read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "input", "path", "rect", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path", "rect", "circle"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)
            self.folded.append({"details", "pre"} & set(self.open))

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))

    @property
    def read(self):
        """Without the runs' settings."""
        return " ".join(data for data, folded in zip(self.words, self.folded, strict=True) if "pre" not in folded)

    @property
    def sight(self):
        """Without what is folded up."""
        return " ".join(data for data, folded in zip(self.words, self.folded, strict=True) if not folded)

    def having(self, key):
        return [attributes[key] for _, attributes in self.elements if key in attributes]


def test_files_of_a_whole_grid(written):
    folder, paths = written
    assert paths[0] == folder / "index.html"
    assert [path.stem for path in paths if path.suffix == ".png"] == FIGURES
    assert all(path.is_file() and path.stat().st_size > 80 for path in paths)
    assert sorted(folder.rglob("*.*")) == sorted(paths)
    tables = {path.stem for path in paths if path.suffix == ".tex"}
    forms = [
        {path.stem for path in paths if path.suffix == form and path.parent.name == "tables"}
        for form in (".csv", ".md")
    ]
    assert forms == [tables, tables]
    assert tables >= {
        "table3",
        "matrix-adversarial",
        "matrix-adaptive",
        "budgets",
        "flips",
        "speakers",
        "fairness",
        "recall",
    }
    assert tables >= {"tests-models", "tests-defence", "flags", "all-numbers", "runs", "threats", "at-a-glance"}


def test_figures_are_pictures(written):
    for path in (written[0] / "figures").glob("*.png"):
        pixels = matplotlib.image.imread(path)
        assert min(pixels.shape[:2]) > 300
        assert pixels.std() > 0.02
        assert len(np.unique((255 * pixels[..., :3]) @ (1, 256, 65536))) > 50  # colours


def test_page_is_whole_and_needs_nothing_else(written):
    page = Page(written[1][0])
    assert page.open == []
    ids = page.having("id")
    assert len(ids) == len(set(ids))
    for link in page.having("href"):
        if link.startswith("#"):
            assert link[1:] in ids
        elif not link.startswith("data:"):
            assert (written[0] / link).is_file()
    assert all(source.startswith("data:") for source in page.having("src"))
    assert all(attributes.get("alt") for tag, attributes in page.elements if tag == "img")
    headings = "In short|What was run|Table 3|The paper's claims|Adaptive attackers and budgets|Figures 2, 4, 5 and 6|More|Runs"
    found = [page.text.rindex(f" {heading} ") for heading in headings.split("|")]
    assert found == sorted(found)


def test_every_file_is_linked_once(written):
    links = [link for link in Page(written[1][0]).having("href") if link.startswith(("figures/", "tables/", "cards/"))]
    assert sorted(written[0] / link for link in links) == sorted(written[1][1:])


@pytest.mark.parametrize(("models", "most", "fairness"), [(MODELS, 5227, 440), (("pgd",), 2325, 190)])
def test_words_are_few(grid, written, tmp_path, models, most, fairness):
    """Half of what such runs took in 0.3.0 (10,454 and 4,650), with what is folded up; half of that in sight. Of
    fairness, which is folded up, there was nothing then."""
    index = written[1][0]
    if len(models) == 1:
        runs = [run for run in report.load([grid]) if "-pgd-" in run.name and "seed0" in run.name]
        index = report.write(runs, tmp_path / "report")[0]
    page = Page(index)
    assert most / 2 < len(page.read.split()) <= most + fairness
    assert len(page.sight.split()) <= most / 2


def test_files_of_an_earlier_report_go_and_others_stay(written, tmp_path):
    folder = Path(shutil.copytree(written[0], tmp_path / "report"))
    mine = [folder / name for name in ("mine.png", "figures/mine.png", "tables/table3 of mine.csv", "tables/x/a.csv")]
    (folder / "tables/x").mkdir()
    for file in mine:
        file.write_text("")
    run = make_run(tmp_path / "run", full=False)
    (run / "evaluation.json").unlink()
    paths = report.write(report.load([run]), folder)
    assert len(paths) < len(written[1]) / 2
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted([*paths, *mine])


def test_files_beside_a_page_that_is_no_report_stay(tmp_path):
    (tmp_path / "report/tables").mkdir(parents=True)
    (tmp_path / "report/index.html").write_text('<a href="tables/table9.csv">mine</a>')
    (tmp_path / "report/tables/table9.csv").write_text("")
    report.write(report.load([make_run(tmp_path / "run", full=False)]), tmp_path / "report")
    assert (tmp_path / "report/tables/table9.csv").is_file()


def test_equal_runs_give_equal_reports(tmp_path):
    runs = report.load([make_run(tmp_path / "run", full=False)])
    first, second = (report.write(runs, tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_names_and_settings_are_text_not_html(tmp_path):
    folder = make_run(
        tmp_path / "run", Made(classes=("<b>a", "b&c", "$d$")), full=False, name="<script>alert(1)</script>"
    )
    page = Page(report.write(report.load([folder]), tmp_path / "report")[0])
    assert "<script>alert(1)</script>" in page.text and "<b>a" in page.text
    assert "b&c" in (tmp_path / "report/tables/recall.md").read_text()
    assert r"b\&c & \$d\$" in (tmp_path / "report/tables/recall.tex").read_text()


def test_table_has_a_row_per_run(grid):
    frame = report.table(report.load([grid]))
    assert len(frame) == 8
    assert {f"uar/adversarial/{attack}" for attack in PAPER} < set(frame.columns)
    assert frame["uar/original"].between(0.5, 1).all()
    assert sorted(frame["seed"].unique()) == [0, 1]


# --- Input that is not as it should be -------------------------------------------------------------------------------


def reported(tmp_path, *paths):
    page = Page(report.write(report.load(paths or [tmp_path / "runs"]), tmp_path / "report")[0])
    assert page.open == []
    return page.text


def test_failed_and_unfinished_runs_are_shown_as_such(tmp_path):
    make_run(tmp_path / "runs/a", full=False)
    make_run(tmp_path / "runs/b", Made("pgd"), status="failed", error="speaker 03: loss is NaN\nmore")
    make_run(tmp_path / "runs/c", Made("fgsm"), status="running")
    text = reported(tmp_path)
    assert "1 finished, 1 failed, 1 running" in text
    assert "speaker 03: loss is NaN" in text and "more" not in text.split("loss is NaN")[1][:9]
    assert "fgsm-two_stage-seed0-0000000000000001 is not finished (running)" in text
    rows = {row["trained_as"]: row for row in csv.DictReader((tmp_path / "report/tables/runs.csv").open())}
    assert {name: row["status"] for name, row in rows.items()} == {
        "nature": "finished",
        "AT-PGD": "failed",
        "AT-FGSM": "running",
    }
    assert float(rows["AT-FGSM"]["uar/original"]) > 0.5  # of its last evaluated round
    table3 = (tmp_path / "report/tables/table3.md").read_text()
    assert re.search(r"\| Nature \| Original \| \d+\.\d \[", table3)


def test_runs_without_summary_or_history_are_named_beside_the_others(tmp_path, caplog):
    make_run(tmp_path / "runs/a", full=False)
    (make_run(tmp_path / "runs/b", Made("pgd"), full=False) / "summary.json").unlink()
    (make_run(tmp_path / "runs/c", Made("fgsm"), full=False) / "history.jsonl").unlink()
    text = reported(tmp_path)
    told = [
        f"{tmp_path}/runs/b/summary.json: missing, so it is not known whether this run was finished",
        f"{tmp_path}/runs/c/history.jsonl: missing, so there are no curves of this run",
    ]
    assert caplog.messages == told and all(message in text for message in told)
    assert "2 finished, 1 unknown" in text and "is not finished (" not in text
    rows = list(csv.DictReader((tmp_path / "report/tables/at-a-glance.csv").open()))
    assert [row["model"] for row in rows] == ["nature", "AT-FGSM", "AT-PGD"]


def test_runs_without_any_evaluation_still_have_curves(tmp_path, caplog):
    folder = make_run(tmp_path / "runs/a", full=False)
    (folder / "evaluation.json").unlink()
    (folder / "utterances.csv").unlink()
    (folder / "confusion.json").write_text('{"classes": ["a"], "conditions": {}}')
    text = reported(tmp_path)
    assert "holds no evaluation.json, so there are only its curves and its summary" in text
    assert (tmp_path / "report/figures/fig4-rounds.png").is_file()
    assert not (tmp_path / "report/tables/table3.md").exists()
    assert "| 81.2 |" in (tmp_path / "report/tables/runs.md").read_text()


def test_run_that_failed_at_once_is_a_row_of_dashes(tmp_path, caplog):
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/summary.json").write_text('{"status": "failed"}')
    text = reported(tmp_path)
    assert "config.yaml: missing" in text
    assert "no run has an evaluated round: no curves to draw" in caplog.text
    report.show(report.load([tmp_path / "runs"]))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("summary.json", '{"status": "finished",\n "name": }', "summary.json:2: not JSON"),
        ("summary.json", "[1]", "summary.json:1: not a JSON object"),
        ("summary.json", '{"uar/original": "high"}', "summary.json:1: uar/original is 'high', not a number"),
        ("summary.json", b"\xff\xfe", "summary.json: cannot be read"),
        ("history.jsonl", '{"round": 1}\n{"round": 2', "history.jsonl:2: not JSON"),
        ("history.jsonl", '{"round": 1}\n\n{"loss": 2}\n', "history.jsonl:3: has no round"),
        ("evaluation.json", '{"classes": ["a", "b"],\n', "evaluation.json:2: not JSON"),
        ("evaluation.json", '{"classes": ["a"]}', "evaluation.json: lacks classes or conditions"),
        ("evaluations/full/evaluation.json", "[]", "full/evaluation.json:1: not a JSON object"),
        ("utterances.csv", "utterance,client\n1,2\n", "utterances.csv: lacks the columns speaker, sex, emotion"),
        ("utterances.csv", 'a,"b\n', "utterances.csv: not a table"),
        ("utterances.csv", f"{HEAD}\n\n1,2,3,f\n", "utterances.csv:3: has 4 fields, not 5"),
        ("utterances.csv", f"{HEAD}\n1,2,3,f,fear,0\n", "utterances.csv:2: has 6 fields, not 5"),
        ("utterances.csv", f"{HEAD}\n1,2,,,fear\n, ,,f,fear\n", "utterances.csv:3: has no utterance and no client"),
        ("utterances.csv", f"{HEAD}\n1,2,3,f,x\n", "utterances.csv:2: the emotion 'x' is none of the classes"),
        ("example.npz", b"PK", "example.npz: cannot be read"),
        ("config.yaml", "a: 1\nb: [", "config.yaml:2: not a config"),
        ("config.yaml", "- a", "config.yaml: not a config"),
    ],
)
def test_damaged_file_is_named(tmp_path, file, content, message, caplog):
    folder = make_run(tmp_path / "run")
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    (run,) = report.load([folder])
    assert message in run.problems[0]
    assert caplog.messages == run.problems


def test_the_rest_is_reported_beside_damaged_files(tmp_path, capsys):
    files = {
        "a": "summary.json",
        "b": "history.jsonl",
        "c": "config.yaml",
        "d": "evaluation.json",
        "e": "utterances.csv",
    }
    for name, file in files.items():
        (make_run(tmp_path / "runs" / name, Made("pgd"), full=False) / file).write_text("[")
    folder = make_run(tmp_path / "runs" / "good", full=False)
    (folder / "evaluations/torn").mkdir(parents=True)
    for file, content in (("evaluation.json", (folder / "evaluation.json").read_bytes()), ("example.npz", b"PK")):
        (folder / "evaluations/torn" / file).write_bytes(content)
    assert report.main([str(tmp_path / "runs"), "-o", str(tmp_path / "report")]) == 0
    page = Page(tmp_path / "report/index.html")
    assert all(f"{name}/{file}" in page.text for name, file in files.items())
    assert "good/evaluations/torn/example.npz: cannot be read" in page.text
    assert [path.stem for path in (tmp_path / "report/figures").glob("fig2*.png")] == ["fig2-example"]
    assert len(list(csv.DictReader((tmp_path / "report/tables/runs.csv").open()))) == 6
    assert (tmp_path / "report/tables/table3.csv").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matrix": [[1, 2]]}, "adversarial/pgd: matrix is not a 7 × 7 matrix; condition left out"),
        ({"by_client": {"03": [[1]]}}, "adversarial/pgd: client 03 is not a 7 × 7 matrix"),
        ({"matrix": [[None] * 7] * 7}, "adversarial/pgd: matrix holds something that is not a count"),
        ({"matrix": [[0] * 7] * 7}, "adversarial/pgd: no utterance was counted"),
        ({"draws": 7919}, "adversarial/pgd: its counts are not those of 7919 draws"),
    ],
)
def test_damaged_condition_is_left_out(tmp_path, change, message):
    folder = make_run(tmp_path / "runs/a", full=False)
    content = json.loads((folder / "evaluation.json").read_text())
    content["conditions"]["adversarial/pgd"] |= change
    (folder / "evaluation.json").write_text(json.dumps(content))
    (run,) = report.load([folder])
    assert message in run.problems[0]
    assert set(run.evaluations[0].conditions) == {
        "original",
        "randomised",
        "adversarial/fgsm",
        "adversarial/deepfool",
        *(f"randomised_adversarial/{attack}" for attack in PAPER),
    }


def test_no_utterances_and_no_example(tmp_path):
    for seed in (0, 1):
        folder = make_run(tmp_path / f"runs/{seed}", Made(seed=seed))
        for file in [*folder.rglob("utterances.csv"), *folder.rglob("example.npz")]:
            file.unlink()
    reported(tmp_path)
    tables, figures = tmp_path / "report/tables", tmp_path / "report/figures"
    rows = list(csv.DictReader((tables / "all-numbers.csv").open()))
    assert all(float(row["clustered_low"]) <= float(row["clustered_high"]) for row in rows)
    assert all(float(row["stratified_low"]) <= float(row["uar"]) <= float(row["stratified_high"]) for row in rows)
    assert not (figures / "fig2-example.png").exists() and not (figures / "distance-curves.png").exists()
    assert (figures / "speakers-strip.png").is_file()
    assert not (tables / "tests-models.md").exists()


def test_runs_of_two_corpora_have_a_section_each(tmp_path, caplog):
    make_run(tmp_path / "runs/a", full=False)
    make_run(tmp_path / "runs/b", Made(dataset="ravdess"), full=False)
    make_run(tmp_path / "runs/c", Made(classes=CLASSES[:4]), status="failed")
    text = reported(tmp_path)
    names = "emodb (7 classes), ravdess, emodb (4 classes)"
    assert caplog.messages == [f"the runs do not all compare ({names}): each has a section of its own"]
    assert "Each corpus has a section of its own: their numbers do not compare." in text
    tables = sorted(path.name for path in (tmp_path / "report/tables").glob("*table3.csv"))
    assert tables == ["emodb-7-classes-table3.csv", "ravdess-table3.csv"]
    assert (tmp_path / "report/figures/emodb-4-classes-fig4-rounds.svg").is_file()


def test_wrong_paths_exit_2_with_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for path, message in [("none", "no such folder"), ("empty", "holds no run"), ("file", "is a file")]:
        assert report.main([str(tmp_path / path)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("fedser-report: ")
        assert error.count("\n") == 1
    run = make_run(tmp_path / "run", full=False)
    assert report.main([str(run), "--output", str(tmp_path / "file")]) == 2
    assert "cannot be written to" in capsys.readouterr().err
    with pytest.raises(InputError):
        report.load([tmp_path / "none"])


def test_missing_font_and_sign_do_not_matter(tmp_path, monkeypatch):
    from fedser.report.charts import drawn

    monkeypatch.setitem(drawn.PLOT_STYLE, "font.family", ["No Such Font At All"])
    make_run(tmp_path / "runs/a", Made(classes=("怒り", "b", "c")), full=False)
    reported(tmp_path)  # warnings are errors in tests
    assert (tmp_path / "report/figures/fig6-confusion.svg").is_file()


# --- In the terminal -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [True, False])
def test_command_prints_and_writes(tmp_path, capsys, monkeypatch, wide):
    make_run(tmp_path / "runs/a", name="nature", full=False)
    make_run(tmp_path / "runs/b", Made("pgd"), name="[two-stage]", full=False)
    monkeypatch.chdir(tmp_path)
    if not wide:
        monkeypatch.setenv("COLUMNS", "50")
        monkeypatch.setattr("rich.console.Console.is_terminal", True)
    assert report.main(["runs"]) == 0
    out = capsys.readouterr().out
    for word in ("dataset emodb", "nature", "[two-stage]", "randomise", "written: report/index.html, and "):
        assert word in out
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["cards", "figures", "index.html", "tables"]


def test_help_needs_no_heavy_import():
    code = (
        "import sys; from fedser import report\n"
        "try: report.main(['--help'])\n"
        "except SystemExit: print({'numpy', 'pandas', 'matplotlib', 'rich', 'torch', 'plotly'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


def test_report_needs_no_torch(tmp_path):
    make_run(tmp_path / "run", full=False)
    code = "import sys; from fedser import report; report.main(['run']); print({'torch', 'ray', 'flwr'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.endswith("set()\n")


def test_models_are_named_as_they_were_trained(written):
    rows = list(csv.DictReader((written[0] / "tables/at-a-glance.csv").open()))
    assert [row["model"] for row in rows] == ["nature", "AT-FGSM", "AT-PGD", "AT-DeepFool"]
    assert len(MODELS) == len(rows)
    assert all(float(row["worst_adaptive"]) < float(row["original"]) for row in rows)
    assert not any(math.isnan(float(row["worst_adversarial"])) for row in rows)
