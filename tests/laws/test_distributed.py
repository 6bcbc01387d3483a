"""Distributed samplers have exactly the laws that linear algebra gives them."""

import jax.numpy as jnp
import numpy as np
import pytest

import quincunx as qx
from tests.laws.networks import (
    admm_law,
    data_of,
    deviation,
    federated_law,
    gossip_law,
    of_agent,
    of_mean,
    posterior,
    regression,
    simulate,
)

RHO = 5.0


class PaperNoise(qx.ADMM):
    """Broken: the published code's noise in place of the calibrated one."""

    def noise_scale(self, rho, degree):
        return jnp.sqrt(2.0) * degree


class WholePrior(qx.ADMM):
    """Broken: every agent counts the whole prior."""

    def prior_share(self):
        return 1.0


class UnevenDuals(qx.ADMM):
    """Broken: the multipliers do not begin with the sum zero."""

    def start(self, density, z):
        agent = super().start(density, z)
        return agent._replace(p=agent.p + 1.0)


def check(method, size, law, **options):
    mean, agents, failed = simulate(method, size, **options)
    assert not failed
    assert deviation(mean, of_mean(law, method.count)) < 4
    for index in (0, method.count - 1):
        assert deviation(agents[:, :, index], of_agent(law, index)) < 4


@pytest.mark.parametrize(
    ("graph", "noise"),
    [("ring", "calibrated"), ("complete", "paper"), ("star", "shared")],
)
def test_admm(graph, noise):
    method = qx.ADMM(agents=5, graph=graph, noise=noise, rho=RHO, steps=5)
    check(method, RHO, admm_law(5, graph, RHO, noise))


@pytest.mark.parametrize("broken", [PaperNoise, WholePrior, UnevenDuals])
def test_broken_admm_is_found_out(broken):
    method = broken(agents=5, graph="ring", noise="calibrated", rho=RHO, steps=5)
    mean, _, _ = simulate(method, RHO)
    assert deviation(mean, of_mean(admm_law(5, "ring", RHO, "calibrated"), 5)) > 6


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["calibrated", "shared", "paper"])
@pytest.mark.parametrize("graph", ["ring", "complete"])
@pytest.mark.parametrize("count", [5, 20])
def test_admm_on_every_network(count, graph, noise):
    method = qx.ADMM(agents=count, graph=graph, noise=noise, rho=RHO, steps=20)
    check(method, RHO, admm_law(count, graph, RHO, noise))


def test_admm_covariances_are_those_that_were_derived():
    for count, graph, ratio in ((5, "complete", 0.385), (5, "ring", 0.186), (20, "ring", 0.187)):
        found = of_mean(admm_law(count, graph, RHO, "paper"), count)[1]
        np.testing.assert_allclose(
            np.trace(found) / np.trace(posterior(count)[1]), ratio, rtol=0.03
        )
    for rho, ratio in ((5, 0.963), (20, 0.990), (100, 0.998)):
        found = of_mean(admm_law(5, "complete", rho, "calibrated"), 5)[1]
        np.testing.assert_allclose(np.trace(found) / np.trace(posterior(5)[1]), ratio, rtol=0.005)


ETA = 0.05


@pytest.mark.parametrize(
    ("graph", "tracking", "noise"),
    [("ring", True, "shared"), ("star", True, "independent"), ("ring", False, "independent")],
)
def test_gossip(graph, tracking, noise):
    options = {"graph": graph, "tracking": tracking, "noise": noise}
    method = qx.DecentralizedSGLD(agents=5, step_size=ETA, steps=4, **options)
    check(method, ETA, gossip_law(5, graph, ETA, tracking, noise), burn=100)


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["shared", "independent"])
@pytest.mark.parametrize("tracking", [True, False])
@pytest.mark.parametrize("graph", ["ring", "complete"])
@pytest.mark.parametrize("count", [5, 20])
def test_gossip_on_every_network(count, graph, tracking, noise):
    options = {"graph": graph, "tracking": tracking, "noise": noise}
    method = qx.DecentralizedSGLD(agents=count, step_size=0.009, steps=40, **options)
    check(method, 0.009, gossip_law(count, graph, 0.009, tracking, noise), burn=100)


