"""An amortised sampler on normal-inverse-gamma regression, whose posterior is known exactly.

    sigma^2 ~ InverseGamma(3, 3),  w ~ N(0, 2 sigma^2 I_2),  y_i ~ N(w_0 + w_1 x_i, sigma^2),

5 to 40 rows, x standard normal. What is printed:

- KL: mean over simulated data sets of log p(z | y) - log q(z | y) at the parameters z that the data
  were drawn with, which is the expected Kullback-Leibler divergence of the network's own answer
  (where the head is of paths that of the laws of paths, which is no less);
- ESS / n, Pareto k, error of the log evidence against the exact one;
- milliseconds for a data set, number of rows varying, once everything is compiled;
- p-values of the log likelihood's ranks: of fits as they come, repaired by NUTS where needed, and
  of two wrong answers, the prior and the exact posterior given half of the rows.

    python benchmarks/amortize.py [--steps 8000] [--data-sets 500] [--head mixture|flow|paths]
"""

import argparse
import time
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import gammaln

import quincunx as qx
import quincunx.distributions as dist
from quincunx.inference.amortized.report import uniformity, weighted_ranks

SHAPE, RATE, SPREAD = 3.0, 3.0, 2.0
LEAST, MOST = 5, 40
DRAWS = 1000


@qx.model
def regression(x, y):
    variance = qx.sample("variance", dist.InverseGamma(SHAPE, RATE))
    w = qx.sample("w", dist.Normal(0, jnp.sqrt(SPREAD * variance)).expand([2]).to_event(1))
    with qx.plate("row", x, y) as (x, y):
        qx.sample("y", dist.Normal(w[0] + w[1] * x, jnp.sqrt(variance)), obs=y)


def designs(key):
    return {"x": jax.random.normal(key, (MOST,)), "y": jnp.zeros(MOST)}


class Exact:
    """The exact posterior and evidence."""

    def __init__(self, x, y):
        X = np.column_stack([np.ones_like(x), x])
        self.precision = np.eye(2) / SPREAD + X.T @ X
        self.mean = np.linalg.solve(self.precision, X.T @ y)
        self.shape = SHAPE + len(y) / 2
        self.rate = RATE + 0.5 * (y @ y - self.mean @ self.precision @ self.mean)
        _, volume = np.linalg.slogdet(self.precision * SPREAD)
        self.log_evidence = (
            SHAPE * np.log(RATE) - self.shape * np.log(self.rate) + gammaln(self.shape)
            - gammaln(SHAPE) - 0.5 * volume - 0.5 * len(y) * np.log(2 * np.pi)
        )  # fmt: skip

    def draw(self, rng, n):
        """Weights and variances."""
        variance = self.rate / rng.gamma(self.shape, size=n)
        factor = np.linalg.cholesky(np.linalg.inv(self.precision))
        noise = rng.normal(size=(n, 2)) @ factor.T
        return self.mean + np.sqrt(variance)[:, None] * noise, variance


def simulated(rng):
    variance = RATE / rng.gamma(SHAPE)
    w = rng.normal(size=2) * np.sqrt(SPREAD * variance)
    x = rng.normal(size=rng.integers(LEAST, MOST + 1))
    y = w[0] + w[1] * x + np.sqrt(variance) * rng.normal(size=len(x))
    return {"x": x, "y": y}, w, variance


def log_likelihood(data, w, variance):
    mean = w[..., :1] + w[..., 1:] * data["x"]
    scale = np.asarray(variance)[..., None]
    terms = (data["y"] - mean) ** 2 / scale + np.log(2 * np.pi * scale)
    return -0.5 * terms.sum(-1)


@eqx.filter_jit
def log_ratios(sampler, keys):
    source, network = sampler

    def one(key):
        simulating, looking = jax.random.split(key)
        data = source(simulating)
        joint = source.posterior(data).log_density(data.z)
        return data, joint - network.log_prob(data.z, source.inputs(data), looking)

    return jax.vmap(one)(keys)


def divergence(amortized, count=4000):
    """Expected KL of the network's answers, with its standard error."""
    parts = (amortized._source, amortized.network)
    data, ratios = jax.device_get(log_ratios(parts, jax.random.split(jax.random.key(77), count)))
    sets = zip(*data.leaves, data.counts[0], strict=True)
    exact = [Exact(x[:rows], y[:rows]).log_evidence for x, y, rows in sets]
    found = ratios - np.array(exact)
    return found.mean(), found.std() / count**0.5


