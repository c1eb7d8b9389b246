"""Real lengths, from the store to the network: in training, prediction, every attack and behind the randomisation."""

import pytest
import torch
from conftest import SMALL
from torch import nn
from toy import randomisation

import fedser
from fedser.attacks import Defended
from fedser.attacks.adversary import classes_of, margin
from fedser.config.components import build
from fedser.config.compose import compose
from fedser.config.protocol import Protocol
from fedser.config.validation import plain, validate
from fedser.data import corpora
from fedser.data.store import extract
from fedser.defences import inference
from fedser.defences.randomisation import Randomise
from fedser.evaluation import measure
from fedser.features import audio
from fedser.models.lengths import logits
from fedser.models.statcnn import StatCNN
from fedser.models.weights import serialised
from fedser.training.local import train
from fedser.training.objective import CrossEntropy, Samples

FRAMES, MELS = 20, 8  # as `toy.randomisation` wants them
LENGTHS = torch.tensor([20, 5, 11, 5, 1, 20, 11, 5])
ATTACKS = ["fgsm", "pgd", "eot_pgd", "eot_margin", "mifgsm", "apgd", "apgd_dlr", "autoattack", "deepfool", "cw", "square", "noise",
           "ensemble", "transfer"]  # fmt: skip


class Averaging(nn.Module):
    """Averages over real frames alone, and notes what it was told: how many of each input are real."""

    def __init__(self, classes, mels=MELS):
        super().__init__()
        self.hidden, self.fc = nn.Linear(mels, 16), nn.Linear(16, classes)
        self.seen = []

    def forward(self, x, lengths):
        self.seen.append((x.detach(), lengths))
        real = (torch.arange(x.shape[2], device=x.device) < lengths[:, None])[..., None]
        frames = self.hidden(x[:, 0, :, :MELS]).tanh()
        return self.fc((frames * real).sum(1) / lengths[:, None])


def network(seed=0, kind=Averaging):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(7).eval()


def data(padding=1):
    """x [8, 1, 20, 8], each longer than its real frames by noise that `padding` seeds, and y [8] that are predicted."""
    x = torch.randn(8, 1, FRAMES, MELS, generator=torch.Generator().manual_seed(0))
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(padding))
    x = torch.where(torch.arange(FRAMES)[:, None] < LENGTHS[:, None, None, None], x, other)
    x[0, 0, 0, 0] = 6.0  # the peak, real: so that the box around x is the same whatever lies behind
    with torch.no_grad():
        return x, network()(x, LENGTHS).argmax(1)


FEW = ["attacks.apgd.steps=8", "attacks.apgd_dlr.steps=8", "attacks.square.queries=60", "attacks.cw.steps=8"]


@pytest.fixture(scope="module")
def attacks(tmp_path_factory):
    """attack by name, in its usual settings but for the number of steps; the source of a transfer is such a net too."""
    source = tmp_path_factory.mktemp("source")
    settings = plain(compose([*FEW, f"attacks.transfer.source={source}"]))["attacks"]
    settings["transfer"]["victim"] = None
    (source / "config.yaml").write_text("model: {_target_: test_lengths.Averaging, name: averaging}")
    (source / "summary.json").write_text('{"status": "finished"}')
    (source / "model.safetensors").write_bytes(serialised(network(1).state_dict(), {}))
    ensembles = [settings[name].get(part) or {} for name in ("ensemble", "autoattack") for part in ("members", "rand")]
    for node in (member for members in ensembles for member in members.values()):
        node.update({key: few for key, few in (("steps", 5), ("queries", 60), ("eot", 2)) if key in node})
    return {name: build(settings[name]) for name in ATTACKS}


def real_part(x):
    return torch.where(torch.arange(x.shape[2])[:, None] < LENGTHS[:, None, None, None], x, torch.zeros(()))


def attacked(attack, padding=1, **more):
    x, y = data(padding)
    return attack(network(), x, y, 3, lengths=LENGTHS, **more)


