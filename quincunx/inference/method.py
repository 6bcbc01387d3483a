"""What a method is: the contract between samplers and the driver."""

from __future__ import annotations

import abc
import dataclasses
import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from quincunx.engine.density import Density
from quincunx.engine.errors import MethodError, unknown

if TYPE_CHECKING:
    from quincunx.inference.training import Budget

Pool = Callable[[Array], Array]


class Kind(enum.Enum):
    """What can be promised of a method's draws."""

    EXACT = "exact"
    BIASED = "asymptotically biased"
    WEIGHTED = "weighted"
    APPROXIMATE = "approximate"

    @property
    def meaning(self) -> str:
        """One sentence for users."""
        return _MEANING[self]


_MEANING = {
    Kind.EXACT: "The posterior is the stationary law of the chain.",
    Kind.BIASED: "The stationary law differs from the posterior by a discretisation error.",
    Kind.WEIGHTED: "Draws are corrected by importance weights.",
    Kind.APPROXIMATE: "Draws follow a law that only resembles the posterior.",
}


class Info(NamedTuple):
    """What a step tells the driver; one common core for every method.

    Attributes:
        log_density: log density at the new position.
        acceptance: (average) acceptance probability, 1 where nothing is rejected.
        diverging: whether the numerical integration broke down.
        step_size: the step size used, NaN where there is none.
        gradients: gradient evaluations that the step made.
        evaluations: log-density evaluations that the step made; one that came with a gradient
            counts here too.
        extra: further statistics under ArviZ's names, each a scalar.
        agents: constrained values of each agent by site, for samplers that have agents.
    """

    log_density: Array
    acceptance: Array
    diverging: Array
    step_size: Array
    gradients: Array
    evaluations: Array
    extra: dict[str, Array]
    agents: dict[str, Array] = {}  # noqa: RUF012


class Preparation(NamedTuple):
    """What a kernel made for all chains before they start, and what it cost.

    Attributes:
        value: any tree of arrays, for `settle`.
        gradients: gradient evaluations.
        evaluations: log-density evaluations, those with a gradient included.
        data_passes: how often all rows were gone through.
        sent: bytes that left agents.
        rounds: exchanges between agents, one after the other.
    """

    value: PyTree
    gradients: int = 0
    evaluations: int = 0
    data_passes: float = 0.0
    sent: int = 0
    rounds: int = 0


class Traffic(NamedTuple):
    """What agents exchange.

    Attributes:
        sent: bytes that leave agents.
        rounds: exchanges, one after the other.
    """

    sent: int
    rounds: int


class Method(eqx.Module):
    """Settings of an inference method: a frozen object with one field for each setting.

    Attributes:
        name: the name under which the method is registered.
        kind: what can be promised of its draws.
        summary: one sentence for tables.
        citation: the paper, as `Author (year), title, venue`.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    summary: ClassVar[str]
    citation: ClassVar[str]

    def __new__(cls, *args: Any, **kwargs: Any) -> Method:
        """Refuse unknown settings, naming the nearest valid one."""
        valid = [field.name for field in dataclasses.fields(cls)]
        for key in kwargs:
            if key not in valid:
                raise TypeError(unknown("setting", key, valid, f" of `{cls.__name__}`"))
        return super().__new__(cls)

    def missing(self, density: Density) -> str | None:
        """What the method needs and the density lacks, as one sentence; `None` if nothing."""
        del density
        return None

    @property
    def promise(self) -> Kind:
        """What can be promised of draws with these settings."""
        return self.kind

    def settings(self) -> dict[str, Any]:
        """The settings as a JSON-able dict."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


