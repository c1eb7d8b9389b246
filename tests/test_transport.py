"""How weights travel, and how replies are added up."""

import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as stock
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from processes import until
from torch import nn

from fedser.federation import strategies, transport
from fedser.simulation import backend, ray_cluster


def conv():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def test_pack_and_unpack_are_inverse_and_copy():
    source, target = conv(), conv()
    source(torch.randn(4, 1, 5, 5))
    weights = transport.pack(source)
    assert weights["parameters"].size == 2 * 9 + 2 + 2 + 2 and weights["buffers"].size == 4
    weights["parameters"].setflags(write=False)
    transport.unpack(weights, target)
    before = weights["parameters"].copy()
    with torch.no_grad():
        target[0].weight.add_(1)
    assert (weights["parameters"] == before).all()
    assert torch.equal(target[1].running_mean, source[1].running_mean)
    with pytest.raises(ValueError, match="do not fit"):
        transport.unpack(weights, nn.Linear(2, 2))


def test_packed_tensors_are_views_and_train_as_before():
    torch.manual_seed(0)
    plain, packed = conv(), conv()
    packed.load_state_dict(plain.state_dict())
    whole = transport.Packed(packed)
    x = torch.randn(4, 1, 5, 5)
    for model in (plain, packed):
        adam = torch.optim.Adam(model.parameters(), fused=True)
        for _ in range(3):
            adam.zero_grad()
            model(x).square().sum().backward()
            adam.step()
    for one, other in zip(plain.state_dict().values(), packed.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other)
    flat = torch.cat([parameter.detach().flatten() for parameter in packed.parameters()])
    assert (whole.arrays()["parameters"] == flat.numpy()).all()
    assert whole.arrays()["parameters"] is not None and np.shares_memory(
        whole.arrays()["parameters"], packed[0].weight.detach().numpy()
    )


def test_flat_is_an_array_to_flower_and_keeps_its_vector():
    vector = np.arange(5, dtype=np.float32)
    record = transport.to_record("parameters", vector)
    assert transport.from_record(record) is vector
    (array,) = record.to_numpy_ndarrays()
    assert (array == vector).all()
    rebuilt = ArrayRecord({"parameters": record["parameters"]})  # through bytes, as Flower between SuperNodes
    assert (rebuilt["parameters"].numpy() == vector).all()


def test_replies_are_pickled_beside_the_pickle():
    vector = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    beside = []
    message = pickle.dumps(transport.Flat(vector), protocol=5, buffer_callback=beside.append)
    assert len(message) < 1000 and sum(len(part.raw()) for part in beside) == vector.nbytes
    again = pickle.loads(message, buffers=beside)
    assert np.shares_memory(again.numpy(), vector)


@pytest.mark.ray
def test_the_global_model_enters_the_object_store_once_and_leaves_it(monkeypatch):
    import ray
    from ray._private import serialization
    from ray._private.worker import global_worker

    monkeypatch.setattr(serialization, "ALLOW_OUT_OF_BAND_OBJECT_REF_SERIALIZATION", False)  # Ray never lets go of such
    with ray_cluster._own(1, 2**27, 0):

        @ray.remote
        class Client:
            def answer(self, content):
                return transport.Flat(transport.from_record(content["parameters"]) * 2)

        client, sent = Client.remote(), []
        for value in range(1, 4):
            vector = np.full(100_000, value, np.float32)
            content = RecordDict(transport.to_records({"parameters": vector}, shared=True))
            transport.share(content)
            reference = content["parameters"]["parameters"].reference
            transport.share(content)
            assert content["parameters"]["parameters"].reference is reference  # the same in every message
            mapped = ray.get(reference)
            assert (mapped == value).all() and not mapped.flags.writeable
            assert (ray.get(client.answer.remote(content)).numpy() == 2 * value).all()
            sent.append(reference.hex().encode())
            del content, reference, mapped
        # A worker keeps the last two.
        until(lambda: sent[0] not in global_worker.core_worker.get_all_reference_counts(), seconds=20)
        assert sent[2] in global_worker.core_worker.get_all_reference_counts()


def replies(counts, size=300_000, seed=0):
    random = np.random.default_rng(seed)
    return [(count, random.normal(size=size).astype(np.float32)) for count in counts]


def test_average_is_the_sum_that_flowers_fedavg_computes():
    parts = replies([7, 100, 3, 64, 12])
    average = transport.Average(sum(count for count, _ in parts))
    average.add(parts[:1])
    average.add(parts[1:4])
    average.add([])
    average.add(parts[4:])
    records = [
        RecordDict({"arrays": ArrayRecord({"w": Array(vector)}), "metrics": MetricRecord({"num-examples": count})})
        for count, vector in parts
    ]
    np.testing.assert_array_equal(average.result(), aggregate_arrayrecords(records, "num-examples")["w"].numpy())


