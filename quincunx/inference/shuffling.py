r"""Random permutations of many rows without a sort.

Rows are written as pairs (l, r) with l < a and r < b, a b >= N, a and b about sqrt N. A round maps

    (l, r) -> (r, (l + f(r)) mod a),

with f a table of random numbers, and a and b trade places; eight rounds with tables of their own
make a permutation of the pairs that passes for a random one. Pairs that stand for no row are sent
through it again until they do. Sorting random numbers, as `jax.random.permutation` does, takes an
order of magnitude longer.

Luby and Rackoff (1988), How to construct pseudorandom permutations from pseudorandom functions,
SIAM Journal on Computing 17:373; for any N: Black and Rogaway (2002), Ciphers with arbitrary finite
domains, CT-RSA.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

_FEW = 4096  # rows that are as well sorted
_ROUNDS = 8


def permutation(key: Array, rows: int) -> Array:
    """A permutation of `rows` rows, `(rows,)`, nearly uniform where they are many."""
    if rows < _FEW:
        return jax.random.permutation(key, rows)
    a = math.isqrt(rows - 1) + 1
    b = -(-rows // a)
    sizes = [(a, b) if turn % 2 == 0 else (b, a) for turn in range(_ROUNDS)]
    tables = [
        jax.random.randint(jax.random.fold_in(key, turn), (right,), 0, left)
        for turn, (left, right) in enumerate(sizes)
    ]

    def encipher(row: Array) -> Array:
        left, right = row // b, row % b
        for table, (size, _) in zip(tables, sizes, strict=True):
            moved = left + table[right]
            left, right = right, jnp.where(moved >= size, moved - size, moved)
        return left * b + right

    def walk(row: Array) -> Array:
        return jnp.where(row >= rows, encipher(row), row)

    start = encipher(jnp.arange(rows))
    return jax.lax.while_loop(lambda row: jnp.any(row >= rows), walk, start)
