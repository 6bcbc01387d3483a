"""Laws that every Markov kernel must obey; new methods are added to `KERNELS`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import quincunx as qx
import quincunx.distributions as dist
from quincunx.inference import session
from quincunx.inference.diagnostics.convergence import convergence
from quincunx.inference.distributed.network import Networked
from quincunx.inference.registry import _REGISTRY
from quincunx.inference.stochastic import StochasticKernel
from tests.laws.kernels import (
    ColdNUTS,
    NoDensityRatio,
    NoEllipse,
    NoJacobian,
    NoVolume,
    RandomWalk,
    Unfrozen,
    WrongShrink,
)
from tests.scenarios import conjugate, conjugate_posterior

KERNELS = {
    "nuts": qx.NUTS(),
    "nuts_dense": qx.NUTS(mass_matrix="dense"),
    "nuts_low_rank": qx.NUTS(mass_matrix="low_rank"),
    "random_walk": RandomWalk(),
    "random_walk_free": RandomWalk(execution="free"),
    "polar_slice": qx.PolarSlice(),
    "elliptical_slice": qx.EllipticalSlice(),
    "elliptical_slice_prior": qx.EllipticalSlice(ellipse="prior"),
    "hit_and_run_slice": qx.HitAndRunSlice(),
    "sgld": qx.SGLD(batch_size=2),
    "sgld_control_variates": qx.SGLD(batch_size=2, control_variates="mode", steps=2),
    "sghmc": qx.SGHMC(batch_size=2),
    "sgnht": qx.SGNHT(batch_size=2),
    "structured_sgld": qx.StructuredSGLD(batch_size=2, history=50),
    "bregman_langevin": qx.BregmanLangevin(),
    "proximal_mala": qx.ProximalMALA(),
    "admm": qx.ADMM(agents=(2, 3), noise="shared"),
    "decentralized_sgld": qx.DecentralizedSGLD(agents=2),
    "consensus": qx.Consensus(agents=2),
    "federated_sgld": qx.FederatedSGLD(agents=2, local_steps=2),
}
SHORT = {"num_warmup": 60, "num_samples": 40, "num_chains": 2, "progress": False}
Y = np.array([0.3, 1.9, -0.4, 2.2, 1.1])


@pytest.fixture(scope="module", params=KERNELS)
def kernel(request):
    yield KERNELS[request.param]
    jax.clear_caches()


@pytest.fixture(scope="module")
def short(kernel):
    return qx.infer(conjugate, {"y": Y}, kernel, key=5, **SHORT)


def draws(fit, name="mu"):
    return fit.posterior[name].values


def test_every_registered_method_is_under_these_laws():
    kernels = [cls for cls in _REGISTRY.values() if issubclass(cls, qx.Kernel)]
    ours = {cls.name for cls in kernels if cls.__module__.startswith("quincunx.")}
    assert ours <= {type(kernel).name for kernel in KERNELS.values()}
    assert ours <= set(qx.methods().index)


def test_step_keeps_the_state_and_reports_the_core(kernel):
    density = kernel.share_out(kernel.target(qx.compile(conjugate, {"y": Y})))

    @eqx.filter_jit
    def run(density, key):
        state = kernel.init(density, jnp.zeros(1), key)
        return state, *kernel.step(density, state, key)

    before, after, info = run(density, jax.random.key(0))
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert [leaf.shape for leaf in jax.tree.leaves(before)] == [
        leaf.shape for leaf in jax.tree.leaves(after)
    ]
    assert kernel.position(after).shape == (1,)
    assert all(jnp.shape(leaf) == () for leaf in jax.tree.leaves(info._replace(agents={})))
    assert info.diverging.dtype == bool
    assert info.evaluations >= 1
    assert 0 <= info.acceptance <= 1


def test_same_key_same_draws_other_key_other_draws(kernel, short):
    again = qx.infer(conjugate, {"y": Y}, kernel, key=jax.random.key(5), **SHORT)
    np.testing.assert_array_equal(draws(short), draws(again))
    other = qx.infer(conjugate, {"y": Y}, kernel, key=6, **SHORT)
    assert not np.any(draws(short) == draws(other))
    assert np.all(draws(short)[0] != draws(short)[1])


def test_sequential_is_vectorized(kernel, short):
    if type(kernel).exchange is not qx.Kernel.exchange:
        pytest.skip("its chains take down each other's positions, and alone they cannot")
    together, settings = short, SHORT
    if kernel.state_axes != 0:  # chains that learn from each other do not learn the same alone
        settings = {**SHORT, "num_warmup": 0}
        together = qx.infer(conjugate, {"y": Y}, kernel, key=5, **settings)
    one_by_one = qx.infer(conjugate, {"y": Y}, kernel, key=5, chain_method="sequential", **settings)
    np.testing.assert_allclose(draws(together), draws(one_by_one), rtol=1e-6)
    for name in ("gradients", "evaluations"):
        assert together.costs[name] == one_by_one.costs[name]


def test_where_chunks_are_cut_changes_nothing(kernel, short, monkeypatch):
    class OddPace(session.Pace):
        def update(self, steps, elapsed):
            self.steps = 7

    monkeypatch.setattr(session, "Pace", OddPace)
    cut = qx.infer(conjugate, {"y": Y}, kernel, key=5, **SHORT)
    np.testing.assert_array_equal(draws(short), draws(cut))


def test_thinning_keeps_every_third(kernel, short):
    thinned = qx.infer(
        conjugate, {"y": Y}, kernel, key=5, thinning=3, **{**SHORT, "num_samples": 13}
    )
    np.testing.assert_array_equal(draws(thinned), draws(short)[:, 2:39:3])
    stats_of = thinned.tree["sample_stats"]
    whole = short.tree["sample_stats"]["evaluations"].values[:, :39].reshape(2, 13, 3).sum(-1)
    np.testing.assert_array_equal(stats_of["evaluations"].values, whole)


def test_new_data_of_the_same_shape_trace_and_compile_nothing(kernel):
    runs = []

    @qx.model
    def counted(y=None):
        runs.append(1)
        mu = qx.sample("mu", dist.Normal(1.0, 2.0))
        with qx.plate("row", y) as t:
            qx.sample("y", dist.Normal(mu, 1.5), obs=t)

    qx.infer(counted, {"y": Y}, kernel, **SHORT)
    traced = len(runs)
    blocks = 4 if isinstance(kernel, StochasticKernel) else 0  # of other sizes, each traced once
    blocks += 6 if isinstance(kernel, Networked) else 0
    assert traced <= 8 + blocks
    again = qx.infer(counted, {"y": Y + 1}, kernel, key=3, **SHORT)
    assert len(runs) == traced
    assert again.costs["compile_seconds"] < 1.0


def test_moments_of_a_conjugate_posterior(kernel):
    if kernel.kind is not qx.Kind.EXACT:
        pytest.skip("the law of a biased kernel is another one; test_stochastic.py has it")
    fit = qx.infer(conjugate, {"y": Y}, kernel, num_warmup=500, num_samples=3000, progress=False)
    mean, sd = conjugate_posterior(Y)
    found = draws(fit)
    ess = fit.convergence.ess_bulk[0]
    assert ess > 400
    assert abs(found.mean() - mean) < 4.5 * sd / np.sqrt(ess)
    squares = (found - mean) ** 2
    error = squares.std() / np.sqrt(convergence({"s": squares}).ess_bulk[0])
    assert abs(squares.mean() - sd**2) < 4.5 * error
    assert fit.verdict.status == "ok", fit.verdict


def skewed(dims=2):
    """A skewed and curved law with exact draws: x0 ~ log-gamma, x1 | x0 ~ N(x0^2 / 2, 0.8)."""

    def log_density(x):
        return 2.0 * x[0] - jnp.exp(x[0]) - 0.5 * ((x[1] - 0.5 * x[0] ** 2) / 0.8) ** 2

    rng = np.random.default_rng(11)
    first = np.log(rng.gamma(2.0, size=40_000))
    second = 0.5 * first**2 + 0.8 * rng.normal(size=first.size)
    return qx.from_log_density(log_density, np.zeros(dims)), np.stack([first, second], axis=1)


def invariance(kernel, steps=3):
    """Smallest p-value, over several statistics, that `steps` transitions keep the law."""
    bare, exact = skewed()
    density = kernel.target(qx.compile(bare))
    moved, fresh = exact[:20_000], exact[20_000:]

    @eqx.filter_jit
    def transit(density, positions):
        def one(z, key):
            state = kernel.init(density, z, key)

            def transition(state, transition_key):
                moved, _ = kernel.step(density, state, transition_key)
                return jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), moved, state), None

            state = jax.tree.map(jnp.asarray, state)
            state, _ = jax.lax.scan(transition, state, jax.random.split(key, steps))
            return kernel.position(state)

        keys = jax.random.split(jax.random.key(8), len(positions))
        return jax.vmap(one)(positions, keys)

    after = np.asarray(transit(density, jnp.asarray(moved)))
    assert np.mean(np.any(after != moved, axis=1)) > 0.3
    statistics = (
        lambda x: x[:, 0],
        lambda x: x[:, 1],
        lambda x: np.linalg.norm(x, axis=1),
        lambda x: x[:, 0] * x[:, 1],
        lambda x: x[:, 1] - 0.5 * x[:, 0] ** 2,
    )
    return min(stats.ks_2samp(f(after), f(fresh)).pvalue for f in statistics)


INVARIANT = {
    "nuts": qx.NUTS(step_size=0.7),
    "nuts_short_trees": qx.NUTS(step_size=0.4, max_tree_depth=2),
    "random_walk": RandomWalk(),
    "polar_slice": qx.PolarSlice(width=1.0),
    "polar_slice_linear": qx.PolarSlice(radial="linear", width=1.0),
    "polar_slice_narrow": qx.PolarSlice(radial="linear", width=0.1, max_steps_out=5),
    "polar_slice_wide": qx.PolarSlice(width=20.0),
    "polar_slice_no_steps": qx.PolarSlice(width=3.0, max_steps_out=1),
    "polar_slice_capped": qx.PolarSlice(width=2.0, max_shrinks=2),
    "elliptical_slice": qx.EllipticalSlice(),
    "elliptical_slice_capped": qx.EllipticalSlice(max_shrinks=2),
    "hit_and_run_slice": qx.HitAndRunSlice(width=1.0),
    "hit_and_run_slice_narrow": qx.HitAndRunSlice(width=0.2, max_steps_out=3),
    "bregman_langevin": qx.BregmanLangevin(step_size=0.3),
    "bregman_langevin_hypentropy": qx.BregmanLangevin(geometry="hypentropy", step_size=0.3),
    "proximal_mala": qx.ProximalMALA(step_size=0.3),
}


@pytest.mark.parametrize("name", INVARIANT)
def test_kernel_leaves_its_target_invariant(name):
    assert invariance(INVARIANT[name]) > 1e-3


BROKEN = [
    ColdNUTS(step_size=0.7),
    NoDensityRatio(),
    NoJacobian(radial="linear", width=1.0),
    WrongShrink(width=1.0),
    Unfrozen(width=1.0),
    NoEllipse(),
    NoVolume(geometry="hypentropy", step_size=0.3),
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda kernel: kernel.name)
def test_the_invariance_test_sees_a_broken_kernel(broken):
    assert invariance(broken) < 1e-6
