"""Run folders → runs, models and estimates, with numbers worked out by hand."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from runs import Made, config_of, make_run

from fedser import report
from fedser.errors import InputError
from fedser.evaluation import statistics
from fedser.report import tables
from fedser.report.analysis import models
from fedser.report.analysis.conditions import attack_title, in_order, parse, title
from fedser.report.analysis.transfers import transfers

MATRIX = [[8, 1, 1], [0, 5, 5], [2, 2, 16]]  # recalls 0.8, 0.5, 0.8: UAR 0.7
CLASSES = ("a", "b", "c")


def by_hand(folder, conditions, *, config=None, attacks=None, evaluation=None, name="paper", clients=None, **rest):
    """A run whose evaluation.json holds these matrices; a record may be given instead of a matrix."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "summary.json").exists():
        (folder / "summary.json").write_text('{"status": "finished", "name": "by hand"}')
        (folder / "config.yaml").write_text(
            OmegaConf.to_yaml(OmegaConf.create(config or config_of(Made(classes=CLASSES))))
        )
    place = folder if name == "paper" else folder / "evaluations" / name
    place.mkdir(parents=True, exist_ok=True)
    records = {key: value if isinstance(value, dict) else {"matrix": value} for key, value in conditions.items()}
    content = {"name": name, "round": 60, "classes": CLASSES, "conditions": records, "clients": clients or {}}
    content |= {"evaluation": evaluation or {}, "attacks": attacks or {}, **rest}
    (place / "evaluation.json").write_text(json.dumps(content))
    return folder


def the_model(*folders):
    ((model,),) = [corpus.models for corpus in models.corpora(report.load(folders))]
    return model


# --- Loading ---------------------------------------------------------------------------------------------------------


def test_finds_nested_runs_in_natural_order_and_none_twice(tmp_path):
    for number in (10, 2, 1):
        make_run(tmp_path / "sweep" / str(number), full=False, name=f"job {number}")
    make_run(tmp_path / "sweep/2.old-1", full=False, name="moved aside")
    runs = report.load([tmp_path / "sweep" / "2", tmp_path])
    assert [run.name for run in runs] == ["job 2", "job 1", "job 10"]
    assert [run.name for run in report.load([tmp_path / "sweep/2.old-1"])] == ["moved aside"]


def left_with(folder, *kept):
    """The folder of a run whose other files are gone."""
    for file in folder.iterdir():
        if file.is_file() and file.name not in kept:
            file.unlink()
    return folder


@pytest.mark.parametrize("kept", ["config.yaml", "history.jsonl", "evaluation.json"])
def test_a_run_that_lost_its_summary_is_one_of_unknown_status(tmp_path, kept):
    make_run(tmp_path / "good", full=False)
    lost = left_with(make_run(tmp_path / "lost"), kept)
    runs = report.load([tmp_path])
    assert [(run.folder, run.status) for run in runs] == [(tmp_path / "good", "finished"), (lost, "unknown")]
    assert runs[1].problems[0] == f"{lost}/summary.json: missing, so it is not known whether this run was finished"
    assert [run.status for run in report.load([lost])] == ["unknown"]


def test_what_lies_in_or_above_runs_or_in_the_cache_is_no_run(tmp_path, tmp_path_factory):
    run = make_run(tmp_path / "sweep/0")
    lost = left_with(make_run(tmp_path / "sweep/1"), "config.yaml")
    for folder in (run, lost):
        for inner in (".hydra", "wandb/offline-run-1/files"):
            (folder / inner).mkdir(parents=True)
            (folder / inner / "config.yaml").write_bytes((folder / "config.yaml").read_bytes())
    (tmp_path / "sweep/multirun.yaml").write_bytes((run / "config.yaml").read_bytes())
    (tmp_path / "sweep/config.yaml").write_text("dataset: of another program")
    (tmp_path / "cache/models/0123").mkdir(parents=True)
    for name in ("history.jsonl", "round-00060.safetensors"):
        (tmp_path / "cache/models/0123" / name).write_text('{"round": 1}\n')
    other = by_hand(tmp_path_factory.mktemp("other"), {"original": MATRIX})  # a report of few figures is written soon
    report.write(report.load([other]), tmp_path / "sweep/report")
    assert [found.folder for found in report.load([tmp_path])] == [run, lost]
    for path in (run / "evaluations", lost / "evaluations/full", lost / ".hydra", tmp_path / "sweep/report"):
        with pytest.raises(InputError, match="holds no run"):
            report.load([run, path])


