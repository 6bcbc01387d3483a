"""Stochastic-gradient samplers on a logistic regression: steps a second, and error against cost.

    python benchmarks/sgmcmc.py [--rows 100000] [--columns 30] [--part speed|error]
        [--reference-draws 500]

Speed: SGLD steps a second of one chain, Quincunx with everything that `infer` keeps beside
BlackJAX's `sgld` in one `lax.scan` that draws its rows by index, interleaved in one run; and four
chains of Quincunx. Error: largest error of the posterior means, in posterior sds, and of the sds,
against a NUTS run on all rows, beside BlackJAX's sgld, NumPyro's HMCECS and NUTS itself.
"""

import argparse
import functools
import time
import warnings

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from _ratio import interleaved
from numpyro.infer import HMCECS, MCMC, NUTS

import quincunx as qx
from quincunx.inference.diagnostics.convergence import convergence


@qx.model
def logistic(X, y=None):
    beta = qx.sample("beta", dist.Normal(0, 1).expand([X.shape[1]]).to_event(1))
    with qx.plate("row", X, y) as (x, t):
        qx.sample("y", dist.Bernoulli(logits=x @ beta), obs=t)


def subsampled(X, y, batch=100):
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([X.shape[1]]).to_event(1))
    with numpyro.plate("row", X.shape[0], subsample_size=batch):
        x, t = numpyro.subsample(X, event_dim=1), numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=t)


def simulate(rows, columns):
    rng = np.random.default_rng(0)
    X = np.column_stack([np.ones(rows), rng.normal(size=(rows, columns - 1))])
    beta = rng.normal(size=columns) * 0.5
    y = rng.uniform(size=rows) < 1 / (1 + np.exp(-X @ beta))
    return {"X": X.astype(np.float32), "y": y.astype(np.int32)}


