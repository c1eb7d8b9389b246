"""Run folders → runs, models and estimates, with numbers worked out by hand."""

import json
import math

import numpy as np
import pytest
from omegaconf import OmegaConf
from runs import Made, config_of, make_run

from fedser import report, statistics
from fedser.report import models
from fedser.report.conditions import attack_title, in_order, parse, title
from fedser.report.estimates import recalls

MATRIX = [[8, 1, 1], [0, 5, 5], [2, 2, 16]]  # recalls 0.8, 0.5, 0.8: UAR 0.7
CLASSES = ("a", "b", "c")


def by_hand(folder, conditions, *, config=None, attacks=None, evaluation=None, name="paper", clients=None):
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
    content |= {"evaluation": evaluation or {}, "attacks": attacks or {}}
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
    labels = ["nature", "AT-PGD (rounds=60)", "AT-PGD (rounds=30)", "AT-DeepFool"]
    assert [model.label for model in corpus.models] == labels
    assert [[model.label for model in family] for family in corpus.families] == [
        ["nature", "AT-PGD (rounds=60)", "AT-DeepFool"],
        ["AT-PGD (rounds=30)"],
    ]
    assert corpus.notes[0].startswith("The models do not only differ in their defence but also in rounds (nature: 60")


def test_a_colour_is_natures_alone(tmp_path):
    from fedser.report.charts import COLOURS, colour

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


def test_another_eps_under_the_same_name_is_another_condition(tmp_path):
    own = {"pgd": {"settings": {"name": "pgd", "eps": 0.05, "alpha": None}}}
    other = {"pgd": {"settings": {"name": "pgd", "eps": 0.1, "alpha": 0.025, "new": 3}}}
    folder = by_hand(tmp_path, {"adversarial/pgd": MATRIX}, attacks=own)
    by_hand(folder, {"adversarial/pgd": MATRIX}, attacks=other, name="larger")
    assert list(the_model(folder).estimates) == ["adversarial/pgd", "adversarial/pgd@eps=0.1"]


def test_an_attack_that_always_knows_what_is_worn_is_adaptive(tmp_path):
    knows = {"eot_pgd": {"settings": {"name": "eot_pgd", "adaptive": True}}, "pgd": {"settings": {"adaptive": False}}}
    names = ["randomised_adversarial/eot_pgd", "randomised_adversarial/pgd"]
    folder = by_hand(tmp_path, dict.fromkeys(names, MATRIX), attacks=knows)
    assert set(the_model(folder).estimates) == {"adaptive/eot_pgd", "randomised_adversarial/pgd"}


# --- Estimates -------------------------------------------------------------------------------------------------------


def test_uar_of_a_matrix_by_hand():
    assert recalls(np.array(MATRIX, float)) == pytest.approx([0.8, 0.5, 0.8])
    assert math.isnan(recalls(np.array([[1.0, 0], [0, 0]]))[1])


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


def test_one_matrix_alone_has_the_stratified_interval(tmp_path):
    estimate = the_model(by_hand(tmp_path, {"original": MATRIX})).estimates["original"]
    assert math.isnan(estimate.clustered.low)
    assert estimate.interval == statistics.stratified_bootstrap_of_matrix(MATRIX)
    assert estimate.by_speaker() == {} and estimate.gap() is None


def test_each_clip_counts_once_with_the_mean_of_its_seeds(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / str(seed), Made(seed=seed), full=False)
    estimate = the_model(tmp_path).estimates["randomised"]
    frames = [measure.observations() for measure in estimate.measures]
    both = set(frames[0]["utterance"]) & set(frames[1]["utterance"])
    assert both and len(estimate.observations) == len(set(frames[0]["utterance"]) | set(frames[1]["utterance"]))
    clip = sorted(both)[0]
    values = [float(frame.set_index("utterance")["correct"][clip]) for frame in frames]
    assert estimate.observations["correct"][clip] == pytest.approx(np.mean(values))


def test_unfinished_seed_has_a_curve_of_its_own(tmp_path):
    make_run(tmp_path / "a", Made(), full=False)
    make_run(tmp_path / "b", Made(seed=1, rounds=60), status="running")
    lines = (tmp_path / "b/history.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "b/history.jsonl").write_text("".join(lines[:8]))
    curves = the_model(tmp_path).curves("original")
    assert [list(curve[0]) for curve in curves.values()] == [list(range(4, 61, 4)), [4, 8]]