def test_what_flower_leaves_in_a_cycle_is_let_go():
    content = RecordDict(transport.to_records({"parameters": np.ones(10, np.float32)}))
    _ = content.array_records  # as strategies do
    array = weakref.ref(content["parameters"]["parameters"])
    gc.disable()
    try:
        transport.forget(content)
        assert array() is None
    finally:
        gc.enable()


def test_average_in_c_is_numpys_to_the_bit(monkeypatch):
    if transport._kernel() is None:
        pytest.skip("no C compiler")
    vectors = np.random.default_rng(0).standard_normal((3, transport.CHUNK + 17)).astype(np.float32)

    def found():
        average = transport.Average(27)
        average.add([(3, vectors[0]), (17, vectors[1])])
        average.add([(7, vectors[2])])
        return average.result()

    ours = found()
    monkeypatch.setattr(transport, "_add_in_c", lambda *_: False)
    assert np.array_equal(ours, found())


def test_average_makes_up_for_the_missing():
    parts = replies([10, 30])
    average = transport.Average(100)
    average.add(parts)
    expected = (parts[0][1].astype(float) * 10 + parts[1][1].astype(float) * 30) / 40
    np.testing.assert_allclose(average.result(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["FedAvg", "FedProx", "FedAvgM", "FedAdagrad", "FedAdam", "FedYogi"])
def test_one_averaged_reply_gives_what_all_replies_give(name):
    """Two rounds of the stock strategy, once with every reply and once with their mean."""
    kwargs = {"arrayrecord_key": "parameters", "min_train_nodes": 1, "min_available_nodes": 1}
    kwargs |= {"proximal_mu": 0.1} if name == "FedProx" else {}
    kwargs |= {"server_momentum": 0.9} if name == "FedAvgM" else {}

    class Nodes:
        def get_node_ids(self):
            return [1]

    def message(count, vector):
        content = RecordDict({"parameters": transport.to_record("parameters", vector)})
        content["metrics"] = MetricRecord({"num-examples": count, "loss": float(count)})
        asked = Message(RecordDict(), dst_node_id=1, message_type="train")
        return Message(content, reply_to=asked)

    results = []
    with backend._task_identity():
        for averaged in (False, True):
            made = getattr(stock, name)(**kwargs)
            assert strategies.adds_up(made)
            weights = np.zeros(300_000, np.float32)
            for round in (1, 2):
                from flwr.app import ConfigRecord

                list(made.configure_train(round, transport.to_record("parameters", weights), ConfigRecord(), Nodes()))
                parts = replies([7, 100, 3], seed=round)
                if averaged:
                    average = transport.Average(110)
                    average.add(parts)
                    parts = [(110, average.result())]
                arrays, _ = made.aggregate_train(round, [message(*part) for part in parts])
                weights = transport.from_record(arrays)
            results.append(weights)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("FedMedian", {}), ("FedTrimmedAvg", {}), ("Krum", {"num_malicious_nodes": 1}),
        ("MultiKrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 1}), ("Bulyan", {"num_malicious_nodes": 1}),
        ("QFedAvg", {"client_learning_rate": 0.1}), ("FedAvg", {"train_metrics_aggr_fn": lambda contents, key: MetricRecord()}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_strategies_that_need_every_reply_get_them(name, kwargs):
    assert not strategies.adds_up(getattr(stock, name)(**kwargs))


def test_a_strategy_of_the_users_own_gets_every_reply():
    class Own(stock.FedAvg):
        def aggregate_train(self, server_round, replies):
            return super().aggregate_train(server_round, replies)

    class Inherits(stock.FedAdam):
        pass

    assert not strategies.adds_up(Own())
    assert strategies.adds_up(Inherits())


def test_strategy_state_survives_json(tmp_path):
    import json

    made = stock.FedAvgM(server_momentum=0.9)
    made.momentum_vector = [np.arange(3, dtype=np.float32)]
    made.current_arrays = transport.to_record("parameters", np.ones(3, np.float32))
    plain, arrays = strategies.state(made)
    again = stock.FedAvgM(server_momentum=0.9)
    strategies.restore(again, json.loads(json.dumps(plain)), arrays)
    assert (again.momentum_vector[0] == [0, 1, 2]).all()
    assert (again.current_arrays["parameters"].numpy() == 1).all()


def test_state_that_no_file_can_hold_is_named():
    from fedser.errors import RunError

    made = stock.FedAvg()
    made.memory = {"seen": {1, 2}}
    with pytest.raises(RunError, match=r"strategy\.memory\.seen is a set.*checkpoint\.every=null"):
        strategies.state(made)