def test_the_store_knows_how_many_frames_are_real():
    settings = validate(compose([*SMALL, "features.frames=373"]))
    store = extract(corpora.load(settings.dataset), settings.features)
    samples = [len(audio.read(path, 16000)) for path in store.table["path"]]
    assert store.lengths.tolist() == [min(373, 1 + (n - 512) // 256) for n in samples]
    assert len(set(store.lengths)) > 20
    for row, length in enumerate(store.lengths):
        frames = store.frames[row]
        assert (
            (frames[length:] == frames[: 373 - length]).all()
            if length > 373 / 2
            else (frames[length] == frames[0]).all()
        )


def test_a_run_hands_them_on(tmp_path, monkeypatch):
    """Training, validation, evaluation under attack and behind the randomisation, of real clips in a federation."""
    found = []

    class Noting(Averaging):
        def __init__(self, classes):
            super().__init__(classes, 64)

        def forward(self, x, lengths):
            found.append((self.training, x.shape[2], lengths.detach()))
            real = (torch.arange(x.shape[2]) < lengths[:, None])[..., None]
            return self.fc((self.hidden(x[:, 0, :, :64]).tanh() * real).sum(1) / lengths[:, None])

    monkeypatch.setattr("test_lengths.Noting", Noting, raising=False)
    words = [word for word in SMALL if not word.startswith(("model.", "features."))]
    plain_config = plain(fedser.compose(words)) | {"model": {"_target_": "test_lengths.Noting", "name": "noting"}}
    plain_config["partition"]["validation"] = 0.2
    plain_config["evaluation"] |= {"attacks": ["fgsm"], "adaptive": ["fgsm"], "draws": 1}
    fedser.run(plain_config, tmp_path / "run")
    settings = validate(plain_config)
    store = extract(corpora.load(settings.dataset), settings.features)
    known = set(store.lengths.tolist())
    trained = [lengths for training, frames, lengths in found if training]
    assert trained and set(torch.cat(trained).tolist()) <= known
    plainly = [lengths for training, frames, lengths in found if not training and frames == 373]
    assert set(torch.cat(plainly).tolist()) <= known | {373} and len(set(torch.cat(plainly).tolist())) > 5
    randomised = torch.cat([lengths for _, frames, lengths in found if frames == 380])
    assert len(randomised) and randomised.max() <= 380 and (randomised < 300).any()


def test_training_on_padded_clips_is_training_on_the_clips():
    after = []
    for padding in (1, 2):
        model = network().train()
        x, y = data(padding)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options = {"round": 1, "epochs": 2, "batch_size": 3, "precision": "fp32", "mu": 0.0, "seed": 0}
        train(model, optimizer, Samples.of(x, y, LENGTHS), CrossEntropy(), **options)
        after.append(model.fc.weight.detach().clone())
        assert sorted(torch.cat([lengths for _, lengths in model.seen]).tolist()) == sorted(2 * LENGTHS.tolist())
    assert torch.equal(*after) and not torch.equal(after[0], network().fc.weight)


def test_adversarial_training_too():
    settings = plain(compose(["defence=adversarial", "attack=fgsm"]))["defence"]["training"]
    (x, y), model = data(), network()
    samples = build(settings).start_round(model, Samples.of(x, y, LENGTHS), round=2, seed=0)
    assert sorted(samples.lengths.tolist()) == sorted(LENGTHS.tolist())
    for sample, length in zip(samples.x, samples.lengths, strict=True):
        (origin,) = [i for i in range(8) if LENGTHS[i] == length and (sample - x[i]).abs().max() < 0.06]
        assert (sample[:, length:] == x[origin][:, length:]).all()  # a gradient of zero moves nothing


@pytest.mark.parametrize("known", [False, True], ids=["oblivious", "adaptive"])
@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "noise"])  # it asks nothing
def test_every_attack_hands_them_to_the_network(attacks, name, known):
    wear = randomisation() if known else None
    (x, y), model = data(), network()
    made = attacks[name](model, x, y, 3, lengths=LENGTHS, randomise=wear)
    assert made.shape == x.shape
    asked = model.seen
    if name == "transfer":  # it asks its source, and keeps it
        asked, attacks[name]._model = attacks[name]._model.seen, None
    # One sample alone is asked how many classes there are.
    frames, lengths = zip(*((x.shape[2], tuple(lengths.tolist())) for x, lengths in asked if len(x) > 1), strict=True)
    if known:
        assert set(frames) == {23} and {n for lengths in lengths for n in lengths} <= set(range(1, 24))
        assert min(map(min, lengths)) <= 6 and max(map(max, lengths)) >= 20
    else:
        assert set(frames) == {20} and {n for lengths in lengths for n in lengths} >= {5, 11, 20}
        assert {n for lengths in lengths for n in lengths} <= {1, 5, 11, 20}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_lies_beyond_the_real_frames_changes_no_attack(attacks, name):
    one, other = (real_part(attacked(attacks[name], padding)) for padding in (1, 2))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    x, _ = data()
    assert (one != real_part(x)).any()
    wrong = real_part(attacks[name](network(), *data(), 3))  # as if all frames were real
    assert name == "noise" or not torch.allclose(one, wrong, atol=1e-3)