def test_a_run_that_lost_its_summary_is_not_evaluated(tmp_path, capsys):
    from fedser import evaluate

    lost = left_with(make_run(tmp_path / "lost", full=False), "config.yaml", "evaluation.json")
    assert evaluate.main([str(tmp_path)]) == 2
    assert f"{lost} holds no run (no summary.json)" in capsys.readouterr().err


def test_resumed_history_counts_the_later_record(tmp_path):
    folder = make_run(tmp_path / "run", Made(rounds=4), full=False)
    with (folder / "history.jsonl").open("a") as file:
        file.write('{"round": 4, "uar/original": 0.75}\n{"round": 5, "uar/original": null}\n')
    assert report.load([folder])[0].curve("original") == ([4], [0.75])


def test_half_written_last_line_of_a_run_under_way_is_left_out(tmp_path):
    folder = make_run(tmp_path / "run", status="running")
    with (folder / "history.jsonl").open("a") as file:
        file.write('{"round": 61, "train/lo')
    (run,) = report.load([folder])
    assert run.rounds == 60 and run.problems == []


def test_correct_fractions_outside_of_0_and_1_are_refused(tmp_path):
    folder = make_run(tmp_path / "run", full=False)
    text = (folder / "utterances.csv").read_text().splitlines()
    text[1] = text[1].replace(",1.0,", ",1.5,", 1)
    (folder / "utterances.csv").write_text("\n".join(text))
    (run,) = report.load([folder])
    assert "utterances.csv: a fraction of correct draws is not between 0 and 1" in run.problems[0]
    assert run.evaluations[0].utterances is None


# --- Conditions ------------------------------------------------------------------------------------------------------


def test_conditions_are_parsed_named_and_ordered():
    condition = parse("adaptive/pgd_strong@eps=0.1,steps=20")
    assert condition == ("adaptive", "pgd_strong", "eps=0.1,steps=20")
    assert condition.settings == {"eps": "0.1", "steps": "20"}
    assert condition.name == "adaptive/pgd_strong@eps=0.1,steps=20"
    assert title("randomised_adversarial/cw") == "randomised adversarial · C&W"
    assert attack_title("mine@eps=0.1") == "mine (ε 0.1)"
    names = ["adaptive/pgd@eps=0.1", "adaptive/new", "randomised", "adaptive/pgd", "adversarial/pgd@eps=0.02"]
    ordered = ["original", "randomised", "adversarial/fgsm", "adaptive/pgd", "adversarial/pgd@eps=0.02"]
    assert in_order([*names, "adversarial/fgsm", "original"]) == [*ordered, "adaptive/pgd@eps=0.1", "adaptive/new"]


# --- Models ----------------------------------------------------------------------------------------------------------


def test_seeds_are_one_model_and_evaluation_settings_do_not_matter(tmp_path):
    for seed, folder in ((0, "a"), (1, "b"), (1, "c")):
        config = config_of(Made(seed=seed)) | {"evaluation": {"name": folder}, "simulation": {"device": folder}}
        config["dataset"]["root"] = folder
        config["client"]["timeout"] = seed
        make_run(tmp_path / folder, Made(seed=seed), full=False)
        (tmp_path / folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    model = the_model(tmp_path)
    assert model.label == "nature" and model.seeds == [0, 1] and len(model.runs) == 3
    assert model.estimates["original"].over_seeds.n == 2


def test_models_of_one_name_say_how_they_differ(tmp_path):
    for place, (made, key, value) in enumerate(
        [
            (Made("pgd"), "rounds", 60),
            (Made("pgd"), "rounds", 30),
            (Made(), "rounds", 60),
            (Made("deepfool"), "rounds", 60),
        ]
    ):
        make_run(tmp_path / str(place), made, full=False)
        config = config_of(made) | {key: value}
        (tmp_path / str(place) / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    (corpus,) = models.corpora(report.load([tmp_path]))
    labels = ["nature", "AT-PGD (rounds 60)", "AT-PGD (rounds 30)", "AT-DeepFool"]
    assert [model.label for model in corpus.models] == labels
    assert [[model.label for model in family] for family in corpus.families] == [
        ["nature", "AT-PGD (rounds 60)", "AT-DeepFool"],
        ["AT-PGD (rounds 30)"],
    ]
    same = ["nature", "AT-PGD (rounds 60)", "AT-DeepFool"]
    assert corpus.differing == {"rounds": {"60": same, "30": ["AT-PGD (rounds 30)"]}}


def with_summary(folder, **more):
    file = folder / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | more))


