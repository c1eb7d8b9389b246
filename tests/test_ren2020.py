"""The table of Ren et al. 2020: which runs fill which place, and the paper's figures as its slides have them."""

import json
from types import SimpleNamespace

import pytest
from conftest import HERE

from fedser.report import tables
from fedser.report.analysis import ren2020


def run(training, tested, network="cnn4", strategy="centralised", unseen="unseen/", shift=0.0, **inner):
    fgsm = {"name": "fgsm", "eps": tested}
    settings = {"strategy.name": strategy, "model.name": network, "defence.training.name": training, "attack": fgsm}
    settings["defence.training.attack"] = None if training is None else fgsm | inner
    uars = {"validation/original": 0.8, "original": 0.7, "validation/adversarial/fgsm": 0.6, "adversarial/fgsm": 0.5}
    summary = {f"uar/{unseen}{name}": uar + shift for name, uar in uars.items()} | {"uar/original": 0.1}
    return SimpleNamespace(setting=settings.get, summary=summary if unseen else summary | {"uar/original": 0.7 + shift})


def of(*runs):
    """A model of these seeds."""
    return SimpleNamespace(runs=runs)


def test_runs_are_where_the_paper_has_them():
    two = of(run("similarity", 0.02), run("similarity", 0.02, shift=0.1))
    found = ren2020.rows([of(run(None, 0.05)), two, of(run("similarity", 0.02, shift=0.2))])
    assert [(row.training, row.eps) for row in found[:2]] == [("single", "0.00"), ("vanilla", "0.02")]
    assert len(found) == 11  # one, and twice five
    lines = {(row.training, row.eps): row for row in found}
    alone, similar = lines["single", "0.00"].ours, lines["similarity", "0.02"].ours
    assert alone == {("cnn4", "dev/real"): 0.8, ("cnn4", "test/real"): 0.7}  # and nothing of an ε it was not trained at
    assert similar == pytest.approx({
        ("cnn4", "dev/real"): 0.85, ("cnn4", "test/real"): 0.75, ("cnn4", "dev/fake"): 0.65, ("cnn4", "test/fake"): 0.55
    })  # fmt: skip
    assert lines["similarity", "0.02"].paper["vgg16", "test/fake"] == pytest.approx(0.821)


def test_known_speakers_stand_in_where_nobody_is_held_out_and_others_runs_are_left_out():
    others = [run("similarity", 0.02, "statcnn"), run("similarity", 0.02, strategy="fedavg"), run("madry", 0.02)]
    others += [run("similarity", 0.02, name="pgd_strong"), run("similarity", None), run("similarity", 0.02, eps=0.1)]
    others = [of(each) for each in others]
    assert ren2020.rows(others) == [] == ren2020.rows([of(run(None, 0.05))])
    (row,) = [row for row in ren2020.rows([of(run("similarity", 0.005, unseen="")), *others]) if row.ours]
    assert (row.training, row.eps, row.paper) == ("similarity", "0.005", {})
    assert row.ours["cnn4", "test/real"] == 0.7


def test_the_table_has_ours_above_the_papers():
    made = tables.ren2020(SimpleNamespace(models=[of(run("adversarial_ren", 0.1, "resnet50"))]))
    assert [name for name, _ in made.groups] == ["", "CNN-4", "ResNet-50", "VGG-16"]
    (row,) = [row for row in made.rows if row[:2] == ["vanilla", "0.10"]]
    assert [cell.plain() for cell in row[6:10]] == [
        "80.0 82.3",
        "70.0 84.5",
        "60.0 60.2",
        "50.0 67.8",
    ]
    assert made.data.loc[made.data.whose == "here", "resnet50/test/fake"].dropna().tolist() == [0.5]


@pytest.mark.parametrize("name", ["vanilla", "similarity"])
def test_the_papers_figures_are_whole_and_those_of_its_slides(name):
    lines = json.loads((HERE.parent / "fedser" / "report" / "ren2020.json").read_text())[name]
    assert list(lines) == ["0.02", "0.04", "0.06", "0.08", "0.10"]
    assert all(
        list(line) == list(ren2020.NETWORKS) and {len(of) for of in line.values()} == {4} for line in lines.values()
    )
    # Their sums, added up from the slides by columns.
    sums = {"vanilla": [421.5, 433.4, 295.4, 333.0], "similarity": [390.7, 400.4, 341.0, 354.3]}
    assert [round(sum(line["cnn4"][place] for line in lines.values()), 1) for place in range(4)] == sums[name]
