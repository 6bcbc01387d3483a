"""Minibatches: when do flights arrive late? A third of a million of them, and a bias report."""

import argparse

import quincunx as qx

NAMES = ["intercept", "hour", "hour^2", "log distance", "cos date", "sin date", "JFK", "LGA"]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-warmup", type=int, default=300)
    parser.add_argument("--num-samples", type=int, default=1000)
    settings = vars(parser.parse_args(arguments))

    qx.configure(x64=True)
    model, data, _ = qx.models.load("flights")
    data = {"X": data["X"][:, : len(NAMES)], "y": data["y"]}
    fit = qx.infer(model, data, qx.SGHMC(), coords={"feature": NAMES}, **settings)

    print(fit.summary(ci_prob=0.9).to_string())
    print(fit.bias.to_string())
    print(f"Metropolis acceptance on all rows: {fit.bias.attrs['acceptance']:.3f}")
    ess = fit.convergence.ess_bulk.min()
    passes = fit.costs["data_passes"]
    print(f"{len(data['y'])} flights, {passes:.0f} passes for {ess:.0f} effective draws")
    return fit


if __name__ == "__main__":
    main()
