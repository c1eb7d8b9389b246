"""Augmentation: each by hand-worked values, and draws that are the same in any batch and on any device."""

from dataclasses import replace

import pytest
import torch

from fedser.augmentation import waveform
from fedser.augmentation.draws import Draws
from fedser.augmentation.level import Gain, Noise
from fedser.augmentation.mask import Mask
from fedser.augmentation.mixup import Mixup
from fedser.augmentation.time import Crop, Shift
from fedser.errors import InputError
from fedser.features.normalisation import Normaliser
from fedser.federation.client_app import ClientState, simulated
from fedser.preparation import prepare
from fedser.training.objective import Samples

LENGTHS = torch.tensor([12, 5, 12, 7])


def samples(mels=8, frames=12):
    """Cells that say where they come from: 1000·clip + 10·real frame + mel bin; short clips are repeated."""
    clip, frame, mel = torch.arange(4.0)[:, None, None], torch.arange(frames), torch.arange(float(mels))
    frame = (frame % LENGTHS[:, None])[..., None].float()
    x = (1000 * (clip + 1) + 10 * frame + mel).unsqueeze(1)
    return Samples(x, torch.tensor([0, 1, 2, 1]), torch.ones(4), LENGTHS, torch.eye(3)[[0, 1, 2, 1]])


def draws(seed=1, clips=(0, 1, 2, 3)):
    return Draws.of(seed, torch.tensor(clips))


class TestDraws:
    def test_are_splitmix64s(self):
        """The published sequence of the generator seeded with 0 (its first states are multiples of the step)."""
        bits = Draws(torch.zeros(1, dtype=torch.int64))._bits(3)[0].tolist()
        assert [number % 2**64 for number in bits] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]

    def test_belong_to_the_clip_and_not_to_the_batch(self):
        whole, part = draws(), draws(clips=(2, 0))
        for _ in range(2):
            assert torch.equal(whole.uniform(3)[[2, 0]], part.uniform(3))
            assert torch.equal(whole.normal(2, 2)[[2, 0]], part.normal(2, 2))

    def test_differ_by_seed_clip_and_place(self):
        numbers = torch.cat([draws(seed).uniform(50).flatten() for seed in (1, 2, 1 << 62, -5)])
        assert len(numbers.unique()) == len(numbers)

    def test_are_uniform_and_normal(self):
        many = Draws.of(3, torch.arange(40))
        uniform, normal = many.uniform(1000), many.normal(1000)
        assert 0 <= uniform.min() < 0.001 and 0.999 < uniform.max() < 1
        assert abs(uniform.mean() - 0.5) < 0.01 and abs(uniform.std() - 12**-0.5) < 0.01
        assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.03 and normal.abs().max() > 3.5
        assert torch.corrcoef(torch.stack([uniform[:-1].flatten(), uniform[1:].flatten()]))[0, 1].abs() < 0.02

    def test_an_order_is_a_permutation(self):
        orders = [tuple(draws(seed).order().tolist()) for seed in range(40)]
        assert all(sorted(order) == [0, 1, 2, 3] for order in orders) and len(set(orders)) > 10


EVERY = [Crop(0.5), Shift(0.5), Gain(0.3), Noise(10), Mask(0.5, 0.5), Mixup()]


