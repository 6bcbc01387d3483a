"""Distributed samplers on the linear regression of the ADMM sampler's authors, and federated ones.

    python -m benchmarks.distributed [--part table|iterations|federated]

Table: 2-Wasserstein distance to the posterior of the network's mean and of an agent, from draws and
from the linear maps' own laws, 20 agents. Iterations: until the network's mean is within a tenth of
the posterior sd, from a far start. Federated: sd of the draws over the posterior's, 10 agents whose
rows' means differ, beside DSGLD.
"""

import argparse

import jax
import numpy as np
from scipy import linalg

import quincunx as qx
import quincunx.distributions as dist
from tests.laws import networks

AGENTS, RHO, ETA = 20, 5.0, 0.009
COMPARED = ("ADMM rho=5, shared", "ADMM rho=auto, shared", "DE-SGLD, independent")
COMPARED += ("tracking, shared",)
TOLERANCE = qx.ADMM().tolerance
ADMM = [
    ("ADMM rho=5, paper noise", "paper", RHO),
    ("ADMM rho=5, calibrated", "calibrated", RHO),
    ("ADMM rho=auto, calibrated", "calibrated", None),
    ("ADMM rho=5, shared", "shared", RHO),
    ("ADMM rho=auto, shared", "shared", None),
]
GOSSIP = [
    ("DE-SGLD, independent", False, "independent"),
    ("DE-SGLD, shared", False, "shared"),
    ("tracking, independent", True, "independent"),
    ("tracking, shared", True, "shared"),
]


def wasserstein(mean, covariance, to):
    """2-Wasserstein distance between Gaussians."""
    root = np.real(linalg.sqrtm(to[1]))
    cross = np.real(linalg.sqrtm(root @ covariance @ root))
    square = np.sum((mean - to[0]) ** 2) + np.trace(covariance + to[1] - 2 * cross)
    return np.sqrt(max(square, 0.0))


def of_draws(draws, to):
    flat = np.asarray(draws).reshape(-1, draws.shape[-1])
    return wasserstein(flat.mean(0), np.cov(flat.T), to)


def samplers(graph, steps):
    """Label, method, size of an iteration and the law of all agents."""
    curvature = np.linalg.eigvalsh(np.linalg.inv(networks.posterior(AGENTS)[1]))[-1]
    degrees = int(qx.ADMM(agents=AGENTS, graph=graph).network.degrees.sum())
    for label, noise, given in ADMM:
        rho = given or float(curvature / (4 * TOLERANCE * degrees))  # what "auto" finds
        method = qx.ADMM(agents=AGENTS, graph=graph, noise=noise, rho=rho, steps=steps)
        yield label, method, rho, lambda n=noise, r=rho: networks.admm_law(AGENTS, graph, r, n)
    for label, tracking, noise in GOSSIP:
        settings = {"graph": graph, "tracking": tracking, "noise": noise, "step_size": ETA}
        method = qx.DecentralizedSGLD(agents=AGENTS, steps=steps, **settings)
        law = lambda t=tracking, n=noise: networks.gossip_law(AGENTS, graph, ETA, t, n)  # noqa: E731
        yield label, method, ETA, law


def table():
    posterior = networks.posterior(AGENTS)
    print(f"posterior sd (root of the trace) {np.sqrt(np.trace(posterior[1])):.3f}")
    print(f"{'W2 to the posterior':28}{'graph':10}{'mean':>16}{'agent 0':>16}{'cov ratio':>16}")
    for graph in ("ring", "complete"):
        for label, method, size, law in samplers(graph, 20):
            draw, agents, _ = networks.simulate(method, size, chains=200, burn=15, draws=30)
            exact = law()
            figures = []
            for found, known in (
                (draw, networks.of_mean(exact, AGENTS)),
                (agents[:, :, 0], networks.of_agent(exact, 0)),
            ):
                figures.append(
                    f"{of_draws(found, posterior):.4f} ({wasserstein(*known, posterior):.4f})"
                )
            covariances = (
                np.cov(np.asarray(draw).reshape(-1, 2).T),
                networks.of_mean(exact, AGENTS)[1],
            )
            ratio, known = (np.trace(np.linalg.solve(posterior[1], c)) / 2 for c in covariances)
            figures.append(f"{ratio:.3f} ({known:.3f})")
            print(f"{label:28}{graph:10}" + "".join(f"{figure:>16}" for figure in figures))
    print("in brackets: of the stationary law, by linear algebra")


def iterations():
    posterior = networks.posterior(AGENTS)
    goal = 0.1 * np.sqrt(np.trace(posterior[1]))
    start = posterior[0] + 10.0
    print(f"iterations until W2 of the network's mean is below {goal:.4f}, from 10 away")
    for graph in ("ring", "complete"):
        counts = {}
        for label, method, size, _ in samplers(graph, 1):
            if label not in COMPARED:
                continue
            found = networks.simulate(method, size, chains=600, burn=0, draws=400, start=start)
            distances = np.array(
                [of_draws(step, posterior) for step in np.moveaxis(found[0], 1, 0)]
            )
            near = np.flatnonzero(distances < goal)
            counts[label] = int(near[0]) + 1 if len(near) else None
            print(f"{graph:10}{label:28}{counts[label] or 'never in 400':>14}")
        first, base = counts["ADMM rho=5, shared"], counts["DE-SGLD, independent"]
        if first and base:
            print(f"{graph:10}ADMM / DE-SGLD {first / base:.3f}")


@qx.model
def centre(y=None):
    mu = qx.sample("mu", dist.Normal(0, 100))
    with qx.plate("row", y) as t:
        qx.sample("y", dist.Normal(mu, 1), obs=t)


def federated(count=10, rows=200, step_size=5e-6):
    rng = np.random.default_rng(0)
    y = (5 * rng.normal(size=(count, 1)) + rng.normal(size=(count, rows))).ravel()
    sd = (len(y) + 1e-4) ** -0.5
    print(f"sd over the posterior's, {count} agents of {rows} rows whose means have sd 5")
    for local_steps in (1, 10, 100):
        for surrogate in ("taylor", "laplace", "none"):
            steps = max(400 // local_steps, 4)
            settings = {"surrogate": surrogate, "step_size": step_size, "steps": steps}
            method = qx.FederatedSGLD(agents=count, local_steps=local_steps, **settings)
            options = {"num_warmup": 10, "num_samples": 100, "num_chains": 64, "progress": False}
            fit = qx.infer(centre, {"y": y}, method, **options)
            ratio = float(fit.posterior["mu"].std()) / sd
            print(f"{surrogate:10}local_steps {local_steps:4d}{ratio:10.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["table", "iterations", "federated"])
    part = parser.parse_args().part
    jax.config.update("jax_enable_x64", True)
    for name, run in (("table", table), ("iterations", iterations), ("federated", federated)):
        if part in (None, name):
            run()


if __name__ == "__main__":
    main()
