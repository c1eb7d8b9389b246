"""Cost: operations against a hand count and published sizes, bytes against what is in the messages."""

import statistics
import threading

import pytest
import torch
from runs import Made, make_run
from torch import nn
from torch.nn import functional

from fedser import report
from fedser.federation import client_app, strategies
from fedser.models.flops import flops
from fedser.models.ssl.network import SSL
from fedser.preparation import prepare
from fedser.report import tables
from fedser.report.analysis import models
from fedser.simulation import backend


def test_a_convolution_by_hand():
    """8 channels at 10 × 6 places see 3 × 3 of one; the mean of each goes to four classes; two operations each."""
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    net.add_module("drawing", nn.Dropout())
    x, before = torch.rand(1, 1, 12, 8), {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.random.get_rng_state()
    assert flops(net, x, torch.tensor([12])) == 2 * (10 * 6 * 8 * 9 + 8 * 4)
    assert torch.equal(state, torch.random.get_rng_state()) and net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


class Fused(nn.Module):
    """Attention of 50 steps of 16 numbers to each other, no projections."""

    def forward(self, x):
        x = x[:, 0]
        return functional.scaled_dot_product_attention(x, x, x).mean(1)


class Whole(Fused):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x[:, 0], x[:, 0], x[:, 0], need_weights=False)[0].mean(1)


@pytest.mark.parametrize(("net", "more"), [(Fused(), 0), (Whole(), 4 * 50 * 16 * 16)], ids=["fused", "projected"])
def test_attention_by_hand(net, more):
    """Each step's products with each, and the sum of values that they weigh; queries, keys, values, output before."""
    fast = torch.backends.mha.get_fastpath_enabled()
    assert flops(net, torch.rand(1, 1, 50, 16), torch.tensor([50])) == 2 * (2 * 50 * 50 * 16 + more)
    assert torch.backends.mha.get_fastpath_enabled() == fast


@pytest.mark.parametrize(("backbone", "gflop"), [("whisper_tiny", 5.18), ("whisper_base", 13.05)])
def test_backbones_at_6_seconds(backbone, gflop):
    """Without the head, which mixes 300 states and has three layers here, and the product that makes the log-Mel."""
    net = SSL(7, backbone, conv_layers=1)
    head = 300 * net.width * (net.layers + 256) + 256 * 256 + 256 * 7
    found = flops(net, torch.rand(1, 1, 96000, 1) - 0.5, torch.tensor([96000])) - 2 * (head + 600 * 201 * 80)
    assert found / 1e9 == pytest.approx(gflop, abs=0.02)


@pytest.mark.parametrize("words", [[], ["batch_norm=local", "client.optimizer_state=average"]], ids=["plain", "all"])
def test_bytes_are_those_of_the_messages(settings, tmp_path, words):
    prepared, found, stop = prepare(settings("defence=none", *words)), {}, threading.Event()
    plan = prepared.plan()

    def sized(messages, key):
        for message in messages:
            arrays = [array for record in message.content.array_records.values() for array in record.values()]
            found.setdefault(key, set()).add(sum(array.numpy().nbytes for array in arrays))
        return messages

    def serve(grid):
        federation, push, pull = prepared.federation(grid, plan, stop, tmp_path), grid.push_messages, grid.pull_messages
        grid.push_messages = lambda messages: push(sized(list(messages), "received"))
        grid.pull_messages = lambda ids: sized(list(pull(ids)), "sent")
        strategy = strategies.build_strategy(prepared.settings.strategy, 2)
        federation.train(strategy, 1, prepared.weights, [0, 1])

    backend.simulate(serve, client_app.app, 2, plan, stop)
    cost = prepared.cost()
    assert found == {key: {cost[key]} for key in ("received", "sent")} and cost["clients"] == 2
    assert (cost["received"] > cost["sent"]) == bool(words)


def test_a_run_says_what_it_cost(small, tmp_path):
    own = "seed=94"  # of no other test, whose model it would take
    first, again = small(own, folder=tmp_path / "one"), small(own, "attack.eps=0.04", folder=tmp_path / "other")
    cost = first.metrics["cost"]
    assert cost["parameters"] == cost["trained"] == first.metrics["parameters"] and 0 < cost["gflop"] < 1
    assert cost["seconds"] == pytest.approx(statistics.median(first.metrics["train_seconds"]), abs=1e-3)  # both rounded
    assert again.metrics["reused"] and "seconds" not in again.metrics["cost"]


def test_the_table_has_medians_over_runs(tmp_path):
    cost = {"parameters": 12345, "trained": 345, "gflop": 0.25, "received": 5e6, "sent": 4e6, "clients": 3}
    for seed, seconds in enumerate((1.0, 3.0, 90.0, None)):
        more = {"seconds": seconds} if seconds else {}
        make_run(tmp_path / str(seed), Made("pgd", seed), full=False, cost=cost | more)
    (corpus,) = models.corpora(report.load([tmp_path]))
    (row,) = tables.cost(corpus).cells
    assert [cell.text for cell in row] == ["AT-PGD", "12,345", "345", "0.25", "5", "4", "3", "3"]
    make_run(tmp_path / "3", Made("pgd", 3), full=False)  # of before
    assert tables.cost(corpus)
