"""A bare log density in a model's place."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.distributions import ImproperUniform, constraints

from quincunx.engine.errors import ModelError, unknown


class BareModel:
    """A log density over named variables, to be given to `infer` or `compile` as a model."""

    def __init__(
        self,
        fn: Callable[..., Any],
        shapes: Mapping[str, tuple[int, ...]],
        supports: Mapping[str, Any],
        rebuild: Callable[[list[Any]], Any],
    ) -> None:
        self.fn = fn
        self.shapes = dict(shapes)
        self.supports = dict(supports)
        self.rebuild = rebuild
        self.__name__ = getattr(fn, "__name__", "log_density")
        signature = inspect.signature(fn)
        data = list(signature.parameters.values())[1:]
        self.__signature__ = signature.replace(parameters=data)

    def __call__(self, **data: Any) -> None:
        """Emit the variables and the log density as NumPyro messages."""
        values = [
            numpyro.sample(name, _flat(self.supports[name], shape))
            for name, shape in self.shapes.items()
        ]
        log_density = self.fn(self.rebuild(values), **data)
        shape = jnp.shape(log_density)
        if shape != ():
            message = f"The log density `{self.__name__}` must be a scalar, got shape {shape}. "
            raise ModelError(message + "Sum it over its elements, e.g. `.sum()`.")
        numpyro.factor("log_density", log_density)


def _flat(support: Any, shape: tuple[int, ...]) -> ImproperUniform:
    event_dim = support.event_dim
    cut = len(shape) - event_dim
    return ImproperUniform(support, shape[:cut], shape[cut:])


def _label(path: Any) -> str:
    """A variable's name from its place in a pytree: `b_c` for `example["b"]["c"]`."""
    keys = [getattr(key, "key", getattr(key, "name", getattr(key, "idx", None))) for key in path]
    return "_".join(str(key) for key in keys)


def _names(example: Any) -> tuple[list[str], list[Any], Any]:
    paths, treedef = jax.tree_util.tree_flatten_with_path(example)
    if len(paths) == 1 and not paths[0][0]:
        return ["x"], [paths[0][1]], treedef
    names = [_label(path) for path, _ in paths]
    return names, [leaf for _, leaf in paths], treedef


def _called_back(fn: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A traceable function that calls `fn` on NumPy arrays, for one chain at a time."""

    @functools.wraps(fn)
    def call(values: Any, **data: Any) -> Any:
        dtype = jax.dtypes.canonicalize_dtype(float)
        fixed = {key: value for key, value in data.items() if isinstance(value, str)}
        arrays = {key: value for key, value in data.items() if key not in fixed}

        def host(values: Any, arrays: Any) -> np.ndarray:
            plain, given = jax.tree.map(np.asarray, (values, arrays))
            found = np.asarray(fn(plain, **given, **fixed))
            if found.size != 1:
                message = f"The log density `{name}` must be a scalar, got shape {found.shape}."
                raise ModelError(message)
            return found.reshape(()).astype(dtype)

        spec = jax.ShapeDtypeStruct((), dtype)
        return jax.pure_callback(host, spec, values, arrays, vmap_method="sequential")

    return call


def from_log_density(
    fn: Callable[..., Any], example: Any, supports: Any = None, *, black_box: bool = False
) -> BareModel:
    """Use a bare log density as a model.

    Args:
        fn: log density up to a constant, `fn(values)` or `fn(values, **data)`, a scalar; with
            respect to the Lebesgue measure on the constrained values.
        example: a value of the right structure and shapes. Its leaves name the variables; a bare
            array is called `x`.
        supports: NumPyro constraints, in the structure of `example` or by variable name;
            variables without one are real.
        black_box: whether `fn` is plain Python that JAX cannot trace, such as a simulator: it is
            then called on NumPy arrays, once for each evaluation, and must give the same value
            for the same arguments. It has no gradient; `quincunx.applicable` tells which methods
            can run.

    Returns:
        What `infer`, `compile` and `explain` take in a model's place.

    Raises:
        ModelError: an unknown variable among `supports`, or a leaf that is not numeric.

    Example:
        ```python
        def log_density(x):
            return -0.5 * (x**2).sum()

        qx.infer(qx.from_log_density(log_density, np.zeros(10)))
        ```
    """
    name = getattr(fn, "__name__", "log_density")
    fn = _called_back(fn, name) if black_box else fn
    names, leaves, treedef = _names(example)
    if len(set(names)) != len(names):
        raise ModelError(f"`example` gives two variables the same name: {sorted(names)}.")
    for name, leaf in zip(names, leaves, strict=True):
        if np.asarray(leaf).dtype.kind not in "biuf":
            raise ModelError(f"Variable '{name}' of `example` is not a real array: {leaf!r}.")
    shapes = {name: tuple(np.shape(leaf)) for name, leaf in zip(names, leaves, strict=True)}
    chosen: dict[str, Any] = dict.fromkeys(names, constraints.real)
    if isinstance(supports, constraints.Constraint):
        chosen = dict.fromkeys(names, supports)
    elif supports is not None:
        is_support = lambda entry: entry is None or isinstance(entry, constraints.Constraint)  # noqa: E731
        paths = jax.tree_util.tree_flatten_with_path(supports, is_leaf=is_support)[0]
        for path, support in paths:
            name = _label(path)
            if name not in chosen:
                raise ModelError(unknown("variable", name, names, " in `supports`"))
            if support is not None and not isinstance(support, constraints.Constraint):
                message = f"The support of '{name}' must be a constraint, not {support!r}. "
                raise ModelError(message + "Write e.g. `dist.constraints.positive`.")
            chosen[name] = support or constraints.real
    return BareModel(fn, shapes, chosen, treedef.unflatten)