class LoudGossip(qx.DecentralizedSGLD):
    """Broken: shared noise as loud as independent noise."""

    def moves(self, mixed, y, eta, xi):
        return mixed - eta * y + jnp.sqrt(2 * eta) * xi


def test_loud_gossip_is_found_out():
    method = LoudGossip(agents=5, graph="ring", step_size=ETA, steps=4)
    mean, _, _ = simulate(method, ETA, burn=100)
    assert deviation(mean, of_mean(gossip_law(5, "ring", ETA, True, "shared"), 5)) > 6


EPS = 0.01


@pytest.mark.parametrize("surrogate", ["taylor", "laplace", "none"])
def test_federated(surrogate):
    method = qx.FederatedSGLD(agents=5, surrogate=surrogate, local_steps=3, step_size=EPS, steps=3)
    draw, agents, failed = simulate(method, EPS)
    law = federated_law(5, EPS, 3, surrogate != "none")
    assert not failed
    assert deviation(draw, law) < 4
    assert deviation(agents[:, :, 3], law) < 4


@pytest.mark.slow
@pytest.mark.parametrize("surrogate", ["taylor", "none"])
@pytest.mark.parametrize("local_steps", [1, 10])
def test_federated_over_twenty_agents(local_steps, surrogate):
    method = qx.FederatedSGLD(
        agents=20, surrogate=surrogate, local_steps=local_steps, step_size=0.002, steps=20
    )
    draw, _, _ = simulate(method, 0.002)
    assert deviation(draw, federated_law(20, 0.002, local_steps, surrogate != "none")) < 4


class Unweighted(qx.FederatedSGLD):
    """Broken: the gradient is not divided by the probability of the agent."""

    def drift(self, slope, own, every):
        return slope - self.count * own + every


@pytest.mark.parametrize("surrogate", ["taylor", "none"])
def test_a_missing_weight_is_found_out(surrogate):
    method = Unweighted(agents=5, surrogate=surrogate, local_steps=3, step_size=EPS, steps=3)
    found, off = federated_law(5, EPS, 3, surrogate != "none"), simulate(method, EPS)[0]
    assert deviation(off, found) > 6


class Unweighed(qx.Consensus):
    """Broken: draws are averaged without weights."""

    def surveyed(self, own, found):
        flat = jnp.eye(len(found.mode))
        return super().surveyed(own, found)._replace(own=flat, every=self.count * flat)

    def _learnt(self, seen, before, pool):
        return before


def consensus_of(method):
    """How far mean and covariance are off, in standard errors and relatively."""
    rows = {name: array[:140] for name, array in data_of(3).items()}
    fit = qx.infer(regression, rows, method, num_warmup=400, num_samples=1000, progress=False)
    exact = qx.infer(regression, rows, num_samples=1000, num_warmup=300, progress=False)
    one, other = (f.posterior["theta"].values.reshape(-1, 2) for f in (fit, exact))
    ess = np.minimum(fit.convergence.ess_bulk, exact.convergence.ess_bulk)
    error = np.hypot(one.std(0), other.std(0)) / np.sqrt(ess)
    return np.abs(one.mean(0) - other.mean(0)) / error, one.std(0) / other.std(0) - 1


def test_consensus_of_gaussians_is_exact():
    off, wider = consensus_of(qx.Consensus(agents=(5, 35, 100)))
    assert np.all(off < 4)
    assert np.all(np.abs(wider) < 0.1)


@pytest.mark.slow
def test_consensus_without_weights_is_found_out():
    off, wider = consensus_of(Unweighed(agents=(5, 35, 100)))
    assert np.any(off > 6) or np.any(np.abs(wider) > 0.3)
