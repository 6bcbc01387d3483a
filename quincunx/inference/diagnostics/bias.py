r"""The bias report: how wrong a sampler is whose steps are not corrected.

Chains that agree cannot show that they agree on the wrong law, so other things are looked at: step
halving for all, then three for stochastic-gradient samplers and one for distributed ones.

- *Step halving*. The chains go on from where they are with half the step size and twice the steps.
  With a bias b(eps) that grows as eps, b(eps) = 2 (m(eps) - m(eps / 2)) for means m, and alike
  for standard deviations: Richardson's estimate. Where the bias is of higher order that overstates
  it. The smoothing of envelopes is halved with the step size. Both columns come with standard
  errors.
- *Gradient noise*. How much too large the noise of independent minibatches would make the variance
  in the worst direction, from the gradients of single rows at draws; zero with whole gradients.
  Visiting each block once an epoch makes it smaller.
- *Virtual acceptance*. How often a Metropolis step with the full gradient and the same step size
  would be accepted. For Gaussian targets in d dimensions it is 2 Phi(-K / 2),
  K = sqrt(d) h^(3/2) / 4, with eps = h / 2, where eps / 2 is the relative error of variances; so
  it stands for an error of variances of (16 K^2 / d)^(1/3) / 4.
- *Kernel Stein discrepancy* on the full data, beside what independent exact draws would have
  (`diagnostics/discrepancy.py` says what it cannot see). It is no part of the verdict.
- *Covariance ratio*. With H the Hessian of -log density at the mode and C the draws' covariance in
  unconstrained coordinates, trace(H C) / dim: one for a Gaussian posterior.

Richardson's estimate for Langevin chains: Durmus, Simsekli, Moulines, Badeau and Richard (2016),
Stochastic gradient Richardson-Romberg Markov chain Monte Carlo, NeurIPS; the acceptance: Roberts
and Rosenthal (1998), Optimal scaling of discrete approximations to Langevin diffusions, Journal of
the Royal Statistical Society B 60:255.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.sharding import Mesh
from jaxtyping import Array
from scipy import stats

from quincunx.engine.density import Density
from quincunx.inference.diagnostics.convergence import flatten
from quincunx.inference.diagnostics.discrepancy import kernel_stein_discrepancy
from quincunx.inference.diagnostics.scores import log_density_and_scores, some_positions
from quincunx.inference.diagnostics.verdict import Finding, Status, worst
from quincunx.inference.distributed.mesh import everywhere, on_host
from quincunx.inference.driver import on_devices
from quincunx.inference.method import Discretised, Info
from quincunx.inference.mirror import MirrorKernel
from quincunx.inference.noise import rows_used, typical_noise
from quincunx.inference.session import Session
from quincunx.inference.stochastic import State, StochasticKernel

_DRAWS = 256  # for the discrepancy
_COUNTED = 8192  # draws for the covariance
_FIT = (0.8, 1.25)  # covariance ratios without a word
_PROPOSALS = 64
_NOISY = 4  # draws at which gradients of single rows are taken
_LONGEST, _SETTLING = 1000, 20
_SEEN = 0.1  # bias in posterior sds, or relative of an sd, that is worth a word
_GRAVE = 0.5
_NOISE, _GRAVE_NOISE = 0.2, 1.0  # relative error of variances
_RESOLVED = 0.1
COLUMNS = ("mean_bias", "mean_error", "sd_bias", "sd_error")


class _Moments(NamedTuple):
    """Means and sds of scalar parameters with their standard errors, each `(parameter,)`."""

    mean: np.ndarray
    sd: np.ndarray
    mean_error: np.ndarray
    sd_error: np.ndarray


def bias_report(session: Session, draws: Mapping[str, Any], ess: np.ndarray) -> xr.Dataset:
    """The report as a dataset over parameters; single figures are its attributes.

    Args:
        session: a run of a `Discretised` kernel that has ended.
        draws: its draws by site, `(chain, draw, ...)`.
        ess: bulk effective sample sizes of their parameters.
    """
    began = time.perf_counter()
    method, density = session.method, session.density
    assert isinstance(method, Discretised)
    names, values = flatten(draws)
    count = int(np.clip(session.plan.num_samples, 2 * _SETTLING, _LONGEST))
    slowest = _slowest(values.shape[0] * values.shape[1], ess)
    settling = int(np.clip(5 * slowest, _SETTLING, count))
    halved, evaluations = session.branch(method.halved, count, settling)
    there = {name: halved[name] for name in draws}
    whole, half = _moments(values), _moments(flatten(there)[1])
    moving = whole.sd > 0
    sd = np.where(moving, whole.sd, 1.0)
    columns = {
        "mean_bias": 2 * (whole.mean - half.mean) / sd,
        "mean_error": 2 * np.hypot(whole.mean_error, half.mean_error) / sd,
        "sd_bias": 2 * (whole.sd - half.sd) / sd,
        "sd_error": 2 * np.hypot(whole.sd_error, half.sd_error) / sd,
    }
    if isinstance(method, MirrorKernel):
        figures, passes = _virtually(session, method, density, draws)
    elif isinstance(method, StochasticKernel):
        figures, passes = _on_all_rows(session, method, density, draws)
    else:
        figures, passes = {"covariance_ratio": covariance_ratio(session, draws)}, 0.0
    figures["data_passes"] = passes + evaluations * method.passes(density)
    figures["seconds"] = time.perf_counter() - began
    data = {name: ("parameter", np.where(moving, column, 0.0)) for name, column in columns.items()}
    return xr.Dataset(data, coords={"parameter": names}, attrs=figures)


def _slowest(number: int, ess: np.ndarray) -> float:
    """How many of a number of draws count for one, at the slowest parameter that moves."""
    moving = ess[ess > 0]
    return number / float(moving.min()) if moving.size else 0.0


def covariance_ratio(session: Session, draws: Mapping[str, Any]) -> float:
    """The draws' covariance against that of the Gaussian at the mode, which agents found."""
    hessian = np.asarray(on_host(session.preparation.value.tuning.hessian))
    z = np.asarray(some_positions(session.density, draws, _COUNTED))
    return float(np.trace(hessian @ np.atleast_2d(np.cov(z.T))) / len(hessian))


