"""Adversarial training on the waveform: the objectives there are, in dB, for networks on log-Mels and on waveforms."""

import pytest
import test_waveforms
import torch

from fedser.attacks.waveform import Listening, snr
from fedser.config.identity import digest, training
from fedser.errors import InputError
from fedser.evaluation.measure import predict
from fedser.features.normalisation import Normaliser
from fedser.federation.client_app import ClientState, simulated
from fedser.preparation import prepare
from fedser.simulation import probe
from fedser.training.objective import Step

ALONE = ["attack=none", "evaluation.every=null", "batch_norm=aggregate"]
IN_DB = [
    "defence=adversarial",
    "defence/training=madry",
    "defence/training/attack=snr_pgd",
    "defence.training.attack.snr=25",
]
METHODS = ["adversarial_ren", "madry", "trades", "mart", "alp", "calfat", "similarity"]


def state_of(settings, *overrides):
    prepared = prepare(settings(*ALONE, *overrides))
    experiment = {
        "settings": prepared.settings.plain,
        "classes": prepared.classes,
        "attacks": {},
        "state": "",
        "trainers": [0, 1],
    }
    experiment |= {"store": str(prepared.store.folder)}
    experiment["forms"] = {name: str(form.folder) for name, form in prepared.forms.items()}
    return ClientState(experiment, simulated)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_examples_that_keep_their_level(settings, method):
    state = state_of(settings, *IN_DB, f"defence/training={method}", "augment=[crop]")
    data, everyone = state.clients.client(0), Normaliser.of(-3, 2)
    samples = state.training_samples(data, everyone, 1, listens=True)
    model = state.listening(data, everyone, 1)
    few = samples[torch.arange(4)]
    buffers = [buffer.clone() for buffer in model.buffers()]
    paired = state.objective.attacked(
        model.train(), state.objective.start_round(model, few, round=3, seed=0), Step(3, 0, 0, 1)
    )
    assert model.training and all(
        map(torch.equal, buffers, model.buffers())
    )  # the attack is in eval mode, and no trace
    levels = snr(few.x, paired.adversarial, few.lengths)
    assert (levels >= 25 - 1e-3).all() and (levels < 40).all()
    loss = state.objective(model, few, Step(3, 0, 0, 1))
    loss.backward()
    assert all(parameter.grad is not None for parameter in state.model.parameters())


def test_half_of_the_samples_are_attacked_once_a_round(settings):
    state = state_of(settings, "attack=snr_fgsm", "attack.right_only=false", "defence=adversarial", "augment=[]")
    data, everyone = state.clients.client(0), Normaliser.of(-3, 2)
    samples = state.training_samples(data, everyone, 1, listens=True)
    made = state.objective.start_round(state.listening(data, everyone, 1), samples, round=2, seed=0)
    known = {clip.numpy().tobytes() for clip in samples.x}
    assert len(made) == len(samples)
    assert sum(clip.numpy().tobytes() not in known for clip in made.x) == len(samples) // 2


def test_what_is_heard_in_training_is_what_is_in_the_store(settings):
    """In eval mode; in train mode log-Mels are augmented behind the front end, anew in each pass."""
    state = state_of(settings, *IN_DB, "augment=[crop,mask]")
    data, everyone = state.clients.client(0), Normaliser.of(-3, 2)
    samples, kept = (
        state.training_samples(data, everyone, 1, listens=True),
        state.samples(data, data.rows("train"), everyone),
    )
    model = state.listening(data, everyone, 1).eval()
    assert isinstance(model, Listening)
    assert torch.equal(predict(model, samples.x, 8, samples.lengths), predict(state.model, kept.x, 8, kept.lengths))
    still, first, second = (model.train(mode).front(samples.x, samples.lengths)[0] for mode in (False, True, True))
    assert torch.allclose(still, kept.x, atol=1e-3)
    assert not torch.equal(first, second) and not torch.equal(first, still)


def test_a_federation_trains_in_db(small, tmp_path):
    overrides = [*ALONE, "attack=snr_fgsm", "attack.snr=30", "evaluation.attacks=[]", "rounds=1"]
    nature = small(*overrides, "defence=none", folder=tmp_path / "nature")
    overrides += ["defence=adversarial", "defence.training.start_round=1", "reuse=false"]
    first, second = (small(*overrides, folder=tmp_path / name) for name in ("first", "second"))
    assert first.history == second.history != nature.history


def test_a_network_that_listens_trains_in_db(tmp_path):
    more = ["defence=adversarial", "attack=snr_fgsm", "attack.snr=30", "defence.training.start_round=1"]
    both = (("plain", []), ("robust", [*more, "evaluation.attacks=[]"]))
    plain, robust = (test_waveforms.run(tmp_path / name, *words, "rounds=1") for name, words in both)
    assert plain.history[0]["train/loss"] != robust.history[0]["train/loss"]


def test_what_one_client_takes_is_measured_on_waveforms(settings):
    chosen = settings(*IN_DB)
    job = {
        "model": chosen.model.component.node, "client": {"threads": 1, "batch_size": 2, "precision": "fp32"},
        "optimizer": chosen.client.optimizer.node, "training": chosen.defence.training.node, "inference": None,
        "front_end": chosen.features.front_end, "shape": [128, 64], "mu": 0.0, "device": "cpu", "classes": 7, "attacks": [],
    }  # fmt: skip
    client = probe._Client(job)
    assert client.shape == [512 + 127 * 256, 1] and all(seconds > 0 for seconds in client.train(2))


def test_the_level_is_a_part_of_the_model(settings):
    def model(*overrides):
        return digest(training(settings(*ALONE, *IN_DB, *overrides)))

    assert model() != model("defence.training.attack.snr=30") and model() == model("attack=fgsm")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["attack=fgsm", *IN_DB[:-1]],
            r"attack\.snr=null: attack= has no level",
        ),
        (
            ["attack=snr_pgd", "defence=adversarial", "defence/training=madry"],
            r"attack\.eps=null: attack= has no budget",
        ),
        (
            [*IN_DB, "defence/training=fast"],
            r"training\.attack=snr_pgd: fast adversarial training is watched by a PGD in ε",
        ),
        (
            [*IN_DB, "augment=[mixup]"],
            r"augment\.mixup: it mixes labels, and defence\.training\.attack attacks waveforms",
        ),
        (
            [*IN_DB, "strategy=centralised", "batch_norm=auto"],
            r"strategy=centralised has one client, who trains for all",
        ),
    ],
)
def test_what_is_not_sound_is_refused(settings, overrides, words):
    with pytest.raises(InputError, match=words):
        prepare(settings(*ALONE, *overrides))
