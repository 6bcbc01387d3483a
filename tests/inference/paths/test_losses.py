"""Gradients of the losses against that of the reverse Kullback-Leibler divergence."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quincunx.inference.paths.control import Control
from quincunx.inference.paths.losses import Learned, adjoint_matching, loss_on_paths
from quincunx.inference.paths.process import back_from, simulate
from tests.inference.paths.problems import gaussian_target, untrained

BATCH, ROUNDS = 4000, 200  # without derivatives through paths gradients are noisy


def learned(kernel="bridge", steps=4, strength=0.15):
    process = untrained(kernel, steps=steps, strength=strength)
    # the score feature is a constant of derivatives, so the identities hold without it
    limits = lambda p: (p.control.limit, p.backward.limit)  # noqa: E731
    process = eqx.tree_at(limits, process, (0.0, 0.0))
    flow = Control(2, 16, jax.random.key(9), gate=0.0, limit=1.0, out=1)
    return Learned(process, flow, jnp.asarray(0.3))


def parts(gradient):
    """Gradients of the forward control, of the backward one, and of the schedule."""
    process = gradient.process
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])  # noqa: E731
    schedule = (process.log_size, process.mean, process.log_sd, process.increments)
    return flat(process.control), flat(process.backward), flat(schedule)


def mean_gradients(model, names):
    """Mean gradients by loss, from the same batches."""
    target = gaussian_target()
    variables, frozen = eqx.partition(model, eqx.is_inexact_array)

    def gradient(name, key):
        def loss(values):
            whole = eqx.combine(values, frozen)
            through = name in ("reverse_kl", "stick_the_landing")
            paths = simulate(whole.process, target, key, BATCH, differentiable=through)
            batch_mean = jax.lax.stop_gradient(jnp.mean(whole.process.log_weights(paths)))
            whole = eqx.tree_at(lambda m: m.log_z, whole, batch_mean)
            return loss_on_paths(whole, paths, name, 2).value

        return jax.grad(loss)(variables)

    found = {}
    keys = jax.random.split(jax.random.key(4), ROUNDS)
    for name in names:
        each = jax.jit(lambda keys, name=name: jax.lax.map(lambda k: gradient(name, k), keys))(keys)
        found[name] = parts(jax.tree.map(lambda leaf: leaf.mean(axis=0), each))
    return found


@pytest.fixture(scope="module")
def gradients():
    names = ("reverse_kl", "stick_the_landing", "log_derivative", "log_variance")
    return mean_gradients(learned(), (*names, "trajectory_balance"))


@pytest.fixture(scope="module")
def gradients_of_uneven_weights():
    model = learned(strength=0.3)
    return mean_gradients(model, ("reverse_kl", "log_derivative", "log_variance"))


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["stick_the_landing", "log_derivative", "log_variance", "trajectory_balance"]
)
def test_forward_control_has_the_gradient_of_the_divergence(gradients, name):
    ours, exact = gradients[name][0], gradients["reverse_kl"][0]
    assert cosine(ours, exact) > 0.99
    assert np.linalg.norm(ours) == pytest.approx(np.linalg.norm(exact), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stick_the_landing", "log_derivative"])
@pytest.mark.parametrize("part", [1, 2])
def test_these_have_it_for_all_parameters(gradients, name, part):
    ours, exact = gradients[name][part], gradients["reverse_kl"][part]
    assert cosine(ours, exact) > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("part", [1, 2])
def test_the_log_variance_has_another_gradient_for_backward_kernels(
    gradients_of_uneven_weights, part
):
    """And for the schedule; the two agree where weights are nearly one."""
    found = {name: each[part] for name, each in gradients_of_uneven_weights.items()}
    exact = found["reverse_kl"]
    close = np.linalg.norm(found["log_derivative"] - exact)
    assert close < 0.1 * np.linalg.norm(exact)
    assert np.linalg.norm(found["log_variance"] - exact) > 5 * close


@pytest.mark.slow
@pytest.mark.parametrize("name", ["log_variance", "log_derivative", "trajectory_balance"])
def test_paths_are_constants_for_these(name):
    """No derivative goes through the simulation, whatever it is asked for."""
    model, target = learned(), gaussian_target()
    variables, frozen = eqx.partition(model, eqx.is_inexact_array)

    def loss(values, given):
        whole = eqx.combine(values, frozen)
        paths = given or simulate(whole.process, target, jax.random.key(2), 50)
        return loss_on_paths(whole, paths, name, 2).value

    fixed = simulate(model.process, target, jax.random.key(2), 50)
    one = jax.tree.leaves(jax.grad(loss)(variables, None))
    two = jax.tree.leaves(jax.grad(loss)(variables, fixed))
    assert all(np.allclose(a, b) for a, b in zip(one, two, strict=True))


def test_noise_of_exploration_is_not_in_the_loss():
    """log F is that of the kernel, not of the wider law that the paths are from."""
    model, target = learned("cmcd"), gaussian_target()
    paths = simulate(model.process, target, jax.random.key(2), 4000, explore=0.5)
    forward, _ = model.process.log_kernels(paths)
    plan = model.process.plan()
    at = jax.tree.map(lambda leaf: leaf[0], plan)
    mean, variance = model.process.forward(at, paths.x[0], paths.score[0])
    rest = np.asarray(paths.x[1] - mean)
    assert rest.var() == pytest.approx(np.asarray(variance).mean() + 0.25, rel=0.1)
    expected = -0.5 * np.sum(rest**2 / variance + np.log(2 * np.pi * variance), axis=1)
    assert np.allclose(forward[0], expected)


@pytest.mark.parametrize(
    "name", ["subtrajectory_balance", "segment_log_variance", "maximum_likelihood"]
)
@pytest.mark.parametrize("kernel", ["pis", "cmcd"])
def test_losses_on_pieces_are_finite(name, kernel):
    model, target = learned(kernel), gaussian_target()
    paths = back_from(model.process, target, jax.random.key(1), jnp.ones((20, 2)))
    found = loss_on_paths(model, paths, name, 2)
    assert np.isfinite(found.value)
    assert found.left_out == 0


def test_whole_path_is_one_segment():
    """Segment losses with one segment are those of whole paths."""
    model, target = learned("cmcd"), gaussian_target()
    paths = simulate(model.process, target, jax.random.key(1), 50)
    whole = loss_on_paths(model, paths, "log_variance", 1).value
    assert loss_on_paths(model, paths, "segment_log_variance", 1).value == pytest.approx(whole)


def test_subtrajectory_balance_against_the_sum_over_pairs():
    model, target = learned("cmcd"), gaussian_target()
    paths = simulate(model.process, target, jax.random.key(1), 30)
    found = loss_on_paths(model, paths, "subtrajectory_balance", 1).value
    process, steps = model.process, model.process.steps
    forward, backward = map(np.asarray, process.log_kernels(paths))
    b, times = process.inverse_temperatures, model.flow.times(steps)
    f = []
    for k in range(steps + 1):
        at = jax.tree.map(lambda leaf, k=k: leaf[k], times)
        flow = model.flow(at, paths.x[k], jnp.zeros((30, 1)))[:, 0]
        f.append(np.asarray(process.annealed(b[k], paths.x[k], paths.log_gamma[k]) + flow))
    f[0] = np.asarray(process.log_start(paths.x[0]) + model.log_z)
    f[-1] = np.asarray(paths.log_gamma[-1])
    total, weights = 0.0, 0.0
    for i in range(steps):
        for j in range(i + 1, steps + 1):
            ratio = (backward - forward)[i:j].sum(axis=0)
            total += 0.9 ** (j - i) * np.mean((f[j] - f[i] + ratio) ** 2)
            weights += 0.9 ** (j - i)
    assert found == pytest.approx(total / weights)


def test_paths_that_are_not_finite_are_left_out():
    model, target = learned("cmcd"), gaussian_target()
    paths = simulate(model.process, target, jax.random.key(1), 50)
    clean = jax.tree.map(lambda leaf: leaf[:, 1:], paths)
    broken = paths._replace(log_gamma=paths.log_gamma.at[-1, 0].set(-jnp.inf))
    for name in ("log_variance", "log_derivative", "trajectory_balance", "segment_log_variance"):
        found = loss_on_paths(model, broken, name, 2)
        assert found.left_out == 1
        assert found.value == pytest.approx(loss_on_paths(model, clean, name, 2).value)


def test_adjoint_matching_regresses_on_the_adjoint():
    """A control of zero leaves the squares of what it regresses on."""
    model, target = learned("pis", steps=8), gaussian_target()
    ends = jax.random.normal(jax.random.key(3), (200, 2))
    score = target.with_score(ends)[1]
    found = adjoint_matching(model, ends, score, jax.random.key(0))
    aim = np.asarray(score) + np.asarray(ends) / np.exp(2 * np.asarray(model.process.log_sd))
    assert float(found.value) >= 0
    zero = eqx.tree_at(
        lambda m: (m.process.control.last.weight, m.process.control.last.bias),
        model,
        (jnp.zeros((2, 16)), jnp.zeros(2)),
    )
    value = adjoint_matching(zero, ends, score, jax.random.key(0)).value
    assert value == pytest.approx(np.mean(np.sum(aim**2, axis=1)))