def peer(data, batch, steps, step_size, thin=1):
    """BlackJAX's sgld as its documentation writes it, the loop in one scan."""
    rows = len(data["y"])
    X, y = jnp.asarray(data["X"]), jnp.asarray(data["y"], jnp.float32)
    prior = lambda b: -0.5 * jnp.sum(b**2)  # noqa: E731
    likelihood = lambda b, row: row[1] * (row[0] @ b) - jnp.logaddexp(0.0, row[0] @ b)  # noqa: E731
    gradient = blackjax.sgmcmc.gradients.grad_estimator(prior, likelihood, rows)
    sgld = blackjax.sgld(gradient)

    @jax.jit
    def run(key, beta):
        def one(beta, key):
            pick, move = jax.random.split(key)
            index = jax.random.randint(pick, (batch,), 0, rows)
            return sgld.step(move, beta, (X[index], y[index]), step_size), None

        def kept(beta, key):
            beta, _ = jax.lax.scan(one, beta, jax.random.split(key, thin))
            return beta, beta

        return jax.lax.scan(kept, beta, jax.random.split(key, steps // thin))[1]

    return lambda seed, beta: jax.block_until_ready(run(jax.random.key(seed), beta))


def speed(data):
    print("SGLD steps a second of processor time, one chain (four chains: steps of all)")
    columns, thin, draws = data["X"].shape[1], 20, 5000
    for batch in (100, 1000):
        method = qx.SGLD(
            batch_size=batch, step_size=1e-6, steps=thin, preconditioner=None,
            control_variates="none",
        )  # fmt: skip

        def ours(chains, method=method):
            settings = {"num_chains": chains, "num_warmup": 0, "num_samples": draws}
            return qx.infer(logistic, data, method, progress=False, **settings)

        theirs = peer(data, batch, draws * thin, 1e-6, thin)
        start = jnp.zeros(columns)
        theirs(0, start)
        ours(1)
        ours(4)
        peers = functools.partial(theirs, 1, start)
        b, a, ratio = interleaved(peers, functools.partial(ours, 1), rounds=9)
        began = time.process_time()
        ours(4)
        four = time.process_time() - began
        steps = draws * thin
        print(f"  batch {batch:5d}: quincunx {steps / a:9.0f}   blackjax {steps / b:9.0f}   ratio "
              f"{ratio:.2f}   four chains {4 * steps / four:9.0f}", flush=True)  # fmt: skip


def report(name, draws, reference, passes, seconds, compiled):
    """Errors of draws `(chain, draw, dim)` against the reference's mean and sd."""
    mean, sd = reference
    off = np.max(np.abs(draws.mean((0, 1)) - mean) / sd)
    ratio = draws.std((0, 1)) / sd
    ess = convergence({"b": draws}).ess_bulk.min()
    print(f"  {name:28s} mean off {off:6.3f} sd   sd ratio {ratio.min():.3f} .. {ratio.max():.3f}"
          f"   ESS {ess:6.0f}   passes {passes:9.1f}   passes/ESS {passes / ess:9.4f}"
          f"   s {seconds:6.1f} (+{compiled:.1f})", flush=True)  # fmt: skip


def error(data, methods, draws):
    print("Error against NUTS; passes over the data, tuning and warm-up included")
    fit = qx.infer(logistic, data, "nuts", num_warmup=300, num_samples=draws, progress=False)
    beta = fit.posterior["beta"].values
    mean, sd = beta.mean((0, 1)), beta.std((0, 1))
    costs = fit.costs
    report("NUTS (reference)", beta, (mean, sd), costs["data_passes"], costs["sample_seconds"],
           costs["compile_seconds"])  # fmt: skip
    for name, method in methods.items():
        fit = qx.infer(logistic, data, method, progress=False)
        costs = fit.costs
        report(name, fit.posterior["beta"].values, (mean, sd), costs["data_passes"],
               costs["sample_seconds"], costs["compile_seconds"])  # fmt: skip
        print(
            f"    bias report: {fit.verdict.status}, "
            + ", ".join(
                f"{key} {fit.bias.attrs[key]:.3g}" for key in ("noise_bias", "acceptance", "ksd")
            )
        )
    rows, columns = data["X"].shape
    for batch, step in ((100, 4e-7), (1000, 4e-6)):
        run = peer(data, batch, 100_000, step, 50)
        began = time.perf_counter()
        run(0, jnp.asarray(mean))
        compiled = time.perf_counter() - began
        draws = np.asarray(run(1, jnp.asarray(mean)))[None]
        seconds = time.perf_counter() - began - compiled
        report(f"blackjax sgld {batch}, {step}", draws, (mean, sd), 1e5 * batch / rows, seconds,
               compiled - seconds)  # fmt: skip
    proxy = HMCECS.taylor_proxy({"beta": jnp.asarray(mean)})
    kernel = HMCECS(NUTS(subsampled), num_blocks=10, proxy=proxy)
    mcmc = MCMC(kernel, num_warmup=300, num_samples=700, progress_bar=False)
    began = time.perf_counter()
    mcmc.run(jax.random.key(0), data["X"], data["y"], extra_fields=("hmc_state.num_steps",))
    seconds = time.perf_counter() - began
    draws = np.asarray(mcmc.get_samples()["beta"])[None]
    leaps = int(mcmc.get_extra_fields()["hmc_state.num_steps"].sum()) * 10 / 7
    report("numpyro HMCECS 100", draws, (mean, sd), leaps * 100 / rows + 2, seconds, 0.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--columns", type=int, default=30)
    parser.add_argument("--reference-draws", type=int, default=500, help="of NUTS, a chain")
    parser.add_argument("--part", choices=["speed", "error"], default=None)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", qx.ModelWarning)  # of single precision, as the peers' runs
    data = simulate(arguments.rows, arguments.columns)
    print(f"logistic regression, {arguments.rows} x {arguments.columns}, {jax.devices()[0]}")
    if arguments.part != "error":
        speed(data)
    if arguments.part != "speed":
        methods = {"SGLD": qx.SGLD(), "SGHMC": qx.SGHMC(), "SGNHT": qx.SGNHT(),
                   "SGLD, svrg": qx.SGLD(control_variates="svrg")}  # fmt: skip
        error(data, methods, arguments.reference_draws)


if __name__ == "__main__":
    main()
