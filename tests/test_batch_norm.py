"""What the global model normalises by: the mean of running statistics, each client's own layers, or exact statistics."""

import json

import numpy as np
import pytest
import torch
from conftest import SMALL
from safetensors.numpy import load_file

from fedser import compose, run
from fedser.config.validation import validate
from fedser.errors import InputError
from fedser.evaluation.metrics import confusion, uar
from fedser.features.normalisation import Sums, zscore
from fedser.federation import batch_norm, transport
from fedser.models.lengths import logits
from fedser.models.weights import BUFFERS, PARAMETERS
from fedser.preparation import prepare

CLEAN = ["attack=none", "defence=none"]
SIZE = 8  # of a batch
NETWORKS = ["cnn4", "statcnn", "tdnn", "vgg15"]


def weights_of(result, name=None):
    files = sorted((result.folder / "weights").glob("round-*"))
    return load_file(result.folder / "weights" / name if name else files[-1])


def of(*words):
    return prepare(validate(compose([*SMALL, *CLEAN, *words])))


def samples(prepared, part="train", splits=None):
    """x, y, lengths of the clients' utterances, normalised as in a run."""
    rows = np.concatenate([getattr(split, part) for split in splits or prepared.splits])
    flat = prepared.store.frames[np.concatenate([split.train for split in prepared.splits])].astype(np.float64)
    flat = flat.reshape(-1, flat.shape[-1])
    x = ((prepared.store.frames[rows] - flat.mean(0)) / flat.std(0)).astype(np.float32)
    store = prepared.store
    return torch.from_numpy(x).unsqueeze(1), torch.from_numpy(store.labels[rows]), torch.from_numpy(store.lengths[rows])


def in_train_mode(model, x, lengths):
    """Logits by the batch's own statistics; without dropout."""
    for layer in model.modules():
        layer.train(isinstance(layer, torch.nn.modules.batchnorm._BatchNorm))
    with torch.no_grad():
        return logits(model, x, lengths)


@pytest.mark.parametrize("network", NETWORKS)
def test_sums_make_evaluation_what_training_was_with_everyone_in_one_batch(network):
    torch.manual_seed(0)
    model = compose_model(network)
    x, lengths = torch.randn(6, 1, 64, 64), torch.full((6,), 64)
    wanted = in_train_mode(model, x, lengths)
    model.eval()
    with torch.no_grad():
        initial = logits(model, x, lengths)
    exact = batch_norm.Recomputed(model)
    before = [(name, type(layer)) for name, layer in model.named_modules()]

    def ask(weights):
        transport.unpack(weights, model)
        parts = [
            batch_norm.statistics(model, x[:4], lengths[:4], 3),
            batch_norm.statistics(model, x[4:], lengths[4:], 3),
        ]
        return sum(parts)

    weights = exact(transport.pack(model), ask)
    transport.unpack(weights, model)
    assert [(name, type(layer)) for name, layer in model.named_modules()] == before
    model.eval()
    with torch.no_grad():
        found = logits(model, x, lengths)
    # torch keeps unbiased variances and normalises a batch by biased ones: of VGG-15's last layers, by 96 values.
    torch.testing.assert_close(found, wanted, rtol=0.03, atol=0.03)
    assert (initial - wanted).abs().max() > 0.1


def compose_model(network):
    options = ["model.width=4"] if network != "vgg15" else []
    settings = validate(compose([f"model={network}", *options]))
    return settings.model.component.build(classes=7)


def test_recomputed_statistics_are_those_of_all_training_utterances(small):
    words = ["model=statcnn", "model.dropout=0", "batch_norm=recompute", "rounds=2"]
    result = small(*CLEAN, *words)
    prepared = of(*words)
    transport.unpack(weights_of(result), prepared.model)
    x, _, lengths = samples(prepared)
    wanted = in_train_mode(prepared.model, x, lengths)
    prepared.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(logits(prepared.model, x, lengths), wanted, rtol=0.01, atol=0.01)


def test_the_course_of_a_training_does_not_depend_on_when_it_is_looked_at(small, tmp_path):
    often = small(*CLEAN, "batch_norm=recompute", "rounds=3")
    once = small(
        *CLEAN, "batch_norm=recompute", "rounds=3", "evaluation.every=null", "reuse=false", folder=tmp_path / "1"
    )
    plain = small(*CLEAN, "rounds=3", folder=tmp_path / "plain")
    for key in (PARAMETERS, BUFFERS):
        np.testing.assert_array_equal(weights_of(often)[key], weights_of(once)[key])
    np.testing.assert_array_equal(weights_of(often)[PARAMETERS], weights_of(plain)[PARAMETERS])
    assert not np.array_equal(weights_of(often)[BUFFERS], weights_of(plain)[BUFFERS])


def test_an_average_over_rounds_has_statistics_of_its_own(small):
    result = small(*CLEAN, "batch_norm=recompute", "averaging=last_k", "averaging.k=2")
    averaged, raw = weights_of(result), weights_of(result, "raw.safetensors")
    assert not np.allclose(averaged[BUFFERS], raw[BUFFERS])
    prepared = of("averaging=last_k", "averaging.k=2")
    transport.unpack(averaged, prepared.model)
    x, _, lengths = samples(prepared)
    wanted = in_train_mode(prepared.model, x, lengths)
    prepared.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(logits(prepared.model, x, lengths), wanted, rtol=0.01, atol=0.01)


