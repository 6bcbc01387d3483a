"""Eight schools: a hierarchical model, leave-one-out cross-validation and prediction."""

import argparse

import arviz_stats
import numpy as np

import quincunx as qx
import quincunx.distributions as dist

EFFECT = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERROR = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


@qx.model
def eight_schools(sigma, y=None):
    mu = qx.sample("mu", dist.Normal(0, 5))
    tau = qx.sample("tau", dist.HalfCauchy(5))
    with qx.plate("school", len(sigma)):
        z = qx.sample("z", dist.Normal(0, 1))  # non-centred: no funnel between theta and tau
        theta = qx.deterministic("theta", mu + tau * z)
        qx.sample("y", dist.Normal(theta, sigma), obs=y)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-warmup", type=int, default=1000)
    parser.add_argument("--num-samples", type=int, default=1000)
    settings = vars(parser.parse_args(arguments))

    qx.configure(x64=True)
    data = {"sigma": ERROR, "y": EFFECT}
    coords = {"school": list("ABCDEFGH")}
    fit = qx.infer(eight_schools, data, coords=coords, **settings)
    print(fit.summary(var_names=["mu", "tau", "theta"]).to_string())

    fit.log_likelihood()
    print(arviz_stats.loo(fit.tree))

    replicated = fit.predict()["y"].mean(("chain", "draw"))
    print("Means of replicated effects:", replicated.values.round(1))
    return fit


if __name__ == "__main__":
    main()
