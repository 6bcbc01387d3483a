"""Time that goes to compilation is told apart, each moment once."""

import time

import jax
import jax.numpy as jnp
import pytest

import quincunx as qx
from quincunx.inference.compilation import Compilation, compiling
from tests.inference.test_weighted import Fitted, Y
from tests.scenarios import conjugate


def test_parts_within_others_count_once():
    spent = Compilation()
    for start, end in [(0.0, 1.0), (2.0, 3.0), (1.5, 4.0), (4.0, 5.0), (4.5, 6.0)]:
        spent.add(start, end)
    assert spent.seconds == pytest.approx(1 + 2.5 + 1 + 1)


def test_a_second_call_compiles_nothing():
    @jax.jit
    def inner(x):
        return jnp.tanh(x) @ x

    @jax.jit
    def outer(x):
        return inner(x) + inner(2 * x)

    x = jnp.ones((8, 8))
    began = time.perf_counter()
    with compiling() as spent:
        outer(x).block_until_ready()
    assert 0 < spent.seconds <= time.perf_counter() - began
    with compiling() as again:
        outer(x).block_until_ready()
    assert again.seconds == 0


def test_learned_samplers_tell_compilation_apart():
    began = time.perf_counter()
    fit = qx.infer(conjugate, {"y": Y}, Fitted(), num_samples=300, progress=False)
    elapsed = time.perf_counter() - began
    costs = fit.costs
    assert costs["compile_seconds"] > costs["sample_seconds"] > 0
    assert costs["compile_seconds"] + costs["sample_seconds"] <= elapsed
    again = fit.sampler.draw(300, batches=4).costs
    assert again["compile_seconds"] < 0.1 * costs["compile_seconds"]
