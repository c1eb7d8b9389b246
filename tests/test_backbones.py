"""Speech backbones: parity with their references, padding, gradients, what is trained, checkpoints, the head."""

import argparse
import copy
import json
import logging
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from torchaudio.compliance.kaldi import fbank
from torchaudio.functional import melscale_fbanks

from fedser.config.components import build, check_node
from fedser.config.compose import compose
from fedser.config.validation import plain
from fedser.errors import InputError
from fedser.models.embedding import check_embed
from fedser.models.ssl import SSL, network, spectra
from fedser.runs.files import content_digest as digest

CONV = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48, "conv_dim": [16] * 7,
        "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}  # fmt: skip
LARGE = CONV | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
WHISPER = {
    "d_model": 32,
    "encoder_layers": 3,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "max_source_positions": 50,
}
TERA = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
APC = {"hidden_size": 32}
TINY = dict.fromkeys(("wav2vec2", "hubert", "wavlm"), CONV) | dict.fromkeys(
    ("whisper_tiny", "whisper_base", "whisper_small"), WHISPER
)
TINY |= {"apc": APC, "tera": TERA}
KINDS = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM"}
LENGTHS = (3000, 900, 5300, 8000)


def tiny(name, **options):
    options = {"config": TINY[name], "hidden": 16, "conv_layers": 1} | options
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return SSL(4, name, **options).eval()