@pytest.mark.parametrize("name", ["fgsm", "mifgsm", "deepfool", "cw"])
def test_clips_of_many_lengths_are_attacked_together_where_the_method_says_which(attacks, name):
    """Each as if alone, in fewer passes; rounding may decide the sign of a gradient that all but vanishes."""
    model, x, y, lengths, passes = of_many_lengths()
    alone = [attacks[name](model, x[[i]], y[[i]], 3, lengths=lengths[[i]]) for i in range(len(x))]
    one_by_one, passes[:] = len(passes), []
    together = attacks[name](model, x, y, 3, lengths=lengths)
    assert len(passes) <= one_by_one / 2 and max(passes) == len(x)
    assert (together - torch.cat(alone)).abs().gt(1e-4).float().mean() < 0.01


@pytest.mark.parametrize("name", ["apgd", "apgd_dlr", "apgd_t", "square"])
def test_so_are_those_that_draw_for_all_of_them_at_once(attacks, name):
    model, x, y, lengths, passes = of_many_lengths()
    attack = attacks["autoattack"].members[name] if name == "apgd_t" else attacks[name]
    y = model(x, lengths).argmax(1)
    together = attack(model, x, y, 3, lengths=lengths)
    assert max(passes) == len(x) and (together != x).flatten(1).any(1).all()
    with torch.no_grad():
        before, after = (margin(model(each, lengths), y) for each in (x, together))
    assert (after < before).all()


class Tagged(Averaging):
    """Knows each clip by the number in its first cell, which no logit depends on, and its real frames by that."""

    def forward(self, x, lengths):
        assert torch.equal(lengths, LENGTHS[x[:, 0, 0, 0].round().long()])
        return super().forward(torch.cat([torch.zeros_like(x[:, :, :1]), x[:, :, 1:]], dim=2), lengths)


class Unmoved(nn.Module):
    """A randomisation that changes nothing, but that an attacker cannot know."""

    def forward(self, x, lengths=None, draws=None):
        return x if lengths is None else (x, lengths)


@pytest.mark.parametrize("known", [False, True], ids=["oblivious", "adaptive"])
@pytest.mark.parametrize("name", ["deepfool", "cw", "square", "apgd", "apgd_t", "eot_margin"])
def test_each_clip_keeps_its_own_length_however_the_method_takes_clips_out(attacks, name, known, monkeypatch):
    attack = attacks["autoattack"].members[name] if name == "apgd_t" else attacks[name]
    monkeypatch.setattr(inference, "apply", lambda randomise, x, lengths, draws=None: (x, lengths))
    (x, _), model = data(), network(kind=Tagged)
    x[:, 0, 0, 0] = torch.arange(8.0)
    with torch.no_grad():
        y = model(x, LENGTHS).argmax(1)
    y[::3] = (y[::3] + 1) % 7  # some are wrong from the start
    made = attack(model, x, y, 3, lengths=LENGTHS, randomise=Unmoved() if known else None)
    assert (made != x).any()


