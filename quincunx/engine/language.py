"""The modelling language: five words that emit NumPyro messages.

A model is an ordinary Python function; what it says is heard by NumPyro's handlers, so a
Quincunx model is a NumPyro model and the other way round.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from numpyro.distributions import Distribution
from numpyro.distributions.distribution import Unit

from quincunx.engine.errors import ModelError
from quincunx.engine.rows import take
from quincunx.engine.storage import Stored

_ROWS: contextvars.ContextVar[Mapping[str, Any] | None] = contextvars.ContextVar(
    "rows", default=None
)
_OBSERVER: contextvars.ContextVar[Callable[[str, int, Sequence[Any]], None] | None] = (
    contextvars.ContextVar("observer", default=None)
)


class Model:
    """A model function with a name; calling it runs the function under NumPyro's handlers."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        if not callable(fn):
            message = f"`model` decorates a function, not a {type(fn).__name__}."
            raise ModelError(message)
        self.fn = fn
        functools.update_wrapper(self, fn)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function."""
        return self.fn(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<model {getattr(self.fn, '__name__', 'anonymous')}>"


def model(fn: Callable[..., Any]) -> Model:
    """Mark a function as a model.

    The function's arguments are the data; inside, `sample`, `plate`, `deterministic` and
    `factor` say what the model is.

    Example:
        ```python
        @qx.model
        def coin(flips=None):
            p = qx.sample("p", dist.Beta(1, 1))
            with qx.plate("flip", flips) as flip:
                qx.sample("heads", dist.Bernoulli(p), obs=flip)
        ```
    """
    return Model(fn)


def sample(
    name: str,
    distribution: Distribution,
    obs: Any = None,
    dims: Sequence[str] | None = None,
    obs_mask: Any = None,
) -> Any:
    """A random variable: latent, or observed when `obs` is given.

    Args:
        name: the site's name, unique in the model.
        distribution: any NumPyro distribution.
        obs: the observed value, of shape `distribution.shape()`; `None` for a latent variable.
        dims: names of the event dimensions (those that no plate names), outermost first.
        obs_mask: `True` where `obs` was observed, of the batch shape; the rest is imputed by a
            latent site `<name>_unobserved`. Entries of `obs` that are masked out may be NaN.

    Returns:
        The value of the variable.
    """
    if isinstance(obs, (list, tuple)):
        obs = jnp.asarray(obs)
    infer = None if dims is None else {"event_dims": list(dims)}
    if obs_mask is not None:
        return _impute(name, distribution, obs, jnp.asarray(obs_mask, bool), infer)
    return numpyro.sample(name, distribution, obs=obs, infer=infer)


def _impute(name: str, distribution: Distribution, obs: Any, mask: Any, infer: Any) -> Any:
    """Observed where the mask holds, latent elsewhere.

    The latent site is a full copy of the variable with its own law: the entries that were
    observed integrate out, so that the posterior is proper and the sizes are fixed.
    """
    if obs is None:
        return numpyro.sample(name, distribution, infer=infer)
    unobserved = numpyro.sample(f"{name}_unobserved", distribution, infer=infer)
    spread = mask.reshape(mask.shape + (1,) * distribution.event_dim)
    value = jnp.where(spread, obs, unobserved)
    filled = jnp.where(spread, obs, jax.lax.stop_gradient(unobserved))
    with numpyro.handlers.mask(mask=mask):
        numpyro.sample(f"{name}_observed", distribution, obs=filled, infer=infer)
    return numpyro.deterministic(name, value)


def deterministic(name: str, value: Any) -> Any:
    """Record a quantity computed from the latent variables; it is kept with every draw."""
    return numpyro.deterministic(name, value)


def factor(
    name: str, log_weight: Any, prox: Mapping[str, Callable[[Any, Any], Any]] | None = None
) -> None:
    """Add `log_weight` to the log density; outside a data plate it belongs to the prior.

    Args:
        name: the factor's name.
        log_weight: what is added.
        prox: says that minus `log_weight` is a convex term g of one latent site, and how it is
            split off: `{site: prox}`, where `prox(v, step)` is argmin_x g(x) + |x - v|^2 / (2 step)
            for `v` of the site's shape.

    Raises:
        ModelError: `prox` is not one function under the name of a site.

    Example:
        ```python
        level = qx.sample("level", dist.Normal(0, 10).expand([50]).to_event(1))
        soft = lambda v, step: jnp.sign(v) * jnp.maximum(jnp.abs(v) - 3 * step, 0)
        qx.factor("sparse", -3 * jnp.sum(jnp.abs(level)), prox={"level": soft})
        ```
    """
    if prox is None:
        numpyro.factor(name, log_weight)
        return
    if not isinstance(prox, Mapping) or len(prox) != 1 or not callable(next(iter(prox.values()))):
        message = f"factor '{name}': `prox` must be a dict with the name of one latent site and "
        raise ModelError(message + "its operator, e.g. `prox={'beta': lambda v, step: ...}`.")
    law = Unit(log_weight)
    infer = {"is_auxiliary": True, "prox": dict(prox)}
    numpyro.sample(name, law, obs=law.sample(None), infer=infer)


class DataPlate:
    """Conditionally independent rows of data; entering it yields the rows in use."""

    def __init__(self, name: str, arrays: Sequence[Any]) -> None:
        shapes = [_shape(array) for array in arrays if array is not None]
        sizes = {shape[0] if shape else 0 for shape in shapes}
        if not shapes:
            message = f"plate '{name}': all arrays are None, so its size is unknown. "
            raise ModelError(message + "Pass at least one array, or the size as an integer.")
        if len(sizes) != 1 or 0 in sizes:
            message = f"plate '{name}': its arrays have shapes {', '.join(map(str, shapes))}; "
            raise ModelError(
                message + "the leading lengths must be one and the same, and not zero."
            )
        self.name, self.size, self.arrays = name, sizes.pop(), tuple(arrays)
        observer = _OBSERVER.get()
        if observer is not None:
            observer(name, self.size, self.arrays)
        self._rows = (_ROWS.get() or {}).get(name)
        self._plate = numpyro.plate(name, self.size)

    def __enter__(self) -> Any:
        self._plate.__enter__()
        values = take(self.arrays, self._rows)
        return values[0] if len(values) == 1 else tuple(values)

    def __exit__(self, *exception: Any) -> None:
        self._plate.__exit__(*exception)


def _shape(array: Any) -> tuple[int, ...]:
    return array.shape if isinstance(array, Stored) else jnp.shape(array)


def plate(name: str, *sizes_or_arrays: Any) -> DataPlate | numpyro.plate:
    """Conditionally independent repetitions.

    `plate("school", 8)` repeats its body over 8 units. `plate("row", X, y)` is a *data plate*:
    its size is the arrays' leading length, entering it yields their rows, and methods may
    take minibatches of the rows or shard them over devices. `None` arrays stay `None`.

    Args:
        name: the plate's name; it also names the dimension of the sites inside.
        *sizes_or_arrays: one integer, or one or more arrays with the same leading length.

    Raises:
        ModelError: no size, a size that is not positive, or arrays of different lengths.
    """
    if not sizes_or_arrays:
        raise ModelError(f"plate '{name}' needs a size or the arrays whose rows it runs over.")
    first = sizes_or_arrays[0]
    if isinstance(first, jax.Array) and jnp.ndim(first) == 0:
        message = f"plate '{name}': the size is an array value, unknown while tracing. "
        raise ModelError(message + "Pass the size as a Python integer in `data`.")
    if hasattr(first, "__index__") and not hasattr(first, "__len__"):
        if len(sizes_or_arrays) > 1:
            raise ModelError(f"plate '{name}': give one size, or arrays, not both.")
        if int(first) <= 0:
            raise ModelError(f"plate '{name}': the size must be positive, not {int(first)}.")
        return numpyro.plate(name, int(first))
    return DataPlate(name, sizes_or_arrays)


@contextmanager
def rows_in_use(rows: Mapping[str, Any]) -> Iterator[None]:
    """Let data plates yield only the given rows, by plate name."""
    token = _ROWS.set(rows)
    try:
        yield
    finally:
        _ROWS.reset(token)


@contextmanager
def observing(observer: Callable[[str, int, Sequence[Any]], None]) -> Iterator[None]:
    """Report every data plate that is created to `observer(name, size, arrays)`."""
    token = _OBSERVER.set(observer)
    try:
        yield
    finally:
        _OBSERVER.reset(token)