def milliseconds(amortized, sets):
    for data in sets:
        amortized(data, repair="weights")
    times, cpu = [], time.process_time()
    for data in sets:
        began = time.perf_counter()
        amortized(data, repair="weights")
        times.append(1e3 * (time.perf_counter() - began))
    cpu = 1e3 * (time.process_time() - cpu) / len(sets)
    return cpu, *np.quantile(times, [0.05, 0.5, 0.95])


def ranks(amortized, count, rng):
    """Ranks of three answers, and what the weights of the first say."""
    found = {name: [] for name in ("fits", "prior", "half of the rows")}
    errors, shares, ks, repaired = [], [], [], 0
    for index in range(count):
        data, w, variance = simulated(rng)
        truth = log_likelihood(data, w, variance)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", qx.ModelWarning)
            fit = amortized(data, key=index, num_samples=DRAWS)
        attributes = fit.tree["posterior"].attrs
        if attributes["answered_by"] == "nuts":
            repaired += 1
            draws, weights = fit.posterior, np.zeros(fit.posterior["variance"].size)
        else:
            draws = fit.tree["weighted_posterior"]
            weights = fit.tree["weighted_sample_stats"]["log_weight_smoothed"].values.ravel()
            errors.append(fit.log_evidence.value - Exact(**data).log_evidence)
            shares.append(fit.importance.share)
        ks.append(attributes["amortized_pareto_k"])
        answers = {
            "fits": (draws["w"].values.reshape(-1, 2), draws["variance"].values.ravel()),
            "half of the rows": Exact(data["x"][::2], data["y"][::2]).draw(rng, DRAWS),
        }
        prior = RATE / rng.gamma(SHAPE, size=DRAWS)
        answers["prior"] = (rng.normal(size=(DRAWS, 2)) * np.sqrt(SPREAD * prior)[:, None], prior)
        for name, answer in answers.items():
            levels = log_likelihood(data, *answer)[None]
            weight = weights[None] if name == "fits" else np.zeros_like(levels)
            found[name].append(weighted_ranks(weight, levels, np.array([truth]), rng)[0])
    figures = (np.array(errors), np.array(shares), np.array(ks), repaired)
    return {name: uniformity(np.array(values)) for name, values in found.items()}, figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--data-sets", type=int, default=500)
    parser.add_argument("--head", default="auto")
    chosen = parser.parse_args()
    qx.configure(x64=True)
    rng = np.random.default_rng(5)

    began, cpu = time.perf_counter(), time.process_time()
    amortized = qx.amortize(
        regression, designs, rows=(LEAST, MOST), budget=chosen.steps, head=chosen.head,
        progress=False,
    )  # fmt: skip
    spent = time.perf_counter() - began, time.process_time() - cpu
    print(f"training: {spent[0]:.0f} s, {spent[1]:.0f} processor s in all; {amortized}")
    print(amortized.report)
    mean, error = divergence(amortized)
    print(f"KL {mean:.4f} +- {error:.4f} nats")
    sets = [simulated(rng)[0] for _ in range(100)]
    cpu, low, middle, high = milliseconds(amortized, sets)
    print(f"ms for a data set: 5 % {low:.2f}, median {middle:.2f}, 95 % {high:.2f}; "
          f"processor {cpu:.2f}")  # fmt: skip
    tests, (errors, shares, ks, repaired) = ranks(amortized, chosen.data_sets, rng)
    print(f"ESS / n: median {np.median(shares):.3f}, 5 % {np.quantile(shares, 0.05):.3f}")
    print(f"Pareto k: median {np.median(ks):.3f}, 95 % {np.quantile(ks, 0.95):.3f}")
    print(f"log evidence error: rms {np.sqrt(np.mean(errors**2)):.4f}, mean {errors.mean():.4f}, "
          f"largest {np.abs(errors).max():.4f}")  # fmt: skip
    print(f"answered by NUTS: {repaired} of {chosen.data_sets}")
    for name, p in tests.items():
        print(f"log-likelihood ranks, {name}: p = {p:.3g}")


if __name__ == "__main__":
    main()
