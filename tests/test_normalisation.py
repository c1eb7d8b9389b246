"""Normalisation: global statistics from the clients' sums equal those of the pooled data."""

import numpy as np
import pytest

from fedser.models.normalisation import Sums, normaliser, zscore

RANDOM = np.random.default_rng(0)
A = RANDOM.normal(-7, 3, (5, 11, 4)).astype(np.float32)
B = RANDOM.normal(-2, 1, (3, 11, 4)).astype(np.float32)


def test_sums_of_clients_give_the_pooled_statistics():
    pooled = np.concatenate([A, B]).reshape(-1, 4).astype(np.float64)
    together = zscore(Sums.of(A) + Sums.of(B))
    np.testing.assert_allclose(together.shift, pooled.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(together.scale, pooled.std(axis=0), rtol=1e-6)
    normal = together(np.concatenate([A, B])).reshape(-1, 4)
    np.testing.assert_allclose(normal.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(normal.std(axis=0), 1, atol=1e-5)
    assert normal.dtype == np.float32


def test_kinds():
    everyone = Sums.of(A) + Sums.of(B)
    assert (normaliser("zscore_global", A, everyone)(B) == zscore(everyone)(B)).all()
    assert (normaliser("zscore_client", A, everyone)(A) == zscore(Sums.of(A))(A)).all()
    scaled = normaliser("minmax_client", A, None)(A)
    assert scaled.min() == 0 and scaled.max() == 1
    assert (normaliser("none", A, None)(A) == A).all()
    with pytest.raises(ValueError, match="unknown"):
        normaliser("whitening", A, None)


def test_constant_bin_is_shifted_not_divided():
    flat = np.full((2, 5, 3), -18.4, np.float32)
    assert np.abs(normaliser("zscore_client", flat, None)(flat)).max() < 1e-5
    assert (normaliser("minmax_client", flat, None)(flat) == 0).all()