def test_clients_keep_their_layers_and_are_tested_with_them(small):
    words = ["batch_norm=local", "rounds=2"]
    result = small(*CLEAN, *words)
    weights, prepared = weights_of(result), of(*words)
    local, rows = batch_norm.Local(prepared.model), weights[batch_norm.LOCAL]
    assert rows.shape == (2, sum(layer.num_features for layer in batch_norm.norms(prepared.model)) * 4)
    assert not np.allclose(rows[0], rows[1])
    sizes = [len(split.train) for split in prepared.splits]
    np.testing.assert_allclose(local.of(weights), np.average(rows, axis=0, weights=sizes), rtol=1e-5, atol=1e-6)
    counts = 0
    for split, row in zip(prepared.splits, rows, strict=True):
        transport.unpack(local.put(weights, row), prepared.model)
        x, y, lengths = samples(prepared, "test", [split])
        with torch.no_grad():
            predicted = logits(prepared.model.eval(), x, lengths).argmax(1)
        counts = counts + confusion(y, predicted, len(prepared.classes))
    assert result.metrics["uar/original"] == pytest.approx(uar(np.array(counts)))
    about = json.loads(metadata(result))
    assert about["batch_norm"] == "local"


def metadata(result):
    from safetensors import safe_open

    with safe_open(result.folder / "model.safetensors", framework="pt") as file:
        return file.metadata()["fedser"]


def test_who_has_not_trained_yet_has_the_mean_and_a_server_momentum_leaves_the_layers_alone():
    model = compose_model("cnn4")
    local, weights = batch_norm.Local(model), transport.pack(model)
    begun = local.begin(weights, 3)
    rows = begun[batch_norm.LOCAL].copy()
    rows[0], rows[2] = 1.0, 4.0
    stepped = {key: weights[key] + 7 for key in weights}  # as a server optimiser might
    after = local.averaged(stepped, rows, [10, 50, 20], [True, False, True])
    np.testing.assert_allclose(local.of(after), 3.0)
    np.testing.assert_allclose(after[batch_norm.LOCAL][1], 3.0)
    np.testing.assert_allclose(after[batch_norm.LOCAL][[0, 2], 0], [1.0, 4.0])
    others = np.setdiff1d(np.arange(len(weights[PARAMETERS])), local.places[PARAMETERS])
    np.testing.assert_array_equal(after[PARAMETERS][others], stepped[PARAMETERS][others])


@pytest.mark.parametrize("choice", ["local", "recompute"])
def test_a_trained_model_is_measured_again_from_the_cache(small, tmp_path, choice):
    first = small(*CLEAN, f"batch_norm={choice}")
    again = small(*CLEAN, f"batch_norm={choice}", "evaluation.draws=3", folder=tmp_path / "again")
    assert again.metrics["reused"]
    assert again.metrics["uar/original"] == first.metrics["uar/original"]


@pytest.mark.parametrize(
    ("words", "comes_to"),
    [
        ([], "local"),
        (["strategy=centralised"], "aggregate"),
        (["model=statcnn", "model.norm=group"], "aggregate"),
    ],
)
def test_by_default_clients_keep_their_layers_where_there_are_any(words, comes_to):
    assert of("batch_norm=auto", *words).norm == comes_to


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["batch_norm=local", "model=statcnn", "model.norm=group"], "model=statcnn has no batch-norm layers"),
        (["batch_norm=recompute", "model=tdnn", "model.norm=layer"], "model=tdnn has no batch-norm layers"),
        (["batch_norm=local", "strategy=centralised"], "strategy=centralised has one client"),
        (["batch_norm=frozen"], "batch_norm=frozen must be one of"),
    ],
)
def test_what_cannot_be_is_refused(words, says):
    with pytest.raises(InputError, match=says):
        of(*words)


@pytest.mark.corpus
def test_on_training_clips_the_model_is_not_worse_in_evaluation_than_in_training_mode(data_folder, tmp_path):
    words = [
        "dataset=emodb", f"dataset.root={data_folder / 'emodb'}", *CLEAN, "rounds=60", "model=statcnn", "model.width=8",
        "model.dropout=0", "evaluation.every=null", "simulation=serial", "logger=none", "batch_norm=local",
        f"client.batch_size={SIZE}",
    ]  # fmt: skip
    # After whole trainings of the defaults -0.04 to 0.00; here -0.05 to 0.01 by the seed and the processor, as a batch's
    # own statistics are noisy. 0.3.0's training: 0.09 in 20 rounds.
    assert gap(words, tmp_path) <= 0.03


def gap(words, folder):
    """By how much the UAR on the training clips is higher in train mode, in batches of one client, as in training."""
    weights, prepared = weights_of(run(compose(words), folder)), prepare(validate(compose(words)))
    local, counts = batch_norm.Local(prepared.model), {True: 0, False: 0}
    for number, split in enumerate(prepared.splits):
        own = local.put(weights, weights[batch_norm.LOCAL][number]) if batch_norm.LOCAL in weights else weights
        frames = prepared.store.frames[split.train]
        x = torch.from_numpy(zscore(Sums.of(frames))(frames)).unsqueeze(1)
        y, lengths = (torch.from_numpy(of[split.train]) for of in (prepared.store.labels, prepared.store.lengths))
        for training in counts:
            transport.unpack(own, prepared.model)
            prepared.model.train(training)
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(number))
            with torch.no_grad():
                parts = [logits(prepared.model, x[rows], lengths[rows]).argmax(1) for rows in order.split(SIZE)]
            predicted = torch.empty(len(x), dtype=torch.long).index_copy(0, order, torch.cat(parts))
            counts[training] = counts[training] + confusion(y, predicted, len(prepared.classes))
    return uar(np.array(counts[True])) - uar(np.array(counts[False]))
