"""A detector of adversarial examples: learnt from sums, measured by hand-made figures, and attacked by who knows it."""

import json
import shutil
from statistics import NormalDist

import numpy as np
import pytest
import torch
from conftest import FIXTURES, SMALL
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from test_federation import federate

from fedser import compose, evaluate, run
from fedser.attacks import Adversary
from fedser.attacks.evading import Evading, _Best
from fedser.config import identity
from fedser.config.settings import Settings
from fedser.config.validation import validate
from fedser.detectors.detector import Detector, Watched
from fedser.detectors.lda import LDA
from fedser.detectors.moments import Moments
from fedser.errors import InputError, RunError
from fedser.evaluation import detection, record
from fedser.evaluation.detection import auc
from fedser.federation import batch_norm, client_app
from fedser.preparation import prepare
from fedser.report import tables
from fedser.report.analysis.models import corpora
from fedser.report.analysis.runs import load

# A network that goes by lengths, with batch norm of each client's own; a budget that its detector sees plainly.
COMMON = [
    "dataset=emodb", f"dataset.root={FIXTURES / 'emodb'}", "features.frames=128", "model.width=4", "rounds=20",
    "partition.test=0.5", "defence=none", "attack=pgd", "evaluation.every=null", "evaluation.eps=0.3",
    "simulation=serial", "logger=none",
]  # fmt: skip
WATCHED = ["detector=lda", "evaluation.attacks=[pgd]", "evaluation.eps=0.3", "simulation=serial", "logger=none"]


def vectors(seed, n, shift):
    """z [n, 6] of correlated dimensions of very different scales."""
    draws = np.random.default_rng(seed)
    mixed = np.eye(6) + 0.4 * np.random.default_rng(9).standard_normal((6, 6))
    return (draws.standard_normal((n, 6)) @ mixed + shift) * np.array([1.0, 10.0, 0.1, 1.0, 3.0, 100.0])


CLEAN, ADVERSARIAL = vectors(1, 40, 0.0), vectors(2, 25, 0.7)


def fitted(clean=CLEAN, adversarial=ADVERSARIAL, **options):
    return LDA(**options)(Moments.of(clean), Moments.of(adversarial))


def within(*sets):
    return np.sqrt(sum(((z - z.mean(0)) ** 2).sum(0) for z in sets) / sum(map(len, sets)))


@pytest.mark.parametrize("shrinkage", [0.05, 0.5, 1.0])
def test_the_discriminant_is_sklearns(shrinkage):
    """On dimensions of equal variance within the classes, where a shrinkage to the diagonal is one to the identity."""
    deviations = within(CLEAN, ADVERSARIAL)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
    z, y = np.concatenate([CLEAN, ADVERSARIAL]) / deviations, np.repeat([0, 1], [len(CLEAN), len(ADVERSARIAL)])
    theirs.fit(z, y)
    ours = fitted(shrinkage=shrinkage)
    np.testing.assert_allclose(np.array(ours.weights) * deviations, theirs.coef_[0], rtol=1e-6)
    priors = np.log(len(ADVERSARIAL) / len(CLEAN))
    assert ours.bias == pytest.approx(theirs.intercept_[0] - priors, rel=1e-6)


def test_the_threshold_is_the_gaussians_of_clean_scores():
    ours = fitted(false_alarms=0.2)
    scores = CLEAN @ np.array(ours.weights) + ours.bias
    assert ours.threshold == pytest.approx(scores.mean() + NormalDist().inv_cdf(0.8) * scores.std())
    assert ours.scale == pytest.approx(scores.std())
    many = vectors(3, 20000, 0.0)
    alarms = (many @ np.array(fitted(many, ADVERSARIAL).weights) + fitted(many).bias > fitted(many).threshold).mean()
    assert alarms == pytest.approx(0.05, abs=0.01)


def test_a_dimension_without_variance_counts_for_nothing():
    clean, adversarial = (np.insert(z, 3, 7.3, axis=1) for z in (CLEAN, ADVERSARIAL))
    ours = fitted(clean, adversarial)
    assert ours.weights[3] == 0
    np.testing.assert_allclose(np.delete(ours.weights, 3), fitted().weights)


