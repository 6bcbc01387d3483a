"""Permutations without a sort are permutations, and look random."""

import jax
import numpy as np
import pytest
from scipy import stats

from quincunx.inference.shuffling import permutation


@pytest.mark.parametrize("rows", [1, 7, 4095, 4096, 4097, 5003, 20_000, 99_991])
def test_every_row_once(rows):
    found = np.asarray(jax.jit(permutation, static_argnums=1)(jax.random.key(rows), rows))
    np.testing.assert_array_equal(np.sort(found), np.arange(rows))


def test_rows_go_everywhere_alike_and_independently():
    rows, bins = 5000, 20
    keys = jax.random.split(jax.random.key(3), 400)
    found = np.asarray(jax.vmap(lambda key: permutation(key, rows))(keys))
    for place in (0, 1, 70, 71, 4999):
        counts = np.bincount(found[:, place] * bins // rows, minlength=bins)
        assert stats.chisquare(counts).pvalue > 1e-4
    for first, second in ((0, 1), (0, 71), (0, 70), (2500, 2501)):
        same = found[:, [first, second]] * 4 // rows
        table = np.histogram2d(same[:, 0], same[:, 1], bins=4)[0]
        assert stats.chisquare(table.ravel()).pvalue > 1e-4
    differences = np.diff(found, axis=1).ravel()
    together = np.mean(np.abs(differences) == 1)
    assert together == pytest.approx(2 / rows, rel=0.15)
    fixed = np.sum(found == np.arange(rows), axis=1)
    assert np.mean(fixed) == pytest.approx(1.0, abs=0.25)
