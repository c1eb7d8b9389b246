"""What stands in the tables and charts, with numbers worked out by hand, and the forms that tables are written in."""

import csv
import dataclasses
import json
import math
import re
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path

import matplotlib.colors as mcolors
import numpy as np
import pandas as pd
import pytest
from runs import CLASSES, GRID, PAPER, Made, conditions_of, evaluation, make_run

from fedser import report
from fedser.evaluation import statistics
from fedser.report import charts, overview, tables, text
from fedser.report.analysis import claims, comparisons, flags, models
from fedser.report.analysis.conditions import attack_title
from fedser.report.cells import LONG, MISSING, Cell, Table, between, number, p_text, percent, signed
from fedser.report.charts import build, drawn, pictures, plots
from fedser.report.output import escape, latex, markdown


@pytest.fixture(scope="module")
def corpus(reported):
    (found,) = models.corpora(report.load([reported[0]]))
    return found


def rows_of(table):
    return [[cell.plain() for cell in row] for row in table.cells]


# --- Forms -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small():
    rows = [["a|b_1", Cell("81.2", ("[70.0, 90.1]",), 0.8123, shade=0.5)], ["c & <d>", Cell("–")]]
    data = pd.DataFrame({"model": ["a|b_1", "c & <d>"], "uar": [0.8123, math.nan]})
    return Table("small", "Small", "UAR in %.", ["Model", "UAR"], rows, data, groups=[("", 1), ("σ & ε", 1)])


def test_markdown(small):
    assert markdown(small) == (
        "**Small.** UAR in %.\n\n"
        "| Model | σ & ε UAR |\n"
        "| --- | ---: |\n"
        "| a\\|b_1 | 81.2 [70.0, 90.1] |\n"
        "| c & <d> | – |\n"
    )


