"""Slice samplers against each other and NUTS: evaluations, autocorrelation times, quantiles.

Counts of evaluations are exact, so they are the same on any machine. The autocorrelation time
(IAT) of a quantity is the number of draws divided by their effective number (`arviz_stats`, for the
mean); cost is evaluations, or NUTS's gradients, for each effective draw. Published figures in
brackets are those of Schaer, Habeck and Rudolf (ICML 2023 and 2024), from the notebooks beside
their papers.

`--only NAME` runs one of: cauchy, disk, student, credit, exponential, funnel, schedules. German
credit reads its data from the folder that QUINCUNX_REFERENCES names, or from scikit-learn's cache,
and is left out where there is neither.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from arviz_stats.base import array_stats

import quincunx as qx
import quincunx.distributions as dist


def iat(values):
    """Integrated autocorrelation time of `(chain, draw)` values."""
    return values.size / float(array_stats.ess(values, method="mean"))


def mean_iat(draws):
    """Mean over coordinates of `(chain, draw, coordinate)` draws."""
    return float(np.mean([iat(draws[..., index]) for index in range(draws.shape[-1])]))


def run(model, data, method, **options):
    return qx.infer(model, data, method, progress=False, **options)


def evaluations(fit, name="evaluations"):
    return float(fit.tree["sample_stats"][name].mean())


def line(label, *cells):
    print(f"  {label:<42}" + "  ".join(cells), flush=True)


def cauchy(repeats=10, draws=25_000):
    """Multivariate Cauchy law, d = 100; IAT of log|x|; P(|x| > 14.7721, x1 > 0) = 0.25."""
    worked = qx.models.load("cauchy", dim=100)
    methods = {
        "polar, linear, w = 100 [6.9; 8.6]": (
            qx.PolarSlice(affine="none", radial="linear", width=100.0, max_steps_out=100_000), 0
        ),
        "polar, default": (qx.PolarSlice(), 1000),
        "hit-and-run, w = 10 [8.5; 5e4]": (qx.HitAndRunSlice(affine="none", width=10.0), 0),
        "elliptical on N(0, I) [5.9; 4e4]": (qx.EllipticalSlice(affine="none"), 0),
    }  # fmt: skip
    for label, (method, warmup) in methods.items():
        logs, events, counts = [], [], []
        for key in range(repeats):
            fit = run(worked.model, {}, method, num_warmup=warmup, num_samples=draws, key=key)
            x = fit.posterior["x"].values
            radius = np.linalg.norm(x, axis=-1)
            logs.append(np.log(radius))
            events.append(((radius > 14.7721) & (x[..., 0] > 0)).astype(float))
            counts.append(evaluations(fit))
        logs, events = np.concatenate(logs), np.concatenate(events)
        error = events.std() / np.sqrt(events.size / iat(events))
        line(
            label,
            f"evaluations {np.mean(counts):5.2f}",
            f"IAT log|x| {iat(logs):9.2f}",
            f"P {events.mean():.4f} +- {error:.4f}",
        )


def disk():
    """exp(-(sum x)^2 - |x|^2), d = 200; IAT of |x| and of x1."""
    dim = 200
    model = qx.from_log_density(lambda x: -(jnp.sum(x) ** 2) - jnp.sum(x**2), np.zeros(dim))
    start = np.ones(dim)
    start[-1] = 1 - dim
    start = {"x": start * 10 / np.linalg.norm(start)}
    methods = {
        "polar, linear, w = 20 [12.2; 1.1]": qx.PolarSlice(
            affine="none", radial="linear", width=20.0, max_steps_out=100_000
        ),
        "polar, log, w = 0.2": qx.PolarSlice(affine="none", width=0.2),
        "hit-and-run, w = 1 [7.8; 685]": qx.HitAndRunSlice(affine="none", width=1.0),
        "elliptical on N(0, I) [7.9; 199]": qx.EllipticalSlice(affine="none"),
    }
    for label, method in methods.items():
        fit = run(model, None, method, num_warmup=0, num_samples=10_000, init=start)
        x = fit.posterior["x"].values
        radius = np.linalg.norm(x, axis=-1)
        line(
            label,
            f"evaluations {evaluations(fit):5.2f}",
            f"IAT |x| {iat(radius):8.2f}",
            f"x1 {iat(x[..., 0]):8.2f}",
        )


def student():
    """Student-t law with 10 degrees of freedom, d = 100, correlation 0.5, mean 0.1, 0.2, ... 10."""
    dim, df = 100, 10
    precision = np.linalg.inv(0.5 * np.eye(dim) + 0.5)
    centre = np.arange(1, dim + 1) / 10

    def log_density(x):
        y = x - centre
        return -0.5 * (df + dim) * jnp.log1p(y @ precision @ y / df)

    model = qx.from_log_density(log_density, np.zeros(dim))
    for label, method in {
        "polar, linear, untuned [680]": qx.PolarSlice(affine="none", radial="linear", width=5.0),
        "polar, linear, tuned [2.9]": qx.PolarSlice(radial="linear"),
        "polar, default": qx.PolarSlice(),
        "elliptical, tuned": qx.EllipticalSlice(),
        "hit-and-run, tuned": qx.HitAndRunSlice(),
    }.items():
        options = {"num_warmup": 10_000, "num_samples": 5000, "num_chains": 10}
        fit = run(model, None, method, **options)
        time_ = mean_iat(fit.posterior["x"].values)
        line(label, f"evaluations {evaluations(fit):5.2f}", f"mean IAT {time_:8.2f}")


def compared(model, data, name, methods, **options):
    """Cost for each effective draw, NUTS's in gradients."""
    for label, (method, warmup) in methods.items():
        fit = run(model, data, method, num_warmup=warmup, **options)
        count = evaluations(fit, "gradients" if isinstance(method, qx.NUTS) else "evaluations")
        x = fit.posterior[name].values
        time_ = mean_iat(x.reshape(*x.shape[:2], -1))
        cells = (f"per draw {count:6.2f}", f"mean IAT {time_:8.2f}", f"cost {count * time_:9.2f}")
        line(label, *cells, fit.verdict.status)


