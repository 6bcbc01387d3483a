"""Stein control variates on logistic regression: smaller errors, and whether they are told rightly.

One run of NUTS has 4 chains for each repetition, 250 draws of each, so 1000 draws a repetition.
`refine` sees each repetition alone. The truth is `refine` of 80 000 other draws, whose own error
is less than a tenth of theirs. What is printed, by quantity:

- ratio: mean squared error of plain means over that of refined ones, over the repetitions;
- order: which polynomials were chosen, and how often;
- plain, refined: the share of repetitions whose nominal 95 % interval, 1.96 standard errors to
  both sides, covers the truth;
- sd / told: root mean squared error of refined means over the root of the mean squared standard
  error; one where errors are told rightly.

    python benchmarks/refine.py [--repetitions 200] [--draws 250] [--features 3] [--rows 100]
"""

import argparse
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr

import quincunx as qx
import quincunx.distributions as dist

CHAINS = 4


@qx.model
def logistic(X, y=None):
    intercept = qx.sample("intercept", dist.Normal(0, 2))
    beta = qx.sample("beta", dist.Normal(0, 1).expand([X.shape[1]]).to_event(1))
    with qx.plate("row", X, y) as (x, t):
        qx.sample("y", dist.Bernoulli(logits=intercept + x @ beta), obs=t)


def made_up(rows, features):
    """Covariates, and outcomes of known weights."""
    rng = np.random.default_rng(5)
    X = rng.normal(size=(rows, features))
    share = 1 / (1 + np.exp(-X @ np.linspace(-1, 1, features)))
    return {"X": X, "y": (rng.uniform(size=rows) < share).astype(int)}


def quantities(X):
    """Means, second moments, a prediction, a tail probability."""
    at = jnp.asarray(X[0])
    return {
        "intercept": lambda v: v["intercept"],
        "beta": lambda v: v["beta"],
        "square": lambda v: v["beta"][0] ** 2,
        "prediction": lambda v: jax.nn.sigmoid(v["intercept"] + at @ v["beta"]),
        "tail": lambda v: (v["beta"][0] > -1).astype(float),
    }


def parts(fit, repetitions):
    """The chains of each repetition as a fit of their own."""
    for index in range(repetitions):
        tree = fit.tree.copy()
        chains = slice(index * CHAINS, (index + 1) * CHAINS)
        for group in ("posterior", "sample_stats"):
            tree[group] = xr.DataTree(fit.tree[group].to_dataset().isel(chain=chains))
        yield qx.Fit(tree, method=fit.method, costs=fit.costs, density=fit.density)


def measured(repetitions, draws, rows, features):
    """Tables of the repetitions, and the truth."""
    data = made_up(rows, features)
    fns = quantities(data["X"])
    settings = {"num_warmup": 500, "progress": False}
    long = qx.infer(logistic, data, num_samples=20_000, key=999, **settings)
    truth = qx.refine(long, fns).table
    many = {"num_chains": CHAINS * repetitions, "num_samples": draws}
    fit = qx.infer(logistic, data, key=1, **many, **settings)
    return truth, [qx.refine(part, fns).table for part in parts(fit, repetitions)]


def summary(truth, tables):
    """One row for each quantity, and one for all of them together."""
    right = truth["refined"].to_numpy()
    off = {n: np.array([t[n] - right for t in tables]) for n in ("mean", "refined")}
    told = {n: np.array([t[f"{n}_error"] for t in tables]) for n in ("mean", "refined")}
    rows = []
    for index, name in enumerate(truth.index):
        orders = pd.Series([t["order"].iloc[index] for t in tables]).value_counts()
        squares = {n: np.mean(off[n][:, index] ** 2) for n in off}
        covered = {n: np.mean(np.abs(off[n][:, index]) < 1.96 * told[n][:, index]) for n in off}
        rows.append(
            {
                "quantity": name,
                "ratio": squares["mean"] / squares["refined"],
                "order": ", ".join(f"{order}: {count}" for order, count in orders.items()),
                "plain": covered["mean"],
                "refined": covered["refined"],
                "sd / told": np.sqrt(squares["refined"] / np.mean(told["refined"][:, index] ** 2)),
            }
        )
    return pd.DataFrame(rows).set_index("quantity")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--draws", type=int, default=250)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--features", type=int, default=3)
    told = parser.parse_args()
    warnings.simplefilter("ignore")
    qx.configure(x64=True)
    truth, tables = measured(told.repetitions, told.draws, told.rows, told.features)
    found = summary(truth, tables)
    print(f"{told.repetitions} repetitions of {CHAINS} chains of {told.draws} draws")
    print(found.round(3).to_string())
    error = np.sqrt(0.95 * 0.05 / told.repetitions)
    print(f"standard error of a share: {error:.3f}; mean of refined: {found['refined'].mean():.3f}")


if __name__ == "__main__":
    main()
