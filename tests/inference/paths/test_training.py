"""Training: what it survives, what stops it, what it improves; and what is refused."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quincunx as qx
from quincunx.inference.paths import training
from quincunx.inference.paths.annealing import look, move
from quincunx.inference.paths.buffer import empty
from tests.inference.paths.problems import gaussian_target

SMALL = {"steps": 8, "width": 16, "batch": 64}


NORMAL = qx.from_log_density(lambda x: -0.5 * jnp.sum((x - 1) ** 2), np.zeros(2))


def poisoned(x):
    """A normal density that is NaN beyond a wall."""
    value = -0.5 * jnp.sum(x**2)
    return jnp.where(x[0] > 1.5, jnp.nan, value)


@pytest.mark.slow
def test_training_survives_places_where_the_density_is_nan():
    model = qx.from_log_density(poisoned, np.zeros(2))
    fit = qx.infer(
        model,
        method=qx.CMCD(iterations=50, smc=False, start="laplace", **SMALL),
        num_samples=500,
        progress=False,
    )
    from scipy.stats import norm

    exact = np.log(2 * np.pi * norm.cdf(1.5))
    assert abs(fit.log_evidence.value - exact) < 5 * fit.log_evidence.error
    assert "in training were not finite" in str(fit.verdict)
    assert (fit.posterior["x"].values[..., 0] <= 1.5).all()


def test_moves_leave_the_annealed_density_as_it_is():
    target, beta = gaussian_target(), jnp.asarray(0.6)

    factor = np.array([[0.9, 0.0], [0.2, 0.95]])
    own = np.linalg.inv(factor @ factor.T)
    precision = 0.4 * np.eye(2) + 0.6 * own
    mean = np.linalg.solve(precision, 0.6 * own @ np.array([0.2, -0.1]))
    covariance = np.linalg.inv(precision)
    exact = np.random.default_rng(1).multivariate_normal(mean, covariance, size=200_000)

    @jax.jit
    def one(y, key):
        at = look(target, y, gradient=True)
        return move(target, at, beta, jnp.asarray(1.2), key, gradient=True)

    moved, acceptance = one(jnp.asarray(exact), jax.random.key(0))
    after = np.asarray(moved.y)
    assert 0.3 < acceptance < 1
    assert np.abs(after.mean(axis=0) - mean).max() < 5 / 200_000**0.5
    error = np.sqrt(2) * np.diag(covariance).max() / 200_000**0.5
    assert np.abs(np.cov(after.T) - covariance).max() < 5 * error


def test_buffer_keeps_the_newest_and_prefers_the_best():
    buffer = empty(10, 1, jnp.result_type(float))
    for start in (0, 6):
        x = jnp.arange(start, start + 6.0)
        buffer = buffer.push(x[:, None], -jnp.abs(x - 8))
    assert set(np.asarray(buffer.x[:, 0])) == set(range(2, 12))
    drawn = np.asarray(buffer.sample(jax.random.key(0), 4000))[:, 0]
    counts = np.bincount(drawn.astype(int), minlength=12)
    assert counts[8] > counts[5] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel": "pis", "smc": True}, "densities on the way"),
        ({"loss": "log_derivative", "off_policy": True}, "own paths"),
        ({"loss": "adjoint_matching"}, "pis"),
        ({"kernel": "cmdc"}, "Did you mean 'cmcd'"),
        ({"loss": "log_var"}, "Did you mean 'log_variance'"),
        ({"local_search": True}, "off_policy"),
        ({"steps": 1000}, "at most"),
        ({"loss": "maximum_likelihood", "off_policy": True}, "from the buffer alone"),
        ({"loss": "maximum_likelihood", "kernel": "mcd"}, "nothing to train"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(qx.MethodError, match=message):
        qx.DiffusionSampler(**settings)


def test_gradients_are_asked_for():
    model = qx.from_log_density(lambda x: -float(np.sum(x**2)), np.zeros(2), black_box=True)
    with pytest.raises(qx.MethodError, match=r"gradients.*ensemble"):
        qx.infer(model, method="cmcd", progress=False)


@pytest.mark.slow
def test_annealed_particles_find_all_modes():
    model, _, _ = qx.models.load("many_well")
    fit = qx.infer(model, method=qx.AnnealedSMC(), progress=False)
    assert abs(fit.log_evidence.value - 164.6957) < 0.5
    positive = fit.posterior["x"].values.reshape(-1, 32)[:, ::2] > 0
    assert len(np.unique(positive[:, :2], axis=0)) == 4
    assert 0.80 < positive.mean() < 0.89


@pytest.mark.slow
def test_maximum_likelihood_learns_from_the_buffer():
    """Of two modes far apart, which annealed particles find and a Gaussian start does not."""

    def two(x):
        return jnp.logaddexp(-0.5 * jnp.sum((x - 3) ** 2), -0.5 * jnp.sum((x + 3) ** 2))

    model = qx.from_log_density(two, np.zeros(2))
    settings = {"kernel": "dds", "loss": "maximum_likelihood", "smc": False, **SMALL}
    shares = []
    for iterations in (0, 400):
        method = qx.DiffusionSampler(iterations=iterations, **settings)
        fit = qx.infer(model, method=method, progress=False)
        shares.append(fit.importance.share)
    assert shares[1] > max(0.05, 5 * shares[0])
    assert abs(fit.log_evidence.value - np.log(4 * np.pi)) < 5 * fit.log_evidence.error


@pytest.mark.slow
def test_training_evens_out_weights():
    model, data, reference = qx.models.load("grid_25")
    shares = []
    for iterations in (0, 300):
        method = qx.DiffusionSampler(steps=32, iterations=iterations, smc=False)
        fit = qx.infer(model, data, method, progress=False)
        shares.append(fit.importance.share)
    assert shares[1] > 2 * shares[0]
    assert abs(fit.log_evidence.value - reference.log_evidence) < 5 * fit.log_evidence.error


LEARNING = qx.CMCD(iterations=100, start="laplace", **SMALL)
RUN = {"num_samples": 40, "num_chains": 2, "key": 3}


class Killed(BaseException):
    """What a test raises in a training's middle."""