@pytest.mark.parametrize("augment", EVERY, ids=lambda each: type(each).__name__)
def test_it_changes_something_and_repeats_itself(augment):
    before = samples()
    one, same, other = (augment(samples(), draws(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.x, same.x) and torch.equal(before.x, samples().x)
    assert not torch.equal(one.x, other.x) and not torch.equal(one.x, before.x)
    assert one.x.shape == before.x.shape and one.x.dtype == torch.float32 and torch.equal(one.y, before.y)
    torch.testing.assert_close(one.targets.sum(1), torch.ones(4))


def real_frame(x):
    """Which real frame each frame [n, T] is, by the first mel bin."""
    return (x[:, 0, :, 0] % 1000) / 10


@pytest.mark.parametrize("seed", range(20))
def test_a_crop_is_a_stretch_of_real_frames_repeated(seed):
    cropped = Crop(0.5)(samples(), draws(seed))
    for frames, length, before in zip(real_frame(cropped.x), cropped.lengths.tolist(), LENGTHS.tolist(), strict=True):
        assert before // 2 <= length <= before
        first = frames[0]
        assert torch.equal(frames, first + torch.arange(12) % length) and first + length <= before


def test_a_crop_reaches_both_ends_and_may_keep_all():
    lengths, firsts, lasts = [], [], []
    for seed in range(300):
        cropped = Crop(0.5)(samples(), draws(seed))
        lengths.append(int(cropped.lengths[0]))
        firsts.append(int(real_frame(cropped.x)[0, 0]))
        lasts.append(firsts[-1] + lengths[-1])
    assert {*lengths} >= {6, 7, 8, 9, 10, 11} and min(firsts) == 0 and max(lasts) == 12


@pytest.mark.parametrize("seed", range(10))
def test_a_shift_turns_the_real_frames_round(seed):
    shifted = Shift(0.5)(samples(), draws(seed))
    assert torch.equal(shifted.lengths, LENGTHS)
    for frames, length in zip(real_frame(shifted.x), LENGTHS.tolist(), strict=True):
        by = frames[0]
        assert torch.equal(frames, (by + torch.arange(12)) % length)
        assert by <= length // 2 or by >= length - length // 2


def test_gain_is_one_number_a_clip():
    difference = Gain(0.3)(samples(), draws()).x - samples().x
    assert (difference.amax((1, 2, 3)) - difference.amin((1, 2, 3)) < 1e-3).all()
    assert len(difference[:, 0, 0, 0].unique()) == 4


@pytest.mark.parametrize("snr", [0, 20])
def test_noise_has_its_power(snr):
    quiet = Samples.of(torch.full((2, 1, 300, 64), 2.0), torch.tensor([0, 1]))
    noise = Noise(snr)(quiet, draws(clips=(0, 1))).x - quiet.x
    power = noise.square().mean((1, 2, 3))
    torch.testing.assert_close(4 / power, torch.full((2,), 10 ** (snr / 10)), rtol=0.05, atol=0)


@pytest.mark.parametrize("seed", range(10))
def test_masks_hide_whole_bins_and_frames_and_no_more_than_they_may(seed):
    before = replace(samples(), x=samples().x.square())  # no cell is the mean by chance
    masked = Mask(mels=0.5, frames=0.4, times=1)(before, draws(seed)).x
    for place, length in enumerate(LENGTHS.tolist()):
        hidden = masked[place, 0, :length] != before.x[place, 0, :length]
        bins, frames = hidden.all(0), hidden.all(1)
        assert torch.equal(hidden, bins[None] | frames[:, None])
        assert bins.sum() <= 4 and frames.sum() <= 0.4 * length
        assert (masked[place][masked[place] != before.x[place]] == before.x[place].mean()).all()
        again = masked[place, 0, length : 2 * length]  # what is repeated has the same frames hidden
        assert torch.equal(again, masked[place, 0, : len(again)])


def test_mixup_mixes_inputs_and_targets_alike():
    before = samples()
    mixed = Mixup(0.4)(before, draws())
    other = draws()
    share, order = 0.4 * other.uniform(1)[:, 0], other.order()
    expected = (1 - share)[:, None, None, None] * before.x + share[:, None, None, None] * before.x[order]
    torch.testing.assert_close(mixed.x, expected)
    targets = (1 - share)[:, None] * before.targets + share[:, None] * before.targets[order]
    torch.testing.assert_close(mixed.targets, targets)
    assert torch.equal(mixed.targets.argmax(1), before.y)


# --- on waveforms ----------------------------------------------------------------------------------------------------


def spoken(lengths=(4000, 3000, 4000, 3500)):
    """Tones of 500, 600, … Hz, zeros behind them."""
    lengths, time = torch.tensor(lengths), torch.arange(4000) / 16000
    tones = torch.sin(2 * torch.pi * torch.tensor([500.0, 600, 700, 800])[:, None] * time)
    x = tones * (torch.arange(4000) < lengths[:, None])
    return Samples.of(x[:, None, :, None], torch.tensor([0, 1, 2, 1]), lengths)


def test_noise_has_its_snr_and_stays_off_the_padding():
    before, after = spoken(), waveform.Noise((5.0, 25.0))(spoken(), draws())
    x, change = before.x[:, 0, :, 0], (after.x - before.x)[:, 0, :, 0]
    snr = 10 * torch.log10(x.square().sum(1) / change.square().sum(1))
    assert ((snr > 5) & (snr < 25)).all() and snr.unique().numel() == 4
    assert not after.x[1, 0, 3000:].any() and torch.equal(after.lengths, before.lengths)
    few = waveform.Noise((5.0, 25.0))(spoken()[torch.tensor([2])], draws(clips=(2,)))
    assert torch.allclose(few.x, after.x[[2]], atol=1e-6)


def test_speed_changes_tempo_and_pitch():
    many = [waveform.Speed(20.0)(spoken(), draws(seed)) for seed in range(6)]
    assert {int(each.lengths[0]) for each in many} == {4000, 5000, 3334}  # 1, 1/0.8, 1/1.2
    for each in many:
        length = int(each.lengths[0])
        spectrum = torch.fft.rfft(each.x[0, 0, :length, 0]).abs()
        assert abs(spectrum.argmax() * 16000 / length - 500 * 4000 / length) < 5
        assert not each.x[1, 0, int(each.lengths[1]) :].any()


@pytest.mark.parametrize("chosen", ["[waveform_noise]", "[speed,crop,mask]"])
def test_log_mels_are_made_of_augmented_waveforms(small, tmp_path, chosen):
    plain = small("augment=[]", folder=tmp_path / "plain")
    changed = small(f"augment={chosen}", folder=tmp_path / "changed")
    assert changed.history[0]["train/loss"] != plain.history[0]["train/loss"]
    assert abs(changed.history[0]["train/loss"] - plain.history[0]["train/loss"]) < 0.5


def test_unchanged_waveforms_make_the_same_log_mels(settings):
    """What a client makes of its waveforms anew is what is in the store."""
    prepared = prepare(settings("augment=[speed]"))
    experiment = {
        "settings": prepared.settings.plain,
        "classes": prepared.classes,
        "attacks": {},
        "state": "",
        "store": str(prepared.store.folder),
    }
    experiment["forms"] = {name: str(form.folder) for name, form in prepared.forms.items()}
    state = ClientState(experiment, simulated)
    state.augment = {"nothing": Still()}
    data = state.clients.client(0)
    everyone = Normaliser.of(-3, 2)
    made, kept = state._spoken(data, everyone, 1), state.samples(data, data.rows("train"), everyone)
    assert torch.allclose(made.x, kept.x, atol=1e-3) and torch.equal(made.lengths, kept.lengths)
    assert torch.equal(made.y, kept.y)


class Still:
    of_waveforms = True

    def __call__(self, samples, draws):
        return samples


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["augment=[waveform_noise]", "augment.waveform_noise.snr=[20,10]"], r"snr=\[20,10\] must ascend"),
        (["augment=[speed]", "augment.speed.percent=60"], r"percent=60 must be less than 50"),
    ],
)
def test_bad_settings_on_waveforms(settings, overrides, words):
    with pytest.raises(InputError, match=words):
        prepare(settings(*overrides))