def with_config(folder, change):
    """`change` is applied to the configuration in place."""
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    change(config)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))


def test_a_validation_is_no_test_condition(tmp_path):
    """Its UAR is in the summary; a run still going may have rounds that have nothing but that."""
    done = make_run(tmp_path / "done", full=False)
    with_summary(done, **{"uar/validation/original": 0.99})
    going = make_run(tmp_path / "going", Made("pgd"), status="running")
    with (going / "history.jsonl").open("a") as file:
        file.write('{"round": 61, "uar/validation/original": 0.99}\n')
    runs = report.load([done, going])
    assert set(runs[0].uar) == set(json.loads((done / "evaluation.json").read_text())["conditions"])
    assert runs[1].uar["original"] == runs[1].curve("original")[1][-1] < 0.99
    assert not [column for column in report.table(runs).columns if "validation" in column]


@pytest.mark.parametrize(
    ("first", "second", "models_"),
    [
        (None, None, 1),
        ({"fedser": "a1", "mine": "b1"}, {"mine": "b1", "fedser": "a1"}, 1),
        ({"fedser": "a1", "mine": "b1"}, {"fedser": "a1", "mine": "b2"}, 2),
        ("a1", "a2", 2),
        (None, "a1", 2),
    ],
)
def test_runs_of_different_code_are_not_seeds_of_one_model(tmp_path, first, second, models_):
    for seed, code in enumerate([first, second]):
        folder = make_run(tmp_path / str(seed), Made(seed=seed), full=False)
        if code is not None:
            with_summary(folder, code=code)
    (corpus,) = models.corpora(report.load([tmp_path]))
    assert len(corpus.models) == models_
    labels = [model.label for model in corpus.models]
    assert len(set(labels)) == models_ and all(label.startswith("nature") for label in labels)


def test_models_of_different_code_say_which(tmp_path):
    for seed, code in enumerate(["b1", "b2"]):
        with_summary(make_run(tmp_path / str(seed), Made(seed=seed), full=False), code={"fedser": "a", "mine": code})
    (corpus,) = models.corpora(report.load([tmp_path]))
    assert [model.label for model in corpus.models] == ["nature (mine b1)", "nature (mine b2)"]
    assert corpus.differing == {"code.mine": {"b1": ["nature (mine b1)"], "b2": ["nature (mine b2)"]}}


def test_networks_go_by_their_names_and_what_they_are_made_of_is_said_once(tmp_path):
    for name, width in (("cnn4", 8), ("mynet", 4)):
        folder = make_run(tmp_path / name, full=False)
        network = {"name": name, "width": width, "module": {"_target_": f"lab.{name}.Net", "width": width}}
        with_config(folder, lambda config, network=network: config.update(model=network))
    (corpus,) = models.corpora(report.load([tmp_path]))
    assert [model.label for model in corpus.models] == ["cnn4 nature", "mynet nature"]
    assert list(corpus.differing) == ["model.name"]


@pytest.mark.parametrize(
    ("training", "label"),
    [
        ({"_target_": "fedser.training.adversarial.AdversarialTraining", "attack": {"name": "mine"}}, "AT-mine"),
        ({"_target_": "lab.Trades", "name": "trades", "attack": {"name": "pgd"}}, "trades PGD"),
        ({"_target_": "lab.Smooth", "name": "smooth"}, "smooth"),
        ({"_target_": "lab.Smooth"}, "Smooth"),
    ],
)
def test_own_attacks_and_objectives_go_by_their_own_names(tmp_path, training, label):
    folder = make_run(tmp_path / "run", full=False)
    with_config(folder, lambda config: config["defence"].update(training=training))
    assert the_model(folder).label == label


