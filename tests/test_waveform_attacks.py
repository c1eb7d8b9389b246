"""Attacks on the waveform: the level of every utterance, padding, the front end, a randomisation that is known."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from ear import Ear

from fedser import report
from fedser.attacks.adversary import BudgetError
from fedser.attacks.waveform import Listening, WaveformAdversary, snr
from fedser.config.components import build
from fedser.config.compose import compose
from fedser.config.validation import plain
from fedser.defences.randomisation import Randomise
from fedser.errors import InputError
from fedser.features.front_end import LogMel, fitted
from fedser.models.lengths import as_inputs, logits
from fedser.models.statcnn import StatCNN
from fedser.report import tables
from fedser.report.analysis import models
from fedser.report.analysis.safety import success_interval

SAMPLES = 6400
LENGTHS = torch.tensor([6400, 3600, 4800, 2000, 6400, 2800])
NODES = plain(compose([]))["attacks"]
NAMES = ["snr_fgsm", "snr_noise", "snr_pgd", "snr_pgd_l2", "snr_apgd"]


def data():
    """Noise of different loudness [6, 1, 6400, 1], zeros behind."""
    x = torch.randn(6, 1, SAMPLES, 1, generator=torch.Generator().manual_seed(0))
    level = torch.tensor([0.2, 0.01, 0.05, 0.1, 0.002, 0.15])[:, None, None, None]
    return (x * level * (torch.arange(SAMPLES)[:, None] < LENGTHS[:, None, None, None])).clamp(-1, 1)


def ear():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Ear(4).eval()


def listening():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        front, network = LogMel(mels=16), StatCNN(4, width=4).eval()

    def heard(x, lengths):
        frames, real = fitted(front, 24, x[:, 0, :, 0], lengths)
        return as_inputs((frames + 8) / 2), real

    return Listening(network, heard)


def attack(name, level=45.0, **changes):
    fewer = {"steps": 10} if name == "snr_apgd" else {}
    return build(NODES[name] | fewer | {"snr": level} | changes, key=name)


@pytest.mark.parametrize("victim", [ear, listening])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", [60.0, 20.0])
def test_every_utterance_keeps_its_level(name, victim, level):
    x, model = data(), victim()
    y = logits(model, x, LENGTHS).argmax(1)
    made = attack(name, level)(model, x, y, 0, lengths=LENGTHS)
    found = snr(x, made, LENGTHS)
    assert (found >= level - 1e-3).all() and made.abs().max() <= 1
    if name in ("snr_fgsm", "snr_noise"):
        assert found.numpy() == pytest.approx(level, abs=0.01)
    for clip, before, length in zip(made, x, LENGTHS.tolist(), strict=True):
        assert torch.equal(clip[:, length:], before[:, length:])
    loss = [torch.nn.functional.cross_entropy(logits(model, each, LENGTHS), y) for each in (x, made)]
    assert name == "snr_noise" or loss[1] > loss[0]


def test_an_utterance_is_attacked_the_same_alone_and_beside_others():
    x, model = data(), listening()
    y = logits(model, x, LENGTHS).argmax(1)
    fgsm = attack("snr_fgsm", 30.0)
    together = fgsm(model, x, y, 0, lengths=LENGTHS)
    for row in range(len(x)):
        alone = fgsm(model, x[[row]], y[[row]], 0, lengths=LENGTHS[[row]])
        assert (alone[0] - together[row]).abs().max() < 1e-5


def test_a_step_by_hand():
    """x + sign of the gradient · RMS / 10^(snr / 20), scaled up for the samples behind the last frame, without one."""
    x, model, y = data()[:1], listening(), torch.tensor([2])
    model_lengths = LENGTHS[:1]
    moved = x.clone().requires_grad_()
    torch.nn.functional.cross_entropy(model(moved, model_lengths), y).backward()
    sign = moved.grad.sign()
    sign = sign * (SAMPLES**0.5 / sign.norm())
    expected = x + sign * x.square().mean().sqrt() / 10**1.5
    made = attack("snr_fgsm", 30.0, right_only=False)(model, x, y, 0, lengths=model_lengths)
    assert torch.allclose(made, expected.clamp(-1, 1), atol=1e-6)


def test_who_is_misclassified_already_is_left_alone():
    x, model = data(), listening()
    y = logits(model, x, LENGTHS).argmax(1)
    y[[1, 4]] = (y[[1, 4]] + 1) % 4
    made = attack("snr_fgsm", 30.0)(model, x, y, 0, lengths=LENGTHS)
    assert [torch.equal(one, other) for one, other in zip(made, x, strict=True)] == [
        False,
        True,
        False,
        False,
        True,
        False,
    ]


def test_a_known_randomisation_stands_behind_the_front_end():
    x, model = data(), listening()
    y = logits(model, x, LENGTHS).argmax(1)
    randomise = Randomise(frames=(24, 28), mels=(16, 18), size=(28, 18))
    made = attack("snr_pgd", 30.0)(model, x, y, 0, lengths=LENGTHS, randomise=randomise)
    assert made.shape == x.shape and (snr(x, made, LENGTHS) >= 30 - 1e-3).all()
    assert not torch.equal(made, attack("snr_pgd", 30.0)(model, x, y, 0, lengths=LENGTHS))


def test_a_broken_budget_is_an_error():
    class Louder(WaveformAdversary):
        def _levelled(self, change, lengths):
            return 1.2 * super()._levelled(change, lengths)

    fgsm = attack("snr_fgsm")
    louder = Louder("loud", 45.0, "true", fgsm.method, exact=True)
    with pytest.raises(BudgetError, match=r"broke its budget: 43\.4\d+ dB where snr=45"):
        louder(ear(), data(), torch.zeros(6, dtype=torch.long), 0, lengths=LENGTHS)


# --- in a run --------------------------------------------------------------------------------------------------------

ATTACKED = [
    "evaluation.attacks=[snr_fgsm,snr_noise,'snr_pgd@snr=20']", "evaluation.adaptive=[snr_fgsm]",
    "evaluation.every=null", "attack=snr_pgd", "attacks.snr_fgsm.right_only=false",
]  # fmt: skip


def test_a_network_on_log_mels_is_attacked_through_its_front_end(small):
    result = small(*ATTACKED)
    found = json.loads((result.folder / "evaluation.json").read_text())["examples"]
    assert set(found) == {"snr_fgsm", "snr_noise", "snr_pgd@snr=20", "adaptive/snr_fgsm"}
    for name, level in {"snr_fgsm": 45, "snr_noise": 45, "adaptive/snr_fgsm": 45}.items():
        assert found[name]["waveform_db"] == pytest.approx(level, abs=0.1)
    assert found["snr_pgd@snr=20"]["waveform_db"] >= 20 - 1e-3
    assert found["snr_pgd@snr=20"]["linf"] > found["snr_noise"]["linf"] > 0  # in σ, behind the front end
    assert all(0 <= each["success"] <= 1 for each in found.values() if each["success"] is not None)
    assert {"uar/adversarial/snr_pgd@snr=20", "uar/adaptive/snr_fgsm"} <= result.metrics.keys()
    (corpus,) = models.corpora(report.load([result.folder]))
    rows = {(row["attack"], row["snr"]): row for row in tables.safety(corpus).data.to_dict("records")}
    assert set(rows) == {("snr_fgsm", 45), ("snr_noise", 45), ("snr_pgd", 20)}
    for name, row in (("snr_fgsm", rows["snr_fgsm", 45]), ("snr_pgd@snr=20", rows["snr_pgd", 20])):
        assert row["uar/adversarial"] == result.metrics[f"uar/adversarial/{name}"]
        assert row["success"] == found[name]["success"] and row["rms"] == found[name]["rms"]
        assert not row["success_low"] > row["success"] and not row["success_high"] < row["success"]
    assert rows["snr_fgsm", 45]["uar/adaptive"] == result.metrics["uar/adaptive/snr_fgsm"]


def test_a_success_rate_has_an_interval_over_speakers():
    speakers = np.repeat(list("abcdef"), 10)
    clips = pd.DataFrame({"seed": "0", "utterance": np.arange(60).astype(str), "speaker": speakers, "correct": 1.0})
    clean = SimpleNamespace(observations=clips.assign(correct=(np.arange(60) % 10 < 8) * 1.0))
    fooled = np.arange(60) % 10 < np.repeat([1, 2, 3, 4, 5, 6], 10)  # of ten, the first 1 to 6; the last two are wrong
    sure = success_interval(clean, SimpleNamespace(observations=clips.assign(correct=1.0 - fooled)))
    rates = np.arange(1, 7) / 8
    draws = np.random.default_rng(0).choice(rates, (4000, 6)).mean(1)  # over speakers of equally many right clips
    assert sure.low < np.quantile(draws, 0.025) and np.quantile(draws, 0.975) < sure.high
    assert sure.low == pytest.approx(np.quantile(draws, 0.025), abs=0.08)
    assert sure.high == pytest.approx(np.quantile(draws, 0.975), abs=0.08)
    assert np.isnan(success_interval(clean, SimpleNamespace(observations=None)).low)
    assert np.isnan(success_interval(clean, SimpleNamespace(observations=clips.assign(correct=0.0))).low)


def test_a_network_that_listens_is_attacked_likewise(tmp_path):
    import test_waveforms

    result = test_waveforms.run(tmp_path / "run", *ATTACKED[:1], *ATTACKED[2:])
    found = json.loads((result.folder / "evaluation.json").read_text())["examples"]
    assert found["snr_noise"]["waveform_db"] == pytest.approx(45, abs=0.1) == found["snr_noise"]["snr_db"]


def test_a_level_on_features_is_refused(settings):
    with pytest.raises(InputError, match="attack.snr"):
        settings("attack=pgd", "attack.snr=45")
    with pytest.raises(InputError, match=r"attack\.snr of pgd: this attack has no such setting"):
        settings("attack=pgd", "+attack.snr=45").attack.build()
