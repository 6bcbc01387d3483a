"""Uniform numbers by counter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from scipy import stats

from quincunx.inference import counters


def test_the_words_are_those_of_threefry():
    seed = jnp.array([0x13198A2E, 0x03707344], jnp.uint32)
    counter = jnp.array([0x243F6A88, 0x85A308D3], jnp.uint32)
    found = counters.block(seed, counter[0], counter[1])
    assert [hex(int(word)) for word in found] == ["0xc4923a9c", "0x483df7a0"]  # Random123's vector
    np.testing.assert_array_equal(found, threefry_2x32(seed, counter))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_numbers_are_uniform_and_inside_the_open_interval(dtype):
    seed = jnp.array([1, 2], jnp.uint32)
    trials = jnp.arange(100_000)
    draw = jax.jit(jax.vmap(lambda trial: counters.uniform(seed, 3, trial, dtype)))
    values = np.asarray(draw(trials))
    assert values.dtype == dtype
    assert values.min() > 0
    assert values.max() < 1
    assert stats.kstest(values.astype(float), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 0.015
    assert len(np.unique(values)) > (90_000 if dtype == jnp.float32 else 99_999)


def test_extreme_words_give_numbers_inside(monkeypatch):
    for word in (0, 2**32 - 1):
        words = (jnp.uint32(word), jnp.uint32(word))
        monkeypatch.setattr(counters, "block", lambda *arguments, words=words: words)
        for dtype in (jnp.float32, jnp.float64):
            assert 0 < float(counters.uniform(jnp.zeros(2, jnp.uint32), 0, 0, dtype)) < 1