class Kernel(Method):
    """A Markov kernel on flat positions, unconstrained ones unless `target` says otherwise.

    `init`, `step` and `position` see one chain and are pure, so that they can be traced under
    `jit`, `vmap` and `shard_map`; `adapt` sees all chains of a device at once, so that they may
    share what they learn. The state holds everything that adaptation changes.

    Attributes:
        state_axes: axes over chains of the state's parts, as `jax.vmap` takes them. `None` marks
            what all chains share: `init` gives every chain the same there, and a step may make
            it of nothing but what is shared.
        in_turn: whether a processor had better step one chain after the other, because a step is a
            loop over parts of the data that differ between chains.
        parties: which parts of the state have, after the axis over chains, one over agents.
        prepared_for: which parts of what is prepared have a leading axis over agents.
    """

    state_axes: ClassVar[Any] = 0
    in_turn: ClassVar[bool] = False
    parties: ClassVar[Any] = False
    prepared_for: ClassVar[Any] = False

    @abc.abstractmethod
    def init(self, density: Density, position: Array, key: Array) -> PyTree:
        """The state at a starting position; it is a valid start where all of it is finite."""

    @abc.abstractmethod
    def step(self, density: Density, state: PyTree, key: Array) -> tuple[PyTree, Info]:
        """Advance one chain. `key` is fixed by the chain and the transition's index."""

    @abc.abstractmethod
    def position(self, state: PyTree) -> Array:
        """The flat position of a state."""

    def target(self, density: Density) -> Density:
        """The density in the coordinates that the kernel moves in; it is given no other."""
        return density

    def share_out(self, density: Density) -> Density:
        """The density as agents have it, each a part; the density itself where there are none."""
        return density

    def traffic(self, density: Density, prepared: PyTree) -> Traffic:
        """What agents exchange in a transition of a chain."""
        del density, prepared
        return Traffic(0, 0)

    def prepare(self, density: Density, key: Array, *, mesh: Mesh | None = None) -> Preparation:
        """What all chains are given before they start, such as what a pilot run found.

        It runs once, on the host, and may compile what it needs.

        Args:
            density: the target, as the devices have it.
            key: the run's.
            mesh: the devices, where the run is spread over several.
        """
        del density, key, mesh
        return Preparation(())

    def settle(self, states: PyTree, prepared: PyTree, keys: Array, *, at_will: bool) -> PyTree:
        """States of all chains with what was prepared.

        Args:
            states: the chains at their starts.
            prepared: the preparation's value.
            keys: one for each chain.
            at_will: whether the user left it to the method where chains start.
        """
        del prepared, keys, at_will
        return states

    def period(self, state: PyTree) -> Array | None:
        """Transitions after which `view` is made anew; `None` where it is the density itself."""
        del state
        return None

    def view(self, density: Density, key: Array, index: Array) -> Density:
        """What steps are given in place of the density, such as one with shuffled rows.

        A function of the run's key and a counter alone, so that it need not be saved.
        """
        del key, index
        return density

    def exchange(self, states: PyTree) -> PyTree:
        """Let the chains of a device give each other parts of their states after a transition."""
        return states

    def passes(self, density: Density) -> float:
        """Which share of the rows one evaluation goes through."""
        del density
        return 1.0

    def stages(self, num_warmup: int) -> PyTree:
        """What `adapt` is told at each warm-up step: arrays with leading axis `num_warmup`."""
        del num_warmup
        return ()

    def adapt(
        self, density: Density, states: PyTree, infos: Info, stage: PyTree, pool: Pool
    ) -> PyTree:
        """Change what a warm-up step taught; all leaves have a leading axis over chains.

        Args:
            density: the target.
            states: the chains of this device; parts that they share have no axis over chains.
            infos: what their steps said.
            stage: this step's entry of the stages.
            pool: sums an array over all devices that chains are spread over. What chains share
                must be made of pooled sums alone, so that it is the same on every device.
        """
        del density, infos, stage, pool
        return states


class Discretised(Kernel):
    """A kernel whose stationary law is off by an error that vanishes with its step size."""

    @abc.abstractmethod
    def halved(self, state: PyTree) -> PyTree:
        """The state with steps of half the size, twice as many in a transition."""


class Machine(Kernel):
    """A kernel whose transitions take a varying number of density evaluations.

    A transition is `begin`, then `tick` until it is `done`, then `end`. Each tick makes one
    evaluation of the density. Randomness is keyed by the transition's key, a role and a trial, so
    that chains may run in lockstep (each transition ends for all before the next begins) or
    freely (each tick serves every chain, wherever it is) and make the same draws.

    Attributes:
        execution: how chains run, `lockstep` or `free`; `auto` measures which is faster.
    """

    if TYPE_CHECKING:
        execution: str

    @abc.abstractmethod
    def begin(self, density: Density, state: PyTree, key: Array) -> PyTree:
        """Open a transition."""

    @abc.abstractmethod
    def tick(self, density: Density, state: PyTree, key: Array) -> PyTree:
        """Make one evaluation; a transition that is done is left as it is."""

    @abc.abstractmethod
    def done(self, state: PyTree) -> Array:
        """Whether the transition is complete."""

    @abc.abstractmethod
    def end(self, density: Density, state: PyTree) -> tuple[PyTree, Info]:
        """Close the transition: the state at the new position, and what is said of it."""

    def step(self, density: Density, state: PyTree, key: Array) -> tuple[PyTree, Info]:
        """One whole transition."""
        state = jax.lax.while_loop(
            lambda state: ~self.done(state),
            lambda state: self.tick(density, state, key),
            self.begin(density, state, key),
        )
        return self.end(density, state)