def test_an_own_attack_and_strategy_appear_by_their_own_names(tmp_path):
    settings = {"name": "mine", "_target_": "lab.Mine", "eps": 0.05, "norm": "Linf"}
    attacks = {"mine": {"settings": settings, "threat": "mine: white-box, Linf, at most 0.05 per cell"}}
    conditions = {"original": worth(9), "adversarial/mine": worth(4), "adaptive/mine": worth(2)}
    folder = by_hand(tmp_path / "run", conditions, attacks=attacks)
    with_config(folder, lambda config: config["strategy"].update(name="ours"))
    page = report.write(report.load([folder]), tmp_path / "report")[0].read_text()
    assert "mine, which knows of the randomisation, leaves" in page and "<dt>Strategy</dt><dd>ours</dd>" in page


@pytest.mark.parametrize("classes", [None, list(reversed(CLASSES)), list(CLASSES)])
def test_a_run_that_is_still_going_belongs_to_its_corpus(tmp_path, classes):
    by_hand(tmp_path / "done", {"original": MATRIX})
    going = make_run(tmp_path / "going", Made("pgd", classes=CLASSES), status="running")
    with_config(going, lambda config: config["dataset"].update(classes=classes))
    (corpus,) = models.corpora(report.load([going, tmp_path / "done"]))
    assert corpus.classes == CLASSES and [model.label for model in corpus.models] == ["nature", "AT-PGD"]
    assert len(corpus.models[1].curves("original")[0][0]) == 15


def test_a_run_that_is_still_going_on_other_classes_is_another_corpus(tmp_path):
    by_hand(tmp_path / "done", {"original": MATRIX})
    make_run(tmp_path / "going", Made("pgd"), status="running")
    found = models.corpora(report.load([tmp_path]))
    assert [(corpus.name, len(corpus.runs)) for corpus in found] == [("emodb (3 classes)", 1), ("emodb (7 classes)", 1)]


def test_a_colour_is_natures_alone(tmp_path):
    from fedser.report.charts import COLOURS
    from fedser.report.charts.build import colour

    make_run(tmp_path / "a", Made("fgsm"), full=False)
    assert colour(the_model(tmp_path)) == COLOURS[1]
    make_run(tmp_path / "b", full=False)
    (corpus,) = models.corpora(report.load([tmp_path]))
    assert [colour(model) for model in corpus.models] == list(COLOURS[:2])


def test_most_draws_win_and_a_part_of_the_clips_never_does(tmp_path):
    def of(share):
        return {"matrix": [[share, 10 - share, 0], [0, 10, 0], [0, 0, 10]]}

    more = {"matrix": (3 * np.array(of(5)["matrix"])).tolist(), "draws": 3}
    folder = by_hand(tmp_path, {"original": of(1), "randomised": of(2), "adversarial/pgd": of(3)})
    by_hand(folder, {"original": of(4), "randomised": more}, name="more")
    by_hand(folder, {"original": of(6), "adversarial/pgd": of(7)}, name="part", evaluation={"fraction": 0.5})
    estimates = the_model(folder).estimates
    assert estimates["original"].uar == pytest.approx((0.4 + 2) / 3)  # as many draws: the newer one
    assert estimates["randomised"].uar == pytest.approx((0.5 + 2) / 3)
    assert estimates["randomised"].draws == 3
    assert estimates["adversarial/pgd"].uar == pytest.approx((0.3 + 2) / 3)
    assert estimates["adversarial/pgd"].fraction == 1


def of(name, **settings):
    """`attacks` of an evaluation.json with one attack; its name may be varied."""
    budget = " the smallest change" if settings.get("norm") == "L2" else ""
    return {name: {"settings": {"name": name.partition("@")[0], **settings}, "threat": json.dumps(settings) + budget}}


def worth(share):
    """A matrix with a UAR of (share / 10 + 2) / 3."""
    return [[share, 10 - share, 0], [0, 10, 0], [0, 0, 10]]


def test_another_eps_under_the_same_name_is_another_condition(tmp_path):
    own, other = of("pgd", eps=0.05, alpha=None), of("pgd", eps=0.1, new=3)
    folder = by_hand(tmp_path, {"adversarial/pgd": MATRIX}, attacks=own)
    by_hand(folder, {"adversarial/pgd": MATRIX}, attacks=other, name="larger")
    assert list(the_model(folder).estimates) == ["adversarial/pgd", "adversarial/pgd@eps=0.1,new=3"]