def compiled():
    """How many programs there are for a chunk of training."""
    return training.chunk._cached._cache_size()


@pytest.fixture(scope="module")
def whole():
    before = compiled()
    fit = qx.infer(NORMAL, method=LEARNING, progress=False, **RUN)
    assert compiled() == before + 1  # for all chunks of the training
    return fit


def test_training_ends_with_its_budget(whole):
    limited = qx.CMCD(iterations=100, start="laplace", evaluations=100_000, **SMALL)
    fit = qx.infer(NORMAL, method=limited, progress=False, **RUN)
    assert "budget of 100000 evaluations" in fit.verdict.outcome
    assert 100_000 < fit.costs["warmup_evaluations"] < whole.costs["warmup_evaluations"]


def test_a_second_training_compiles_nothing(whole):
    before = compiled()
    fit = qx.infer(NORMAL, method=LEARNING, progress=False, **{**RUN, "key": 4})
    assert compiled() == before
    assert fit.log_evidence != whole.log_evidence


def killed_at(steps):
    def report(progress):
        if progress.total == 100 and progress.done >= steps:
            raise Killed

    return report


def test_resumed_training_is_the_uninterrupted_one(tmp_path, whole):
    saver = qx.Checkpoint(tmp_path, every=0.0)
    settings = {**RUN, "checkpoint": saver}
    with pytest.raises(Killed):
        qx.infer(NORMAL, method=LEARNING, progress=killed_at(75), **settings)
    seen = []
    settings = {**RUN, "checkpoint": tmp_path, "resume": True}
    again = qx.infer(NORMAL, method=LEARNING, progress=seen.append, **settings)
    assert [state.done for state in seen if state.total == 100] == [75, 100]
    np.testing.assert_array_equal(again.posterior["x"], whole.posterior["x"])
    assert again.log_evidence == whole.log_evidence
    for name in ("gradients", "evaluations", "warmup_evaluations"):
        assert again.costs[name] == whole.costs[name]
    settings = {**settings, "num_samples": 60}
    more = qx.infer(NORMAL, method=LEARNING, progress=seen.append, **settings)
    assert all(state.phase == "training" for state in seen)
    assert len(seen) == 5  # the sampler has been learned: nothing is trained again
    assert more.posterior.sizes["draw"] == 60
    assert more.costs["warmup_gradients"] == whole.costs["warmup_gradients"]


def test_training_of_another_run_is_not_continued(tmp_path):
    settings = {**RUN, "progress": False, "checkpoint": tmp_path}
    qx.infer(NORMAL, method=LEARNING, **settings)
    with pytest.raises(qx.CheckpointError, match="resume=True"):
        qx.infer(NORMAL, method=LEARNING, **settings)
    with pytest.raises(qx.CheckpointError, match="key"):
        qx.infer(NORMAL, method=LEARNING, **{**settings, "key": 4}, resume=True)


def test_training_in_the_background(whole):
    held, seen = threading.Event(), threading.Event()

    def report(progress):
        if progress.total == 100 and progress.done == 50:
            seen.set()
            held.wait()

    run = qx.infer(NORMAL, method=LEARNING, progress=report, blocking=False, **RUN)
    seen.wait()
    assert run.status().state == "training"
    assert "50 of 100 steps" in repr(run)
    asked: list = []
    asking = threading.Thread(target=lambda: asked.append(run.inspect()))
    asking.start()
    while not run._requests:
        time.sleep(0.01)
    held.set()
    fit = run.wait()
    asking.join()
    assert run.status().state == "finished"
    np.testing.assert_array_equal(fit.posterior["x"], whole.posterior["x"])
    assert asked[0].costs["warmup_gradients"] < fit.costs["warmup_gradients"]


def test_cancelled_training_gives_what_was_learned():
    run: list = []
    ready = threading.Event()

    def report(progress):
        ready.wait()
        if progress.total == 100:
            run[0].cancel()

    run.append(qx.infer(NORMAL, method=LEARNING, progress=report, blocking=False, **RUN))
    ready.set()
    fit = run[0].wait()
    assert run[0].status().state == "interrupted"
    assert "cancelled" in fit.verdict.outcome
    assert fit.posterior.sizes == {"chain": 2, "draw": 40, "x_dim_0": 2}