def _moments(values: np.ndarray) -> _Moments:
    """Of `(chain, draw, parameter)`."""
    from arviz_stats.base import array_stats  # slow to import

    mean, sd = values.mean(axis=(0, 1)), values.std(axis=(0, 1))
    squares = (values - mean) ** 2

    def error(values: np.ndarray) -> np.ndarray:
        spread = values.std(axis=(0, 1))
        moving = spread > 0
        size = np.ones(len(spread))
        if moving.any():
            entries = np.moveaxis(values[..., moving], -1, 0)
            size[moving] = array_stats.ess(entries, method="mean")
        return spread / np.sqrt(size)

    return _Moments(mean, sd, error(values), error(squares) / np.where(sd > 0, 2 * sd, 1.0))


def _on_all_rows(
    session: Session, method: StochasticKernel, density: Density, draws: Mapping[str, Any]
) -> tuple[dict[str, float], float]:
    """Figures that take gradients of all rows, and how often they went through them."""
    state: State = session.groups[0].carry.state
    key = jax.random.fold_in(session.key, 3)
    z = some_positions(density, draws, _DRAWS)
    with np.errstate(all="ignore"):
        some = z[:: max(len(z) // (2 * _NOISY), 1)][: 2 * _NOISY]
        on = (method, session.mesh, session.target)
        tuning, some, z, key = everywhere((state.tuning, some, z, key), session.mesh)
        noise = typical_noise(*on, tuning, some[: len(some) // 2 * 2], key)
        found = (method.noise_bias(tuning, noise), *_full(*on, tuning, z, key))
        noise_bias, acceptance, scores = on_host(found)
        ksd, level = kernel_stein_discrepancy(np.asarray(z), scores / method.temperature)
    step = (float(state.tuning.step_size), int(state.tuning.steps))
    figures = _figures(*step, float(noise_bias), float(acceptance), z.shape[1], (ksd, level))
    rows = method.batches(density).rows
    passes = len(z) + min(_PROPOSALS, len(z)) + 2 * _NOISY * rows_used(density, rows) / rows
    return figures, passes


def _virtually(
    session: Session, method: MirrorKernel, density: Density, draws: Mapping[str, Any]
) -> tuple[dict[str, float], float]:
    """Figures of a sampler with whole gradients, and how many it took to find them."""
    free, on = density.unconstrained, session.mesh
    z = some_positions(free, draws, _DRAWS)
    scores = on_host(_scored(on, session.target.unconstrained, z))
    with np.errstate(all="ignore"):
        ksd, level = kernel_stein_discrepancy(np.asarray(z), scores)
    x = some_positions(density, draws, _PROPOSALS)
    state = session.groups[0].carry.state
    key = jax.random.fold_in(session.key, 3)
    found = _accepted(method, on, session.target, state, x, key)
    acceptance, step_size, steps = (float(value) for value in on_host(found))
    figures = _figures(step_size, int(steps), 0.0, acceptance, x.shape[1], (ksd, level))
    return figures, len(z) + len(x) * (steps + 1)


@eqx.filter_jit
def _accepted(
    method: MirrorKernel, mesh: Mesh | None, density: Density, state: Any, x: Array, key: Array
) -> tuple[Array, Array, Array]:
    """Mean acceptance of a Metropolis step at positions, step size, and steps of a transition."""

    def step(density: Density, state: Any, x: Array, keys: Array) -> Info:
        one = lambda x, key: method.step(density, method.at(density, x, state), key)[1]  # noqa: E731
        return jax.vmap(one)(x, keys)

    info = on_devices(mesh, step, density, state, x, jax.random.split(key, len(x)))
    return jnp.mean(info.acceptance), info.step_size[0], info.extra["n_steps"][0]


@eqx.filter_jit
def _scored(mesh: Mesh | None, density: Density, z: Array) -> Array:
    return on_devices(mesh, log_density_and_scores, density, z)[1]


def _figures(
    step_size: float,
    steps: int,
    noise_bias: float,
    acceptance: float,
    dim: int,
    discrepancy: tuple[float, float],
) -> dict[str, float]:
    """Single figures by name, with the error of variances that the acceptance stands for."""
    k = -2 * stats.norm.ppf(float(np.clip(acceptance, 1e-12, 1.0)) / 2)
    return {
        "step_size": step_size,
        "steps": steps,
        "noise_bias": noise_bias,
        "acceptance": acceptance,
        "acceptance_bias": float((16 * k**2 / dim) ** (1 / 3) / 4),
        "ksd": discrepancy[0],
        "ksd_of_exact_draws": discrepancy[1],
    }


@eqx.filter_jit
def _full(
    method: StochasticKernel,
    mesh: Mesh | None,
    density: Density,
    tuning: Any,
    z: Array,
    key: Array,
) -> tuple[Array, Array]:
    """Mean virtual acceptance, and scores at positions."""
    scored = functools.partial(on_devices, mesh, log_density_and_scores, density)
    temperature = method.temperature
    values, scores = scored(z)
    step, scale = method.euler_step(tuning), tuning.scale[None]
    some = slice(0, None, max(len(z) // _PROPOSALS, 1))
    here, value, score = z[some], values[some], scores[some]
    xi = jax.random.normal(key, here.shape, here.dtype)
    there = here + step * scale * score + jnp.sqrt(2 * step * temperature * scale) * xi
    new_value, new_score = scored(there)

    def transition(start: Array, slope: Array, end: Array) -> Array:
        error = end - start - step * scale * slope
        return -jnp.sum(error**2 / (4 * step * scale), axis=1)

    ratio = new_value - value + transition(there, new_score, here) - transition(here, score, there)
    acceptance = jnp.exp(jnp.minimum(ratio / temperature, 0.0))
    acceptance = jnp.mean(jnp.where(jnp.isfinite(acceptance), acceptance, 0.0))
    return acceptance, scores


def judge_bias(report: xr.Dataset, free: np.ndarray) -> list[Finding]:
    """What a report says against the draws.

    Args:
        report: from `bias_report`.
        free: which parameters are random.
    """
    findings = []
    names = [name for name, keep in zip(report["parameter"].values, free, strict=True) if keep]
    smaller = "Use a smaller `step_size` or `tolerance`, or leave the step to be tuned."
    for what, label in (("mean", "mean"), ("sd", "standard deviation")):
        bias = np.abs(report[f"{what}_bias"].values[free])
        error = report[f"{what}_error"].values[free]
        if not bias.size:
            continue
        sure, at = worst(np.nan_to_num(bias - 3 * error, nan=np.inf), names, largest=True)
        size = bias[names.index(at)]
        if sure > _SEEN:
            status: Status = "suspect" if sure < _GRAVE else "failed"
            reason = f"Step halving: the {label} of '{at}' is off by about {size:.2f} posterior sds"
            findings.append(Finding(status, f"{reason} because of the step size.", smaller))
        unsure, at = worst(error, names, largest=True)
        if unsure > _RESOLVED:
            reason = f"Step halving can tell the {label} of '{at}' only to {unsure:.2f} posterior "
            advice = "Draw more (`num_samples`), so that the bias can be told."
            findings.append(Finding("suspect", reason + "sds.", advice))
    return findings + (_network(report) if "covariance_ratio" in report.attrs else _noise(report))


def _network(report: xr.Dataset) -> list[Finding]:
    ratio = report.attrs["covariance_ratio"]
    if _FIT[0] <= ratio <= _FIT[1]:
        return []
    reason = (
        f"Covariances are {ratio:.2f} times those of the Gaussian at the mode, on average: the "
    )
    advice = "Compare with an exact method, or use another `noise`, graph or a smaller `tolerance`."
    return [Finding("suspect", reason + "posterior is skew, or the sampler off.", advice)]


def _noise(report: xr.Dataset) -> list[Finding]:
    findings = []
    smaller = "Use a smaller `step_size`, or leave it out to have it tuned."
    noise, accepted = report.attrs["noise_bias"], report.attrs["acceptance_bias"]
    if not noise <= _NOISE:
        status = "suspect" if noise < _GRAVE_NOISE else "failed"
        reason = f"Gradient noise makes variances up to {100 * noise:.0f} % too large"
        advice = "Use a larger `batch_size`, `control_variates='mode'` or a smaller `step_size`."
        findings.append(Finding(status, f"{reason} (if minibatches were independent).", advice))
    if not accepted <= _NOISE:
        status = "suspect" if accepted < _GRAVE_NOISE else "failed"
        share = 100 * report.attrs["acceptance"]
        reason = f"A Metropolis step on all rows would accept {share:.2g} %: the step size makes "
        reason += f"variances about {100 * accepted:.0f} % too large."
        findings.append(Finding(status, reason, smaller))
    return findings