def test_what_is_usual_is_so_for_the_whole_corpus(tmp_path):
    """Runs of one model, and models, whose own attacks have different budgets."""
    for place, (model, seed, eps) in enumerate([("nature", 0, 0.02), ("nature", 0, 0.05), ("pgd", 0, 0.1)]):
        config = config_of(Made(model, seed, classes=CLASSES)) | {"attack": {"name": "fgsm", "eps": eps}}
        history = f'{{"round": 1, "uar/adversarial/fgsm": {eps}}}\n'
        attacks = of("fgsm", eps=eps)
        folder = by_hand(tmp_path / str(place), {"adversarial/fgsm": worth(place)}, config=config, attacks=attacks)
        (folder / "history.jsonl").write_text(history)
    by_hand(tmp_path / "1", {"adversarial/fgsm": worth(9)}, attacks=of("fgsm", eps=0.05), name="again")
    (corpus,) = models.corpora(report.load([tmp_path]))
    nature, trained = corpus.models
    found = {name: 3 * estimate.uar - 2 for name, estimate in nature.estimates.items()}
    assert found == pytest.approx({"adversarial/fgsm": 0.9, "adversarial/fgsm@eps=0.02": 0.0})
    assert list(trained.estimates) == ["adversarial/fgsm@eps=0.1"]
    assert [corpus.eps(parse(name)) for name in corpus.conditions] == [0.05, 0.02, 0.1]
    assert corpus.threat("fgsm@eps=0.02") == '{"eps": 0.02}'
    assert nature.curves("adversarial/fgsm") == {0: ([1], [0.05])} and trained.curves("adversarial/fgsm") == {}


def test_of_two_settings_as_frequent_those_of_nature_are_usual(tmp_path):
    for place, (model, eps) in enumerate([("pgd", 0.1), ("nature", 0.05)]):
        config = config_of(Made(model, classes=CLASSES))
        by_hand(tmp_path / str(place), {"adversarial/fgsm": MATRIX}, config=config, attacks=of("fgsm", eps=eps))
    (corpus,) = models.corpora(report.load([tmp_path]))
    assert [list(model.estimates) for model in corpus.models] == [["adversarial/fgsm"], ["adversarial/fgsm@eps=0.1"]]


def test_varied_names_are_told_apart_by_all_that_differs(tmp_path):
    plain, steps = "adversarial/pgd_strong", "adversarial/pgd_strong@steps=20"
    for place, (name, eps) in enumerate([("paper", 0.05), ("matrix", 0.05), ("larger", 0.1)]):
        attacks = of("pgd_strong", eps=eps, steps=10) | of("pgd_strong@steps=20", eps=eps, steps=20)
        conditions = {plain: worth(place), steps: worth(place + 4)}
        if eps == 0.1:  # a grid that holds what others have: the same condition
            conditions["adversarial/pgd_strong@eps=0.05"] = worth(9)
            attacks |= of("pgd_strong@eps=0.05", eps=0.05, steps=10)
        by_hand(tmp_path, conditions, attacks=attacks, name=name)
    found = {name: 3 * estimate.uar - 2 for name, estimate in the_model(tmp_path).estimates.items()}
    larger = {f"{plain}@eps=0.1": 0.2, f"{plain}@eps=0.1,steps=20": 0.6}
    assert found == pytest.approx({plain: 0.9, steps: 0.5, **larger})
    assert attack_title("pgd_strong@eps=0.1,steps=20") == "PGD-strong (ε 0.1, steps 20)"


PGD = {"_target_": "torchattacks.PGD", "_partial_": True, "random_start": True}
FAST = {"name": "fgsm", "eps": 0.05, "method": {"_target_": "fedser.attacks.fgsm.FGSM"}}
SLOW = {"name": "pgd", "eps": 0.05, "steps": 5, "method": PGD}