def test_latex_is_booktabs_and_escaped(small):
    assert latex(small).splitlines() == [
        r"% \usepackage{booktabs, makecell}",
        r"\begin{table}",
        r"\centering",
        r"\caption{Small. UAR in \%.}",
        r"\label{tab:small}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r" & $\sigma$ \& $\varepsilon$ \\",
        r"Model & UAR \\",
        r"\midrule",
        r"a|b\_1 & \makecell[tr]{81.2\\{\scriptsize [70.0, 90.1]}} \\",
        r"c \& $<$d$>$ & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def assert_whole(text, table):
    """Braces, environments, and as many cells in every row as there are columns."""
    bare = re.sub(r"\\[&%$#_{}]", "", text.replace(r"\\", "¶"))
    depths = list(accumulate({"{": 1, "}": -1}.get(sign, 0) for sign in bare))
    assert min(depths) == 0 == depths[-1]
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{(.+?)\}", text):
        assert kind == "begin" or stack.pop() == name
        stack += [name] * (kind == "begin")
    assert stack == []
    (spec,) = re.findall(r"\\begin\{(?:tabular|longtable)\}\{(.*)\}", text)
    assert len(re.sub(r"p\{.*?em\}", "p", spec)) == len(table.columns)
    rows = [line for line in bare.splitlines() if line.endswith(" ¶") and not re.search("caption|Continued", line)]
    spans = [[int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}", row)] for row in rows]
    cells = [row.count("&") + 1 + sum(span) - len(span) for row, span in zip(rows, spans, strict=True)]
    heads = (1 + bool(table.groups)) * (2 if "longtable" in text else 1)
    assert cells == [len(table.columns)] * (len(table.rows) + heads)
    assert not re.search(r"¶\s*[\[*]", bare)  # what stands so would be an argument


def test_latex_of_every_table_is_whole(corpus):
    made = [*tables.all_tables(corpus), overview.runs_table([corpus])]
    long = set()
    for table in made:
        text = latex(table)
        assert_whole(text, table)
        long |= {table.name} if "longtable" in text else set()
        assert ("longtable" in text.splitlines()[0]) == (r"\begin{longtable}" in text)
    assert long == {table.name for table in made if len(table.rows) > LONG} and "all-numbers" in long


def test_latex_marks_breaks_and_counts_as_a_paper_does():
    rows = [
        ["a", "word " * 30, Cell("[1]", kind="significant")],
        ["[b]", "short", Cell("0.2", ("[0.1, 0.3]", "of {5}"))],
        [Cell("x" * 30, ("note",)), Cell("", ("broken",)), "–"],
    ]
    table = Table("t_1", "Table 3 (rounds=60)", "In %.", ["A", "B", "p"], rows, pd.DataFrame(), words=2, wrapped=[1],
                  notes=["One & two.", "Three."])  # fmt: skip
    text = latex(table)
    assert_whole(text, table)
    assert r"\caption{rounds=60. In \%. One \& two. Three.}" in text and r"\label{tab:t-1}" in text
    assert latex(replace(table, title="Table 3", notes=[])).count(r"\caption{In \%.}") == 1
    assert r"& \textbf{{}[1]} \\" in text and "\n{}[b] & short & \\makecell[tr]{0.2\\\\{" in text
    assert r"\begin{tabular}{lp{30em}r}" in text and r" &  {\scriptsize broken} & -- \\" in text
    assert r"\makecell[tl]{" + "x" * 30 + r"\\{\scriptsize note}}" in text
    assert "| **[1]** |" in markdown(table)


def test_latex_of_many_columns_is_small():
    columns = [f"c{number}" for number in range(11)]
    wide = Table("wide", "Wide", "", columns, [columns], pd.DataFrame())
    long = replace(wide, rows=[columns] * (LONG + 1))
    assert latex(wide).splitlines()[1:3] == [r"\begin{table*}", r"\centering\scriptsize"]
    assert latex(long).splitlines()[1] == r"{\scriptsize"
    for table in (wide, long):
        assert_whole(latex(table), table)


def test_latex_has_no_sign_that_its_fonts_lack(corpus):
    made = tables.all_tables(corpus)
    left = {sign for table in made for sign in latex(table) if ord(sign) > 127}
    assert left == set()
    assert escape("a_b^2 {x} \\ ~ ± ∞ 5 % − ₀‖δ‖") == (
        r"a\_b\textasciicircum{}2 \{x\} \textbackslash{} \textasciitilde{} $\pm$ $\infty$ 5 \% $-$ $_0$$\|$$\delta$$\|$"
    )


def html(table):
    return str(text.environment().get_template("parts.html").module.table(table))


def test_html_escapes_and_carries_what_it_is_sorted_by(small):
    made = html(small)
    assert 'data-value="0.8123"' in made and "--shade:0.50" in made
    assert "c &amp; &lt;d&gt;" in made and "<d>" not in made
    assert '<th colspan="1" class="group">σ &amp; ε</th>' in made
    assert '<table class="grouped">' in made and "<button" not in made
    assert '<button type="button">UAR</button>' in html(replace(small, groups=()))


def test_numbers_as_people_read_them():
    assert percent(0.81249) == "81.2" and percent(math.nan) == percent(None) == MISSING
    assert signed(-0.0312) == "−3.1" and signed(0.05) == "+5.0" and signed(-0.0001) == "0.0"
    assert number(math.inf) == "∞" and number(-math.inf) == "−∞" and number(None) == MISSING
    assert number(0.04951) == "0.0495" and between(math.nan, math.nan) == ""
    assert between(-0.01, 0.02, signed) == "[−1.0, +2.0]"


# --- Contents --------------------------------------------------------------------------------------------------------


def test_papers_numbers_are_table_3s():
    paper = claims.PAPER
    assert paper["nature"]["original"] == 94.08 and paper["nature"]["randomised"] == 92.75
    assert paper["adversarial"]["randomised_adversarial"] == {"fgsm": 90.15, "pgd": 89.2, "deepfool": 72.32}
    assert paper["nature"]["randomised_adversarial"]["deepfool"] == 71.34


def test_table_3_has_the_papers_layout(corpus):
    (table,) = tables.table3(corpus)
    rows = rows_of(table)
    assert [name for name, _ in table.groups] == ["", "No attack", "FGSM", "PGD", "DeepFool"]
    assert [row[0] for row in rows] == ["Nature", *[""] * 4, "Adversarial federated learnt", *[""] * 4]
    kinds = ["Original", "Randomised", "Adversarial", "Randomised adversarial", "Adaptive"]
    assert [row[1] for row in rows] == 2 * kinds
    assert [row[3::2] for row in rows] == [
        ["94.08", "", "", ""],
        ["92.75", "", "", ""],
        ["", "20.82", "9.96", "2.96"],
        ["", "47.91", "41.55", "71.34"],
        ["", "–", "–", "–"],
        ["", "95.99", "95.40", "95.16"],
        ["", "95.32", "95.10", "94.56"],
        ["", "89.72", "87.31", "1.98"],
        ["", "90.15", "89.20", "72.32"],
        ["", "–", "–", "–"],
    ]
    assert "Ours are of emodb: compare patterns, not numbers." in table.caption
    assert "means of 10 draws" in table.caption


def test_each_column_of_table_3_has_the_model_trained_against_it(corpus):
    (table,) = tables.table3(corpus)
    by_label = {model.label: model for model in corpus.models}
    ours = table.cells[8][2::2]
    for cell, attack, label in zip(ours[1:], PAPER, ("AT-FGSM", "AT-PGD", "AT-DeepFool"), strict=True):
        estimate = by_label[label].estimates[f"randomised_adversarial/{attack}"]
        assert cell.value == estimate.uar
        sd = 100 * statistics.aggregate([measure.uar for measure in estimate.measures]).sd
        assert cell.text == f"{100 * estimate.uar:.1f} ± {sd:.1f}"
        assert cell.notes == (f"[{100 * estimate.clustered.low:.1f}, {100 * estimate.clustered.high:.1f}]",)


def test_a_part_of_the_clips_or_seeds_is_said_so(corpus):
    nature = corpus.models[0]
    cell = tables.uar_cell(nature.estimates["adversarial/autoattack"])
    assert cell.notes[1:] == ("25 % of clips", "1 of 2 seeds")
    assert "On a part of the test clips: AutoAttack (25 %)." in build.adaptive(corpus).caption


def test_matrices_have_a_model_per_row_and_an_attack_per_column(corpus):
    found = {table.name: table for table in tables.matrices(corpus)}
    assert list(found) == ["matrix-adversarial", "matrix-randomised_adversarial", "matrix-adaptive"]
    table = found["matrix-adaptive"]
    assert table.columns[:5] == ["Model", "Randomised", "FGSM", "PGD", "DeepFool"]
    assert [row[0].text for row in table.cells] == [model.label for model in corpus.models]
    assert table.cells[2][3].value == corpus.models[2].estimates["adaptive/pgd"].uar


@pytest.mark.parametrize("kind", tables.ATTACKED)
def test_what_is_looked_at_is_the_strongest_attack_of_each_kind_that_all_models_met(corpus, kind):
    tested = [name.removeprefix(f"{kind}/") for name in corpus.conditions if name.startswith(f"{kind}/")]
    bounded = [name for name in tested if name not in ("deepfool", "cw") and "eps=" not in name]
    met = [name for name in bounded if all(f"{kind}/{name}" in model.estimates for model in corpus.models)]
    means = {name: np.mean([m.estimates[f"{kind}/{name}"].uar for m in corpus.models]) for name in met}
    assert corpus.strongest(kind) == min(means, key=means.get)
    assert f"{kind}/{corpus.strongest(kind)}" in corpus.looked_at
    assert len(corpus.looked_at) == 5


def test_budgets_are_per_attack_and_for_minimal_norms_per_model(corpus):
    rows = rows_of(tables.budgets(corpus))
    assert [row[:2] for row in rows[:4]] == [
        [name, "all"] for name in ("FGSM", "FGSM, adaptive", "PGD", "PGD, adaptive")
    ]
    l2 = 0.05 * math.sqrt(373 * 64) * 0.99
    assert rows[0][2:7] == ["0.05", "0.05", f"{l2:.3g}", "26.1", "100.0"]
    assert [row[1] for row in rows if row[0] == "DeepFool"] == [model.label for model in corpus.models]


def test_budgets_are_those_of_the_measures_that_count(tmp_path):
    """Not of other budgets under the same name, of earlier rounds, or of a part of the clips."""
    folder = make_run(tmp_path / "run", full=False)
    names = conditions_of(["pgd"], ["adversarial", "adaptive"])
    later = folder / "evaluations"
    changes = {"larger": {"eps": 0.1, "snr": 20.0}, "again": {"eps": 0.05}, "early": {"round": 30, "snr": 1.0}}
    for name, change in ({"part": {"snr": 2.0}} | changes).items():
        evaluation(later / name, Made(), name, names, draws=3, fraction=0.5 if name == "part" else 1.0)
        content = json.loads((later / name / "evaluation.json").read_text())
        content["round"] = change.get("round", content["round"])
        content["attacks"]["pgd"]["settings"]["eps"] = change.get("eps", 0.05)
        for entry in content["examples"].values():
            entry["snr_db"] = change.get("snr", 26.0)
        (later / name / "evaluation.json").write_text(json.dumps(content))
    (corpus,) = models.corpora(report.load([folder]))
    table = tables.budgets(corpus)
    rows = [[row[0], row[2], row[5]] for row in rows_of(table) if row[0].startswith("PGD")]
    assert rows == [["PGD", "0.05", "26.0"], ["PGD, adaptive", "0.05", "26.0"]]
    found = dict(zip(table.data["set"], table.data["snr_db"], strict=True))
    assert (found["pgd"], found["adaptive/pgd"], found["pgd@eps=0.1"], found["adaptive/pgd@eps=0.1"]) == (
        26,
        26,
        20,
        20,
    )
    threats = {row[0]: row[2:] for row in rows_of(tables.threats(corpus))}
    assert threats["PGD"] == ["0.05", "26.0"]


@pytest.mark.parametrize("varied, counts", [("decay=0.5", True), ("eps=0.1", False)])
def test_a_model_is_judged_by_attacks_of_the_same_budget_however_varied(tmp_path, varied, counts):
    folder, stronger = make_run(tmp_path / "run", full=False), f"apgd@{varied}"
    names = conditions_of(["apgd", stronger], ["adversarial", "adaptive"])
    evaluation(folder / "evaluations" / "part", Made(), "part", names, draws=3)
    (corpus,) = models.corpora(report.load([folder]))
    found = corpus.models[0].estimates
    assert found[f"adaptive/{stronger}"].uar < found["adaptive/apgd"].uar
    assert (corpus.strongest("adaptive") == stronger) is counts
    assert (corpus.worst(corpus.models[0], "adversarial").condition.variant == stronger) is counts


@pytest.mark.parametrize("fraction, counts", [(0.5, True), (0.25, False)])
def test_a_model_is_judged_by_attacks_on_at_least_half_of_the_clips(tmp_path, fraction, counts):
    folder = make_run(tmp_path / "run", full=False)
    names = conditions_of(["apgd"], ["adversarial", "adaptive"])
    evaluation(folder / "evaluations" / "part", Made(), "part", names, draws=3, fraction=fraction)
    (corpus,) = models.corpora(report.load([folder]))
    assert (corpus.strongest("adversarial") == "apgd") is counts
    glance = rows_of(tables.glance(corpus))
    assert ("APGD-CE" in str(glance)) is counts
    assert (f"{100 * fraction:.0f} % of clips" in str(glance)) is counts


def test_flip_distances_by_hand(tmp_path):
    folder = make_run(tmp_path / "run", full=False)
    with (folder / "utterances.csv").open() as file:
        rows = list(csv.DictReader(file))[:4]
    cases = [(0, 0, 1.0), (1, 0, 2.0), (1, 1, 3.0), (1, 0, 4.0)]  # right at first, right under attack, L2
    for row, (clean, attacked, l2) in zip(rows, cases, strict=True):
        row |= {"correct/original": clean, "correct/adversarial/deepfool": attacked, "l2/deepfool": l2}
        row |= {"snr/deepfool": 40 - l2}
    with (folder / "utterances.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (corpus,) = models.corpora(report.load([folder]))
    found = corpus.models[0].flips("deepfool")
    assert found["distance"].tolist() == [0, 2, math.inf, 4]
    assert rows_of(tables.flips(corpus)) == [["DeepFool", "nature", "4", "36.0", "66.7", "3"]]
    (panel,) = build.distances(corpus).panels
    labels = [row["emotion"] for row in rows]
    expected = 100 * statistics.robustness_curve([0, 2, math.inf, 4], labels, panel.series[0].x)
    assert panel.series[0].y == pytest.approx(expected.tolist())


def test_class_recalls_average_to_the_uar(corpus):
    for row in tables.class_recalls(corpus).data.to_dict("records"):
        model = next(model for model in corpus.models if model.label == row["model"])
        estimate = model.estimates[row["condition"]]
        assert np.mean([row[name] for name in corpus.classes]) == pytest.approx(estimate.uar)
        matrices = [measure.matrix for measure in estimate.measures]
        recalls = np.mean([np.diag(matrix) / matrix.sum(axis=1) for matrix in matrices], axis=0)
        assert [row[name] for name in corpus.classes] == pytest.approx(recalls.tolist())


def test_speakers_table_is_that_of_the_statistics(corpus):
    row = tables.speakers(corpus).data.iloc[0]
    estimate = corpus.models[0].estimates["original"]
    seen = estimate.observations
    values = statistics.by_speaker(seen["correct"], seen["label"], seen["speaker"])
    assert (row["minimum"], row["q10"]) == statistics.spread(values.values())
    columns = (seen[name] for name in ("correct", "label", "sex", "speaker", "seed"))
    assert row["gap"] == statistics.gap(*columns).difference


def test_paired_tests_use_the_clips_that_both_have(corpus):
    data = tables.tests(corpus)[0].data
    row = data[(data["shared"] == "original") & (data["a"] == "AT-PGD") & (data["b"] == "nature")].iloc[0]
    first, second = (corpus.models[place].estimates["original"] for place in (2, 0))
    a, b = (estimate.observations.groupby("utterance")["correct"].mean() for estimate in (first, second))
    assert row["utterances"] == len(a) == len(b)
    assert (row["mcnemar_p"], row["only_a"], row["only_b"]) == statistics.mcnemar(a, b)
    assert row["difference"] == pytest.approx(first.uar - second.uar)  # as Table 3 has it
    assert np.mean(row["trainings"]) == pytest.approx(row["difference"], abs=1e-5)
    assert len(row["trainings"]) == len(first.measures)
    enough = len(row["trainings"]) >= comparisons.TELLING
    wanted = statistics.t_test(row["trainings"]).p if enough else math.nan
    assert row["trainings_p"] == pytest.approx(wanted, nan_ok=True, rel=0.01)
    assert row["z"] * row["difference"] > 0 and 0 <= row["z_p"] <= 1
    family = data[data["shared"] == "original"]
    assert family["mcnemar_p_holm"].tolist() == pytest.approx(statistics.holm(family["mcnemar_p"]).tolist())


def test_with_trainings_enough_each_one_and_their_t_test_are_told(corpus, tmp_path, monkeypatch):
    assert "p, trainings" not in tables.tests(corpus)[0].columns  # two seeds
    monkeypatch.setattr(comparisons, "TELLING", 2)
    made = tables.tests(corpus)[0]
    assert list(made.columns[-2:]) == ["by training", "p, trainings"]
    for row, told in zip(made.data.to_dict("records"), rows_of(made), strict=True):
        assert told[-2:] == ["/".join(map(signed, row["trainings"])), p_text(row["trainings_p"])]
    (two,) = models.corpora([run for run in corpus.runs if "-randomise-" in run.name or "-pgd-" in run.name])
    told = words_of(report.write(two.runs, tmp_path / "page")[0], "claims")
    assert told.count("p over trainings") == sum(len(claim.findings) for claim in claims.claims(two)) > 0


def test_a_model_does_not_differ_from_itself_where_a_seed_is_missing(corpus):
    estimate = corpus.models[2].estimates["original"]
    part = dataclasses.replace(estimate, measures=estimate.measures[:1])
    assert comparisons.test(comparisons.Pair("", "", "", "", estimate, part))["difference"] == 0


def test_the_papers_claims_are_tested(corpus):
    models, within = (table.data for table in tables.tests(corpus))
    for name, attack in (("AT-FGSM", "FGSM"), ("AT-PGD", "PGD")):
        own = models[models["shared"].isin([f"adversarial · {attack}"])]
        assert ((own["a"] == name) & (own["b"] == "nature")).any()
    strongest = within[within["shared"] == "nature, the strongest"]
    adaptive = f"with, adaptive ({attack_title(corpus.strongest('adaptive'))})"
    assert (strongest["a"] == adaptive).sum() == 2
    assert within[within["shared"] == "nature, no attack"][["a", "b"]].values.tolist() == [["with", "without"]]


def test_models_that_share_no_clip_are_not_compared(tmp_path):
    make_run(tmp_path / "a", Made(speakers=("03", "08")), full=False)
    make_run(tmp_path / "b", Made("pgd", speakers=("09", "10")), full=False)
    (corpus,) = models.corpora(report.load([tmp_path]))
    table = tables.tests(corpus)[0]
    assert not table and "pairs are left out" in table.notes[0]


def test_a_flag_is_raised_if_any_evaluation_raised_it(tmp_path):
    for seed in (0, 1):
        folder = make_run(tmp_path / str(seed), Made(seed=seed), full=False)
        content = json.loads((folder / "evaluation.json").read_text())
        status = ("clear", "raised")[seed]
        severity = ("", "minor")[seed]
        flag = {"flag": "noise", "status": status, "detail": f"seed {seed}", "title": "noise", "severity": severity}
        content["flags"] = [flag, "odd"]
        (folder / "evaluation.json").write_text(json.dumps(content))
    (corpus,) = models.corpora(report.load([tmp_path]))
    (flag,) = flags.of_model(corpus.models[0])
    assert (flag.status, flag.severity, flag.detail) == ("raised", "minor", "Seed 1: seed 1")
    assert rows_of(tables.checks(corpus)) == [["nature", "noise", "raised minor", "Seed 1: seed 1"]]


def test_each_check_is_said_once_with_the_gravest_first(tmp_path):
    """Three models that raise the same flag with another severity, or not, and one flag that all clear."""
    stated = {"nature": ("raised", "minor"), "fgsm": ("raised", "significant"), "pgd": ("clear", "")}
    for model, (status, severity) in stated.items():
        folder = make_run(tmp_path / model, Made(model), full=False)
        content = json.loads((folder / "evaluation.json").read_text())
        same = {"flag": "steps", "title": "more steps gain", "status": status, "severity": severity}
        content["flags"] = [{"flag": "noise", "title": "noise wins", "status": "clear", "detail": "no", "severity": ""}]
        content["flags"].append(same | {"detail": f"{model} says so."})
        (folder / "evaluation.json").write_text(json.dumps(content))
    (corpus,) = models.corpora(report.load([tmp_path]))
    steps, noise = flags.checks(corpus)
    assert (steps.title, steps.status, steps.severity) == ("more steps gain", "raised", "significant")
    assert {label: flag.severity for label, flag in steps.models.items()} == {
        "nature": "minor",
        "AT-FGSM": "significant",
    }
    assert (noise.title, noise.status, noise.models) == ("noise wins", "clear", {})
    page = report.write(report.load([tmp_path]), tmp_path / "report")[0].read_text()
    assert page.count("More steps gain") == 1 and page.count("noise wins") == 1
    assert re.search(
        r'<li class="significant"><strong>More steps gain\.</strong>\s*<span class="minor">nature: nature says', page
    )
    assert '<span class="significant">AT-FGSM: fgsm says so.</span>' in page


@pytest.mark.parametrize("status", ["raised", "clear"])
def test_flags_of_0_3_0_are_graded_by_todays_checks(tmp_path, status):
    folder = make_run(tmp_path / "run", full=False)
    content = json.loads((folder / "evaluation.json").read_text())
    content["flags"] = [{"flag": "noise", "status": status, "detail": "", "title": "noise"}]  # without a severity
    record = content["conditions"]["adversarial/deepfool"]
    record |= {key: content["conditions"]["original"][key] for key in ("matrix", "by_client")} | {"uar": 0.999}
    (folder / "evaluation.json").write_text(json.dumps(content))
    (corpus,) = models.corpora(report.load([tmp_path]))
    found = {flag.flag: (flag.status, flag.severity) for flag in flags.of_model(corpus.models[0])}
    assert found["uar_raised"] == ("raised", "minor") and "noise" not in found


# --- Charts ----------------------------------------------------------------------------------------------------------


def test_rounds_are_means_of_seeds_with_their_band(corpus):
    chart = build.rounds(corpus)
    mean, *single = [series for series in chart.series if series.model == "AT-PGD"]
    assert [series.curve for series in single] == ["seed 0", "seed 1"]
    values = np.array([series.y for series in single])
    assert mean.y == pytest.approx(values.mean(axis=0).tolist())
    assert mean.low == pytest.approx(values.min(axis=0).tolist()) and max(mean.y) > 70
    assert chart.chance == pytest.approx(100 / 7)


def test_one_seed_is_drawn_without_a_choice_and_beside_means_as_one(tmp_path):
    for place, made in enumerate([Made(), Made("pgd"), Made(seed=1)]):
        make_run(tmp_path / str(place), made, full=False)
    single = build.rounds(models.corpora(report.load([tmp_path / "0", tmp_path / "1"]))[0])
    assert single.curves == [] and [series.name for series in single.series] == ["nature, seed 0", "AT-PGD, seed 0"]
    both = build.rounds(models.corpora(report.load([tmp_path]))[0])
    assert both.curves == [charts.MEAN, "seed 0", "seed 1"]
    means = [(series.name, bool(series.low)) for series in both.series if series.curve == charts.MEAN]
    assert means == [("nature, mean", True), ("AT-PGD, seed 0", False)]


def test_seconds_come_from_times(tmp_path):
    folder = make_run(tmp_path / "run", full=False)
    content = json.loads((folder / "evaluation.json").read_text())
    del content["examples"]["pgd"]["seconds"]
    content["examples"]["pgd"]["zero_gradient"] = None
    (folder / "evaluation.json").write_text(json.dumps(content))
    (folder / "times.json").write_text('{"seconds": 9, "examples": {"pgd": 7.25}}')
    rows = rows_of(tables.budgets(models.corpora(report.load([folder]))[0]))
    assert [row[-2:] for row in rows[:2]] == [["0.0", "3.2"], ["–", "7.2"]]


def test_fig_5_starts_at_half_and_tests_under_the_attack_trained_against(corpus):
    chart = build.second_half(corpus)
    kinds = ["Original", "Randomised", "Adversarial", "Randomised adversarial"]
    assert [panel.title for panel in chart.panels] == [f"{kind} test data" for kind in kinds]
    assert min(x for series in chart.series for x in series.x) == 32
    means = [series.name for series in chart.panels[2].series if series.curve == charts.MEAN]
    nature = [f"nature, under {attack}, mean" for attack in ("FGSM", "PGD", "DeepFool")]
    assert means == [*nature, *(f"AT-{a}, under {a}, mean" for a in ("FGSM", "PGD", "DeepFool"))]


def test_budget_curves_have_the_clean_point_and_the_base(corpus):
    panels = {panel.title: panel for panel in build.budgets(corpus).panels}
    assert len(panels) == 3
    series = panels["Without randomisation"].series[0]
    assert series.x == sorted([min(GRID) / 2, *GRID, 0.05])
    assert [text.split(":")[0] for text in series.texts[:3]] == ["ε 0", "ε 0.0125", "ε 0.025"]
    assert build.budgets(corpus).ticks == pytest.approx(
        {0.00625: "0", 0.02: "0.02", 0.05: "0.05", 0.1: "0.1", 0.2: "0.2"}
    )
    assert series.y[0] == pytest.approx(100 * corpus.models[0].estimates["original"].uar)
    base = corpus.models[0].estimates["adversarial/pgd_strong"].uar
    assert series.y[series.x.index(0.05)] == pytest.approx(100 * base)
    assert all(low <= y <= high for low, y, high in zip(series.low, series.y, series.high, strict=True))


def test_a_model_has_one_colour_in_all_charts(corpus):
    seen = {(series.model, series.colour) for chart in build.all_charts(corpus) for series in chart.series}
    assert len(seen) == len(corpus.models) == len({colour for _, colour in seen})


def test_plots_are_the_charts_in_plain_json(corpus):
    for chart in build.all_charts(corpus):
        made = plots.plots(chart)
        assert json.loads(json.dumps(made, allow_nan=False)) == made
        assert len(made) == len(chart.panels)
        shown = [trace for plot in made for trace in plot["data"] if trace["visible"] and "text" in trace]
        assert all(len(trace["x"]) == len(trace["y"]) == len(trace["text"]) for trace in shown)
        assert {trace["meta"]["model"] for trace in shown} == {model.label for model in corpus.models}
    assert "text" in shown[0] and "speaker" in shown[0]["text"][0]


def test_legends_do_not_cover_data_and_lines_are_in_per_cent(corpus):
    with drawn.quiet():
        figure = drawn.draw(build.second_half(corpus))
        figure.draw_without_rendering()
    (legend,) = figure.legends
    bottom = min(axes.get_tightbbox().y0 for axes in figure.axes)
    assert legend.get_window_extent().y1 <= bottom
    line = figure.axes[0].get_lines()[0]
    assert max(line.get_ydata()) > 60


@pytest.mark.parametrize("alone", [True, False])
def test_legends_fit_their_figure(corpus, alone):
    some = replace(corpus, models=corpus.models[:1]) if alone else corpus
    with drawn.quiet():
        for chart in build.all_charts(some):
            figure = drawn.draw(chart)
            figure.draw_without_rendering()
            (legend,) = figure.legends
            box = legend.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= figure.bbox.x1, chart.name


def test_whiskers_are_seen_on_bars_and_on_white():
    def contrast(one, other):
        light = [mcolors.rgb_to_hsv(mcolors.to_rgb(colour))[2] for colour in (one, other)]
        return abs(light[0] - light[1])

    for colour in charts.COLOURS:
        for shade in build.SHADES.values():
            series = charts.Series("", "", colour, ["a"], [50.0], [40.0], [60.0], form="bars", shade=shade)
            (plot,) = plots.plots(charts.Chart("", "", "", "", [charts.Panel("", [series], ["a"])], "", None))
            whisker = drawn.whisker(series)
            assert plot["data"][0]["error_y"]["color"] == whisker
            assert min(contrast(whisker, "#ffffff"), contrast(whisker, drawn._faded(colour, shade))) > 0.3


@pytest.mark.parametrize(
    ("evaluated", "ticks"),
    [
        (range(10, 61, 10), [10, 20, 30, 40, 50, 60]),
        ([30, 40, 45], [30, 40, 45]),
        (range(4, 61, 4), [0, 10, 20, 30, 40, 50, 60]),
    ],
)
def test_ticks_of_rounds_are_evaluated_or_round(evaluated, ticks):
    series = charts.Series("a", "a", "#333333", list(evaluated), [50.0] * len(evaluated))
    chart = charts.Chart("a", "", "", "", [charts.Panel("", [series])], "round", None, columns=1)
    (axes,) = drawn.draw(chart).axes
    assert [tick for tick in axes.get_xticks() if 0 <= tick <= 60] == ticks


def test_no_label_of_a_figure_overlaps_another(corpus):
    with drawn.quiet():
        for chart in build.all_charts(corpus):
            figure = drawn.draw(chart)
            figure.draw_without_rendering()
            for axes in figure.axes:
                upright = [
                    t.get_window_extent() for t in axes.get_xticklabels() if t.get_text() and not t.get_rotation()
                ]
                assert all(left.x1 < right.x0 for left, right in pairwise(upright)), chart.name


def test_confusion_is_normalised_by_row(corpus):
    with drawn.quiet():
        picture = pictures.confusions(corpus)
    axes = picture.figure.axes[1]
    assert axes.get_title().startswith("AT-PGD under PGD\nUAR ")
    measures = corpus.models[2].estimates["randomised_adversarial/pgd"].measures
    expected = [100 * measure.matrix / measure.matrix.sum(axis=1, keepdims=True) for measure in measures]
    np.testing.assert_allclose(axes.get_images()[0].get_array(), np.mean(expected, axis=0))
    assert [label.get_text() for label in axes.get_yticklabels()] == list(corpus.classes)


def test_example_shows_nature_and_one_scale_for_all_perturbations(corpus):
    with drawn.quiet():
        picture = pictures.example(corpus)
    assert "attacked on nature" in picture.caption
    titled = [axes for axes in picture.figure.axes if axes.get_title(loc="left").startswith("its perturbation")]
    limits = {axes.get_images()[0].get_clim() for axes in titled}
    assert len(titled) == 4 and len(limits) == 1
    low, high = limits.pop()
    assert low == -high == pytest.approx(-5, rel=1e-3)  # FGSM's ε of 0.05, times 100


@pytest.mark.parametrize("told", [True, False])
def test_example_says_what_the_original_is_classified_for(tmp_path, told):
    folder = make_run(tmp_path / "run", full=False)
    with np.load(folder / "example.npz") as archive:
        arrays = dict(archive) | ({"predicted/original": np.array("anger")} if told else {})
    np.savez(folder / "example.npz", **arrays)
    (corpus,) = models.corpora(report.load([folder]))
    with drawn.quiet():
        picture = pictures.example(corpus)
    heads = [axes.get_title(loc="left") for axes in picture.figure.axes[:6:2]]
    assert heads[:2] == ["original" + ": classified as anger" * told, "FGSM: classified as neutral"]
    assert "is the model's answer, right or wrong" in picture.caption


def test_an_attack_that_always_knows_of_the_randomisation_has_the_snr_of_its_adaptive_examples(tmp_path):
    folder = make_run(tmp_path / "run", full=False)
    evaluation(folder / "evaluations/knows", Made(), "knows", conditions_of(["noise"], ["adaptive"]), draws=3)
    content = json.loads((folder / "evaluations/knows/evaluation.json").read_text())
    del content["examples"]["noise"]
    content["examples"]["adaptive/noise"]["snr_db"] = 26.4
    (folder / "evaluations/knows/evaluation.json").write_text(json.dumps(content))
    (corpus,) = models.corpora(report.load([folder]))
    rows = {row[0]: row for row in rows_of(tables.threats(corpus))}
    assert rows["Noise"][2:] == ["0.05", "26.4"] and "predicted labels" in rows["PGD"][1]


# --- The verdict and the paper's claims ------------------------------------------------------------------------------


def words_of(page, place):
    """The text of a section, blanks as single spaces."""
    section = re.search(rf'<section id="{place}">(.*?)</section>', page.read_text(), re.DOTALL)[1]
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", "", section))


@pytest.fixture(scope="module")
def page(reported):
    return reported[2][0]


def lowest(model, kind):
    """The lowest UAR under attacks on all clips with the budget that most runs have, and the attack's title."""
    found = [
        estimate
        for name, estimate in model.estimates.items()
        if name.startswith(f"{kind}/") and "eps=" not in name and estimate.fraction == 1
    ]
    worst = min((e for e in found if e.condition.attack not in ("deepfool", "cw")), key=lambda e: e.uar)
    return f"{100 * worst.uar:.1f} %", attack_title(worst.condition.variant), worst.uar


def test_the_verdict_leads_with_the_strongest_attack_and_says_what_deepfool_leaves(corpus, page):
    told = words_of(page, "verdict")
    for model in corpus.models:
        (adaptive, by, _), (without, by_without, _), (oblivious, by_oblivious, _) = (
            lowest(model, kind) for kind in ("adaptive", "adversarial", "randomised_adversarial")
        )
        clean, free = (100 * model.estimates[name].uar for name in ("original", "adversarial/deepfool"))
        flips = model.flips("deepfool")
        l2, snr = statistics.median_flip(flips["distance"]), flips["snr"][flips["distance"] > 0].median()
        sentence = (
            f"{model.label}: {by}, which knows of the randomisation, leaves {adaptive} of {clean:.1f} %; without "
            f"randomisation {by_without} leaves {without}; with it, an attacker who does not know of it {oblivious} "
            f"({by_oblivious}). DeepFool, which has no budget, leaves {free:.1f} %, at a median distance of {l2:.3g} σ (L2, "
            f"SNR {snr:.1f} dB)."
        )
        assert sentence in told
    best = max(corpus.models, key=lambda model: lowest(model, "adaptive")[2])
    left, by, _ = lowest(best, "adaptive")
    clean = f"{100 * best.estimates['original'].uar:.1f} %"
    first = "Against the strongest attack with a budget that knows the whole defence, the best of 4 models, "
    assert f"{first}{best.label}, keeps {left} UAR ({by}, ε 0.05) of {clean} on clean speech." in told


def test_a_verdict_without_adaptive_attacks_or_any(tmp_path):
    names = {"plain": ["original", "adversarial/pgd", "adversarial/deepfool"], "clean": ["original"]}
    for place, conditions in names.items():
        folder = make_run(tmp_path / place, full=False)
        evaluation(folder, Made(), "paper", conditions, draws=1)
    (corpus,) = models.corpora(report.load([tmp_path / "plain"]))
    estimates = {name: f"{100 * e.uar:.1f} %" for name, e in corpus.models[0].estimates.items()}
    told = words_of(report.write(corpus.runs, tmp_path / "report")[0], "verdict")
    original, pgd = estimates["original"], estimates["adversarial/pgd"]
    assert f"Against the strongest attack with a budget, nature, keeps {pgd} UAR (PGD, ε 0.05) of {original}" in told
    assert f"nature: PGD leaves {pgd} without randomisation of {original}. DeepFool, which has no budget" in told
    clean = words_of(report.write(report.load([tmp_path / "clean"]), tmp_path / "other")[0], "verdict")
    assert f"nature: {original} on clean speech; no attack with a budget was run." in clean


def test_the_chart_of_the_verdict_has_the_figures_of_the_sentence(corpus):
    chart = build.verdict(corpus)
    found = {(series.model, series.shade): series.y for series in chart.series}
    for model in corpus.models:
        assert found[model.label, build.SHADES["original"]] == [100 * model.estimates["original"].uar]
        for kind in ("adversarial", "randomised_adversarial", "adaptive"):
            assert found[model.label, build.SHADES[kind]] == [100 * lowest(model, kind)[2]]
    assert chart.panels[0].shades == sorted(build.SHADES.values())


@pytest.mark.parametrize(
    ("more", "p", "difference", "low", "high", "verdict"),
    [
        (True, 0.01, 0.3, 0.2, 0.4, "reproduced"),
        (True, 0.05, 0.3, 0.0, 0.6, "undecided"),
        (True, 0.01, -0.3, -0.4, -0.2, "not reproduced"),
        (False, 0.01, 0.02, 0.01, 0.03, "reproduced"),  # significant, and yet next to nothing
        (False, 0.5, 0.0, -0.06, 0.06, "undecided"),
        (False, 0.01, 0.2, 0.01, 0.4, "not reproduced"),
        (False, 0.01, -0.2, -0.4, -0.01, "not reproduced"),
    ],
)
def test_what_a_claim_is_worth(more, p, difference, low, high, verdict):
    assert claims._verdict(more, p, difference, low, high) == verdict


def test_claims_are_differences_of_table_3_beside_the_papers(corpus):
    found = {claim.key: claim for claim in claims.claims(corpus)}
    assert list(found) == list(claims.CLAIMS)
    fgsm, pgd = found["training"].findings
    nature, trained = (corpus.models[place].estimates["adversarial/pgd"].uar for place in (0, 2))
    assert pgd.words == "PGD" and pgd.difference == pytest.approx(trained - nature, abs=1e-5)
    assert (fgsm.paper, pgd.paper) == pytest.approx((0.8972 - 0.2082, 0.8731 - 0.0996))
    assert found["randomised_deepfool"].findings[1].paper == pytest.approx(0.7232 - 0.0198)
    assert [round(100 * finding.paper, 2) for finding in found["free"].findings] == [-1.33, -0.67, -0.3, -0.6]
    assert found["training"].verdict == "reproduced"  # of a simulated gain of 38 and 44 points


def test_claims_say_their_figures(corpus, page):
    told = words_of(page, "claims")
    for claim in claims.claims(corpus):
        for each in claim.findings:
            ends = f"[{signed(each.low)}, {signed(each.high)}]"
            assert f"{each.words} {signed(each.difference)} {ends}, paper {signed(each.paper)}" in told
    assert "reproduced Adversarial training helps under FGSM and PGD." in told


@pytest.mark.parametrize(
    ("verdicts", "together"),
    [
        (["reproduced"] * 2, "reproduced"),
        (["reproduced", "undecided"], "reproduced in part"),
        (["undecided", "not reproduced"], "not reproduced"),
        (["undecided"], "undecided"),
    ],
)
def test_a_claim_is_worth_what_its_findings_are(verdicts, together):
    findings = [claims.Finding(verdict, "", 0, 0, 0, 0) for verdict in verdicts]
    assert claims.Claim("training", findings).verdict == together


def test_one_model_alone_has_the_claims_about_itself(tmp_path):
    make_run(tmp_path / "run", full=False)
    (corpus,) = models.corpora(report.load([tmp_path]))
    keys = [claim.key for claim in claims.claims(corpus)]
    assert keys == ["free", "randomised_nature", "randomised_deepfool"]


def test_a_model_that_guesses_decides_no_claim(tmp_path):
    """Seven classes, ten clients, all taken for the first class whatever is done: no difference at all."""
    guesses = [[2 * (column == 0) for column in range(7)] for _ in range(7)]
    folder = make_run(tmp_path / "run", full=False)
    content = json.loads((folder / "evaluation.json").read_text())
    for record in content["conditions"].values():
        clients = dict.fromkeys(map(str, range(10)), guesses)
        record |= {"matrix": (10 * np.array(guesses)).tolist(), "by_client": clients, "draws": 1}
    (folder / "evaluation.json").write_text(json.dumps(content))
    with (folder / "utterances.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row |= {column: int(row["emotion"] == CLASSES[0]) for column in row if column.startswith("correct/")}
    with (folder / "utterances.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (corpus,) = models.corpora(report.load([tmp_path]))
    found = claims.claims(corpus)
    assert found and {claim.verdict for claim in found} == {"undecided"}
    assert all((each.low, each.high) == (0, 0) for claim in found for each in claim.findings)


# --- What was run ----------------------------------------------------------------------------------------------------


def test_table_2_counts_train_and_test(tmp_path):
    train, test = ({name: 10 * k + place for k, name in enumerate(CLASSES)} for place in (3, 1))
    make_run(tmp_path / "run", full=False, counts={"train": train, "test": test})
    table = tables.counts(models.corpora(report.load([tmp_path]))[0])
    assert table.columns == ["Class", "Train", "Test", "Σ"]
    assert rows_of(table)[1] == ["boredom", "13", "11", "24"] and rows_of(table)[-1] == ["Σ", "231", "217", "448"]


def test_table_2_without_counts_has_the_test_clips(tmp_path):
    folder = make_run(tmp_path / "run", full=False)
    table = tables.counts(models.corpora(report.load([tmp_path]))[0])
    matrix = json.loads((folder / "evaluation.json").read_text())["conditions"]["original"]["matrix"]
    assert table.columns == ["Class", "Test"]
    assert [int(row[1]) for row in rows_of(table)] == [*map(sum, matrix), sum(map(sum, matrix))]


def test_what_is_not_as_in_the_paper_is_said(corpus, page):
    differences = [
        ("corpus", "emodb", "demos"),
        ("clients", "10", "68"),
        ("network", "cnn4", "vgg15"),
        ("rounds", "60", "300"),
    ]
    assert text.deviations(corpus) == differences
    assert (
        "Not as in the papercorpus emodb (demos), clients 10 (68), network cnn4 (vgg15), rounds 60 (300)"
        in words_of(page, "setup")
    )


def test_table_3_has_the_rows_and_columns_that_have_data(tmp_path):
    folder = make_run(tmp_path / "run", full=False)
    evaluation(folder, Made(), "paper", conditions_of(["pgd"], ["adversarial"]), draws=1)
    (table,) = tables.table3(models.corpora(report.load([tmp_path]))[0])
    assert table.groups == [("", 2), ("No attack", 2), ("PGD", 2)]
    assert [row[:2] for row in rows_of(table)] == [["Nature", "Original"], ["", "Randomised"], ["", "Adversarial"]]


# --- Without federation ----------------------------------------------------------------------------------------------


def test_a_centralised_run_is_what_federated_ones_are_held_beside(tmp_path):
    from omegaconf import OmegaConf

    def made(name, model="nature", seed=0, **settings):
        folder = make_run(tmp_path / name, Made(model, seed), full=False)
        config = OmegaConf.load(folder / "config.yaml")
        for key, value in settings.items():
            OmegaConf.update(config, key.replace("__", "."), value)
        OmegaConf.save(config, folder / "config.yaml")
        return folder

    runs = [made("federated"), made("trained", "pgd"), made("other", strategy__name="centralised", rounds=20),
            made("wider", strategy__name="centralised", model__width=16)]  # fmt: skip
    (corpus,) = models.corpora(report.load(runs))
    ((model, other, test),) = comparisons.of_federation(corpus)
    assert not model.centralised and other.runs[0].folder.name == "other" and model.against is None
    difference = model.estimates["original"].uar - other.estimates["original"].uar
    assert test["difference"] == pytest.approx(difference)
    assert test["low"] <= test["difference"] <= test["high"]
    page = Path(report.write(report.load(runs), tmp_path / "report")[0]).read_text()
    assert page.count("Without federation") == 1 and signed(difference) in page


@pytest.mark.parametrize("key", ["augment", "averaging", "selection", "batch_norm"])
def test_other_ways_of_training_are_not_seeds_of_one_model(tmp_path, key):
    from omegaconf import OmegaConf

    one, other = (make_run(tmp_path / str(seed), Made("nature", seed), full=False) for seed in (0, 1))
    OmegaConf.save(OmegaConf.merge(OmegaConf.load(other / "config.yaml"), {key: "another"}), other / "config.yaml")
    (corpus,) = models.corpora(report.load([one, other]))
    assert len(corpus.models) == 2