def test_sums_over_clients_are_those_over_their_pooled_clips(settings, tmp_path, monkeypatch):
    """Of all training clips and no others, in the client's own normalisation; from one pass of each client."""
    experiment, _, weights, serve = federate(chosen := settings("defence=none"), tmp_path)
    told, of = [], Moments.of
    monkeypatch.setattr(Moments, "of", lambda z: told.append(z) or of(z))
    clean, attacked = serve(lambda federation: federation._moments(1, weights, ["fgsm"]))
    splits = prepare(chosen).splits
    assert sorted(map(len, told)) == sorted(2 * [len(split.train) for split in splits])
    for found, parts in ((clean, told[::2]), (attacked, told[1::2])):
        np.testing.assert_allclose(found.sums, of(np.concatenate(parts)).sums, rtol=1e-12)
        assert found.count == sum(len(split.train) for split in splits)
    state = client_app.ClientState(json.loads(json.dumps(experiment)), client_app.simulated)
    frames = np.concatenate([state.clients.store.frames[split.train] for split in splits]).astype(np.float64)
    x = (frames - frames.mean((0, 1))) / frames.std((0, 1))
    state.weights.load(weights)
    central = detection.moments(
        state.model, [torch.from_numpy(x.astype(np.float32))[:, None]], torch.full((len(x),), 128), 8
    )
    np.testing.assert_allclose(clean.mean, central.mean, rtol=1e-3, atol=1e-4)
    assert np.abs(attacked.mean - clean.mean).max() > 1e-3


def test_auc_by_hand():
    assert auc(np.array([1, 2, 2, 3]), np.array([2, 4])) == 6 / 8  # 2 beats one and ties with two, 4 beats four
    assert auc(np.array([1, 2]), np.array([3])) == 1 and auc(np.array([3]), np.array([1, 2])) == 0
    assert auc(np.array([1]), np.array([])) is None


def test_figures_by_hand():
    """Two clients: what is counted, what is pooled, and that no AUC is made up where there are counts only."""
    labels = [torch.tensor([0, 0, 1]), torch.tensor([1])]
    scored = [
        {"original": torch.tensor([[-1.0, 0.5, -2.0], [0.1, 0.2, 0.3]]), "adversarial/a": torch.tensor([[1.0, -1.0, 2.0], [0.2, 0.2, 0.9]])},
        {"original": torch.tensor([[-1.0], [0.4]]), "adversarial/a": torch.tensor([[-3.0], [0.0]])},
    ]  # fmt: skip
    predicted = [
        {"original": torch.tensor([[0, 0, 1]]), "adversarial/a": torch.tensor([[1, 1, 1]])},
        {"original": torch.tensor([[0]]), "adversarial/a": torch.tensor([[0]])},
    ]

    def told(clip_by_clip):
        return [detection.answer(s, p, y, clip_by_clip) for s, p, y in zip(scored, predicted, labels, strict=True)]

    found = detection.figures(told(True))
    assert found["original"] == {"caught": 1 / 4, "wrong": 1 / 4, "slipped": 1 / 4}
    # Of 16 pairs 1.0 and 2.0 win four each, −1.0 beats −2.0 and ties with two, −3.0 wins none.
    assert found["adversarial/a"] == {
        "caught": 2 / 4, "wrong": 3 / 4, "slipped": 2 / 4, "auc": 10 / 16, "auc_unsure": 7 / 16,
    }  # fmt: skip
    assert detection.metrics(found) == {"detector/auc/a": 10 / 16, "detector/false_alarms": 1 / 4}
    counts = detection.figures(told(False))
    assert counts["adversarial/a"] == found["adversarial/a"] | {"auc": None, "auc_unsure": None}
    assert detection.metrics(counts) == {"detector/false_alarms": 1 / 4}
    assert detection.figures([]) == {}


# --- An attack that knows -------------------------------------------------------------------------------------------