class Weighted(NamedTuple):
    """Weighted draws: averages of w f(z), with log w the log weight, estimate the integral of p f.

    p is the density as it stands, so that the mean weight estimates the evidence.

    Attributes:
        z: positions, `(n, dim)`.
        log_weight: logarithms of the weights, `(n,)`.
        tempered: log weights that were resampled on the way to the last ones, `(stage, n)`, NaN
            in stages where nothing was resampled; for methods that resample.
        origin: numbers of the particles of the start that draws descend from, `(n,)`; for methods
            that resample. Draws of one origin are not independent.
    """

    z: Float[Array, "n dim"]
    log_weight: Float[Array, " n"]
    tempered: Float[Array, "stage n"] | None = None
    origin: Int[Array, " n"] | None = None


class Sampler(eqx.Module):
    """What an approximation has learned of a density: it makes as many draws as are asked for."""

    @abc.abstractmethod
    def draw(self, density: Density, key: Array, n: int) -> Weighted:
        """`n` draws with their weights against a density; pure, so that it can be compiled.

        Args:
            density: the target, which may have other data than the one that was learned.
            key: the only source of randomness.
            n: how many.
        """

    def cost(self, n: int) -> tuple[int, int]:
        """Gradients and log-density evaluations that `n` draws take."""
        return 0, n


class Approximation(Method):
    """A method that learns a sampler once, and then draws from it with importance weights."""

    kind: ClassVar[Kind] = Kind.WEIGHTED

    @abc.abstractmethod
    def fit(self, density: Density, key: Array, budget: Budget) -> Sampler:
        """Learn a sampler.

        Args:
            density: the target.
            key: the only source of randomness.
            budget: told after each part of the work how far it is and what it cost; says when to
                stop.
        """

    def resume(self, sampler: Any, density: Density, key: Array, budget: Budget) -> Sampler:
        """Learn further what was learned on another density; from anew where that is no help."""
        del sampler
        return self.fit(density, key, budget)

    @abc.abstractmethod
    def skeleton(self, density: Density) -> Sampler:
        """A sampler with the shapes that `fit` gives it, whatever its numbers; for loading."""


def lacks_gradient(density: Density) -> str | None:
    """What to say of a density that has no gradient to a method that needs one."""
    if density.structure.has_gradient:
        return None
    return "it needs gradients, and the log density calls back to Python, which has none."


def positive(name: str, value: Any, method: str) -> None:
    """Refuse a setting that is not a positive number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise MethodError(f"`{method}({name}={value!r})`: {name} must be a positive number.")


def fraction(name: str, value: Any, method: str, *, closed: bool = False) -> None:
    """Refuse a setting that is not between 0 and 1; `closed` allows 1."""
    positive(name, value, method)
    if value > 1 or (value == 1 and not closed):
        where = "be at most 1" if closed else "lie between 0 and 1"
        raise MethodError(f"`{method}({name}={value!r})`: {name} must {where}.")


def integer(name: str, value: Any, method: str, least: int = 1) -> None:
    """Refuse a setting that is not a large enough integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        message = f"`{method}({name}={value!r})`: {name} must be an integer of at least {least}."
        raise MethodError(message)


def as_integer(name: str, value: Any, least: int, why: str = "") -> int:
    """An argument as an integer; refuse one that is none, or too small, and say why."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < least:
        raise MethodError(f"`{name}={value!r}` must be an integer of at least {least}{why}.")
    return int(value)


def one_of(name: str, value: Any, valid: tuple[str, ...], method: str) -> None:
    """Refuse a setting that is not one of the valid words."""
    if value not in valid:
        raise MethodError(unknown(name, str(value), valid, f" of `{method}`"))


def as_key(key: Any) -> Array:
    """A typed JAX key from an integer seed, a typed key or an old-style one."""
    if isinstance(key, jax.Array) and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    if isinstance(key, (jax.Array, np.ndarray)) and key.ndim == 1 and key.dtype == np.uint32:
        return jax.random.wrap_key_data(jnp.asarray(key))
    if isinstance(key, bool) or not hasattr(key, "__index__"):
        raise MethodError(f"`key` must be an integer or a JAX key, not {key!r}.")
    return jax.random.key(int(key))
