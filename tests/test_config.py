"""The command line's words: every option composes, what is misspelt is named, what is impossible is refused."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedser.config import compose as hydras
from fedser.config.compose import compose
from fedser.config.paths import directory
from fedser.config.protocol import Protocols
from fedser.config.validation import plain, validate
from fedser.errors import InputError
from fedser.federation import strategies

GROUPS = ["attack", "defence", "strategy", "model", "client", "partition", "features", "evaluation", "simulation",
          "logger", "dataset", "experiment", "detector"]  # fmt: skip
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((directory() / group).glob("*.yaml"))]


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: str(value))
def test_every_option_composes_and_is_valid(group, option):
    extra = {"manifest": ["dataset.root=somewhere.csv"], "evading": ["detector=lda"], "waveform": ["defence=none"]}.get(
        option, []
    )
    settings = validate(compose([f"{group}={option}", *extra]))
    if group not in ("experiment", "client"):
        assert getattr(settings, group).name == option
    strategies.build_strategy(settings.strategy, 4)
    settings.model.component.build(classes=7)
    settings.client.optimizer.build([torch.nn.Parameter(torch.zeros(1))])
    if group in ("attack", "logger") and option != "transfer":  # which wants a finished run: tests/test_transfer.py
        getattr(settings, group).build()


@pytest.mark.parametrize(
    "words",
    [
        ["dataset=emodb", "attack=pgd", "attack.eps=0.1", "evaluation.attacks=[pgd,cw]", "attacks.cw.steps=3"],
        ["experiment=chang2022", "client/schedule=cosine", "client.lr=0.01", "features.normalisation=none", "rounds=7"],
        ["model=ssl", "features=waveform", "defence=none", "model.config={d_model:16}", "augment=[]"],
    ],
)
def test_composed_from_kept_choices_it_is_what_hydra_makes(words):
    alone = hydras.compose([*words, "seed=3"])
    assert compose([*words, "seed=4"]).seed == 4  # leaves what is kept as it was
    wanted = hydras._composed(tuple(hydras.prepared([*words, "seed=3"])))
    for found in (alone, compose([*words, "seed=3"])):
        assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(wanted) and plain(found) == plain(wanted)
        with pytest.raises(OmegaConfBaseException):
            found.client.lrr = 1  # no key that is not there


def test_every_group_has_options():
    assert {group for group, _ in OPTIONS} == set(GROUPS)


def test_the_names_users_rely_on():
    settings = validate(compose([]))
    for path in """rounds seed dataset.root dataset.scale dataset.on_bad_audio model.width attack.eps attack.labels
        client.epochs client.batch_size client.lr client.threads client.precision client.optimizer_state
        evaluation.every evaluation.attacks simulation.actors simulation.num_cpus simulation.num_gpus
        simulation.min_reply_fraction attacks.pgd.alpha attacks.pgd.steps attacks.deepfool.steps reuse logger""".split():
        node = settings.plain
        for key in path.split("."):
            assert key in node, path
            node = node[key]
    two_stage = validate(compose(["attack=pgd", "defence=two_stage"]))
    assert two_stage.attack.get("alpha") == 0.1 and two_stage.attack.get("steps") == 5
    training = two_stage.defence.training
    assert training.get("pairing") == "disjoint" and training.get("alpha") == 0.5
    names = [getattr(settings, group).name for group in ("dataset", "model", "attack", "defence", "strategy")]
    assert names == ["synthetic", "statcnn", "fgsm", "randomise", "fedavg"]


def test_the_defaults_and_those_of_version_0_3_0():
    now, then = validate(compose([])), validate(compose(["experiment=v03"]))
    assert (now.model.name, now.client.optimizer_state, now.strategy.fraction_train) == ("statcnn", "average", 0.2)
    assert (now.batch_norm, list(now.augment), now.client.schedule.name) == ("auto", ["crop", "mask", "gain"], "cosine")
    assert now.features.normalisation.name == "zscore_client" and now.client.epochs == 1
    assert now.rounds == now.client.schedule.get("rounds") < validate(compose(["dataset=emodb"])).rounds == 800
    assert (then.model.name, then.client.optimizer_state, then.strategy.fraction_train) == ("cnn4", "reset", 1.0)
    assert (then.batch_norm, list(then.augment), then.client.schedule.name) == ("aggregate", [], "constant")
    assert (then.features.normalisation.name, then.client.epochs, then.rounds) == ("zscore_global", 2, 16)


def test_paper_settings_are_the_attacks_defaults():
    attacks = validate(compose([])).attacks
    assert attacks["fgsm"].get("eps") == attacks["pgd"].get("eps") == 0.05
    assert attacks["pgd"].get("alpha") == 0.1 and attacks["pgd"].get("steps") == attacks["deepfool"].get("steps") == 5
    assert attacks["deepfool"].get("overshoot") == 0.02 and attacks["deepfool"].get("eps") is None
    assert {attacks[name].get("labels") for name in ("fgsm", "pgd", "deepfool")} == {"predicted"}


def test_training_attack_follows_the_attack_and_can_differ():
    same = validate(compose(["attack=pgd", "attack.eps=0.02", "defence=adversarial"]))
    assert same.defence.training.get("attack")["eps"] == 0.02
    other = validate(compose(["attack=pgd", "defence=adversarial", "defence.training.attack=${attacks.fgsm}"]))
    assert other.defence.training.get("attack")["name"] == "fgsm"


def test_sources_are_absolute_wherever_they_stand():
    override = "+attack.members.transfer={name: transfer, source: outputs/run}"
    settings = validate(compose(["attack=ensemble", override, "attacks.transfer.source=outputs/run"]))
    here = str(Path("outputs/run").absolute())
    assert settings.attack.get("members")["transfer"]["source"] == here
    assert settings.attacks["transfer"].get("source") == here


def attacks_of(*overrides):
    return Protocols.of(validate(compose(overrides))).attacks


def test_evaluation_attacks_meet_overrides():
    chosen = attacks_of("attack=fgsm", "attack.eps=0.1", "evaluation.attacks=[fgsm,pgd,none]", "attacks.pgd.steps=20")
    assert list(chosen) == ["fgsm", "pgd"]
    assert chosen["fgsm"].get("eps") == 0.1 and chosen["pgd"].get("steps") == 20 and chosen["pgd"].get("eps") == 0.05
    assert attacks_of("attack=none") == {}
    assert list(attacks_of("evaluation.attacks=pgd")) == ["pgd"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["atack=fgsm"], ["'atack'", "'attack'"]),
        (["attack=fgsn"], ["fgsn", "attack=fgsm"]),
        (["client.batchsize=4"], ["client.batchsize", "'client.batch_size'"]),
        (["defence=two_stages"], ["defence=two_stage"]),
        (["attack.eps=0"], ["attack.eps=0"]),
        (["attack.eps=-1"], ["attack.eps=-1"]),
        (["attack=pgd", "attack.steps=0"], ["attack.steps=0"]),
        (["attack.labels=guessed"], ["attack.labels=guessed", "predicted"]),
        (["rounds=0"], ["rounds=0"]),
        (["rounds=2.5"], ["rounds=2.5"]),
        (["seed=-1"], ["seed=-1"]),
        (["client.lr=0"], ["client.lr=0"]),
        (["client.precision=fp16"], ["client.precision=fp16", "bf16"]),
        (["strategy.fraction_train=1.5"], ["strategy.fraction_train=1.5"]),
        (["evaluation.attacks=[pdg]"], ["'pdg'", "'pgd'"]),
        (["evaluation.attacks=[pgd]", "attacks.pgd.eps=0"], ["attacks.pgd.eps=0"]),
        (["attack=none", "defence=two_stage"], ["defence.training.attack=none", "attack=fgsm"]),
        (["defence=adversarial", "defence.training.alpha=2"], ["defence.training.alpha=2"]),
        (["dataset=manifest"], ["dataset.root"]),
        (["simulation.actors=0"], ["simulation.actors=0"]),
        (["simulation.backend=foo"], ["simulation.backend=foo", "serial"]),
        (["simulation.total_gpus=abc"], ["simulation.total_gpus=abc"]),
        (["model.width=0"], ["model.width=0"]),
        (["model.bn_momentum=null"], ["model.bn_momentum=null"]),
        (["strategy=fedtrimmedavg", "strategy.beta=0.7"], ["strategy.beta=0.7"]),
        (["strategy=fedprox", "strategy.proximal_mu=-1"], ["strategy.proximal_mu=-1"]),
        (["seed=${foo}"], ["foo"]),
        (["~client.threads"], ["client.threads"]),
        (["~evaluation.grid"], ["lacks evaluation.grid"]),
        (["~defence.inference"], ["lacks defence.inference"]),
        (["~attacks"], ["lacks attacks"]),
        (["attack=fgsm,pgd"], ["-m"]),
        (["attack.eps=inf"], ["attack.eps=inf", "finite"]),
        (["attack=pgd", "attack.steps=null"], ["attack.steps=null", "whole number of at least 1"]),
        (["attack=pgd", "attack.norm=L2"], ["attack.norm=L2", "torchattacks.PGD", "attack.norm=Linf"]),
        (["attack=deepfool", "attack.norm=Linf"], ["attack.norm=Linf", "DeepFool", "attack.norm=L2"]),
        (["attack=pgd", "attack.norm=L1"], ["attack.norm=L1", "Linf, L2"]),
        (["attack=pgd", "attack.method.random_start=yess"], ["attack.method.random_start=yess", "true or false"]),
        (["attack=cw", "attack.searches=0"], ["attack.searches=0"]),
        (["attack=cw", "attack.c=-1"], ["attack.c=-1"]),
        (["attack=cw", "attack.c=0"], ["attack.c=0"]),
        (["attack=cw", "attack.c=abc"], ["attack.c=abc"]),
        (["attack=cw", "attack.lr=null"], ["attack.lr=null"]),
        (["attacks.cw.kappa=null"], ["attacks.cw.kappa=null"]),  # on no protocol, and wrong all the same
        (["attack=square", "attack.queries=0"], ["attack.queries=0", "at least 2"]),
        (["attack=square", "attack.queries=-5"], ["attack.queries=-5"]),
        (["attack=square", "attack.p_init=7"], ["attack.p_init=7"]),
        (["attack=square", "attack.p_init=0"], ["attack.p_init=0"]),
        (["attack=mifgsm", "attack.decay=abc"], ["attack.decay=abc"]),
        (["attack=apgd", "+attack.rho=2"], ["attack.rho=2", "between 0 and 1"]),
        (["attack=eot_pgd", "attack.eot=0"], ["attack.eot=0"]),
        (["attack=autoattack", "attack.members.square.queries=0"], ["attack.members.square.queries=0"]),
        (["attack=autoattack", "attack.rand.apgd_ce.steps=0"], ["attack.rand.apgd_ce.steps=0"]),
        (["attack=autoattack", "attack.members=5"], ["attack.members=5"]),
        (["attack=transfer", "attacks.pgd_strong.steps=0"], ["attack.base.steps=0"]),
        (["evaluation.attacks=[pgd]", "+evaluation.grid.steps=[0,10]"], ["attacks.pgd@steps=0.steps=0"]),
        (["attacks.pgd=null"], ["attacks.pgd=null", "settings"]),
        (["attack.method=abc"], ["attack.method=abc", "_target_"]),
        (["defence=two_stage", "defence.training=5"], ["defence.training=5"]),
        (["defence=two_stage", "defence.training.attack=null"], ["defence.training.attack=null"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_bad_configuration_is_named(overrides, words):
    with pytest.raises(InputError) as raised:
        validate(compose(overrides))
    for word in words:
        assert word in str(raised.value)
    assert "\n" not in str(raised.value)


def test_eps_on_deepfool_warns_and_means_nothing(caplog):
    from fedser.config.identity import run_name

    settled = validate(compose(["attack=deepfool", "attack.eps=0.05"]))
    assert settled.attack.get("eps") is None
    assert "deepfool has no ε" in caplog.text
    assert run_name(settled) == run_name(validate(compose(["attack=deepfool"])))


def test_steps_that_do_not_get_as_far_as_eps_warn(caplog):
    validate(compose(["evaluation.attacks=[fgsm,pgd,pgd_strong,'pgd@eps=0.5']", "evaluation.eps=0.4"]))
    assert not caplog.messages
    validate(compose(["evaluation=sweep", "evaluation.attacks=[pgd,pgd_strong]"]))
    assert caplog.messages == [
        "attacks.pgd@eps=1.0: 5 steps of alpha=0.1 do not get as far as eps=1 (alpha=null: eps/4)"
    ]


def test_released_code_differs_from_the_paper_in_pairing_and_moments_only():
    differences = {}

    def compare(one, other, path=""):
        for key in sorted(set(one) | set(other)):
            if isinstance(one.get(key), dict) and isinstance(other.get(key), dict):
                compare(one[key], other[key], f"{path}{key}.")
            elif one.get(key) != other.get(key):
                differences[f"{path}{key}"] = one.get(key), other.get(key)

    paper, code = (
        plain(compose([f"experiment={name}", "defence=two_stage"])) for name in ("chang2022", "chang2022_code")
    )
    compare(paper, {key: value for key, value in code.items() if key != "variant"})
    assert differences == {
        "client.optimizer_state": ("reset", "persist"),
        "defence.training.pairing": ("disjoint", "paired"),
    }
    assert plain(compose(["experiment=chang2022_code", "defence=none"]))["defence"]["training"] is None


@pytest.mark.parametrize(
    ("model", "parameters"), [("cnn4", 4_307_911), ("vgg16", 14_721_351), ("resnet50", 23_516_103)]
)
def test_ren2020_is_without_federation_and_has_their_networks_splits_and_objectives(model, parameters):
    for name in ("adversarial_ren", "similarity"):
        words = ["experiment=ren2020", f"model={model}", "defence=adversarial", f"defence/training={name}"]
        settings = validate(compose([*words, "attack.eps=0.08", "dataset.root=."]))
        built = settings.model.component.build(classes=7)
        assert sum(parameter.numel() for parameter in built.parameters()) == parameters
        assert (settings.client.batch_size, settings.client.lr, settings.strategy.name) == (16, 1e-3, "centralised")
        split = settings.partition.split
        assert (split.name, split.get("test"), split.get("validation")) == ("speaker", 22, 22)
        attack = settings.defence.training.get("attack")
        assert (attack["name"], attack["eps"], attack["labels"]) == ("fgsm", 0.08, "true")


def test_randomisation_is_the_papers_and_follows_the_features():
    paper = validate(compose(["experiment=chang2022"])).defence.inference.options
    assert (paper["frames"], paper["mels"], paper["size"], paper["value"]) == ([373, 380], [64, 66], [380, 66], 0.5)
    longer = validate(compose(["dataset=emodb", "features.frames=500"])).defence.inference.options
    assert (longer["frames"], longer["size"]) == ([500, 507], [507, 66])
