"""Runs of distributed samplers: what they report and what they refuse."""

import numpy as np
import pytest

import quincunx as qx
import quincunx.distributions as dist
from quincunx.inference.distributed.graph import Graph, as_edges
from tests.laws.networks import adjacency, data_of, metropolis, posterior, regression

SHORT = {"num_warmup": 0, "num_samples": 20, "progress": False}


def test_graphs():
    edges = {"complete": 10, "ring": 5, "star": 4}
    for name, count in edges.items():
        graph = Graph.of(name, 5)
        assert len(graph.edges) == count
        np.testing.assert_array_equal(adjacency(name, 5).sum(1), graph.degrees)
        np.testing.assert_allclose(graph.metropolis, metropolis(name, 5))
        for matching in graph.matchings:
            agents = [agent for edge in matching for agent in edge]
            assert len(set(agents)) == len(agents)
        assert sorted(edge for group in graph.matchings for edge in group) == list(graph.edges)
    assert Graph.of("grid", 6).edges == ((0, 1), (0, 2), (1, 3), (2, 3), (2, 4), (3, 5), (4, 5))
    path = ((0, 1), (1, 2))
    assert as_edges(adjacency(path, 3)) == path
    assert as_edges(path) == path


class Networkx:
    """What is used of a networkx graph."""

    nodes = ("a", "b", "c")

    def edges(self):
        return [("c", "b"), ("a", "b")]


def test_a_networkx_graph():
    assert as_edges(Networkx()) == ((0, 1), (1, 2))


def test_graphs_that_are_refused():
    with pytest.raises(qx.MethodError, match="Unknown graph 'rinf'.* 'ring'"):
        qx.ADMM(graph="rinf")
    with pytest.raises(qx.MethodError, match="agent 2 cannot be reached from agent 0"):
        qx.ADMM(agents=4, graph=((0, 1), (2, 3)))
    with pytest.raises(qx.MethodError, match="edge to agent 7, and there are 4"):
        qx.ADMM(agents=4, graph=((0, 1), (0, 7)))
    with pytest.raises(qx.MethodError, match="symmetric adjacency matrix"):
        qx.ADMM(graph=np.triu(np.ones((4, 4))))


def test_newton_steps_are_refused_where_the_gradient_jumps():
    @qx.model
    def kinked(x, y=None):
        theta = qx.sample("theta", dist.Laplace(0, 1).expand([2]).to_event(1))
        with qx.plate("row", x, y) as (x, y):
            qx.sample("y", dist.Normal(x @ theta, 1), obs=y)

    density = qx.compile(kinked, {"x": np.ones((8, 2)), "y": np.zeros(8)})
    assert "kinks in 'theta'" in qx.ADMM().missing(density)
    assert qx.DecentralizedSGLD().missing(density) is None


def test_admm_reports():
    method = qx.ADMM(agents=(90, 30, 50, 30), graph="ring", noise="shared")
    fit = qx.infer(regression, data_of(4), method, num_samples=1000, num_warmup=50, progress=False)
    mean, covariance = posterior(4)
    error = np.sqrt(np.diag(covariance) / fit.convergence.ess_bulk)
    assert np.all(np.abs(fit.posterior["theta"].mean(("chain", "draw")) - mean) < 4.5 * error)
    assert fit.agents["theta"].dims == ("chain", "draw", "agent", "theta_dim_0")
    gap = fit.agents["theta"].mean("agent") - fit.posterior["theta"]
    assert np.abs(gap).max() < 1e-10
    spread = np.sqrt(fit.agents["theta"].var("agent").mean("theta_dim_0"))
    np.testing.assert_allclose(fit.tree["sample_stats"]["consensus"], spread, rtol=1e-6)
    assert 0.8 < fit.covariance_ratio < 1.1
    assert fit.bias.attrs["covariance_ratio"] == fit.covariance_ratio
    assert fit.kind is qx.Kind.BIASED
    assert fit.convergence.ess_bulk.max() < 1.5 * 4 * 1000  # chains are networks, not agents
    steps = int(fit.tree["sample_stats"]["n_steps"].values[0, 0])
    assert fit.costs["rounds"] == 50 + 1050 * (2 * steps + 4)
    assert fit.costs["bytes"] == 8 * 50 * 4 * 7 + 4200 * (8 * steps * 8 * 2 + 4 * (8 * 4 + 8))


def test_what_networks_refuse():
    with pytest.raises(qx.MethodError, match="there must be 2 agents or more"):
        qx.ADMM(agents=1)
    with pytest.raises(qx.MethodError, match="agents must be a positive integer, or a tuple"):
        qx.ADMM(agents=(3, 0))
    with pytest.raises(qx.MethodError, match="steps must be an integer of at least 1"):
        qx.ADMM(steps=0)
    with pytest.raises(qx.ModelError, match="must be 2 positive numbers with the sum 200"):
        qx.infer(regression, data_of(4), qx.ADMM(agents=(3, 4)), **SHORT)
    with pytest.raises(qx.MethodError, match="its agents have rows of their own. Model .* has no"):
        qx.infer(lambda: qx.sample("x", qx.distributions.Normal(0, 1)), {}, "admm", **SHORT)