@pytest.mark.parametrize(
    ("own", "other", "told"),
    [
        ({"eot": 20}, {"eot": 5}, "eot=5"),
        ({"queries": 5000}, {"queries": 100}, "queries=100"),
        ({"kappa": 0.0, "c": 1.0, "lr": 0.005}, {"kappa": 1, "c": 10, "lr": 0.01}, "c=10,kappa=1,lr=0.01"),
        ({"labels": "true"}, {"labels": "predicted"}, "labels=predicted"),
        ({"alpha": None}, {"alpha": 0.1}, "alpha=0.1"),
        ({"box": None}, {"box": [-3, 3]}, "box=[-3 3]"),
        ({"method": PGD}, {"method": PGD | {"random_start": False}}, "random_start=false"),
        ({"method": PGD}, {"method": FAST["method"]}, "method=FGSM"),
        ({"source": "outputs/a"}, {"source": "outputs/b,x=1/"}, "source=b-x-1"),
        ({"base": SLOW}, {"base": SLOW | {"steps": 50}}, "base.steps=50"),
        ({"base": SLOW}, {"base": FAST}, "base=fgsm"),
        ({"members": {"a": SLOW}}, {"members": {"a": SLOW, "b": FAST}}, "members.b=fgsm"),
        ({"members": {"a": SLOW, "b": FAST}}, {"members": {"a": SLOW, "b": None}}, "members.b=none"),
        ({"eps": 0.05, "members": {"b": FAST}}, {"eps": 0.1, "members": {"b": FAST | {"eps": 0.1}}}, "eps=0.1"),
        ({"labels": "true", "eps": 1, "box": None}, {"labels": True, "eps": 1.0}, ""),
        ({"victim": None}, {"victim": {"features": "others"}}, ""),
    ],
)
def test_every_setting_of_an_attack_tells_it_apart(tmp_path, own, other, told):
    folder = by_hand(tmp_path, {"adversarial/mine": MATRIX}, attacks=of("mine", **own))
    by_hand(folder, {"adversarial/mine": MATRIX}, attacks=of("mine", **other), name="other")
    assert list(the_model(folder).estimates) == ["adversarial/mine", f"adversarial/mine@{told}"][: 1 + bool(told)]


def test_sources_of_one_folder_name_are_numbered(tmp_path):
    for place, source in enumerate(["x/0", "a/1", "b/1", "a/1"]):
        attacks = of("transfer", source=source, eps=0.05)
        name = f"later{place}" if place else "paper"
        by_hand(tmp_path, {"adversarial/transfer": worth(place)}, attacks=attacks, name=name)
    by_hand(tmp_path, {"adversarial/transfer": worth(4)}, attacks=of("transfer", source="x/0", eps=0.05), name="last")
    found = {name.partition("@")[2]: 3 * e.uar - 2 for name, e in the_model(tmp_path).estimates.items()}
    assert found == pytest.approx({"": 0.4, "source=1": 0.3, "source=1 #2": 0.2})


def test_whose_examples_fool_whom(tmp_path):
    """Each of two models under examples of the other's and of a stranger's; on itself where the base was made on it."""
    base = {"base": {"name": "pgd_strong"}, "eps": 0.05}
    for place, (network, other) in enumerate([("cnn4", "1"), ("vgg16", "0")]):
        config = config_of(Made(classes=CLASSES)) | {"model": {"name": network}}
        attacks = of("transfer", source=f"x/{other}", **base) | of("pgd_strong", eps=0.05)
        conditions = {"adversarial/transfer": worth(place + 5), "adversarial/pgd_strong": worth(place)}
        folder = by_hand(tmp_path / str(place), conditions, config=config, attacks=attacks)
    by_hand(folder, {"adversarial/transfer": worth(9)}, attacks=of("transfer", source="y/far", **base), name="again")
    (corpus,) = models.corpora(report.load([tmp_path]))
    first, second = (model.label for model in corpus.models)
    found = {pair: 3 * uar - 2 for pair, uar in transfers(corpus.models).items()}
    assert found == pytest.approx({
        (second, first): 0.5, (first, second): 0.6, ("far", second): 0.9, (first, first): 0.0, (second, second): 0.1
    })  # fmt: skip
    made = tables.transfer(corpus)
    assert made.columns == ["Made on", first, second]
    assert [cell.text for cell in next(row for row in made.rows if row[0] == "far")[1:]] == ["–", "96.7"]


def test_a_transfer_is_shown_on_speakers_whom_nobody_trained_on(tmp_path):
    attacks = of("transfer", source="x/far", base={"name": "pgd_strong"}, eps=0.05) | of("pgd_strong", eps=0.05)
    names = ["adversarial/transfer", "adversarial/pgd_strong"]
    seen, unseen = ({name: worth(place + 1 + more) for place, name in enumerate(names)} for more in (0, 5))
    folder = by_hand(
        tmp_path, seen, attacks=attacks, unseen={"conditions": {k: {"matrix": v} for k, v in unseen.items()}}
    )
    model = the_model(folder)
    found = {pair: 3 * uar - 2 for pair, uar in transfers([model]).items()}
    assert found == pytest.approx({("far", model.label): 0.6, (model.label, model.label): 0.7})


