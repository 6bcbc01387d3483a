"""Three methods side by side on a bimodal posterior, of which one sees a single mode."""

import argparse
from pathlib import Path

import numpy as np

import quincunx as qx


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-warmup", type=int, default=500)
    parser.add_argument("--num-samples", type=int, default=1000)
    parser.add_argument("--html", type=Path, help="where to write a report")
    options = vars(parser.parse_args(arguments))
    html = options.pop("html")

    qx.configure(x64=True)
    model, data, trusted = qx.models.load("gaussian_mixture", modes=2)
    print(qx.choose(model, data))

    right_mode = {"x": np.array([5.0, 0.0])}
    fits = {
        "nuts from one mode": qx.infer(model, data, init=right_mode, progress=False, **options),
        "nuts": qx.infer(model, data, progress=False, **options),
        "polar slice": qx.infer(model, data, "polar_slice", progress=False, **options),
    }
    compared = qx.compare(fits, reference=trusted)
    print(compared)
    if html is not None:
        print("written:", compared.report(html))
    return compared


if __name__ == "__main__":
    main()
