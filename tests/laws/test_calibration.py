"""Simulation-based calibration: ranks of prior draws among posterior draws are uniform.

Talts, Betancourt, Simpson, Vehtari and Gelman (2018), arXiv:1804.06788; the log likelihood is
ranked too, since marginal ranks alone pass a sampler that ignores the data.
"""

import jax
import numpy as np
import pytest
from scipy import stats

import quincunx as qx
import quincunx.distributions as dist
from tests.laws.kernels import ColdNUTS, NoJacobian

SIMULATIONS, DRAWS = 300, 15


@qx.model
def hierarchy(y):
    mu = qx.sample("mu", dist.Normal(0, 1))
    tau = qx.sample("tau", dist.Gamma(3, 3))
    with qx.plate("group", y.shape[0]):
        theta = qx.sample("theta", dist.Normal(mu, tau))
        qx.sample("y", dist.Normal(theta, 0.7), obs=y)


def ranks(kernel):
    """Ranks, in 0..DRAWS, of each quantity in each simulation.

    Ranks are uniform if the draws are independent, so slice samplers are thinned more.
    """
    num_warmup, thinning = (150, 10) if isinstance(kernel, qx.NUTS) else (1000, 100)
    prior = qx.compile(hierarchy, {"y": np.zeros(5)})
    keys = jax.random.split(jax.random.key(3), SIMULATIONS)
    drawn = jax.device_get(jax.vmap(prior.simulate)(keys))
    likelihood = jax.jit(lambda density, values: density.pointwise_at(values)["y"].sum())
    found = []
    for index in range(SIMULATIONS):
        truth = {name: values[index] for name, values in drawn.items()}
        fit = qx.infer(
            hierarchy, {"y": truth["y"]}, kernel, key=index, num_chains=1, num_warmup=num_warmup,
            num_samples=DRAWS, thinning=thinning, progress=False,
        )  # fmt: skip
        draws = {name: fit.posterior[name].values[0] for name in ("mu", "tau", "theta")}
        levels = fit.log_likelihood()["y"].sum("group").values[0]
        at_truth = float(likelihood(fit.density, {n: truth[n] for n in draws}))
        found.append(
            (
                np.sum(draws["mu"] < truth["mu"]),
                np.sum(draws["tau"] < truth["tau"]),
                np.sum(draws["theta"][:, 0] < truth["theta"][0]),
                np.sum(levels < at_truth),
            )
        )
    return np.array(found)


def smallest_p_value(kernel):
    counts = [np.bincount(column, minlength=DRAWS + 1) for column in ranks(kernel).T]
    return min(stats.chisquare(count).pvalue for count in counts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel",
    [
        qx.NUTS(target_accept=0.9),
        qx.PolarSlice(),
        qx.EllipticalSlice(),
        qx.HitAndRunSlice(),
    ],
    ids=lambda kernel: kernel.name,
)
def test_ranks_are_uniform(kernel):
    assert smallest_p_value(kernel) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken", [ColdNUTS(target_accept=0.9, power=2.0), NoJacobian(radial="linear")]
)
def test_the_ranks_of_a_broken_kernel_are_not(broken):
    assert smallest_p_value(broken) < 1e-4
