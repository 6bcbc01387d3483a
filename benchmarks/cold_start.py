"""CPU seconds of a cold process from its start to the first summary of eight schools.

Each engine runs in a process of its own, with no compilation cache, 4 vectorised chains of
1000 + 1000; the processes alternate. Quincunx's time includes its verdict; NumPyro's summary is
its own.
"""

import os
import re
import resource
import statistics
import subprocess
import sys

DATA = """
import numpy as np
sigma = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
"""

QUINCUNX = """
import quincunx as qx
import quincunx.distributions as dist
@qx.model
def eight_schools(sigma, y=None):
    mu = qx.sample("mu", dist.Normal(0, 5))
    tau = qx.sample("tau", dist.HalfCauchy(5))
    with qx.plate("school", len(sigma)):
        z = qx.sample("z", dist.Normal(0, 1))
        qx.sample("y", dist.Normal(qx.deterministic("theta", mu + tau * z), sigma), obs=y)
fit = qx.infer(eight_schools, dict(sigma=sigma, y=y), progress=False)
print(fit.summary())
print(fit.verdict)
"""

NUMPYRO = """
import jax, numpyro, numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS
def eight_schools(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", len(sigma)):
        z = numpyro.sample("z", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)
mcmc = MCMC(NUTS(eight_schools), num_warmup=1000, num_samples=1000, num_chains=4,
            chain_method="vectorized", progress_bar=False)
mcmc.run(jax.random.key(0), sigma=sigma, y=y)
mcmc.print_summary()
"""

ROUNDS = 3


def cold(code):
    """User and system seconds of a fresh process that runs `code`."""
    environment = {k: v for k, v in os.environ.items() if not re.match("JAX_.*CACHE", k)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", DATA + code], env=environment, check=True, capture_output=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    cold(QUINCUNX)  # byte-compile and warm the disk
    cold(NUMPYRO)
    pairs = [(cold(QUINCUNX), cold(NUMPYRO)) for _ in range(ROUNDS)]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"cold start to the first summary, CPU seconds, medians of {ROUNDS} runs each")
    print(f"  quincunx {ours:.1f}")
    print(f"  numpyro  {theirs:.1f}")
    print(f"  ratio    {ratio:.2f}")


if __name__ == "__main__":
    main()