def test_the_best_iterate_is_kept():
    best = _Best(torch.zeros(3, 1))
    best.take(torch.full((3, 1), 1.0), torch.tensor([0, 1, 2]), torch.tensor([0.5, 0.5, 0.5]))
    best.take(torch.full((3, 1), 2.0), torch.tensor([1, 1, 1]), torch.tensor([0.1, 0.6, 0.9]))
    best.take(torch.full((3, 1), 3.0), torch.tensor([1, 1, 2]), torch.tensor([0.0, 0.2, 0.5]))
    assert best.x[:, 0].tolist() == [2.0, 2.0, 1.0]


def test_clips_of_several_lengths_keep_to_the_budget_and_are_seen_as_the_client_sees_them(settings):
    """Each with its own real frames: what the attack is told of a clip is what the evaluation will find."""
    torch.manual_seed(0)
    model = validate(compose(COMMON)).model.component.build(classes=7).eval()
    x, lengths, y = torch.randn(6, 1, 128, 64), torch.tensor([128, 40, 64, 64, 100, 30]), torch.arange(6)
    size = len(torch.cat(detection.described(model, x[:1], lengths[:1]), dim=1)[0])
    watched = Watched(model, Detector(torch.randn(size).tolist(), 0.0, 0.0, 1.0))
    seen = []

    class Telling(Evading):
        def _judged(self, x, labels):
            seen.append((labels, self.model.watched(x)[1].detach()))
            return super()._judged(x, labels)

    attack = Adversary("evading", 0.2, "true", Telling, in_order=True, evades=True, steps=3)
    made = attack(watched, x, y, 0, lengths=lengths, batch_size=4)
    assert 0.1 < (made - x).abs().max() <= 0.2 + 1e-5
    with torch.no_grad():
        honest = watched.watched(x, lengths)[1]
    first = {int(label): value for labels, values in seen[::4] for label, value in zip(labels, values, strict=True)}
    assert [first[label].item() for label in range(6)] == pytest.approx(honest.tolist(), rel=1e-3, abs=1e-3)


def test_what_is_misclassified_already_is_led_below_the_threshold_and_let_go_of_there():
    class Alarmed(torch.nn.Module):
        """Always wrong; suspicion is what the cells add up to, 2 at first and −2 at the least."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def watched(self, x):
            return torch.tensor([[0.0, 9.0]]).expand(len(x), 2) + 0 * x.sum(), x.sum(dim=(1, 2, 3))

    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.long)
    made = Evading(Alarmed(), weight=1.0, eps=1.0, steps=50, first=0.1)(x, y).sum(dim=(1, 2, 3))
    assert (made < 0).all() and (made > -1.5).all()
    assert torch.equal(Evading(Alarmed(), weight=0.0, eps=1.0, steps=50)(x, y), x)


def test_a_model_without_a_detector_is_refused():
    attack = Adversary("evading", 0.2, "true", Evading, in_order=True, evades=True, steps=1)
    with pytest.raises(InputError, match="an attack on a detector needs one: choose detector=lda"):
        attack(
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), torch.ones(1, 1, 2, 2), torch.zeros(1), 0
        )


# --- Whole runs on real speech --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same training without a detector and with one."""
    folder = tmp_path_factory.mktemp("runs")
    plain = run(compose(COMMON), folder / "plain")
    return plain, run(compose([*COMMON, "detector=lda"]), folder / "watched")


@pytest.fixture(scope="module")
def later(runs):
    """The run without a detector, evaluated with one."""
    return evaluate.evaluate(runs[0].folder, WATCHED)


def record_of(result):
    return json.loads((result.folder / "evaluation.json").read_text())


def test_a_run_with_a_detector_reuses_the_model_and_reports(runs):
    plain, watched = runs
    assert watched.metrics["reused"]
    found = record_of(watched)["detector"]
    figures = found["figures"]
    assert list(figures) == ["original", "adversarial/pgd", "adversarial/evading"]
    prepared = prepare(validate(compose(COMMON)))
    trained_on = sum(len(split.train) for split in prepared.splits)
    assert found["clean"] == found["adversarial"] == trained_on and found["settings"]["name"] == "lda"
    known = {"detector/false_alarms": figures["original"]["caught"]}
    known |= {f"detector/auc/{name}": figures[f"adversarial/{name}"]["auc"] for name in ("pgd", "evading")}
    for told in (watched.metrics, watched.history[-1]):
        assert {key: value for key, value in told.items() if key.startswith("detector/")} == known
    assert not (watched.folder / "parts").exists()
    right = record_of(watched)["conditions"]["adversarial/evading"]["accuracy"]
    assert figures["adversarial/evading"]["wrong"] == pytest.approx(1 - right)


