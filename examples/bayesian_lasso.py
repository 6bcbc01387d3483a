"""A Bayesian lasso on diabetes data: Laplace priors by their proximal operator, beside NUTS."""

import argparse

import numpy as np

import quincunx as qx


def report(fit, reference):
    """Efficiency, and the largest error of a mean in posterior standard deviations."""
    spent = fit.costs["gradients"] - fit.costs["warmup_gradients"]
    rate = 1000 * fit.convergence.ess_bulk.min() / spent
    errors = [
        np.max(np.abs(fit.posterior[name].mean(("chain", "draw")).values - mean) / sd)
        for (name, mean), sd in zip(reference.mean.items(), reference.sd.values(), strict=True)
    ]
    label = fit.tree["posterior"].attrs["method"]
    print(f"{label}: {rate:.1f} effective draws for 1000 gradients, means off by {max(errors):.3f}")
    print(fit.verdict)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-warmup", type=int, default=1000)
    parser.add_argument("--num-samples", type=int, default=1000)
    settings = vars(parser.parse_args(arguments))

    qx.configure(x64=True)
    model, data, reference = qx.models.load("diabetes_lasso")
    print(qx.explain(model, data))
    fits = [
        qx.infer(model, data, method, **settings) for method in (qx.BregmanLangevin(), qx.NUTS())
    ]
    for fit in fits:
        report(fit, reference)
    return fits


if __name__ == "__main__":
    main()
