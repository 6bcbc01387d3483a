"""Who talks to whom: graphs of agents, and sums over neighbours along their edges."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from quincunx.engine.errors import MethodError, unknown
from quincunx.inference.distributed.collectives import AXIS, sent, total

Edges = tuple[tuple[int, int], ...]


def _complete(count: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(count) for j in range(i)]


def _ring(count: int) -> list[tuple[int, int]]:
    return [(i, (i + 1) % count) for i in range(count)]


def _star(count: int) -> list[tuple[int, int]]:
    return [(0, i) for i in range(1, count)]


def _grid(count: int) -> list[tuple[int, int]]:
    """Rows and columns as equal in number as can be."""
    columns = next(width for width in range(int(count**0.5), 0, -1) if count % width == 0)
    right = [(i, i + 1) for i in range(count) if (i + 1) % columns]
    return right + [(i, i + columns) for i in range(count - columns)]


_NAMED: dict[str, Callable[[int], list[tuple[int, int]]]] = {
    "complete": _complete,
    "ring": _ring,
    "star": _star,
    "grid": _grid,
}


def as_edges(graph: Any) -> str | Edges:
    """A graph as a setting keeps it: its name, or its edges.

    Args:
        graph: a name, a symmetric adjacency matrix, a networkx graph, or pairs of agents.

    Raises:
        MethodError: something else, or an adjacency matrix that is not square and symmetric.
    """
    if isinstance(graph, str):
        if graph not in _NAMED:
            raise MethodError(unknown("graph", graph, _NAMED))
        return graph
    if hasattr(graph, "edges") and hasattr(graph, "nodes"):
        number = {node: index for index, node in enumerate(graph.nodes)}
        pairs = [(number[a], number[b]) for a, b in graph.edges()]
    elif isinstance(graph, tuple) and all(isinstance(edge, tuple) for edge in graph):
        pairs = list(graph)
    else:
        matrix = np.asarray(graph)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or (matrix != matrix.T).any():
            message = f"`graph` must be one of {', '.join(_NAMED)}, a symmetric adjacency matrix "
            raise MethodError(message + f"or a networkx graph, not {type(graph).__name__}.")
        pairs = [(int(i), int(j)) for i, j in zip(*np.nonzero(matrix), strict=True)]
    return tuple(sorted({(min(i, j), max(i, j)) for i, j in pairs if i != j}))


class Graph(NamedTuple):
    """A connected graph without direction.

    Attributes:
        count: number of agents.
        edges: pairs of neighbours, the smaller number first.
    """

    count: int
    edges: Edges

    @classmethod
    def of(cls, spec: str | Edges, count: int) -> Graph:
        """The graph of `as_edges` over a number of agents.

        Raises:
            MethodError: an edge to an agent that there is not, or a graph in several pieces.
        """
        edges = _NAMED[spec](count) if isinstance(spec, str) else list(spec)
        tidy = {(min(i, j), max(i, j)) for i, j in edges if i != j}
        graph = cls(count, tuple(sorted(tidy)))
        if any(j >= count for _, j in graph.edges):
            message = f"`graph` has an edge to agent {max(j for _, j in graph.edges)}, "
            raise MethodError(message + f"and there are {count}, numbered from 0.")
        reached = {0}
        while more := {k for edge in graph.edges for k in edge if reached & set(edge)} - reached:
            reached |= more
        if len(reached) < count:
            message = f"`graph` is in pieces: agent {min(set(range(count)) - reached)} cannot be "
            raise MethodError(message + "reached from agent 0. Connect them.")
        return graph

    @property
    def degrees(self) -> np.ndarray:
        """Number of neighbours of each agent, `(count,)`."""
        return np.bincount(np.ravel(self.edges).astype(int), minlength=self.count)

    @property
    def is_complete(self) -> bool:
        """Whether all are neighbours."""
        return len(self.edges) == self.count * (self.count - 1) // 2

    @property
    def metropolis(self) -> Float[np.ndarray, "count count"]:
        """Doubly stochastic weights, W_ij = 1 / (1 + max(d_i, d_j)) on the edges."""
        weights, degrees = np.zeros((self.count, self.count)), self.degrees
        for i, j in self.edges:
            weights[i, j] = weights[j, i] = 1 / (1 + max(degrees[i], degrees[j]))
        return weights + np.diag(1 - weights.sum(axis=1))

    @property
    def matchings(self) -> list[list[tuple[int, int]]]:
        """The edges in groups in which no agent has two, so that a group is one exchange."""
        groups: list[list[tuple[int, int]]] = []
        for edge in self.edges:
            for group in groups:
                if all(not set(edge) & set(other) for other in group):
                    group.append(edge)
                    break
            else:
                groups.append([edge])
        return groups

    @property
    def rounds(self) -> int:
        """Exchanges, one after the other, of a sum over neighbours."""
        return 1 if self.is_complete else len(self.matchings)

    @property
    def messages(self) -> int:
        """Vectors that leave agents in a sum over neighbours."""
        return self.count if self.is_complete else 2 * len(self.edges)

    def neighbours(self, value: Array) -> Array:
        """The sum of a value over an agent's neighbours, inside an axis over agents.

        On a complete graph only the sum over all is computed; otherwise the value goes along the
        edges.
        """
        if self.is_complete:
            return total(value) - value
        return self._along(value, lambda i, j: 1.0)

    def mixed(self, value: Array) -> Array:
        """The mean of a value over an agent and its neighbours, by Metropolis weights."""
        weights = self.metropolis
        if self.is_complete:
            return total(value) / self.count
        own = jnp.asarray(np.diag(weights), value.dtype)[jax.lax.axis_index(AXIS)]
        return own * value + self._along(value, lambda i, j: weights[i, j])

    def _along(self, value: Array, weight: Callable[[int, int], float]) -> Array:
        """A weighted sum over neighbours, one matching after the other."""
        summed = jnp.zeros_like(value)
        for group in self.matchings:
            factor, partner = np.zeros(self.count), np.arange(self.count)
            for i, j in group:
                factor[i] = factor[j] = weight(i, j)
                partner[i], partner[j] = j, i
            pairs = [(int(partner[i]), i) for i in range(self.count)]
            received = sent(value, pairs)
            own = jnp.asarray(factor, value.dtype)[jax.lax.axis_index(AXIS)]
            summed = summed + jnp.where(own > 0, own * received, 0.0)
        return summed


@functools.lru_cache(maxsize=64)
def graph_of(spec: str | Edges, count: int) -> Graph:
    """`Graph.of`, once for each graph."""
    return Graph.of(spec, count)
