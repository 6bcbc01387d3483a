"""Logistic regression over four hospitals that keep their patients' rows to themselves.

`quincunx launch --processes 4 examples/hospitals.py` gives each a process of its own, and with
`--method nuts` spreads the rows of one sampler over them.
"""

import argparse

import quincunx as qx

qx.configure(x64=True)
qx.distributed.initialize()

import jax  # noqa: E402
import numpy as np  # noqa: E402

import quincunx.distributions as dist  # noqa: E402

PATIENTS = (400, 150, 60, 30)


@qx.model
def outcome(X, y=None):
    beta = qx.sample("beta", dist.Normal(0, 2).expand([X.shape[1]]).to_event(1), dims=["factor"])
    with qx.plate("patient", X, y) as (x, t):
        qx.sample("y", dist.Bernoulli(logits=x @ beta), obs=t)


def simulate(rng):
    blocks = [rng.normal(place, 1.0, (size, 2)) for place, size in enumerate(PATIENTS, -1)]
    X = np.column_stack([np.ones(sum(PATIENTS)), np.concatenate(blocks)])
    return X, rng.binomial(1, 1 / (1 + np.exp(-X @ np.array([-0.5, 1.0, -1.0]))))


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Hospitals that share no rows.")
    parser.add_argument("--method", choices=["admm", "federated", "nuts"], default="admm")
    parser.add_argument("--num-warmup", type=int, default=300)
    parser.add_argument("--num-samples", type=int, default=1000)
    settings = vars(parser.parse_args(arguments))
    X, y = simulate(np.random.default_rng(0))
    devices, several = len(jax.devices()), len(jax.devices()) == len(PATIENTS)
    name = settings.pop("method")
    if name == "nuts":
        method, mesh = qx.NUTS(), qx.mesh(data=devices)
    else:
        method = qx.ADMM(agents=PATIENTS, graph="ring", noise="shared")
        if name == "federated":
            method = qx.FederatedSGLD(agents=PATIENTS)
        mesh = qx.mesh(agents=len(PATIENTS)) if several else None
    coords = {"factor": ["intercept", "age", "dose"]}
    fit = qx.infer(outcome, {"X": X, "y": y}, method, mesh=mesh, coords=coords, **settings)
    if jax.process_index() == 0:
        print(fit.summary(), fit.verdict, fit.costs, sep="\n")
    return fit


if __name__ == "__main__":
    main()
