"""Where draws go, chunk by chunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Draws = dict[str, np.ndarray]
Block = tuple[str, int, Draws, Draws]


class Memory:
    """Keep draws in memory, as the chunks that they came in.

    Attributes:
        blocks: phase, group of chains, draws and statistics of each chunk, in order.
    """

    def __init__(self, blocks: Sequence[Block] = ()) -> None:
        self.blocks = list(blocks)

    def append(self, phase: str, group: int, draws: Draws, stats: Draws) -> None:
        """Take the draws of one chunk, `(chains of the group, draws, ...)`."""
        self.blocks.append((phase, group, draws, stats))

    def flush(self) -> None:
        """Nothing waits to be written."""

    def length(self, phase: str) -> int:
        """Draws that every chain has."""
        draws = self.draws(phase)
        return next(iter(draws.values())).shape[1] if draws else 0

    def position(self) -> dict[str, list[int]]:
        """What a checkpoint needs beside the blocks."""
        return {}

    def restore(self, position: Mapping[str, list[int]], blocks: Sequence[Block]) -> None:
        """Take the blocks that a checkpoint saved."""
        del position
        self.blocks = list(blocks)

    def draws(self, phase: str) -> Draws:
        """Draws of a phase by site."""
        return self.gather(phase)[0]

    def gather(self, phase: str) -> tuple[Draws, Draws]:
        """Draws and statistics of a phase, `(chain, draw, ...)`, as far as all chains have them."""
        groups = sorted({group for kind, group, _, _ in self.blocks if kind == phase})
        parts = [self._join(phase, group) for group in groups]
        return _chains([part[0] for part in parts]), _chains([part[1] for part in parts])

    def _join(self, phase: str, group: int) -> tuple[Draws, Draws]:
        chosen: list[Any] = [b for b in self.blocks if b[0] == phase and b[1] == group]
        draws, stats = chosen[0][2], chosen[0][3]
        return (
            {name: np.concatenate([b[2][name] for b in chosen], axis=1) for name in draws},
            {name: np.concatenate([b[3][name] for b in chosen], axis=1) for name in stats},
        )


def _chains(parts: Sequence[Draws]) -> Draws:
    if not parts:
        return {}
    length = min(next(iter(part.values())).shape[1] for part in parts)
    return {name: np.concatenate([part[name][:, :length] for part in parts]) for name in parts[0]}
