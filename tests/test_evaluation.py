"""Conditions, confusion matrices and UAR, by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from fedser import evaluation


def test_uar_by_hand():
    matrix = np.array([[8, 2], [10, 30]])
    assert evaluation.uar(matrix) == pytest.approx((0.8 + 0.75) / 2)
    assert evaluation.accuracy(matrix) == pytest.approx(38 / 50)


def test_class_without_test_utterances_is_left_out():
    matrix = np.array([[3, 1, 0], [0, 0, 0], [1, 0, 1]])
    assert np.isnan(evaluation.recalls(matrix)[1])
    assert evaluation.uar(matrix) == pytest.approx((0.75 + 0.5) / 2)


def test_confusion_counts_true_by_predicted():
    matrix = evaluation.confusion(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 2, 1, 1]), 3)
    assert matrix.tolist() == [[1, 0, 1], [0, 1, 0], [0, 1, 0]]


def test_conditions_are_table_3s():
    assert evaluation.conditions([], False) == ["original"]
    assert evaluation.conditions(["pgd"], False) == ["original", "adversarial/pgd"]
    assert evaluation.conditions(["fgsm", "pgd"], True) == [
        "original", "randomised", "adversarial/fgsm", "adversarial/pgd",
        "randomised_adversarial/fgsm", "randomised_adversarial/pgd",
    ]  # fmt: skip


class Sign(nn.Module):
    """Class 1 where the sum is positive."""

    def forward(self, x):
        total = x.flatten(1).sum(dim=1)
        return torch.stack([-total, total], dim=1)


def test_each_condition_sees_its_own_version():
    x = torch.tensor([1.0, -1.0, 2.0]).view(3, 1, 1, 1)
    y = torch.tensor([1, 0, 1])
    flip = lambda model, x, y, seed, predictions: -x  # noqa: E731
    add = lambda x, generator: x + 1.5  # noqa: E731
    results = evaluation.evaluate(Sign(), x, y, classes=2, attacks={"flip": flip}, randomise=add, batch_size=2, seed=0)
    assert results["original"].tolist() == [[1, 0], [0, 2]]
    assert results["randomised"].tolist() == [[0, 1], [0, 2]]  # −1 + 1.5 > 0
    assert results["adversarial/flip"].tolist() == [[0, 1], [2, 0]]
    assert results["randomised_adversarial/flip"].tolist() == [[0, 1], [1, 1]]  # −2 + 1.5 < 0 < −1 + 1.5


def test_no_test_utterances_give_empty_matrices():
    results = evaluation.evaluate(
        Sign(), torch.zeros(0, 1, 1, 1), torch.zeros(0, dtype=torch.long), classes=2, attacks={}, randomise=None,
        batch_size=2, seed=0,
    )  # fmt: skip
    assert results["original"].sum() == 0
