"""Which inputs of a traced function can change which of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxprs_in_params

Influence = frozenset[int]
_OWN_DERIVATIVES = ("custom_jvp_call", "custom_vjp_call")
_CALLS = ("pjit", "jit", "closed_call", "core_call", "remat", "checkpoint", "custom_jvp_call")


def influences(fn: Callable[..., Any], *specs: Any) -> Any:
    """For each output of `fn`, the indices of the flattened inputs that may change it.

    The analysis is of the data flow only: it may name an input that in fact cancels, but never
    misses one that matters.

    Args:
        fn: a traceable function.
        *specs: arrays or `jax.ShapeDtypeStruct`, one for each argument.

    Returns:
        The output's structure with a frozenset of input indices at each leaf.
    """
    closed, out = jax.make_jaxpr(fn, return_shape=True)(*specs)
    inputs = [frozenset([index]) for index in range(len(closed.jaxpr.invars))]
    return jax.tree.unflatten(jax.tree.structure(out), _flow(closed.jaxpr, inputs))


def primitives(jaxpr: Jaxpr) -> Iterator[str]:
    """Names of all primitives of a traced function that JAX differentiates by itself."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        if eqn.primitive.name in _OWN_DERIVATIVES:
            continue
        for inner in jaxprs_in_params(eqn.params):
            yield from primitives(inner)


def _inner(eqn: Any) -> Jaxpr | None:
    if eqn.primitive.name not in _CALLS:
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = eqn.params.get(name)
        if isinstance(inner, ClosedJaxpr):
            inner = inner.jaxpr
        if isinstance(inner, Jaxpr) and len(inner.invars) == len(eqn.invars):
            return inner
    return None


def _flow(jaxpr: Jaxpr, inputs: Sequence[Influence]) -> list[Influence]:
    known: dict[Any, Influence] = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Influence:
        return frozenset() if isinstance(atom, Literal) else known.get(atom, frozenset())

    for eqn in jaxpr.eqns:
        arguments = [read(atom) for atom in eqn.invars]
        inner = _inner(eqn)
        if inner is None:
            outputs = [frozenset().union(*arguments)] * len(eqn.outvars)
        else:
            outputs = _flow(inner, arguments)
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]