def test_who_knows_the_detector_slips_through_where_its_own_examples_do_not(runs):
    figures = record_of(runs[1])["detector"]["figures"]
    pgd, evading = figures["adversarial/pgd"], figures["adversarial/evading"]
    assert pgd["wrong"] > 0.5 and pgd["auc"] > 0.8
    assert evading["slipped"] > pgd["slipped"] + 0.3
    assert evading["caught"] < pgd["caught"] - 0.3


def test_without_a_detector_everything_is_as_before(runs, later):
    plain, watched = runs
    one, other = record_of(plain), record_of(watched)
    assert "detector" not in one and not [key for key in plain.metrics if key.startswith("detector")]
    assert one["conditions"] == {name: other["conditions"][name] for name in one["conditions"]}
    assert set(other["conditions"]) - set(one["conditions"]) == {"adversarial/evading"}
    settings = validate(compose(COMMON))
    before = Settings.of({key: value for key, value in settings.plain.items() if key != "detector"})
    assert identity.everything(before) == identity.everything(settings)
    assert set(identity.everything(settings)) == {"training", "evaluation", "attacks", "inference", "code"}
    with_one = validate(compose([*COMMON, "detector=lda"]))
    assert identity.training(with_one) == identity.training(settings)
    assert identity.everything(with_one) != identity.everything(settings)
    other = validate(compose([*COMMON, "detector=lda", "detector.shrinkage=0.2"]))
    assert identity.everything(with_one) != identity.everything(other)


def test_a_finished_run_gets_a_detector_afterwards(runs, later):
    assert later["detector"] == record_of(runs[1])["detector"]
    assert record.metrics(later)["detector/auc/pgd"] == runs[1].metrics["detector/auc/pgd"]


def test_each_client_is_asked_under_its_own_batch_norm(runs, monkeypatch):
    with_own, load_ = [], client_app.ClientState.load

    def listen(state, content):
        with_own.append(batch_norm.LOCAL in content)
        load_(state, content)

    monkeypatch.setattr(client_app.ClientState, "load", listen)
    evaluate.evaluate(runs[0].folder, [*WATCHED, "evaluation.fraction=0.5", "detector.knowing=null"])
    assert len(with_own) == 2 + 2 * 2 and all(with_own)


def test_an_interrupted_evaluation_does_not_learn_again(runs, later, monkeypatch):
    words = [*WATCHED, "reuse=false"]
    scores, asked = detection.scores, []
    monkeypatch.setattr(detection, "scores", lambda *rest: 1 / 0)
    with pytest.raises(RunError, match="ZeroDivisionError"):
        evaluate.evaluate(runs[0].folder, words)
    monkeypatch.setattr(detection, "scores", scores)
    monkeypatch.setattr(detection, "moments", _noting(asked, detection.moments))
    assert evaluate.evaluate(runs[0].folder, words)["detector"] == later["detector"]
    assert not asked


def _noting(asked, work):
    return lambda *rest: asked.append(1) or work(*rest)


def test_a_deployment_that_tells_counts_only_has_no_auc(runs, later):
    told = evaluate.evaluate(runs[0].folder, [*WATCHED, "evaluation.utterances=false"])["detector"]["figures"]
    for name, part in later["detector"]["figures"].items():
        nothing = {key: None for key in ("auc", "auc_unsure") if key in part}
        assert told[name] == part | nothing


