"""What is wrong with a model, found before a method is compiled for it.

The model is run at a few points, checking the observations, the distributions' parameters and
the log probabilities site by site.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

from quincunx.engine import tracing
from quincunx.engine.density import Density
from quincunx.engine.dependence import influences
from quincunx.engine.errors import ModelError, ModelWarning
from quincunx.engine.program import Plate, Program, Site
from quincunx.engine.rows import Block, cut_evenly
from quincunx.engine.storage import Stored

_POINTS = 16
_READ = 16_384  # rows on disk that are looked at at once
_MATRICES = ("PositiveDefinite", "PositiveSemiDefinite", "CorrMatrix")


def preflight(density: Density, *, compares: bool = True) -> None:
    """Check a density before sampling from it.

    Args:
        density: the density.
        compares: whether the method compares log densities, so that they must be precise.

    Raises:
        ModelError: discrete latent sites; no latent site; a flat site that nothing depends on;
            NaN or out-of-support observations; parameters that violate their constraints.
    """
    program = density.program
    _check_latents(density)
    _check_influence(density)
    points = np.random.default_rng(0).uniform(-2, 2, (_POINTS, density.dim))
    points = points.astype(jax.dtypes.canonicalize_dtype(float))
    rows = _rows(density, 0)
    report = jax.device_get(_inspect(density, points, rows))
    proper = all(site.distribution != "ImproperUniform" for site in program.latents)
    if proper and _violated(report):
        report = jax.device_get(_inspect(density, _prior_points(density, _POINTS), rows))
    for site in density.program.role("observed", "latent"):
        found = report[site.name]
        if site.role == "observed":
            _check_observation(density.program.name, site, found, rows)
        elif found["masked_count"][0]:
            message = (
                f"Model `{density.program.name}`, {site}: a latent variable lies under a mask, "
            )
            message += f"so that {int(found['masked_count'][0])} of its entries have a flat prior. "
            raise ModelError(
                message + "Mask observed sites only, or use `qx.sample(obs_mask=...)`."
            )
        _check_parameters(density.program.name, site, found["parameters"])
    _check_stored(density, points[:1])
    if compares:
        _check_precision(report)


def _rows(density: Density, part: int) -> dict[str, Block]:
    """Some rows of the data plates that are on disk."""
    plates = (plate for plate in density.program.data_plates if plate.on_disk)
    return {plate.name: cut_evenly(plate.size, _parts(plate), np.int32(part)) for plate in plates}


def _parts(plate: Plate) -> int:
    return -(-plate.size // _READ)


def _check_stored(density: Density, points: Any) -> None:
    """The observations of all other rows on disk."""
    parts = [_parts(plate) for plate in density.program.data_plates if plate.on_disk]
    for part in range(1, max(parts, default=0)):
        rows = _rows(density, part)
        report = jax.device_get(_inspect(density, points, rows))
        for site in density.program.role("observed"):
            _check_observation(density.program.name, site, report[site.name], rows)


def _check_latents(density: Density) -> None:
    program = density.program
    discrete = [site for site in program.latents if site.is_discrete]
    if discrete:
        names = ", ".join(str(site) for site in discrete)
        message = f"Model `{program.name}` has discrete latent variables: {names}. No method here "
        message += "draws them: sum them out (`jax.scipy.special.logsumexp` in a `factor`, or "
        message += "`dist.MixtureSameFamily`), or use NumPyro's `DiscreteHMCGibbs`."
        raise ModelError(message)
    if density.dim == 0:
        message = f"Model `{program.name}` has no latent variable, so there is nothing to infer. "
        raise ModelError(message + "Is every `sample` given `obs`?")


@functools.lru_cache(maxsize=128)
def _influences(program: Program) -> dict[str, frozenset[int]]:
    """For each site, the arguments and latent sites (numbered in this order) that it depends on."""

    def terms(leaves: Any, values: Any) -> Any:
        data = program.signature.rebuild(leaves)
        trace = tracing.at_point(program.model, data, tracing.given(values))
        return {
            name: tracing.scaled_sum(site) if site["type"] == "sample" else site["value"]
            for name, site in trace.items()
            if site["type"] in ("sample", "deterministic")
        }

    leaves = program.signature.specs()
    values = {site.name: jax.ShapeDtypeStruct(site.shape, site.dtype) for site in program.latents}
    return influences(terms, leaves, values)


def _check_influence(density: Density) -> None:
    """Flat sites that nothing depends on, and arguments that change nothing."""
    program = density.program
    found = _influences(program)
    used = frozenset().union(*found.values())
    arguments = program.signature.array_names
    for index, name in enumerate(arguments):
        if index not in used:
            message = f"Argument '{name}' of model `{program.name}` changes nothing but shapes. "
            message += "Is it meant to be observed, or misspelt?"
            warnings.warn(message, ModelWarning, stacklevel=4)
    deterministic = {site.name for site in program.role("deterministic")}
    ordered = sorted(site.name for site in program.latents)
    for site in program.latents:
        index = len(arguments) + ordered.index(site.name)
        terms = [f for name, f in found.items() if name != site.name and name not in deterministic]
        if site.distribution == "ImproperUniform" and not any(index in term for term in terms):
            message = f"Model `{program.name}`, {site}: the prior is flat and nothing observed "
            message += "depends on it, so the posterior is improper. Give it a proper prior."
            raise ModelError(message)


def _check_observation(
    model: str, site: Site, found: Mapping[str, Any], rows: Mapping[str, Block]
) -> None:
    argument = f" (argument '{site.argument}')" if site.argument else ""
    head = f"Model `{model}`, {site}: the observation{argument} "
    count = int(found["nan_count"][0])
    if count:
        index = _index(found["nan_at"][0], site, site.shape, rows)
        message = f"{head}has {count} NaN, first at index {index}. Drop these rows, mask them with "
        raise ModelError(message + "`sample(..., obs_mask=...)`, or impute them.")
    outside = np.asarray(found["outside_count"])
    if outside.all():
        at, value = found["outside_at"][0], found["outside_value"][0]
        shape = site.shape[: len(site.shape) - site.event_dim]
        shown = np.array2string(np.asarray(value), precision=6, threshold=6)
        message = f"{head}is outside the support {site.support} of {site.distribution}: "
        message += f"y[{_index(at, site, shape, rows)}] = {shown} ({int(outside[0])} such). "
        raise ModelError(message + "Correct the data or choose another distribution.")


def _check_parameters(model: str, site: Site, parameters: Mapping[str, Any]) -> None:
    for name, found in parameters.items():
        kind = dict(site.parameters).get(name, "its support")
        bad = np.asarray(found["violations"]) > 0
        value = np.asarray(found["value"])
        finite = bad & np.isfinite(value) & (value != 0)  # zero is underflow at a far point
        share = f"at {int(bad.sum())} of {len(bad)} trial points"
        head = f"Model `{model}`, {site}: parameter '{name}' of {site.distribution} "
        if "eigenvalue" in found:
            if bad.all():
                smallest = float(np.asarray(found["eigenvalue"])[bad][0])
                message = f"{head}is not {kind} {share}; its smallest eigenvalue "
                message += f"is {smallest:.3g}. Add a small multiple of the identity, or check it."
                raise ModelError(message)
        elif finite.sum() >= max(1, _POINTS // 4):
            value = float(np.asarray(found["value"])[finite][0])
            message = f"{head}is {value:.6g}, but must be in {kind} ({share}). "
            message += "Give what it is made of a prior with that support, e.g. `HalfNormal`, or "
            raise ModelError(message + "transform it, e.g. `jnp.exp`.")
        elif finite.any():
            value = float(np.asarray(found["value"])[finite][0])
            message = f"{head}is {value:.6g}, outside {kind}, {share}."
            warnings.warn(message, ModelWarning, stacklevel=4)


def _check_precision(report: Mapping[str, Any]) -> None:
    totals = np.sum([np.asarray(found["log_prob"], float) for found in report.values()], axis=0)
    totals = np.abs(totals[np.isfinite(totals)])
    if jax.dtypes.canonicalize_dtype(float) == np.float64 or not totals.size:
        return
    typical = float(np.min(totals))
    ulp = float(np.spacing(np.float32(typical)))
    if ulp > 1e-3:
        message = f"|log density| is about {typical:.3g}, where float32 resolves only {ulp:.1g}; "
        message += "call `qx.configure(x64=True)` first for exact acceptance probabilities."
        warnings.warn(message, ModelWarning, stacklevel=4)


def blame(density: Density, position: Any) -> str:
    """Which sites make the log density or its gradient non-finite at a position."""
    position = jnp.asarray(position)
    points = jnp.broadcast_to(position, (_POINTS, density.dim))
    report = jax.device_get(_inspect(density, points, _rows(density, 0)))
    gradient = np.asarray(eqx.filter_jit(_gradient)(density, position))
    lines = []
    for site in density.program.role("observed", "latent"):
        value = float(np.asarray(report[site.name]["log_prob"])[0])
        if not np.isfinite(value):
            lines.append(f"{site} has log probability {value}")
    for site in density.program.latents:
        part = gradient[site.offset : site.offset + site.size]
        if not np.all(np.isfinite(part)):
            bad = float(part[~np.isfinite(part)][0])
            lines.append(f"the gradient with respect to {site} is {bad}")
    for name, leaf in zip(density.program.signature.array_names, density.leaves, strict=True):
        count = _not_finite(leaf)
        if count:
            lines.append(f"argument '{name}' has {count} entries that are NaN or infinite")
    if not lines:
        return "No single site is to blame; look at the `factor` terms."
    at = jax.device_get(eqx.filter_jit(Density.constrain)(density, position))
    shown = {site.name: at[site.name] for site in density.program.latents}
    shown = {
        name: np.array2string(np.asarray(v), precision=3, threshold=6) for name, v in shown.items()
    }
    where = ", ".join(f"{name} = {value}" for name, value in list(shown.items())[:6])
    return "; ".join(lines) + f" (at {where}). Reparametrise, or start elsewhere with `init=`."


def _not_finite(leaf: Any) -> int:
    """How many entries of an argument are NaN or infinite."""
    if not isinstance(leaf, Stored):
        return int(np.sum(~np.isfinite(np.asarray(leaf, float))))
    parts = (leaf.reader.array[start:stop] for start, stop in leaf.blocks())
    return sum(int(np.sum(~np.isfinite(part))) for part in parts)


def _gradient(density: Density, position: Any) -> Any:
    return jax.grad(density.log_density)(position)


def _index(flat: Any, site: Site, shape: tuple[int, ...], rows: Mapping[str, Block]) -> Any:
    """Where in an observation an entry of some rows is."""
    if not shape:
        return "()"
    blocks = [rows.get(dim) for dim in site.dims[: len(shape)]]
    sizes = [n if block is None else block.size for n, block in zip(shape, blocks, strict=True)]
    starts = [0 if block is None else int(block.start) for block in blocks]
    index = tuple(int(i) + s for i, s in zip(np.unravel_index(flat, sizes), starts, strict=True))
    return index[0] if len(index) == 1 else index


def _violated(report: Mapping[str, Any]) -> bool:
    return any(
        np.any(found["violations"])
        for site in report.values()
        for found in site["parameters"].values()
    )


@eqx.filter_jit
def _prior_points(density: Density, count: int) -> Any:
    """Positions drawn from the prior."""

    def draw(key: Any) -> Any:
        return density.unconstrain(density.latent(density.simulate(key)))

    return jax.vmap(draw)(jax.random.split(jax.random.key(0), count))


@eqx.filter_jit
def _inspect(density: Density, points: Any, rows: Mapping[str, Block]) -> dict[str, Any]:
    """Findings by site, with a leading axis over the points."""
    return jax.lax.map(lambda z: _findings(density, z, rows), points)


def _findings(density: Density, z: Any, rows: Mapping[str, Block]) -> dict[str, Any]:
    program = density.program
    substitution = tracing.Substitution(program.split(z), rows)
    trace = tracing.at_point(program.model, density.data, substitution, rows)
    findings = {}
    for site in program.role("observed", "latent"):
        message = trace[site.name]
        found: dict[str, Any] = {"parameters": _parameters(message["fn"])}
        found["log_prob"] = tracing.scaled_sum(message)
        if site.role == "observed":
            found |= _observation(message["fn"], message["value"])
        else:
            mask = getattr(message["fn"], "_mask", None)
            found["masked_count"] = jnp.sum(~jnp.asarray(True if mask is None else mask, bool))
        findings[site.name] = found
    return findings


def _observation(fn: Any, value: Any) -> dict[str, Any]:
    value = jnp.asarray(value)
    nan = jnp.isnan(value) if jnp.issubdtype(value.dtype, jnp.floating) else jnp.zeros(1, bool)
    outside = ~jnp.asarray(fn.support(value))
    mask = getattr(fn, "_mask", None)
    batch_mask = jnp.ones((), bool) if mask is None else jnp.asarray(mask, bool)
    outside = jnp.broadcast_to(outside & batch_mask, jnp.shape(outside)).reshape(-1)
    if mask is not None:
        spread = batch_mask.reshape(batch_mask.shape + (1,) * (value.ndim - batch_mask.ndim))
        nan = nan & jnp.broadcast_to(spread, nan.shape)
    at = jnp.argmax(outside)
    events = value.reshape(outside.shape + fn.event_shape)
    return {
        "nan_count": jnp.sum(nan),
        "nan_at": jnp.argmax(nan.reshape(-1)),
        "outside_count": jnp.sum(outside),
        "outside_at": at,
        "outside_value": events[at],
    }


def _parameters(fn: Any) -> dict[str, Any]:
    fn = tracing.unwrap(fn)
    findings = {}
    for name, constraint in fn.arg_constraints.items():
        value = getattr(fn, name, None) if name in fn.__dict__ else None
        if value is None or constraints.is_dependent(constraint):
            continue
        value = jnp.asarray(value)
        if not jnp.issubdtype(value.dtype, jnp.number):
            continue
        findings[name] = _violation(constraint, value)
    return findings


def _violation(constraint: Any, value: Any) -> dict[str, Any]:
    bad = ~jnp.asarray(constraint(value)).reshape(-1)
    kind = type(constraint).__name__.strip("_")
    found: dict[str, Any] = {"violations": jnp.sum(bad)}
    if kind in _MATRICES:
        smallest = jnp.linalg.eigvalsh(value)[..., 0].reshape(-1)
        found["eigenvalue"] = smallest[jnp.argmin(smallest)]
        found["value"] = found["eigenvalue"]
        return found
    event = 1 if constraint.event_dim else 0
    flat = value.reshape(bad.shape[0], -1) if event else value.reshape(-1, 1)
    found["value"] = jnp.min(flat[jnp.argmax(bad)])
    return found
