"""Running a model under NumPyro's handlers: at a point, on chosen rows, or forward."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax.core import Tracer
from numpyro import handlers
from numpyro.distributions import (
    AsymmetricLaplace,
    AsymmetricLaplaceQuantile,
    Laplace,
    LeftTruncatedDistribution,
    RightTruncatedDistribution,
    TwoSidedTruncatedDistribution,
    biject_to,
    constraints,
)
from numpyro.distributions.distribution import Unit
from numpyro.distributions.transforms import IndependentTransform, ParameterFreeTransform
from numpyro.primitives import Messenger

from quincunx.engine.group_laplace import GroupLaplace
from quincunx.engine.language import rows_in_use
from quincunx.engine.rows import Block, Part, indices

ALONE = threading.RLock()  # NumPyro has one stack of handlers for all threads

_TRUNCATED = (
    LeftTruncatedDistribution,
    RightTruncatedDistribution,
    TwoSidedTruncatedDistribution,
)
Trace = dict[str, dict[str, Any]]
Model = Callable[..., Any]


class PlateRows(Messenger):
    """Fix which rows every plate runs over: the given ones, or all of them."""

    def __init__(self, rows: Mapping[str, Any]) -> None:
        super().__init__()
        self.rows = rows

    def process_message(self, msg: dict[str, Any]) -> None:
        """Give a plate its rows."""
        if msg["type"] != "plate":
            return
        size, subsample_size = msg["args"]
        msg["subsampled"] = subsample_size is not None and subsample_size < size
        rows = self.rows.get(msg["name"])
        if rows is not None:
            msg["value"], msg["args"] = indices(rows), (size, rows.shape[0])
        elif msg["value"] is None:
            msg["value"], msg["args"] = jnp.arange(size), (size, None)


class _Unobserve(Messenger):
    """Turn observations into variables to be drawn; factors stay what they are."""

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "sample" or not msg["is_observed"] or is_factor(msg):
            return
        shape = jnp.shape(msg["value"])
        batch = shape[: len(shape) - len(msg["fn"].event_shape)]
        if len(batch) > len(msg["fn"].batch_shape) or math.prod(batch) > math.prod(
            msg["fn"].batch_shape
        ):
            msg["fn"] = msg["fn"].expand(batch)
        msg["value"], msg["is_observed"] = None, False


def is_factor(site: Mapping[str, Any]) -> bool:
    """Whether a site is a bare log weight."""
    return site["type"] == "sample" and isinstance(site["fn"], Unit)


def is_latent(site: Mapping[str, Any]) -> bool:
    """Whether a site is a latent random variable."""
    return site["type"] == "sample" and not site["is_observed"]


def base_support(support: Any) -> Any:
    """The constraint on single elements, under reinterpreted event dimensions."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def is_sphere(support: Any) -> bool:
    """Whether a support is the unit sphere, or several of it."""
    return base_support(support) is constraints.sphere


def bijection(support: Any) -> Any:
    """The map from the real line to a support: NumPyro's, and `UnitVector` for spheres."""
    if not is_sphere(support):
        return biject_to(support)
    several = support.event_dim - constraints.sphere.event_dim
    return IndependentTransform(UnitVector(), several) if several else UnitVector()


class UnitVector(ParameterFreeTransform):
    r"""u / |u|, for u with |u| independent of the direction and chi-distributed.

    The map forgets the length, so a standard normal density of u is what takes the place of the
    Jacobian's: exp(-|u|^2 / 2) keeps a flat density on the sphere flat.
    """

    domain = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    codomain = constraints.sphere  # pyright: ignore[reportAssignmentType]

    def __call__(self, x: Any) -> Any:
        """The unit vector."""
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def _inverse(self, y: Any) -> Any:
        return y

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Any:
        """-|x|^2 / 2."""
        del y, intermediates
        return -0.5 * jnp.sum(x**2, axis=-1)


def is_real(support: Any) -> bool:
    """Whether a support is unconstrained, so that no transform is needed."""
    return base_support(support) is constraints.real


