"""Groups within clients: what a client tells of them, what it keeps to itself, and what the report makes of it."""

import json

import numpy as np
import pandas as pd
import pytest
from test_corpora import config

from fedser import report
from fedser.data import corpora
from fedser.errors import InputError
from fedser.evaluation.fairness import statistical_parity
from fedser.evaluation.groups import large_enough, values
from fedser.preparation import prepare
from fedser.report import tables
from fedser.report.analysis import models


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        ("f" * 10 + "m" * 6, ["f", "m"]),
        ("f" * 10 + "m" * 4, []),  # all clips less the women's would be the four men's
        ("f" * 10 + "m" * 6 + "x" * 3, ["f"]),  # the six and the three together are nobody's
        ("f" * 10 + "m" * 3 + "x" * 3, ["f"]),
        ("f" * 10 + " " * 3, []),
        ("f" * 10 + " " * 5, ["f"]),
        ("f" * 4, []),
        ("", []),
    ],
)
def test_small_groups_are_not_told_and_cannot_be_had_from_the_rest(groups, told):
    assert large_enough([each.strip() for each in groups], min_support=5) == told


def test_values_are_text_and_sexes_have_names():
    assert values(pd.Series(["f", None, "m"], name="sex")) == ["female", "", "male"]
    assert values(pd.Series([30.0, np.nan], name="age")) == ["30.0", ""]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose clients have clips of both speakers, a client's evaluation under an attack, and its reply."""
    from conftest import SMALL

    from fedser import compose, run

    words = [
        "partition=iid",
        "partition.clients=2",
        "rounds=1",
        "partition.test=0.6",
        "evaluation.groups=[sex,text]",
        "evaluation.draws=2",
    ]
    made = run(compose([*SMALL, *words, "evaluation.min_support=4"]), tmp_path_factory.mktemp("run") / "run")
    return made, json.loads((made.folder / "evaluation.json").read_text())


def test_clients_count_by_group_in_every_condition(finished):
    made, record = finished
    clips = pd.read_csv(made.folder / "utterances.csv", dtype={"client": str})
    assert set(clips.groupby("client")["sex"].nunique()) == {2}
    for condition in record["conditions"].values():
        told, whole = condition["by_group"]["sex"], condition["by_client"]
        assert told.keys() == {"female", "male"}
        for client, matrix in whole.items():
            parts = {sex: np.array(told[sex][client]) for sex in told}
            np.testing.assert_array_equal(sum(parts.values()), matrix)
            for sex, part in parts.items():
                own = clips[(clips["client"] == client) & (clips["sex"] == sex)]["emotion"]
                spoken = [(own == name).sum() * condition["draws"] for name in record["classes"]]
                np.testing.assert_array_equal(part.sum(axis=1), spoken)


def test_no_group_is_told_of_that_is_too_small(finished):
    """Of ten sentences few are said by a client so often as four times."""
    for condition in finished[1]["conditions"].values():
        sizes = [np.sum(m) / condition["draws"] for by in condition["by_group"]["text"].values() for m in by.values()]
        assert all(size >= 4 for size in sizes)


def test_the_report_has_them(finished):
    (corpus,) = models.corpora(report.load([finished[0].folder]))
    table = tables.fairness(corpus)
    assert ("By sex", 3) in table.groups and "by sex" in table.caption
    told = finished[1]["conditions"]["original"]["by_group"]["sex"]
    sums = [sum(np.array(m) for m in told[sex].values()) for sex in ("female", "male")]
    assert table.data["statistical_parity/sex"][0] == pytest.approx(float(statistical_parity(sums)))
    assert "statistical_parity/sex/chance" in table.data and table.notes[0] == "By sex: 2 female and 2 male clients."


def test_where_a_client_has_one_group_it_is_all_of_it(small):
    made = small("rounds=1", "evaluation.groups=[sex]", "evaluation.min_support=1", "defence=none", "attack=none")
    record = json.loads((made.folder / "evaluation.json").read_text())["conditions"]["original"]
    assert list(record["by_group"]["sex"].values()) == [{c: m} for c, m in record["by_client"].items()]
    before = tables.fairness(*models.corpora(report.load([made.folder]))).data
    whole = json.loads((made.folder / "evaluation.json").read_text())
    del whole["conditions"]["original"]["by_group"]  # then the report goes by who the clients are
    (made.folder / "evaluation.json").write_text(json.dumps(whole))
    pd.testing.assert_frame_equal(before, tables.fairness(*models.corpora(report.load([made.folder]))).data)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["evaluation.groups=[age]"], "evaluation.groups: the corpus's table has no column age (path, speaker,"),
        (["evaluation.groups=[sex]", "dataset=manifest", "dataset.classes=null"],
         "evaluation.groups: sex tells no groups apart, its values are: f"),
        (["evaluation.groups=[room]", "dataset=manifest", "dataset.classes=null"],
         "evaluation.groups: room tells no groups apart, its values are: none"),
        (["evaluation.min_support=0"], "evaluation.min_support=0 must be a whole number of at least 1"),
    ],
)  # fmt: skip
def test_a_column_that_tells_nothing_is_refused_in_a_line(settings, tmp_path, words, says):
    from conftest import FIXTURES

    if "dataset=manifest" in words:
        table = corpora.load(config("emodb", root=str(FIXTURES / "emodb"))).table
        table.assign(sex="f", room="")[["path", "speaker", "emotion", "sex", "room"]].to_csv(tmp_path / "all.csv")
        words = [*words, f"dataset.root={tmp_path / 'all.csv'}"]
    with pytest.raises(InputError) as raised:
        prepare(settings(*words))
    assert says in str(raised.value) and "\n" not in str(raised.value)