def of_many_lengths():
    """A network, clips, labels, real frames, and a list that gets the size of each batch that the network is given."""
    torch.manual_seed(0)
    model, x, y = StatCNN(5, width=4).eval(), torch.randn(6, 1, 96, 64), torch.tensor([0, 1, 2, 0, 1, 2])
    passes = []
    model.register_forward_hook(lambda module, given, out: passes.append(len(given[0])))
    return model, x, y, torch.tensor([96, 17, 50, 17, 33, 80]), passes


def test_networks_without_the_argument_get_the_same_as_ever(attacks):
    class Deaf(Averaging):
        def forward(self, x):
            return super().forward(x, torch.full((len(x),), x.shape[2]))

    (x, y), model = data(), network(kind=Deaf)
    for name in ATTACKS[:-1]:
        assert torch.equal(attacks[name](model, x, y, 3, lengths=LENGTHS), attacks[name](model, x, y, 3))
    assert torch.equal(logits(model, x, LENGTHS), model(x))
    assert torch.equal(measure.predict(model, x, 3, LENGTHS), measure.predict(model, x, 3))


def test_none_is_all_frames():
    x, _ = data()
    model = network()
    assert torch.equal(logits(model, x), model(x, torch.full((8,), FRAMES)))
    assert classes_of(model, x) == 7 and logits(model, x[:0]).shape == (0, 7)


def test_predictions_go_batch_by_batch():
    (x, y), model = data(), network()
    assert torch.equal(measure.predict(model, x, 3, LENGTHS), y)
    assert [lengths.tolist() for _, lengths in model.seen] == [[20, 5, 11], [5, 1, 20], [11, 5]]


def test_an_evaluation_hands_them_on(attacks):
    results = []
    for padding in (1, 2):
        (x, y), model = data(padding), network()
        protocol = Protocol(attacks=["fgsm", "deepfool"], adaptive=["fgsm"], draws=2, gradients=True)
        options = {"attacks": attacks, "randomise": randomisation(), "batch_size": 3, "seed": 0, "lengths": LENGTHS}
        results.append(measure.evaluate(model, x, y, protocol, **options).predictions)
    for condition in ("original", "adversarial/fgsm", "adversarial/deepfool"):
        assert torch.equal(results[0][condition], results[1][condition])


def test_the_randomisation_rescales_them():
    resized = Randomise(frames=(9, 10), mels=(2, 3), size=(12, 2), value=7.0)
    x = torch.arange(5.0)[None, None, :, None].expand(3, 1, 5, 2)
    draws = torch.tensor([[9, 2, 0, 0], [9, 2, 3, 0], [9, 2, 1, 0]])
    made, lengths = resized(x, draws=draws, lengths=torch.tensor([5, 3, 1]))
    # 5 frames become 9: 0, 0.5, 1, …, 4; of the first three real ones are made 0 … 2, five of them
    assert made[1, 0, :, 0].tolist() == [7, 7, 7, 0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    assert lengths.tolist() == [9, 3 + 5, 1 + 1]
    single = resized(x[:, :, :1], draws=draws, lengths=torch.tensor([1, 1, 1]))[1]
    assert single.tolist() == [1, 4, 2]


def test_nothing_unreal_is_among_the_rescaled():
    wear = randomisation()
    draws = wear.draws(8, torch.Generator().manual_seed(0))
    (one, real), (other, same) = (wear(data(padding)[0], draws=draws, lengths=LENGTHS) for padding in (1, 2))
    assert torch.equal(real, same)
    for a, b, length in zip(one, other, real.tolist(), strict=True):
        torch.testing.assert_close(a[:, :length], b[:, :length])
    assert torch.equal(network()(one, real).argmax(1), network()(other, real).argmax(1))


def test_what_is_known_of_a_randomisation_is_told_to_the_network():
    (x, _), model = data(), network()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        found = Defended(model, randomisation(), 3).each(x, LENGTHS)
        torch.manual_seed(4)
        inputs, lengths = inference.apply(randomisation(), x.repeat_interleave(3, 0), LENGTHS.repeat_interleave(3))
    assert torch.equal(found.flatten(0, 1), model(inputs, lengths))
