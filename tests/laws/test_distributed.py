"""Distributed samplers have exactly the laws that linear algebra gives them."""

import jax.numpy as jnp
import numpy as np
import pytest

import quincunx as qx
from tests.laws.networks import (
    admm_law,
    deviation,
    gossip_law,
    of_agent,
    of_mean,
    posterior,
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
