"""Normalisation: global statistics from the clients' sums equal those of the pooled data."""

import numpy as np
import pytest

from fedser.config.compose import compose
from fedser.config.validation import validate
from fedser.errors import InputError
from fedser.features.normalisation import ClientMinMax, ClientZScore, GlobalZScore, Sums, Unchanged, zscore

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
    assert (GlobalZScore()(A, everyone)(B) == zscore(everyone)(B)).all()
    assert (ClientZScore()(A, everyone)(A) == zscore(Sums.of(A))(A)).all()
    scaled = ClientMinMax()(A, None)(A)
    assert scaled.min() == 0 and scaled.max() == 1
    assert (Unchanged()(A, None)(A) == A).all()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("zscore_global", GlobalZScore), ("zscore_client", ClientZScore), ("minmax_client", ClientMinMax), ("none", Unchanged)],
)  # fmt: skip
def test_a_kind_is_chosen_by_its_name(name, kind):
    chosen = validate(compose([f"features.normalisation={name}"])).features.normalisation
    assert chosen.name == name and type(chosen.build()) is kind


def test_an_unknown_kind_is_refused():
    with pytest.raises(
        InputError, match=r"features\.normalisation has no option 'whitening'. There are: fixed, minmax_client, none,"
    ):
        compose(["features.normalisation=whitening"])


def test_constant_bin_is_shifted_not_divided():
    flat = np.full((2, 5, 3), -18.4, np.float32)
    assert np.abs(ClientZScore()(flat, None)(flat)).max() < 1e-5
    assert (ClientMinMax()(flat, None)(flat) == 0).all()