def kink(site: Mapping[str, Any]) -> str:
    """The kind of a latent site's nonsmooth prior term, empty where it has none.

    A prior under a mask, or inside a scan, counts as smooth.
    """
    fn = site["fn"]
    if getattr(fn, "_mask", None) is not None or "_scan_current_index" in site["infer"]:
        return ""
    law = untruncated(fn)
    if isinstance(law, Laplace):
        return "l1"
    if isinstance(law, (AsymmetricLaplace, AsymmetricLaplaceQuantile)):
        return "asymmetric l1"
    return "group l2" if isinstance(law, GroupLaplace) else ""


def untruncated(fn: Any) -> Any:
    """The distribution that was written, before it was truncated, expanded or reshaped."""
    fn = unwrap(fn)
    return fn.base_dist if isinstance(fn, _TRUNCATED) else fn


def unwrap(fn: Any) -> Any:
    """The distribution that was written, under expansions, masks and event reshaping."""
    while type(fn).__name__ in ("ExpandedDistribution", "Independent", "MaskedDistribution"):
        fn = fn.base_dist
    return fn


def given(values: Mapping[str, Any]) -> Callable[[dict[str, Any]], Any]:
    """A substitution that gives latent sites constrained values by name."""
    return lambda site: values[site["name"]] if is_latent(site) else None


def batch_axis(frame_dim: int, ndim: int, event_dim: int) -> int:
    """The axis of a value of rank `ndim` on which a plate at `frame_dim` lies."""
    return ndim - event_dim + frame_dim


class Substitution:
    """Give each latent site its value from an unconstrained one, and collect the Jacobians.

    With t the bijection from the real line to the site's support, u the unconstrained value:
    value = t(u), and log |det t'(u)| is added to the log density. Native sites are given u itself.
    """

    def __init__(
        self,
        unconstrained: Mapping[str, Any],
        rows: Mapping[str, Any],
        native: frozenset[str] = frozenset(),
    ) -> None:
        self.unconstrained = unconstrained
        self.rows = rows
        self.native = native
        self.log_jacobians: list[Any] = []

    def __call__(self, site: dict[str, Any]) -> Any:
        """The value of a latent site, `None` for others."""
        if not is_latent(site) or site["name"] not in self.unconstrained:
            return None
        u = self.unconstrained[site["name"]]
        support = site["fn"].support
        transform = bijection(support)
        event_dim = transform.domain.event_dim
        step = site["infer"].get("_scan_current_index")
        if step is not None and jnp.ndim(u) > len(site["fn"].batch_shape) + event_dim:
            u = u[step]
        for frame in site.get("cond_indep_stack", ()):
            if frame.name in self.rows:
                axis = batch_axis(frame.dim, jnp.ndim(u), event_dim)
                u = jnp.take(u, indices(self.rows[frame.name]), axis=axis)
        if is_real(support) or site["name"] in self.native:
            return u
        value = transform(u)
        log_jacobian = transform.log_abs_det_jacobian(u, value)
        if site["scale"] is not None:
            log_jacobian = site["scale"] * log_jacobian
        if step is None:
            self.log_jacobians.append(log_jacobian)
        else:
            extra = jnp.ndim(log_jacobian) - len(site["fn"].batch_shape)
            axes = tuple(range(-extra, 0))
            numpyro.factor(f"_{site['name']}_log_jacobian", jnp.sum(log_jacobian, axis=axes))
        return value


def _run(
    model: Model,
    arguments: Mapping[str, Any],
    *messengers: Any,
    key: Any = None,
) -> Trace:
    """Trace the model; the first messenger is the innermost."""
    fn = model
    for messenger in messengers:
        messenger.fn = fn
        fn = messenger
    seeded = handlers.seed(fn, jax.random.key(0) if key is None else key)
    with ALONE, numpyro.validation_enabled(is_validate=False):
        return handlers.trace(seeded).get_trace(**arguments)