def clips(lengths=LENGTHS, padding=0, seed=0):
    """Waveforms [B, 1, samples, 1] of different loudness, zero behind, and how many samples are real."""
    generator, x = torch.Generator().manual_seed(seed), torch.zeros(len(lengths), 1, max(lengths) + padding, 1)
    for row, length in enumerate(lengths):
        wave = torch.randn(length, generator=generator).cumsum(0) * 0.01 + 0.1 * torch.randn(
            length, generator=generator
        )
        x[row, 0, :length, 0] = wave / (2 + row) / wave.abs().max()
        x[row, 0, length // 3 : length // 2] *= 1e-6  # a pause, below what Whisper hears
    return x, torch.tensor(lengths)


def states(model, x, lengths):
    """Per clip its real states [L, frames, width]."""
    with torch.no_grad():
        found, frames = model.states(x, lengths)
    return [row[:, :count] for row, count in zip(found, frames, strict=True)]


def trained(module):
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(("name", "config"), [*((name, CONV) for name in KINDS), *((name, LARGE) for name in KINDS)])
def test_states_equal_those_of_transformers(name, config):
    kind, model = KINDS[name], tiny(name, config=config)
    reference = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**config)).eval()
    missing, unexpected = reference.load_state_dict(model.backbone.network.state_dict(), strict=False)
    assert set(missing) <= {"masked_spec_embed"} and not unexpected
    x, lengths = clips((5123,))
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=name != "wavlm")
    heard = extractor(x[0, 0, :, 0].numpy(), sampling_rate=16000, return_tensors="pt").input_values
    with torch.no_grad():
        found = reference(heard, output_hidden_states=True)
    wanted = torch.cat([*found.hidden_states[1:-1], found.last_hidden_state])
    torch.testing.assert_close(states(model, x, lengths)[0], wanted, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("length", [15_800, 6_000, 160])
def test_whispers_log_mel_and_states_equal_those_of_transformers(length):
    model, x = tiny("whisper_tiny"), clips((length,))[0]
    config = transformers.WhisperConfig(
        **WHISPER, pad_token_id=0, vocab_size=9, decoder_layers=1, decoder_attention_heads=2
    )
    reference = transformers.WhisperModel(config).encoder.eval()
    reference.load_state_dict(model.backbone.state_dict())
    extractor = transformers.WhisperFeatureExtractor(chunk_length=1)  # of 1 s, where the original has 30
    mel = extractor(x[0, 0, :, 0].numpy(), sampling_rate=16000, return_tensors="pt").input_features
    own = spectra.whisper_mel(x[:, 0, :, 0], 80, 100)
    torch.testing.assert_close(own, mel[..., : own.shape[2]], atol=1e-5, rtol=0)
    padded = nn.functional.pad(x, (0, 0, 0, 16000 - length))
    with torch.no_grad():
        found = reference(mel, output_hidden_states=True)
        model.backbone.frames = lambda samples: torch.full_like(samples, 50)  # attention to silence too, as there
        heard = model.backbone(padded[:, 0, :, 0], torch.tensor([16000]))[0]
    wanted = torch.cat([*found.hidden_states[1:-1], found.last_hidden_state])
    torch.testing.assert_close(heard, wanted, atol=1e-5, rtol=1e-5)


def normalised(frames):
    return (frames - frames.mean(0)) / (1e-10 + frames.std(0))


def test_apcs_filter_bank_equals_kaldis_and_teras_log_mel_its_definition():
    x, lengths = clips()
    wave = x[:, 0, :, 0]
    kaldi, tera = spectra.kaldi_fbank(wave, lengths), spectra.tera_mel(wave, lengths)
    bank = melscale_fbanks(201, 0.0, 8000.0, 80, 16000)
    for row, length in enumerate(LENGTHS):
        clip = wave[row, :length]
        wanted = normalised(fbank(clip[None], num_mel_bins=80, window_type="hamming", sample_frequency=16000))
        torch.testing.assert_close(kaldi[row, : len(wanted)], wanted, atol=1e-4, rtol=1e-4)
        assert len(wanted) == spectra.kaldi_frames(lengths)[row] and not kaldi[row, len(wanted) :].any()
        level = clip * 10 ** (-25 / 20) / (clip.square().mean().sqrt() + 1e-10)
        spectrum = torch.stft(level, 400, 160, 400, torch.hann_window(400), return_complex=True).abs().square()
        wanted = normalised((spectrum.T @ bank + 1e-10).log())
        torch.testing.assert_close(tera[row, : len(wanted)], wanted, atol=1e-4, rtol=1e-4)
        assert len(wanted) == spectra.tera_frames(lengths)[row] and not tera[row, len(wanted) :].any()


def test_apcs_states_are_a_chain_of_recurrent_layers_with_residuals():
    model, (x, lengths) = tiny("apc"), clips((3000,))
    first, second, third = model.backbone.rnn_layers
    with torch.no_grad():
        one = first(spectra.kaldi_fbank(x[:, 0, :, 0], lengths))[0]
        two = second(one)[0] + one
        torch.testing.assert_close(states(model, x, lengths)[0], torch.cat([one, two, third(two)[0] + two]))


def test_teras_layers_are_berts_and_its_positions_sines_and_cosines_by_turns():
    model, (x, lengths) = tiny("tera"), clips((3000,))
    bert = transformers.models.bert.modeling_bert.BertEncoder(
        transformers.BertConfig(**TERA, attn_implementation="eager")
    ).eval()
    bert.load_state_dict(model.backbone.encoder.state_dict())
    mel = spectra.tera_mel(x[:, 0, :, 0], lengths)
    places = torch.tensor(
        [[(np.sin, np.cos)[i % 2](t / 10_000 ** (i // 2 * 2 / 32)) for i in range(32)] for t in range(mel.shape[1])]
    )
    entry = model.backbone.input_representations
    with torch.no_grad():
        wanted = [entry["LayerNorm"](entry["spec_transform"](mel) + places.float())]
        for layer in bert.layer:
            found = layer(wanted[-1])
            wanted.append(found[0] if isinstance(found, tuple) else found)
        torch.testing.assert_close(states(model, x, lengths)[0], torch.cat(wanted), atol=1e-5, rtol=1e-5)


def test_a_bin_that_does_not_vary_is_zero_whatever_the_padding():
    frames = torch.full((2, 7, 1), -15.942385)  # ln of float32's ε, Kaldi's floor: band-limited speech has such bins
    assert not spectra.standardised(frames, torch.tensor([7, 3])).any()
    frames.requires_grad_()
    spectra.standardised(frames, torch.tensor([7, 3])).sum().backward()
    assert frames.grad.isfinite().all()


@pytest.mark.parametrize(("name", "config"), [*TINY.items(), ("wav2vec2", LARGE)])
def test_padding_changes_nothing(name, config):
    model, (x, lengths) = tiny(name, config=config), clips()
    wanted = [
        states(model, x[row : row + 1, :, :length], lengths[row : row + 1])[0] for row, length in enumerate(LENGTHS)
    ]
    with torch.no_grad():
        alone = torch.cat(
            [model(x[row : row + 1, :, :length], lengths[row : row + 1]) for row, length in enumerate(LENGTHS)]
        )
        for padding, noise in ((0, 0.0), (3000, 0.0), (777, 1.0)):
            padded, _ = clips(padding=padding)
            behind = torch.arange(padded.shape[2]) >= lengths[:, None]
            padded = padded + noise * behind[:, None, :, None]
            for found, own in zip(states(model, padded, lengths), wanted, strict=True):
                torch.testing.assert_close(found, own, atol=1e-5, rtol=0)
            torch.testing.assert_close(model(padded, lengths), alone, atol=1e-5, rtol=0)
    assert min((one.mean(1) - other.mean(1)).abs().max() for one, other in zip(wanted, wanted[1:])) > 1e-2  # noqa: B905, RUF007


@pytest.mark.parametrize("name", TINY)
def test_the_waveform_has_a_gradient_as_finite_differences_say(name):
    model, (x, lengths) = tiny(name).double(), clips((3000, 900))
    x = x.double()
    model.train()  # frozen all the same, and without dropout in the backbone
    model.dropout.eval(), model.head.eval()
    x.requires_grad_()
    weights = torch.randn(2, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((model(x * 1.0, lengths) * weights).sum(), x)  # no leaf: an attack's step
    real = torch.arange(3000) < lengths[:, None]
    assert gradient.isfinite().all() and not gradient[:, 0, :, 0][~real].any()
    along = gradient / gradient.norm()
    step = 1e-8  # of a clip with a pause of 1e-7, in float64
    with torch.no_grad():
        ahead, back = ((model(x + sign * step * along, lengths) * weights).sum() for sign in (1, -1))
    assert float((ahead - back) / (2 * step)) == pytest.approx(float(gradient.norm()), rel=1e-4)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("tune", ["frozen", "last", "all"])
def test_what_is_trained(name, tune):
    model = tiny(name, tune=tune, pooling="attention", dropout=0.5)
    live = trained(model.backbone)
    every = {key for key, _ in model.backbone.named_parameters()}
    never = {key for key in every if "feature_extractor." in key or "embed_positions" in key}
    layer = (dict.fromkeys(KINDS, "encoder.layers.2") | {"apc": "rnn_layers.2", "tera": "encoder.layer.1"}).get(
        name, "layers.2"
    )
    last = {key for key in every if f"{layer}." in key or (name.startswith("whisper") and key.startswith("layer_norm"))}
    assert live == {"frozen": set(), "last": last, "all": every - never}[tune] and len(trained(model.head)) == 9
    model.train()
    for key, module in model.backbone.named_modules():
        own = {f"{key}.{part}" if key else part for part, _ in module.named_parameters()}
        if own and not own & live:
            assert not any(part.training for part in module.modules()), key
        if tune == "last" and isinstance(module, nn.Dropout):
            assert module.training == (f"{layer}." in key), key
    x, lengths = clips((3000, 900))
    model(x, lengths).sum().backward()
    assert {key for key, parameter in model.named_parameters() if parameter.grad is not None} == trained(model)
    assert not any(module.training for module in model.eval().modules())


@pytest.mark.parametrize("name", ["wav2vec2", "tera", "apc", "whisper_tiny"])
def test_a_frozen_backbone_is_the_same_in_train_mode_and_draws_nothing(name):
    model, (x, lengths) = tiny(name, dropout=0.0), clips()
    before, numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert torch.equal(model.train()(x, lengths), model.eval()(x, lengths))
    assert torch.equal(before, torch.get_rng_state()) and (numpy == np.random.get_state()[1]).all()


def test_the_last_layer_has_the_checkpoints_dropout_and_nothing_before_it():
    model, (x, lengths) = tiny("wav2vec2", tune="last"), clips()
    model.train()
    one, other = states(model, x, lengths)[0], states(model, x, lengths)[0]
    assert torch.equal(one[:-1], other[:-1]) and not torch.equal(one[-1], other[-1])


@pytest.mark.parametrize("name", TINY)
def test_random_weights_derive_from_the_seed_alone(name, caplog):
    network._warn.cache_clear()
    torch.manual_seed(5)
    with caplog.at_level(logging.WARNING):
        first, after = SSL(4, name, config=TINY[name]), torch.rand(1)
    assert [record.message.count("RANDOM weights") for record in caplog.records] == [1]
    torch.manual_seed(5)
    other, wild = SSL(4, name, config=TINY[name], seed=1), torch.rand(1)
    torch.manual_seed(6)
    again = SSL(4, name, config=TINY[name])
    weights = [dict(model.backbone.state_dict()) for model in (first, again, other)]
    assert len(caplog.records) == 1  # once a process
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not all(torch.equal(weights[0][key], weights[2][key]) for key in weights[0])
    # The head's come from the ambient generator, and the backbone takes nothing from it.
    assert torch.equal(first.fc.weight, other.fc.weight) and torch.equal(after, wild)
    assert not torch.equal(first.fc.weight, again.fc.weight)
    assert not any(buffer.is_floating_point() for buffer in first.buffers())


@pytest.mark.parametrize("name", TINY)
def test_clips_of_the_least_length_do_and_shorter_or_longer_ones_do_not(name):
    model = tiny(name)
    for length in (model.least, model.most or 20_000):
        x, lengths = clips((length,))
        assert model(x, lengths).isfinite().all()
        assert torch.equal(model.states(x, lengths)[1], model.backbone.frames(lengths))
    for length in (model.least - 1, *([model.most + 1] if model.most else [])):
        with pytest.raises(InputError, match=f"Clips have {length} to {length} samples"):
            model(*clips((length,)))


def test_sizes_are_known_without_a_pass():
    sizes = {name: (model.layers, model.width, model.least, model.most) for name in TINY for model in [tiny(name)]}
    assert sizes == dict.fromkeys(KINDS, (3, 32, 400, None)) | {
        **dict.fromkeys(("whisper_tiny", "whisper_base", "whisper_small"), (3, 32, 160, 16000)),
        "apc": (3, 32, 560, None), "tera": (3, 32, 201, None),
    }  # fmt: skip
    for model in map(tiny, TINY):
        found, frames = model.states(*clips())
        assert found.shape == (4, model.layers, int(frames.max()), model.width)


def test_published_sizes():
    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    models = {name: SSL(4, name) for name in ("whisper_tiny", "apc", "tera")}
    assert {name: (count(m.backbone), m.layers, m.width, m.most) for name, m in models.items()} == {
        "whisper_tiny": (8_208_384, 4, 384, 480_000), "apc": (4_064_256, 3, 512, None), "tera": (21_327_360, 4, 768, None),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["hubert", "whisper_tiny"])
@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("conv_layers", [0, 2])
def test_cached_states_do_as_well_as_the_waveform_and_their_means_where_the_model_says_so(name, pooling, conv_layers):
    model, (x, lengths) = tiny(name, pooling=pooling, conv_layers=conv_layers), clips()
    with torch.no_grad():
        model.head.mix.copy_(torch.tensor([0.5, -1.0, 2.0]))
        live, (kept, frames) = model(x, lengths), model.states(x, lengths)
        real = (torch.arange(kept.shape[2]) < frames[:, None])[:, None, :, None]
        torch.testing.assert_close(model(kept, frames), live, atol=1e-6, rtol=0)
        torch.testing.assert_close(model(torch.where(real, kept, 9e9), frames), live, atol=1e-6, rtol=0)
        pooled = (kept * real).sum(2, keepdim=True) / frames[:, None, None, None]
        found = model(pooled, torch.ones(4, dtype=torch.long))
    assert model.pools == (pooling == "mean" and conv_layers == 0) == bool((found - live).abs().max() < 1e-6)


def test_the_heads_settings_do_what_they_say():
    def shapes(**options):
        return [tuple(p.shape) for p in tiny("tera", **options).head.parameters()]

    assert shapes(hidden=8, conv_layers=0) == [(3,), (8, 32), (8,)]
    assert shapes(hidden=8, conv_layers=2) == [(3,), (8, 32), (8,), (8, 8), (8,), (8, 8), (8,)]
    assert shapes(hidden=8, conv_layers=0, pooling="attention") == [(3,), (32, 32), (32,), (1, 32), (1,), (8, 32), (8,)]
    model = tiny("tera", dropout=0.4, conv_layers=2)
    assert [module.p for module in (model.dropout, *model.head.modules()) if isinstance(module, nn.Dropout)] == [
        0.4
    ] * 3
    x, lengths = clips()
    assert model.embed(x, lengths).shape == (4, 16) and model(x, lengths).shape == (4, 4)
    check_embed(model, x, lengths)
    uniform = model.states(x, lengths)
    with torch.no_grad():
        model.head.mix.copy_(torch.tensor([0.0, 50.0, 0.0]))  # the second state alone
        chosen = uniform[0] * torch.tensor([0.0, 3.0, 0.0])[:, None, None]
        found = model(*uniform)
        model.head.mix.zero_()
        torch.testing.assert_close(model(chosen, uniform[1]), found)


def test_bf16_leaves_the_spectra_alone():
    x, lengths = clips()
    for front in (spectra.kaldi_fbank, spectra.tera_mel, lambda wave, _: spectra.whisper_mel(wave, 80, 100)):
        with torch.autocast("cpu", torch.bfloat16):
            found = front(x[:, 0, :, 0], lengths)
        assert torch.equal(found, front(x[:, 0, :, 0], lengths))


# -- Checkpoints


def saved(folder, name, kind="Model", **config):
    """A folder as `save_pretrained` makes it, of random weights, and its model."""
    prefix = KINDS.get(name, "Whisper")
    extra = {
        "pad_token_id": 0,
        "vocab_size": 9,
        "decoder_layers": 1,
        "decoder_ffn_dim": 16,
        "decoder_attention_heads": 2,
    }
    config = TINY[name] | (extra if prefix == "Whisper" else {}) | config
    model = getattr(transformers, f"{prefix}{kind}")(getattr(transformers, f"{prefix}Config")(**config))
    model.save_pretrained(folder)
    return model


def s3prl(file, name, zipped=True, **more):
    """A file as s3prl's, of random weights, and the backbone that has them."""
    model = tiny(name, seed=7).backbone
    weights = model.state_dict()
    if name == "apc":
        weights = dict(weights) | {"postnet.weight": torch.zeros(80, 32), "postnet.bias": torch.zeros(80)}
        content = {"config": {"data": {"audio": {"feat_type": "fbank", "feat_dim": 80, "frame_length": 25, "cmvn": True}},
                              "model": {"paras": APC | {"num_layers": 3, "dropout": 0.1, "residual": True}}}, "model": weights}  # fmt: skip
    else:
        old = {key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): weights[key]
               for key in weights}  # fmt: skip
        content = {"Config": {"transformer": TERA | {"share_layer": False}, "audio": {"target_level": -25}}, "Transformer": old,
                   "SpecHead": {}, "Paras": argparse.Namespace(seed=1)}  # fmt: skip
    torch.save(content | more, file, _use_new_zipfile_serialization=zipped)
    return model


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("name", "kind"), [("wav2vec2", "Model"), ("wav2vec2", "ForPreTraining"), ("hubert", "Model"),
                                            ("hubert", "ForSequenceClassification"), ("wavlm", "ForCTC")])  # fmt: skip
def test_a_folder_of_transformers_is_loaded(tmp_path, name, kind, caplog):
    config = (
        {"num_codevectors_per_group": 4, "codevector_dim": 8, "proj_codevector_dim": 8}
        if kind == "ForPreTraining"
        else {}
    )
    made = saved(tmp_path, name, kind, **config, layerdrop=0.5, mask_time_prob=0.5)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False, "sampling_rate": 16000}))
    model = SSL(4, name, str(tmp_path))
    assert same(model.backbone.network, made if kind == "Model" else getattr(made, name))
    assert not model.backbone.normalised and not caplog.records
    assert not model.backbone.network.config.apply_spec_augment and model.backbone.network.config.layerdrop == 0


@pytest.mark.parametrize("kind", ["Model", "ForConditionalGeneration"])
def test_a_folder_of_a_whole_whisper_is_loaded(tmp_path, kind):
    made = saved(tmp_path, "whisper_base", kind)
    model = SSL(4, "whisper_base", str(tmp_path))
    assert same(model.backbone, made.get_encoder()) and model.most == 16000


def test_pickled_weights_with_old_names_are_loaded_and_what_is_said_of_waveforms_holds(tmp_path, caplog):
    weights = saved(tmp_path, "wavlm").state_dict()
    file = tmp_path / "model.safetensors"
    with_safetensors = digest(tmp_path)
    file.unlink()
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        weights = {key.replace(f"parametrizations.weight.{new}", old): value for key, value in weights.items()}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    model = SSL(4, "wavlm", str(tmp_path))
    assert "waveforms are taken as they are" in caplog.text and not model.backbone.normalised
    before = digest(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    assert SSL(4, "wavlm", str(tmp_path)).backbone.normalised and same(model, copy.deepcopy(model))
    assert len({with_safetensors, before, digest(tmp_path)}) == 3


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["apc", "tera"])
def test_a_file_of_s3prl_is_loaded_and_its_optimizer_never_run(tmp_path, name, zipped, monkeypatch):
    module, file = types.ModuleType("optimizers"), tmp_path / "states.ckpt"
    exec("class Lamb:\n    def __setstate__(self, state):\n        raise AssertionError\n", vars(module))
    module.Lamb.__module__ = "optimizers"
    monkeypatch.setitem(sys.modules, "optimizers", module)
    optimizer = module.Lamb()
    optimizer.state = {"lr": 0.1}
    wanted = s3prl(file, name, zipped, Optimizer=optimizer)
    assert same(SSL(4, name, str(file)).backbone, wanted)
    assert digest(file) == digest(str(file)) and len(digest(file)) == 32
    s3prl(file, name)
    assert same(SSL(4, name, str(file)).backbone, wanted)


class Evil:
    def __reduce__(self):
        return (logging.error, ("run",))


def changed(change):
    def make(folder):
        file = next(folder.glob("*.safetensors"))
        weights = change(load_file(file))
        file.unlink()
        torch.save(weights, folder / "pytorch_model.bin")

    return make


FOLDERS = [
    ("wav2vec2", "hubert", lambda folder: None, "holds hubert, where model.backbone=wav2vec2 was asked for"),
    ("whisper_tiny", "wavlm", lambda folder: None, "holds wavlm, where model.backbone=whisper_tiny was asked for"),
    ("wavlm", "wavlm", lambda f: (f / "model.safetensors").unlink(), "neither model.safetensors nor pytorch_model.bin"),
    ("wavlm", "wavlm", lambda f: (f / "model.safetensors").write_bytes(b"no"), "model.safetensors is damaged"),
    ("wavlm", "wavlm", lambda f: (f / "config.json").write_text("{"), "config.json can't be read"),
    ("wavlm", "wavlm", lambda f: (f / "config.json").unlink(), "config.json can't be read"),
    ("wavlm", "wavlm", lambda f: (f / "preprocessor_config.json").write_text('{"sampling_rate": 8000}'), "at 8000 Hz, not 16000"),
    ("hubert", "hubert", changed(lambda w: {k: w[k] for k in w if "layers.1.layer_norm" not in k}),
     "lacks encoder.layers.1.layer_norm"),
    ("hubert", "hubert", changed(lambda w: w | {"surprise": torch.zeros(1)}), "has unexpectedly surprise"),
    ("hubert", "hubert", changed(lambda w: {k: v[:5] if "layers.2.final" in k else v for k, v in w.items()}),
     r"in another shape encoder.layers.2.final_layer_norm.\w+ \[5\] for \[32\]"),
    ("hubert", "hubert", changed(lambda w: w | {"x": Evil()}), "pytorch_model.bin is refused: to read it, logging.error would be run"),
    ("whisper_tiny", "whisper_tiny", changed(lambda w: {k: w[k] for k in w if "encoder" not in k}), "it lacks conv1.weight, .* more"),
    ("whisper_tiny", "whisper_tiny", lambda f: (f / "config.json").write_text(json.dumps(
        json.loads((f / "config.json").read_text()) | {"d_model": 768, "encoder_layers": 12})),
     "holds a whisper_small, where model.backbone=whisper_tiny was asked for"),
    ("apc", "wavlm", lambda f: None, "is a folder, s3prl's checkpoints are files"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "there", "change", "words"), FOLDERS, ids=[row[3] for row in FOLDERS])
def test_a_folder_that_does_not_fit_is_refused(tmp_path, caplog, asked, there, change, words):
    saved(tmp_path, there)
    change(tmp_path)
    with pytest.raises(InputError, match=words):
        SSL(4, asked, str(tmp_path))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


FILES = [
    ("apc", "tera", {}, "holds tera, where model.backbone=apc was asked for"),
    ("tera", "apc", {}, "holds apc, where model.backbone=tera was asked for"),
    ("tera", None, {"a": 1}, "holds neither an APC nor a TERA of s3prl's, where model.backbone=tera"),
    ("apc", None, [1], "holds a list, where a checkpoint is a dictionary"),
    ("apc", None, {"model": Evil()}, "states.ckpt is refused: to read it, logging.error would be run"),
    ("apc", None, b"no pickle", "states.ckpt is (refused|damaged)"),
    ("apc", None, b"", "states.ckpt is damaged"),
    ("apc", "apc", {"config": {"data": {"audio": {"feat_dim": 40}}}}, "an APC of {'feat_dim': 40} is not what fedser can run"),
    ("apc", "apc", {"config": {"model": {"paras": {"vq": {}}}}}, r"quantised states \(vq\) is not what fedser can run"),
    ("apc", "apc", {"config": {}}, "in another shape rnn_layers.0.weight_ih_l0"),
    ("apc", "apc", {"model": {}}, "lacks rnn_layers.0.weight_ih_l0"),
    ("tera", "tera", {"Config": {"transformer": TERA | {"share_layer": True}}}, "{'share_layer': True} is not what fedser can run"),
    ("tera", "tera", {"Transformer": {"beta": torch.zeros(1)}}, "lacks input_.*, has unexpectedly bias"),
    ("wav2vec2", "apc", {}, "is a file, where model.backbone=wav2vec2 needs a folder"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "there", "change", "words"), FILES, ids=[row[3] for row in FILES])
def test_a_file_that_does_not_fit_is_refused(tmp_path, caplog, asked, there, change, words):
    file = tmp_path / "states.ckpt"
    if there:
        s3prl(file, there, **change)
    elif isinstance(change, bytes):
        file.write_bytes(change)
    else:
        torch.save(change, file)
    with pytest.raises(InputError, match=words):
        SSL(4, asked, str(file))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("name", ["wav2vec2", "whisper_tiny", "apc", "tera"])
def test_a_name_that_is_no_path_is_never_fetched(name):
    with pytest.raises(InputError, match="There is no checkpoint at some/model"):
        SSL(4, name, "some/model")
    with pytest.raises(InputError, match="There is no checkpoint at some/model"):
        digest("some/model")


# -- Configuration


def test_the_configuration_reaches_the_network():
    words = ["model=ssl", "model.backbone=wavlm", "model.tune=last", "model.hidden=8", "model.conv_layers=3", "model.seed=4",
             f"model.config={json.dumps(CONV).replace(chr(34), '').replace(' ', '')}"]  # fmt: skip
    node = plain(compose(words))["model"]
    check_node(node, "model")
    model = build(node, classes=5, key="model")
    assert same(model.backbone, tiny("wavlm", seed=4).backbone) and model.fc.out_features == 5 and model.tune == "last"
    assert len(model.head.convolutions) == 9 and model.head.mlp[0].out_features == 8


@pytest.mark.parametrize(("words", "message"), [
    (["model.backbone=wav2vec"], "model.backbone=wav2vec must be one of wav2vec2, hubert"),
    (["model.tune=first"], "model.tune=first must be one of frozen, last, all"),
    (["model.pooling=max"], "model.pooling=max must be one of mean, attention"),
    (["model.conv_layers=-1"], "model.conv_layers=-1 must be a whole number of at least 0"),
    (["model.dropout=2"], "model.dropout=2 must lie between 0 and 1"),
    (["model.checkpoint=x", "+model.config.d_model=8"], "model.config is for random weights"),
    (["model.backbone=hubert", "+model.config.hidden_sizes=8"], "HubertConfig has no such key, but hidden_size"),
    (["+model.config.hidden_size=8"], "hidden_size"),
    (["model.checkpoint=nowhere"], "There is no checkpoint at nowhere"),
])  # fmt: skip
def test_settings_that_are_no_good_are_refused(words, message):
    node = plain(compose(["model=ssl", *words]))["model"]
    with pytest.raises(InputError, match=message):
        check_node(node, "model"), build(node, classes=4, key="model")


def test_transformers_is_imported_only_where_it_is_needed_and_named_where_it_is_missing(monkeypatch):
    script = ("import sys, fedser, fedser.models.ssl as s; s.SSL(4, 'whisper_tiny', config={'d_model': 8, 'encoder_layers': 1,"
              "'encoder_attention_heads': 1}); assert 'transformers' not in sys.modules")  # fmt: skip
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1])
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"model.backbone=hubert needs `transformers`: pip install '.\[ssl\]'"):
        SSL(4, "hubert")
