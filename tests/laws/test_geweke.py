"""Joint distribution tests: data given parameters, then parameters given data by one transition.

Started from the prior, the pair (parameters, data) keeps its law, so that after some rounds the
parameters still follow the prior. Geweke (2004), Getting it right, JASA 99:799.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import quincunx as qx
import quincunx.distributions as dist
from tests.laws.kernels import ColdNUTS, NoEllipse, NoJacobian, WrongShrink

LANES, ROUNDS = 20_000, 6


@qx.model
def gaussian(y):
    mu = qx.sample("mu", dist.Normal(0.5, 1.0))
    tau = qx.sample("tau", dist.Gamma(4.0, 4.0))
    with qx.plate("row", y) as rows:
        qx.sample("y", dist.Normal(mu, tau), obs=rows)


@qx.model
def poisson(y):
    level = qx.sample("level", dist.Normal(1.0, 0.7))
    spread = qx.sample("spread", dist.HalfNormal(0.5))
    with qx.plate("row", y) as rows:
        effect = qx.sample("effect", dist.Normal(0.0, 1.0))
        qx.sample("y", dist.Poisson(jnp.exp(level + spread * effect)), obs=rows)


MODELS = {"gaussian": (gaussian, np.zeros(4)), "poisson": (poisson, np.zeros(3, int))}


def smallest_p_value(model, kernel):
    """Kolmogorov-Smirnov tests of each parameter after some rounds against the prior."""
    fn, like = MODELS[model]
    density = qx.compile(fn, {"y": like})

    def round_(z, key):
        data_key, key = jax.random.split(key)
        values = density.latent(density.constrain(z))
        y = density.predict(values, data_key)["y"].astype(density.leaves[0].dtype)
        given = eqx.tree_at(lambda d: d.leaves, density, [y])
        state, _ = kernel.step(given, kernel.init(given, z, key), key)
        return kernel.position(state), None

    @jax.jit
    def after(keys):
        def lane(key):
            prior = density.latent(density.simulate(key))
            z = density.unconstrain(prior)
            rounds = jax.random.split(jax.random.fold_in(key, 1), ROUNDS)
            return density.latent(density.constrain(jax.lax.scan(round_, z, rounds)[0]))

        return jax.vmap(lane)(keys)

    first, second = jax.random.split(jax.random.key(9))
    found = jax.device_get(after(jax.random.split(first, LANES)))
    prior = jax.jit(jax.vmap(lambda key: density.latent(density.simulate(key))))
    fresh = jax.device_get(prior(jax.random.split(second, LANES)))
    return min(
        stats.ks_2samp(found[name].reshape(LANES, -1)[:, 0], fresh[name].reshape(LANES, -1)[:, 0])
        .pvalue for name in fresh
    )  # fmt: skip


KERNELS = {
    "nuts": qx.NUTS(step_size=0.3, max_tree_depth=4),
    "polar_slice": qx.PolarSlice(width=1.0),
    "polar_slice_linear": qx.PolarSlice(radial="linear", width=1.0),
    "elliptical_slice": qx.EllipticalSlice(),
    "hit_and_run_slice": qx.HitAndRunSlice(width=1.0),
}


@pytest.mark.parametrize("model", ["gaussian", pytest.param("poisson", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KERNELS)
def test_the_joint_law_stays_as_it_is(name, model):
    assert smallest_p_value(model, KERNELS[name]) > 1e-3


BROKEN = [
    ColdNUTS(step_size=0.3, max_tree_depth=4, power=1.5),
    NoJacobian(radial="linear", width=1.0),
    WrongShrink(width=1.0),
    NoEllipse(),
]


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN, ids=lambda kernel: kernel.name)
def test_the_joint_law_changes_under_a_broken_kernel(broken):
    assert smallest_p_value("poisson", broken) < 1e-5