def test_a_budget_that_means_nothing_tells_nothing_apart(tmp_path):
    folder = by_hand(tmp_path, {"adversarial/deepfool": MATRIX}, attacks=of("deepfool", eps=0.1, norm="L2"))
    by_hand(folder, {"adversarial/deepfool": MATRIX}, attacks=of("deepfool", eps=None, norm="L2"), name="other")
    (corpus,) = models.corpora(report.load([folder]))
    assert corpus.conditions == ["adversarial/deepfool"] and corpus.eps(parse("adversarial/deepfool")) is None


def test_an_attack_that_was_only_varied_is_compared_with_the_configuration(tmp_path):
    attacks = of("pgd@steps=20", eps=0.1, labels="predicted", norm="Linf", steps=20)
    folder = by_hand(tmp_path, {"adversarial/pgd@steps=20": MATRIX}, attacks=attacks)
    assert list(the_model(folder).estimates) == ["adversarial/pgd@eps=0.1,steps=20"]


def test_another_randomisation_is_left_out_and_told(tmp_path):
    names = ["original", "randomised", "adversarial/pgd", "randomised_adversarial/pgd", "adaptive/pgd"]
    for place, (name, value) in enumerate([("paper", 0.5), ("matrix", 0.5), ("other", 0.1)]):
        worn = {"_target_": "fedser.defences.randomisation.Randomise", "frames": [373, 380], "value": value}
        by_hand(tmp_path, dict.fromkeys(names, worth(place)), name=name, inference=worn)
    by_hand(tmp_path, {"original": worth(7), "adversarial/pgd": worth(7)}, name="unworn", inference=None)
    (corpus,) = models.corpora(report.load([tmp_path]))
    found = {name: 3 * estimate.uar - 2 for name, estimate in corpus.models[0].estimates.items()}
    assert found == pytest.approx(
        {name: 0.7 if parse(name).kind in ("original", "adversarial") else 0.1 for name in names}
    )
    assert corpus.notes == [
        "by hand: the evaluation other has another randomisation than most (value=0.1); what it measured with it is left "
        "out."
    ]


def test_an_attack_that_always_knows_of_the_randomisation_is_adaptive(tmp_path):
    knows = {"eot_pgd": {"settings": {"name": "eot_pgd", "adaptive": True}}, "pgd": {"settings": {"adaptive": False}}}
    names = ["randomised_adversarial/eot_pgd", "randomised_adversarial/pgd"]
    folder = by_hand(tmp_path, dict.fromkeys(names, MATRIX), attacks=knows)
    assert set(the_model(folder).estimates) == {"adaptive/eot_pgd", "randomised_adversarial/pgd"}


# --- Estimates -------------------------------------------------------------------------------------------------------


def test_mean_and_sd_over_seeds_by_hand(tmp_path):
    for seed, matrix in enumerate([MATRIX, [[10, 0, 0], [0, 10, 0], [0, 0, 20]]]):
        by_hand(tmp_path / str(seed), {"original": matrix}, config=config_of(Made(seed=seed, classes=CLASSES)))
    estimate = the_model(tmp_path).estimates["original"]
    assert estimate.uar == pytest.approx(0.85)
    assert estimate.over_seeds.sd == pytest.approx(0.15 * math.sqrt(2))
    assert estimate.matrix.sum() == 80 and estimate.utterances == 80


def test_clients_stand_for_speakers_where_nothing_else_is_known(tmp_path):
    halves = {"x": [[4, 0, 0], [0, 3, 0], [0, 0, 5]], "y": [[4, 1, 1], [0, 2, 5], [2, 2, 11]]}
    sexes = {"x": {"sex": "female"}, "y": {"sex": "m"}}
    folder = by_hand(tmp_path, {"original": {"matrix": MATRIX, "by_client": halves}}, clients=sexes)
    estimate = the_model(folder).estimates["original"]
    assert estimate.by_speaker() == pytest.approx({"x": 1, "y": (4 / 6 + 2 / 7 + 11 / 15) / 3})
    assert estimate.sexes() == {"x": "female", "y": "male"}
    assert estimate.gap().difference == pytest.approx(1 - (4 / 6 + 2 / 7 + 11 / 15) / 3)
    assert estimate.clustered == statistics.clustered_bootstrap_of_matrices(list(halves.values()))
    assert estimate.stratified == statistics.stratified_bootstrap_of_matrix(MATRIX)
    assert estimate.interval == estimate.clustered


