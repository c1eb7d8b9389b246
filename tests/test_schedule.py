"""The learning rate over the rounds, and averages of models over them, by hand."""

import numpy as np
import pytest

from fedser.errors import InputError
from fedser.federation.averaging import EMA, LastK
from fedser.training.schedule import Constant, Cosine, Step


def factors(schedule, rounds):
    return [schedule(round) for round in range(1, rounds + 1)]


def test_constant():
    assert factors(Constant(), 3) == [1, 1, 1]
    assert factors(Constant(warm_up=3), 5) == [0.25, 0.5, 0.75, 1, 1]


def test_step():
    assert factors(Step(every=2, factor=0.5), 5) == [1, 1, 0.5, 0.5, 0.25]
    assert factors(Step(every=2, factor=0.5, warm_up=1), 5) == [0.5, 1, 1, 0.5, 0.5]


def test_cosine():
    assert factors(Cosine(5), 5) == pytest.approx([1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0])
    assert factors(Cosine(4, floor=0.2, warm_up=1), 4) == pytest.approx([0.5, 1, 0.6, 0.2])
    assert factors(Cosine(1), 1) == [1]
    with pytest.raises(InputError, match="warm-up of 4 rounds"):
        Cosine(4, warm_up=4)


def rounds(count):
    return [{"a": np.array([float(n), -n], np.float32), "b": np.array([10.0 * n], np.float32)} for n in range(count)]


def test_the_mean_of_the_last():
    average = LastK(2)
    means = [average(weights) for weights in rounds(4)]
    assert [mean["b"].tolist() for mean in means] == [[0], [5], [15], [25]]
    assert means[3]["a"].tolist() == [2.5, -2.5] and means[3]["a"].dtype == np.float32


def test_a_moving_average():
    average = EMA(0.5)
    found = [float(average(weights)["b"][0]) for weights in rounds(3)]
    assert found == pytest.approx([0, 0.9 * 10, 2 / 11 * 9 + 9 / 11 * 20])
    for _ in range(30):
        average(rounds(2)[1])
    assert float(average({"a": np.zeros(2), "b": np.array([0.0])})["b"][0]) == pytest.approx(5, abs=1e-3)


@pytest.mark.parametrize("make", [lambda: EMA(0.9), lambda: LastK(3)])
def test_it_goes_on_from_its_state(make):
    whole, before, after = make(), make(), make()
    for weights in rounds(9)[:5]:
        whole(weights), before(weights)
    after.restore({name: array.copy() for name, array in before.state().items()})
    for weights in rounds(9)[5:]:
        one, other = whole(weights), after(weights)
        assert all(np.array_equal(one[key], other[key]) and one[key].dtype == other[key].dtype for key in one)
