"""Vectors in memory that processes of one machine share: between real processes, some of which die."""

import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from processes import until
from torch import nn

from fedser.federation import shared_memory, transport
from fedser.federation.shared_memory import Reference, Slots

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memory files are Linux's")
SIZE = 300_000  # more than LEAST


def big():
    """A model whose parameters are shared and whose buffers are not."""
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(600, 600))


@pytest.fixture
def sharing(monkeypatch):
    monkeypatch.setattr(shared_memory, "own", Slots())
    monkeypatch.setattr(shared_memory, "SECONDS_TO_WAIT", 0.02)


def client(pipe):
    """Another process: lends a vector, says whether it is still read, then loads another value into a free one."""
    slots = Slots()
    vector = slots.take(SIZE)
    vector[:] = 3
    pipe.send(slots.lend(vector))
    while pipe.recv() == "lent?":
        pipe.send(slots.find(vector).lent)
    other = slots.take(SIZE)
    other[:] = 4
    pipe.send(other is vector)
    pipe.recv()


@pytest.fixture
def other():
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=client, args=(theirs,))
    process.start()
    yield ours, process
    process.kill()
    process.join()


def test_a_vector_is_read_where_it_lies_and_given_back(other):
    pipe, _ = other
    vector = shared_memory.borrow(pipe.recv())
    assert vector.size == SIZE and (vector == 3).all()
    part = vector[5:]
    del vector  # a part is still read
    pipe.send("lent?")
    assert pipe.recv() is True and (part == 3).all()
    del part
    pipe.send("lent?")
    assert pipe.recv() is False
    pipe.send("go on")
    assert pipe.recv() is True  # the same place again


def test_what_is_read_is_not_written(other):
    pipe, _ = other
    vector = shared_memory.borrow(pipe.recv())
    pipe.send("go on")
    assert pipe.recv() is False and (vector == 3).all()


def test_a_dead_process_leaves_what_is_read_and_nothing_else(other):
    pipe, process = other
    reference = pipe.recv()
    vector = shared_memory.borrow(reference)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (vector == 3).all()
    shared_memory._mapped.clear()
    with pytest.raises(OSError):
        shared_memory.borrow(reference)


@pytest.mark.parametrize("false", ["process", "name"])
def test_who_can_not_be_read_is_not_shared_with(monkeypatch, false):
    offered = shared_memory.offer()
    mine = offered.reference
    monkeypatch.setattr(shared_memory, "own", None)
    shared_memory.accept(mine)
    assert isinstance(shared_memory.own, Slots)
    shared_memory._mapped.clear()
    changed = {"process": 2**22 + 1} if false == "process" else {"name": bytes(16)}
    shared_memory.accept(Reference(**(vars(mine) | changed)))
    assert shared_memory.own is None
    shared_memory.accept(None)
    assert shared_memory.own is None


def test_a_model_goes_elsewhere_while_its_reply_is_read(sharing):
    model = big()
    packed = transport.Packed(model)
    replies, values = [], [1.0, 2.0, 3.0, 4.0]
    for value in values:
        weights = {key: np.full_like(array, value) for key, array in packed.arrays().items()}
        packed.load(weights)
        assert all((parameter == value).all() for parameter in model.parameters())
        assert (model[1].running_mean == value).all()
        reply = RecordDict(transport.to_records(packed.arrays()))
        transport.lend(reply)
        replies.append(reply)
    lent = [isinstance(reply["parameters"]["parameters"], transport.Lent) for reply in replies]
    assert lent == [True, True, False, False]  # no more than MOST; the others are pickled, as all were
    assert not any(isinstance(reply["buffers"]["buffers"], transport.Lent) for reply in replies)
    for reply, value in zip(replies[:2], values, strict=False):
        transport.borrow(reply)
        assert (transport.from_record(reply["parameters"]) == value).all()
    del reply
    replies.clear()
    assert not any(slot.lent for slot in shared_memory.own._slots)
    packed.load(weights)  # and home again
    assert shared_memory.own.find(packed.arrays()["parameters"])
    model(torch.ones(1, 1, 602, 602)[:, :, :3, :602]).sum().backward()  # trains


def test_other_vectors_are_lent_as_copies(sharing):
    vector = np.arange(SIZE, dtype=np.float32)
    reply = RecordDict(transport.to_records({"moments": vector, "sums": vector.astype(np.float64)}))
    transport.lend(reply)
    vector[:] = 0
    transport.borrow(reply)
    assert (transport.from_record(reply["moments"]) == np.arange(SIZE)).all()
    assert transport.from_record(reply["sums"]).dtype == np.float64


def test_all_of_a_process_that_is_gone_is_let_go(other):
    pipe, process = other
    vector = shared_memory.borrow(pipe.recv())
    process.kill()
    process.join()
    del vector
    mine = shared_memory.offer()
    until(lambda: not os.path.exists(f"/proc/{process.pid}"))
    shared_memory.borrow(mine.reference)
    assert process.pid not in {owner for owner, _ in shared_memory._mapped.values()}