def test_a_speaker_with_less_than_five_clips_has_no_uar_of_its_own(tmp_path):
    folder = make_run(tmp_path / "run", full=False)
    frame = pd.read_csv(folder / "utterances.csv", dtype=str)
    kept = {"03": 4, "08": 5}
    rows = [frame[frame["speaker"] == speaker].head(kept.get(speaker, 99)) for speaker in frame["speaker"].unique()]
    pd.concat(rows).to_csv(folder / "utterances.csv", index=False)
    model = the_model(folder)
    values = model.estimates["randomised"].by_speaker()
    assert "03" not in values and "08" in values and len(values) == 9
    from fedser.report.charts import build

    (corpus,) = models.corpora(report.load([folder]))
    dots = [series for series in build.speakers(corpus).series if series.form == "dots"]
    assert not any("speaker 03," in text for series in dots for text in series.texts)
    assert any("speaker 08," in text for series in dots for text in series.texts)


@pytest.mark.parametrize(("draws", "speakers"), [(1, {"x", "y"}), (3, {"y"})])
def test_clips_are_counted_once_whatever_the_draws(tmp_path, draws, speakers):
    halves = {"x": [[3, 0, 0], [0, 3, 0], [0, 0, 0]], "y": [[5, 1, 0], [0, 3, 3], [0, 0, 9]]}
    matrix = np.sum(list(halves.values()), axis=0).tolist()
    folder = by_hand(tmp_path, {"randomised": {"matrix": matrix, "by_client": halves, "draws": draws}})
    assert set(the_model(folder).estimates["randomised"].by_speaker()) == speakers


def test_one_matrix_alone_has_the_stratified_interval(tmp_path):
    estimate = the_model(by_hand(tmp_path, {"original": MATRIX})).estimates["original"]
    assert math.isnan(estimate.clustered.low)
    assert estimate.interval == statistics.stratified_bootstrap_of_matrix(MATRIX)
    assert estimate.by_speaker() == {} and estimate.gap() is None


def test_a_clip_that_several_seeds_test_is_one_clip_in_each(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / str(seed), Made(seed=seed), full=False)
    estimate = the_model(tmp_path).estimates["randomised"]
    seen = estimate.observations
    assert seen["utterance"].duplicated().any() and not seen.duplicated(["seed", "utterance"]).any()
    assert len(seen) == estimate.utterances
    each = [statistics.uar(rows["correct"], rows["label"]) for _, rows in seen.groupby("seed")]
    assert estimate.uar == pytest.approx(np.mean(each), abs=1e-5)  # the table is rounded
    columns = [seen[name] for name in ("correct", "label", "seed", "utterance")]
    assert estimate.stratified == statistics.stratified_bootstrap(*columns)
    assert estimate.stratified != statistics.stratified_bootstrap(*columns[:2])


def test_a_clip_is_the_same_whichever_client_held_it(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / str(seed), Made(seed=seed), full=False)
    before = the_model(tmp_path).estimates["randomised"]
    file = tmp_path / "1" / "utterances.csv"
    frame = pd.read_csv(file, dtype=str)
    frame.assign(client=frame["client"].sample(frac=1, random_state=0).to_numpy()).to_csv(file, index=False)
    pd.testing.assert_frame_equal(the_model(tmp_path).estimates["randomised"].observations, before.observations)


def test_unfinished_seed_has_a_curve_of_its_own(tmp_path):
    make_run(tmp_path / "a", Made(), full=False)
    make_run(tmp_path / "b", Made(seed=1, rounds=60), status="running")
    lines = (tmp_path / "b/history.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "b/history.jsonl").write_text("".join(lines[:8]))
    curves = the_model(tmp_path).curves("original")
    assert [list(curve[0]) for curve in curves.values()] == [list(range(4, 61, 4)), [4, 8]]
