"""What makes two runs the same run, and two trained models the same model."""

import pytest

from fedser.config.compose import compose
from fedser.config.identity import digest, everything, run_name, training
from fedser.config.settings import Settings
from fedser.config.validation import plain, tidy


def named(*overrides):
    return Settings.of(tidy(plain(compose(overrides)), quiet=True))


@pytest.mark.parametrize(
    "override", ["seed=1", "rounds=3", "client.threads=2", "client.precision=bf16", "model.width=4", "dataset.scale=0.5",
                 "strategy=fedprox", "partition=iid", "defence=adversarial", "simulation.device=cuda",
                 "simulation.stacked=4",
                 "features.normalisation=none"],
)  # fmt: skip
def test_what_changes_the_trained_model(override):
    assert digest(training(named())) != digest(training(named("simulation.device=cpu", override)))
    assert digest(training(named("simulation.device=cpu"))) != digest(
        training(named("simulation.device=cpu", override))
    )


@pytest.mark.parametrize(
    "override", ["simulation.actors=3", "logger=none", "reuse=false", "simulation.num_cpus=2", "hydra.job.chdir=false"]
)
def test_what_changes_nothing(override):
    overrides = [] if override.startswith("hydra") else [override]
    assert run_name(named()) == run_name(named(*overrides))


def test_serial_and_ray_on_a_cpu_are_the_same_run():
    assert run_name(named("simulation=serial", "simulation.device=cpu")) == run_name(named("simulation=cpu"))


@pytest.mark.parametrize("override", ["attack=pgd", "attack.eps=0.02", "defence=none", "evaluation.every=2"])
def test_what_is_measured_changes_the_run_but_not_the_model(override):
    assert digest(training(named())) == digest(training(named(override)))
    assert digest(everything(named())) != digest(everything(named(override)))
    assert run_name(named()) != run_name(named(override))


def test_the_training_attack_belongs_to_the_model():
    pgd = named("attack=pgd", "defence=adversarial")
    assert digest(training(pgd)) != digest(training(named("attack=fgsm", "defence=adversarial")))


def test_a_transfer_attack_is_known_by_the_model_it_is_made_on(tmp_path):
    def name(folder):
        return run_name(named("attack=transfer", f"attack.source={folder}"))

    here, moved, other = (tmp_path / place for place in ("here", "moved", "other"))
    for folder, content in ((here, b"weights"), (moved, b"weights"), (other, b"others")):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(content)
    assert name(here) == name(moved) != name(other)
    assert name(tmp_path / "nowhere") != name(tmp_path / "neither")  # refused later, and not taken for each other


def test_name_is_readable():
    name = run_name(named("attack=pgd", "attack.eps=0.02", "defence=two_stage", "strategy=krum", "seed=7"))
    assert name.startswith("synthetic-statcnn-pgd0.02-two_stage-krum-seed7-")
