"""Bregman proximal Langevin beside MYULA, proximal MALA and NUTS, at equal numbers of gradients.

Every sampler runs four chains and makes about `--gradients` gradients in each after warm-up: a
mirror sampler by the steps of its transitions, NUTS by its number of draws. What is printed:

- KS: the largest over coordinates of the Kolmogorov-Smirnov distance to the exact law, and the
  smallest p-value, times the number of coordinates, of draws thinned to be nearly independent (not
  where they are too few for a test);
- W1: the largest 1-Wasserstein distance to the exact law, in standard deviations;
- ESS: of the worst coordinate (bulk), for 1000 gradients and for a second of sampling.

`laplace`: rates 1, ..., 100. `uniform`: intervals (-i, i), i = 1, ..., 100. `logistic`: 1000 rows,
100 weights under Laplace rates 10, ..., 1 and a Gaussian; the largest error of a mean, in sds and
in Monte Carlo standard errors (`chance`), and of an sd, against a long NUTS run.

    python benchmarks/bregman.py [--only laplace|uniform|logistic] [--gradients 40000]
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import quincunx as qx
import quincunx.distributions as dist

DIM, CHAINS = 100, 4
RATES = np.arange(1.0, DIM + 1)
STEPS = 40
ENOUGH = 100  # draws that are nearly independent, for a test


@qx.model
def laplace():
    qx.sample("x", dist.Laplace(0.0, jnp.asarray(1 / RATES)).to_event(1))


@qx.model
def uniform():
    qx.sample("x", dist.Uniform(-jnp.asarray(RATES), jnp.asarray(RATES)).to_event(1))


@qx.model
def logistic(X, rates, y=None):
    beta = qx.sample("beta", dist.Laplace(0.0, 1 / rates).to_event(1))
    qx.factor("ridge", -0.5 * 0.1 * jnp.sum(beta**2))
    with qx.plate("row", X, y) as (x, t):
        qx.sample("y", dist.Bernoulli(logits=x @ beta), obs=t)


def sparse():
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(10) / 10, 10)
    X = rng.normal(size=(1000, DIM))
    y = (rng.uniform(size=1000) < 1 / (1 + np.exp(-X @ truth))).astype(int)
    return {"X": X, "rates": np.repeat(np.arange(10.0, 0, -1), 10), "y": y}


def run(model, data, method, gradients, key=0):
    """A fit with about so many gradients in each chain after warm-up."""
    settings = {"progress": False, "key": key, "num_chains": CHAINS}
    if not isinstance(method, qx.NUTS):
        return qx.infer(model, data, method, num_samples=gradients // STEPS, **settings)
    pilot = qx.infer(model, data, method, num_samples=50, **settings)
    each = float(pilot.tree["sample_stats"]["n_steps"].mean())
    return qx.infer(model, data, method, num_samples=max(int(gradients / each), 50), **settings)


def efficiency(fit):
    ess = float(fit.convergence.ess_bulk.min())
    spent = fit.costs["gradients"] - fit.costs["warmup_gradients"]
    share = spent / (spent + fit.costs["warmup_gradients"])
    seconds = fit.costs["sample_seconds"] * share
    return ess, spent, 1000 * ess / spent, ess / seconds


def thinned(x, ess):
    """Every so manieth draw of each chain, so that they are nearly independent."""
    keep = max(int(np.ceil(2 * x.shape[0] * x.shape[1] / max(ess, 1.0))), 1)
    return x[:, ::keep].reshape(-1, x.shape[-1])


def known(model, cdf, sd, methods, gradients):
    """A law whose coordinates are known."""
    print(f"  {'':28s} {'KS':>6s} {'p x d':>8s} {'W1/sd':>6s} {'ESS':>7s} {'gradients':>9s} "
          f"{'ESS/1000':>9s} {'ESS/s':>8s}  verdict")  # fmt: skip
    for label, method in methods.items():
        fit = run(model, None, method, gradients)
        x = fit.posterior["x"].values
        ess, spent, rate, speed = efficiency(fit)
        u = cdf(x.reshape(-1, DIM))
        distance = max(stats.kstest(u[:, i], "uniform").statistic for i in range(DIM))
        few = cdf(thinned(x, ess))
        p = DIM * min(stats.kstest(few[:, i], "uniform").pvalue for i in range(DIM))
        shown = f"{min(p, 1):8.2g}" if len(few) >= ENOUGH else f"{'n/a':>8s}"
        far = max(wasserstein(x[..., i].ravel(), i, model) / sd[i] for i in range(DIM))
        print(f"  {label:28s} {distance:6.3f} {shown} {far:6.3f} {ess:7.0f} {spent:9d} "
              f"{rate:9.4f} {speed:8.2f}  {fit.verdict.status}", flush=True)  # fmt: skip


def wasserstein(x, index, model):
    """To the exact quantiles."""
    share = (np.arange(len(x)) + 0.5) / len(x)
    law = stats.laplace(scale=1 / RATES[index])
    if model is uniform:
        law = stats.uniform(-RATES[index], 2 * RATES[index])
    return np.mean(np.abs(np.sort(x) - law.ppf(share)))


def mirror(**settings):
    return qx.BregmanLangevin(steps=STEPS, **settings)


def on_laplace(gradients):
    plain = {"geometry": "euclidean", "adjust": False}
    methods = {
        "adjusted": mirror(),
        "adjusted, hypentropy": mirror(geometry="hypentropy"),
        "not adjusted": mirror(adjust=False),
        "MYULA, tuned": mirror(**plain),
        "MYULA, step 5e-6 (published)": mirror(**plain, step_size=5e-6, smoothing=1e-5),
        "proximal MALA": qx.ProximalMALA(steps=STEPS),
        "NUTS": qx.NUTS(),
    }
    known(laplace, lambda x: stats.laplace.cdf(x * RATES), np.sqrt(2) / RATES, methods, gradients)


def on_uniform(gradients):
    plain = {"geometry": "euclidean", "adjust": False}
    methods = {
        "adjusted": mirror(),
        "adjusted, Fermi-Dirac": mirror(geometry="fermi_dirac"),
        "not adjusted": mirror(adjust=False, step_size=0.01),
        "MYULA, step 0.01 (published)": mirror(**plain, step_size=0.01, smoothing=1.0),
        "proximal MALA": qx.ProximalMALA(steps=STEPS),
        "NUTS": qx.NUTS(),
    }
    known(uniform, lambda x: (x / RATES + 1) / 2, RATES / np.sqrt(3), methods, gradients)


def on_logistic(gradients):
    data = sparse()
    long = qx.infer(logistic, data, "nuts", num_samples=2500, key=9, progress=False)
    beta = long.posterior["beta"].values
    mean, sd = beta.mean((0, 1)), beta.std((0, 1))
    ess_of = long.convergence.ess_bulk
    print(f"  {'':28s} {'mean':>6s} {'chance':>7s} {'sd':>6s} {'ESS':>7s} {'gradients':>9s} "
          f"{'ESS/1000':>9s} {'ESS/s':>8s}  verdict")  # fmt: skip
    plain = {"geometry": "euclidean", "adjust": False}
    methods = {
        "adjusted": mirror(),
        "not adjusted": mirror(adjust=False),
        "MYULA, tuned": mirror(**plain),
        "MYULA, step 5e-4 (published)": mirror(**plain, step_size=5e-4, smoothing=1e-2),
        "proximal MALA": qx.ProximalMALA(steps=STEPS),
        "NUTS": qx.NUTS(),
    }
    for label, method in methods.items():
        fit = run(logistic, data, method, gradients)
        beta = fit.posterior["beta"].values
        off = np.abs(beta.mean((0, 1)) - mean) / sd
        chance = np.sqrt(1 / fit.convergence.ess_bulk + 1 / ess_of)
        spread = np.abs(beta.std((0, 1)) / sd - 1)
        ess, spent, rate, speed = efficiency(fit)
        print(f"  {label:28s} {off.max():6.3f} {np.max(off / chance):7.2f} {spread.max():6.3f} "
              f"{ess:7.0f} {spent:9d} {rate:9.4f} {speed:8.2f}  {fit.verdict.status}",
              flush=True)  # fmt: skip


SECTIONS = {"laplace": on_laplace, "uniform": on_uniform, "logistic": on_logistic}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SECTIONS)
    parser.add_argument("--gradients", type=int, default=40_000)
    settings = parser.parse_args()
    qx.configure(x64=True)
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    for name, section in SECTIONS.items():
        if settings.only in (None, name):
            print(name)
            section(settings.gradients)


if __name__ == "__main__":
    main()
