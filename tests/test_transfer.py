"""Transfer: the source's model is attacked and no other, and a source that won't do is refused with its reason."""

import json

import pytest
import torch
from omegaconf import OmegaConf
from test_attacks import assert_same, state
from torch import nn
from toy import randomisation

from fedser.config import compose
from fedser.config.components import build
from fedser.config.validation import plain
from fedser.errors import InputError
from fedser.models.weights import serialised

RUN = ["model=cnn4", "dataset=emodb", "features.frames=24", "features.mels=16", "model.width=2"]
X = torch.randn(12, 1, 24, 16, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 7


def model(seed):
    node = plain(compose.compose(RUN))["model"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(node, classes=7)


@pytest.fixture
def source(tmp_path):
    """A finished run's folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    OmegaConf.save(OmegaConf.create(plain(compose.compose(RUN))), folder / "config.yaml")
    (folder / "summary.json").write_text(json.dumps({"status": "finished"}))
    (folder / "model.safetensors").write_bytes(serialised(model(1).state_dict(), {}))
    return folder


def transfer(source, *overrides):
    settings = plain(compose.compose([*RUN, "attack=transfer", f"attack.source={source}", *overrides]))
    return build(settings["attack"])


def test_the_attack_is_made_on_the_source(source):
    class Victim(nn.Module):
        """Answers for one sample only: how many classes it has."""

        def forward(self, x):
            assert len(x) == 1
            return torch.zeros(1, 7)

    attack = transfer(source, "attack.eps=0.1")
    x_adv = attack(Victim(), X, Y, 3, predictions=torch.zeros(12, dtype=torch.long))
    pgd = build(plain(compose.compose(["attack=pgd_strong", "attack.eps=0.1"]))["attack"])
    assert torch.equal(x_adv, pgd(model(1), X, Y, 3))
    assert not torch.equal(x_adv, pgd(model(2), X, Y, 3))
    assert attack.eps == 0.1
    assert (x_adv - X).abs().max() <= 0.1 + 1e-5


def test_predicted_labels_are_the_sources(source):
    attack = transfer(source, "attack.base=${attacks.fgsm}", "attack.labels=predicted")
    predicted = model(1).eval()(X).argmax(1)
    fgsm = build(plain(compose.compose(["attack=fgsm", "attack.labels=true"]))["attack"])
    assert torch.equal(attack(model(2), X, None, 0), fgsm(model(1), X, predicted, 0))


def test_the_source_wears_what_the_attacker_knows_of(source):
    attack, wear = transfer(source), randomisation()
    wear.ranges, wear.size = {"frames": (24, 27), "mels": (16, 19)}, (26, 18)
    expected = attack.base(model(1), X, Y, 0, randomise=wear)
    assert torch.equal(attack(model(2), X, Y, 0, randomise=wear), expected)
    assert not torch.equal(attack(model(2), X, Y, 0), expected)


def test_nothing_is_left_behind(source):
    victim = model(2).train()
    victim.fc.weight.grad = torch.full_like(victim.fc.weight, 7.0)
    before = state(victim)
    attack = transfer(source)
    x_adv = attack(victim, X, Y, 0)
    assert_same(before, state(victim))
    assert torch.equal(attack(victim, X, Y, 0), x_adv)
    assert attack(victim, X[:0], Y[:0], 0).shape == (0, 1, 24, 16)
    assert attack(victim.double(), X[:2].double(), Y[:2], 0).dtype == torch.float64


def test_the_model_under_attack_is_no_source(source):
    with pytest.raises(InputError, match="run holds the very model under attack"):
        transfer(source)(model(1), X, Y, 0)


def test_the_threat_model_in_a_line(source):
    assert str(transfer(source)) == (
        "transfer: transfer, Linf, at most 0.05 per cell, features without bounds, true labels, "
        f"made by pgd_strong on the model of {source}"
    )


def test_the_interface(source):
    attack = transfer(source)
    assert (attack.name, attack.eps, attack.labels, attack.norm, attack.adaptive) == (
        "transfer",
        0.05,
        "true",
        "Linf",
        False,
    )


def refused(source, message, *overrides):
    with pytest.raises(InputError, match=message):
        transfer(source, *overrides)


def test_a_base_of_another_norm(source):
    message = "attack.norm of transfer is Linf, but its base deepfool is measured in L2"
    refused(source, message, "attack.base=${attacks.deepfool}")
    deepfool = transfer(source, "attack.base=${attacks.deepfool}", "attack.norm=L2")
    assert deepfool.eps is None


def test_no_source():
    refused("null", "attack.source of transfer must be set to the folder of a finished run")


def test_a_source_that_is_no_run(source, tmp_path):
    refused(tmp_path / "nowhere", "attack.source of transfer: .*nowhere/config.yaml is not there")
    (source / "summary.json").unlink()
    refused(source, "summary.json is not there")


def test_an_unfinished_source(source):
    (source / "summary.json").write_text(json.dumps({"status": "interrupted"}))
    refused(source, "summary.json says that the run is interrupted, not finished")


def test_a_source_without_a_model(source):
    (source / "model.safetensors").unlink()
    refused(source, "model.safetensors is not there")


@pytest.mark.parametrize("file, content", [("summary.json", "{"), ("config.yaml", "a: [")])
def test_a_damaged_source(source, file, content):
    (source / file).write_text(content)
    refused(source, "attack.source of transfer: .*run is damaged")


def test_a_damaged_model(source):
    (source / "model.safetensors").write_bytes(b"\x01" * 100)
    with pytest.raises(InputError, match="model.safetensors is damaged"):
        transfer(source)(model(2), X, Y, 0)


def test_other_features(source):
    refused(
        source, "config.yaml has features.floor=1e-08, the run under attack features.floor=0.01", "features.floor=0.01"
    )


def test_other_classes(source):
    refused(source, r"has dataset.drop=\[\], the run under attack dataset.drop=\['boredom'\]", "dataset.drop=[boredom]")
    refused(source, r"has dataset.classes=\['anger', ", "dataset=demos", "dataset.root=x")


def test_another_number_of_classes(source):
    class Eight(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 8)

    with pytest.raises(InputError, match="model.safetensors is of a model with other classes"):
        transfer(source)(Eight(), X, Y, 0)