def at_point(
    model: Model,
    arguments: Mapping[str, Any],
    substitute: Callable[[dict[str, Any]], Any],
    rows: Mapping[str, Any] | None = None,
) -> Trace:
    """Trace the model with latent values from `substitute`, on the given rows or on all."""
    rows = rows or {}
    with rows_in_use(rows) if rows else nullcontext():
        substitution = handlers.substitute(substitute_fn=substitute)
        return _run(model, arguments, PlateRows(rows), substitution)


def forward(
    model: Model,
    arguments: Mapping[str, Any],
    key: Any,
    values: Mapping[str, Any] | None = None,
) -> Trace:
    """Trace the model drawing every variable, observed ones too, save those in `values`."""
    substitution = handlers.substitute(data=dict(values or {}))
    return _run(model, arguments, PlateRows({}), _Unobserve(), substitution, key=key)


def has_traced_bounds(support: Any) -> bool:
    """Whether the bounds of a support are computed by the model."""
    bounds = vars(base_support(support)).values()
    return any(isinstance(bound, Tracer) for bound in bounds)


def log_prob(site: Mapping[str, Any]) -> Any:
    """Log probability of a site's value, elementwise over its batch shape, never scaled.

    An observation outside a support that the model computes has log probability minus infinity;
    fixed supports are checked once, before sampling.
    """
    fn, value = site["fn"], site["value"]
    with numpyro.validation_enabled(is_validate=False):
        if site["intermediates"]:
            return fn.log_prob(value, site["intermediates"])
        terms = fn.log_prob(value)
    if site["is_observed"] and not is_factor(site) and has_traced_bounds(fn.support):
        inside = fn.support(jax.lax.stop_gradient(value))
        terms = jnp.where(inside, terms, -jnp.inf)
    return terms


def unmasked(site: Mapping[str, Any], value: Any) -> Any:
    """A site's value or log probability, with NaN where a mask says that nothing was observed."""
    value, mask = jnp.asarray(value), getattr(site["fn"], "_mask", None)
    if mask is None or not jnp.issubdtype(value.dtype, jnp.floating):
        return value
    mask = jnp.asarray(mask, bool)
    return jnp.where(mask.reshape(mask.shape + (1,) * (value.ndim - mask.ndim)), value, jnp.nan)


def scaled(site: Mapping[str, Any]) -> Any:
    """A site's contributions to the log density, with the scale of its plates."""
    terms = log_prob(site)
    return terms if site["scale"] is None else site["scale"] * terms


def on_rows(site: Mapping[str, Any], rows: Mapping[str, Any]) -> Any:
    """As `scaled`, without the terms of rows that do not count in an uneven block.

    Where each part of the rows is a density, terms outside the rows count once in all of them.
    """
    terms = scaled(site)
    parts = {block.parts for block in rows.values() if isinstance(block, Part)}
    for frame in site.get("cond_indep_stack", ()):
        block = rows.get(frame.name)
        if isinstance(block, Block) and jnp.ndim(terms) >= -frame.dim:
            terms, parts = block.only(terms, jnp.ndim(terms) + frame.dim), set()
    return terms / parts.pop() if parts else terms


def terms(
    trace: Trace, data_plates: set[str], rows: Mapping[str, Any]
) -> tuple[list[Any], list[Any]]:
    """Elements of the log prior, factors outside data plates included, and of the log likelihood.

    Args:
        trace: of the model at a point.
        data_plates: their names.
        rows: those in use, by plate.
    """
    prior, likelihood = [], []
    for site in trace.values():
        if site["type"] != "sample":
            continue
        inside = {frame.name for frame in site.get("cond_indep_stack", ())}
        if site["is_observed"] and (not is_factor(site) or inside & data_plates):
            likelihood.append(on_rows(site, rows))
        else:
            prior.append(scaled(site))
    return prior, likelihood


def scaled_sum(site: Mapping[str, Any]) -> Any:
    """A site's contribution to the log density."""
    return jnp.sum(scaled(site))