def credit():
    """Logistic regression on German credit, 25 weights, prior N(0, 1); cost per effective draw."""
    from tests.references.catalogue import POSTERIORS, folder, load_data

    if folder() is None:
        print("  the data are not on this machine: left out")
        return
    posterior = next(p for p in POSTERIORS if p.name.startswith("german_credit"))
    data = posterior.data(load_data(posterior.name))
    methods = {
        "polar, default [7.6]": (qx.PolarSlice(), 5000),
        "polar, linear": (qx.PolarSlice(radial="linear"), 5000),
        "elliptical [1.8]": (qx.EllipticalSlice(), 5000),
        "hit-and-run [2221, untuned]": (qx.HitAndRunSlice(), 5000),
        "NUTS, gradients [50.7 of Stan's]": (qx.NUTS(), 1000),
    }
    compared(posterior.model, data, "weights", methods, num_samples=5000)


def exponential(dim=50):
    """Multivariate exponential law exp(-|C^-1 (x - m)|), d = 50, sds from 1 to 100, rotated."""
    rng = np.random.default_rng(3)
    basis = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    scales = np.logspace(-1, 1, dim)
    inverse, centre = (basis / scales) @ basis.T, 5 * rng.normal(size=dim)

    def log_density(x):
        return -jnp.sqrt(jnp.sum((inverse @ (x - centre)) ** 2))

    model = qx.from_log_density(log_density, np.zeros(dim))
    methods = {
        "polar, default [20.1]": (qx.PolarSlice(), 5000),
        "elliptical [6.7]": (qx.EllipticalSlice(), 20_000),
        "NUTS, gradients [670 of Stan's]": (qx.NUTS(), 1000),
        "NUTS, dense metric, gradients": (qx.NUTS(mass_matrix="dense"), 2000),
    }
    compared(model, None, "x", methods, num_chains=10, num_samples=2000)


def funnel(repeats=10):
    """Neal's funnel, d = 10, v ~ N(0, 9): quantiles 0.001 and 0.999 of v are -9.27 and 9.27."""
    worked = qx.models.load("funnel", dim=10)
    for label, (method, warmup) in {
        "polar, default": (qx.PolarSlice(), 2000),
        "polar, linear, w = 5 [-9.04; 9.53]": (
            qx.PolarSlice(affine="none", radial="linear", width=5.0), 0
        ),
        "NUTS, centred": (qx.NUTS(), 1000),
    }.items():  # fmt: skip
        nuts = isinstance(method, qx.NUTS)
        found, spent = [], 0
        for key in range(repeats if not nuts else 1):
            options = {"num_warmup": warmup, "num_samples": 25_000 if not nuts else 10_000}
            fit = run(worked.model, worked.data, method, key=key, **options)
            found.append(fit.posterior["v"].values)
            spent += fit.costs["gradients" if nuts else "evaluations"]
        first = np.quantile(found[0], [0.001, 0.999])
        v = np.concatenate(found)
        low, high = np.quantile(v, [0.001, 0.999])
        line(
            label,
            f"{v.size:.0e} draws, {spent:.1e} evaluations",
            f"quantiles {low:6.2f} {high:6.2f} (first {found[0].size:.0e}: "
            f"{first[0]:.2f} {first[1]:.2f})",
            f"least v {v.min():6.2f}",
        )


def schedules():
    """Seconds of the same draws in lockstep and free, and what `auto` takes."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4000, 25))
    labels = (rng.uniform(size=4000) < 0.5).astype(float)

    @qx.model
    def logistic(X, y=None):
        beta = qx.sample("beta", dist.Normal(0, 1).expand([25]).to_event(1))
        with qx.plate("row", X, y) as (x, t):
            qx.sample("y", dist.Bernoulli(logits=x @ beta), obs=t)

    worked = qx.models.load("funnel", dim=10)
    targets = {
        "funnel, 64 chains": (worked.model, worked.data, 64, 2000),
        "logistic 4000 x 25, 32 chains": (logistic, {"X": rows, "y": labels}, 32, 300),
    }
    for label, (model, data, chains, draws) in targets.items():
        seconds, counts = {}, {}
        for execution in ("lockstep", "free", "auto"):
            method = qx.PolarSlice(execution=execution)
            options = {"num_chains": chains, "num_warmup": 200, "num_samples": draws}
            began = time.perf_counter()
            fit = run(model, data, method, **options)
            seconds[execution] = time.perf_counter() - began - fit.costs["compile_seconds"]
            counts[execution] = fit.tree["posterior"].attrs["execution"]
        ratio = seconds["lockstep"] / seconds["free"]
        line(label, f"lockstep / free {ratio:5.2f}", f"auto takes {counts['auto']}")


SECTIONS = (cauchy, disk, student, credit, exponential, funnel, schedules)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[section.__name__ for section in SECTIONS])
    only = parser.parse_args().only
    qx.configure(x64=True)
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    for section in SECTIONS:
        if only in (None, section.__name__):
            print(section.__doc__, flush=True)
            section()


if __name__ == "__main__":
    main()
