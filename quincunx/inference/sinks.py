"""Where draws go, chunk by chunk."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

Draws = dict[str, np.ndarray]
Block = tuple[str, int, Draws, Draws]


class Sink(abc.ABC):
    """What takes the draws of a run; its one writer is the run.

    Attributes:
        blocks: phase, group of chains, draws and statistics of chunks that a checkpoint must save
            itself, in order; empty where the sink keeps draws elsewhere.
        stride: one of how many kept draws the tree has.
    """

    blocks: Sequence[Block] = ()
    stride: int = 1

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """What the sink is, as a checkpoint remembers it."""

    def acquire(self) -> None:
        """Take hold of what the run writes to, for this run alone.

        Raises:
            QuincunxError: another run has it.
        """

    def release(self) -> None:
        """Let go of it."""

    def check(self) -> None:
        """Refuse to start a run whose sink would overwrite something."""

    def create(self) -> None:
        """Make what a run from its start needs."""

    @abc.abstractmethod
    def append(self, phase: str, group: int, draws: Draws, stats: Draws) -> None:
        """Take the draws of one chunk, `(chains of the group, draws, ...)`.

        Raises:
            OSError: they cannot be written; they stay in memory.
        """

    def flush(self) -> None:
        """Write what waits in memory.

        Raises:
            OSError: it cannot be written; it stays in memory.
        """

    @abc.abstractmethod
    def length(self, phase: str) -> int:
        """Draws of a phase that every chain has made."""

    @abc.abstractmethod
    def draws(self, phase: str) -> dict[str, Any]:
        """Draws of a phase by site, `(chain, draw, ...)`."""

    @abc.abstractmethod
    def position(self) -> dict[str, list[int]]:
        """How far the sink is, for the manifest of a checkpoint."""

    @abc.abstractmethod
    def arrays(self) -> Draws:
        """What the sink has beside the blocks, for the state of a checkpoint."""

    @abc.abstractmethod
    def restore(
        self, position: Mapping[str, list[int]], arrays: Draws, blocks: Sequence[Block]
    ) -> None:
        """Go on from what `position`, `arrays` and `blocks` gave to a checkpoint."""

    @abc.abstractmethod
    def copy(self) -> Sink:
        """A sink that goes on from here without changing this one.

        Raises:
            QuincunxError: the draws are where only one run may write.
        """

    @abc.abstractmethod
    def groups(self) -> dict[str, Draws]:
        """Draws and statistics that are in memory, by the tree's groups."""

    def complete(self, tree: xr.DataTree, attributes: Mapping[str, Any], *, ended: bool) -> None:
        """Give the tree what the sink has beside `groups`.

        Args:
            tree: the tree, with the groups in memory.
            attributes: the provenance of the draws.
            ended: whether the run has ended; nothing is appended after that.
        """
        del tree, attributes, ended

    def add(self, name: str, dataset: xr.Dataset) -> None:
        """Keep a group of the tree that was made after the run, where draws outlive it."""
        del name, dataset


class Memory(Sink):
    """Keep draws in memory, as the chunks that they came in."""

    def __init__(self, blocks: Sequence[Block] = ()) -> None:
        self.blocks: list[Block] = list(blocks)

    @property
    def label(self) -> str:
        """Always `memory`."""
        return "memory"

    def append(self, phase: str, group: int, draws: Draws, stats: Draws) -> None:
        """Keep a chunk."""
        self.blocks.append((phase, group, draws, stats))

    def length(self, phase: str) -> int:
        """Draws that every chain has."""
        draws = self.draws(phase)
        return draws_length(draws) if draws else 0

    def draws(self, phase: str) -> Draws:
        """Draws of a phase by site."""
        return self.gather(phase)[0]

    def position(self) -> dict[str, list[int]]:
        """Nothing: the blocks say it."""
        return {}

    def arrays(self) -> Draws:
        """Nothing: the blocks are all."""
        return {}

    def restore(
        self, position: Mapping[str, list[int]], arrays: Draws, blocks: Sequence[Block]
    ) -> None:
        """Take the blocks that a checkpoint saved."""
        del position, arrays
        self.blocks = list(blocks)

    def copy(self) -> Memory:
        """One with the same chunks."""
        return Memory(self.blocks)

    def groups(self) -> dict[str, Draws]:
        """All draws; those of the warm-up are of no length where they were not kept."""
        found: dict[str, Draws] = {}
        found["posterior"], found["sample_stats"] = self.gather("posterior")
        found["warmup_posterior"], found["warmup_sample_stats"] = self.gather("warmup")
        return found

    def gather(self, phase: str) -> tuple[Draws, Draws]:
        """Draws and statistics of a phase, `(chain, draw, ...)`, as far as all chains have them."""
        groups = sorted({group for kind, group, _, _ in self.blocks if kind == phase})
        parts = [self._join(phase, group) for group in groups]
        return along_chains([part[0] for part in parts]), along_chains([part[1] for part in parts])

    def _join(self, phase: str, group: int) -> tuple[Draws, Draws]:
        chosen: list[Any] = [b for b in self.blocks if b[0] == phase and b[1] == group]
        return along_draws([block[2] for block in chosen]), along_draws([b[3] for b in chosen])


def draws_length(draws: Mapping[str, Any]) -> int:
    """Number of draws of a chain."""
    return next(iter(draws.values())).shape[1]


def along_draws(parts: Sequence[Draws]) -> Draws:
    """Chunks of the same chains, joined."""
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def along_chains(parts: Sequence[Draws]) -> Draws:
    """Draws of several groups of chains, joined as far as all have them."""
    if not parts:
        return {}
    if len(parts) == 1:
        return parts[0]
    length = min(draws_length(part) for part in parts)
    return {name: np.concatenate([part[name][:, :length] for part in parts]) for name in parts[0]}