def test_several_attacks_to_learn_from_and_speakers_who_are_held_out(tmp_path):
    words = [
        "partition/split=speaker",
        "partition.split.test=1",
        "partition.split.validation=0",
        "rounds=1",
        "detector=lda",
        "detector.attack=[fgsm,pgd]",
    ]
    words += ["detector.knowing=null", "evaluation.attacks=[fgsm]"]
    result = run(compose([*COMMON, *words]), tmp_path / "run")
    found = record_of(result)
    assert found["detector"]["adversarial"] == 2 * found["detector"]["clean"]
    assert set(found["unseen"]["detector"]["figures"]) == {"original", "adversarial/fgsm"}
    unseen = found["unseen"]["detector"]["figures"]["adversarial/fgsm"]["auc"]
    assert result.metrics["detector/unseen/auc/fgsm"] == unseen == result.history[-1]["detector/unseen/auc/fgsm"]


def test_the_report_has_a_table_only_where_there_is_a_detector(runs, tmp_path):
    plain, watched = runs
    (corpus,) = corpora(load([watched.folder]))
    made = tables.detector(corpus)
    titles = [row[1] for row in made.rows]
    assert titles == ["none: false alarms", "PGD", "Evading, which knows it"]
    figures = record_of(watched)["detector"]["figures"]
    slipped, blind = (figures[f"adversarial/{name}"]["slipped"] for name in ("evading", "pgd"))
    assert made.data.iloc[-1]["slipped"] == slipped and made.rows[-1][-1].value == slipped
    words = f"of all clips slip through {100 * slipped:.1f} % under Evading, which knows the detector"
    assert made.notes == [f"{corpus.models[0].label}: {words}, {100 * blind:.1f} % under PGD, which does not."]
    alone = shutil.copytree(plain.folder, tmp_path / "run", ignore=shutil.ignore_patterns("evaluations"))
    assert not tables.detector(*corpora(load([alone])))


# --- Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["detector=lda", "detector.attack=[]"],
            r"detector.attack=\[\]: detector=lda learns from adversarial examples",
        ),
        (["detector=lda", "detector.attack=null"], "detector.attack=null: detector=lda learns from"),
        (["detector=lda", "detector.attack=none"], "detector.attack=none: detector=lda learns from"),
        (["detector=lda", "detector.attack=2"], "detector.attack=2: detector=lda learns from"),
        (
            ["detector=lda", "detector.attack=[pgdd]"],
            "the detector names 'pgdd', which is no attack; did you mean 'pgd'",
        ),
        (["detector=lda", "detector.attack=[3]"], r"detector.attack=\[3\]"),
        (["detector=lda", "detector.attack=[evading]"], "evading knows a detector, .* no attack for detector.attack"),
        (["detector=lda", "evaluation.adaptive=[evading]"], "no attack for .*evaluation.adaptive"),
        (["detector=lda", "detector.knowing=pgd"], "detector.knowing=pgd: that attack knows of no detector"),
        (["detector=lda", "detector.shrinkage=0"], "detector.shrinkage=0 must be greater than 0"),
        (["detector=lda", "detector.false_alarms=1"], "detector.false_alarms=1 must lie between 0 and 1"),
        (["attack=evading"], "the attack evading knows a detector, and there is none"),
        (["evaluation.attacks=[pgd,evading]"], "the attack evading knows a detector, and there is none"),
    ],
)
def test_refused_in_one_line(words, message):
    with pytest.raises(InputError, match=message) as refused:
        validate(compose([*COMMON, *words]))
    assert "\n" not in str(refused.value)


def test_without_attacks_nothing_starts(command, tmp_path):
    told = command(*SMALL, "detector=lda", "detector.attack=[]")
    assert told.returncode == 2 and "name an attack or more, e.g. detector.attack=[pgd]" in told.stderr
    assert len(told.stderr.strip().splitlines()) == 1 and not list(tmp_path.rglob("summary.json"))


def test_a_network_without_embed_is_refused():
    folder = FIXTURES.parent.parent / "docs" / "template"
    words = [word for word in COMMON if not word.startswith("model.")]
    with pytest.raises(InputError, match="detector: MeanNet has no method `embed`"):
        prepare(validate(compose([*words, "model=meannet", "detector=lda"], config_dir=folder)))
