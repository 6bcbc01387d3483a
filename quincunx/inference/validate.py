"""Whether a method is right on a model: calibration over data sets from the model itself."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import arviz_base
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array

from quincunx.engine.density import Density, compile
from quincunx.engine.errors import ModelError, listing
from quincunx.inference import registry
from quincunx.inference.diagnostics.calibration import autocorrelation, pointers, ranks, uniformity
from quincunx.inference.diagnostics.convergence import flatten
from quincunx.inference.diagnostics.verdict import Finding, Verdict
from quincunx.inference.driver import Limits, advance_here
from quincunx.inference.method import Kernel, Method, as_integer, as_key
from quincunx.inference.run import infer
from quincunx.inference.session import window
from quincunx.inference.start import AT_WILL, begin_here

LIKELIHOOD, JOINT, COVERAGE = "log likelihood", "log joint density", "distance to a point (TARP)"
_FAILED, _SUSPECT = 1e-3, 0.05
_DEPENDENT = 0.15
_TOGETHER = 128


class Validation:
    """Ranks of true values among a method's draws, and what they say of it.

    Attributes:
        table: by quantity `p_value` and `adjusted`, which is for all quantities together.
        ranks: `(simulation, quantity)`, each in 0 ... `num_draws`.
        num_draws: draws of each simulation.
        method: the method's name.
        verdict: `ok` where nothing speaks against the method, `failed` where it is wrong.
    """

    def __init__(
        self, table: pd.DataFrame, ranks: np.ndarray, num_draws: int, method: str, verdict: Verdict
    ) -> None:
        self.table = table
        self.ranks = ranks
        self.num_draws = num_draws
        self.method = method
        self.verdict = verdict

    def plot(self, **options: Any) -> Any:
        """Distributions of ranks against a uniform one, by `arviz_plots.plot_ecdf_pit`.

        Lines that leave their band show what is wrong: below it the method's draws are too low, and
        so on.

        Args:
            **options: as in `arviz_plots.plot_ecdf_pit`, such as `var_names` or `backend`.

        Returns:
            ArviZ's `PlotCollection`.
        """
        from arviz_plots import plot_ecdf_pit  # slow to import

        shares = (self.ranks + 0.5) / (self.num_draws + 1)
        columns = zip(self.table.index, shares.T, strict=True)
        tree = arviz_base.from_dict(
            {"prior_sbc": {str(name): column[None] for name, column in columns}}
        )
        return plot_ecdf_pit(tree, **{"group": "prior_sbc", **options})

    def __str__(self) -> str:
        title = f"{self.method}: {len(self.ranks)} simulations of {self.num_draws} draws"
        return f"{title}\n{self.table.to_string()}\n{self.verdict}"

    def __repr__(self) -> str:
        return str(self)


def validate(
    model: Callable[..., Any],
    method: str | Method | type[Method] = "nuts",
    data_like: Mapping[str, Any] | None = None,
    *,
    simulations: int = 200,
    num_draws: int = 99,
    num_warmup: int = 500,
    thinning: int = 5,
    key: int | Array = 0,
) -> Validation:
    """Check a method by simulation-based calibration and TARP.

    Parameters are drawn from the prior and data from the model; the method is run on each data set
    by one chain, from a start of its own. Simulations run together where the method allows it.

    Args:
        model: as in `infer`; its priors must be proper.
        method: as in `infer`.
        data_like: the model's arguments, of which those that are observed give shapes alone.
        simulations: number of data sets.
        num_draws: draws for each.
        num_warmup: as in `infer`.
        thinning: as in `infer`; draws should be next to independent, and the verdict says where
            they are not.
        key: an integer seed or a JAX key.

    Returns:
        p-values for every parameter, the log likelihood, the joint density and the distance to a
        point that the data lead to; ranks and a verdict.

    Raises:
        ModelError: the model cannot be simulated from, or observations are no arguments as they
            stand.
        MethodError: the method cannot run on the model, or too few simulations or draws.
    """
    simulations = as_integer("simulations", simulations, 20)
    length = (
        as_integer("num_warmup", num_warmup, 0),
        as_integer("num_draws", num_draws, 9),
        as_integer("thinning", thinning, 1),
    )
    chosen = registry.resolve(method)
    density = compile(model, data_like)
    registry.require(chosen, density.program.name, density)
    arguments = _observed_arguments(density)
    base, run_key, tie_key = jax.random.split(as_key(key), 3)
    drawn = jax.device_get(_simulated(density, jax.random.split(base, simulations)))
    leaves = _with_data(density, arguments, drawn)
    if _runs_together(chosen):
        found = _together(chosen, density, leaves, run_key, length)
    else:
        names = [site.name for site in density.program.latents]
        found = _one_by_one(model, chosen, density, leaves, run_key, length, names)
    truth = {name: drawn[name] for name in found}
    told = jax.device_get(_told(density, leaves, density.latent(truth), density.latent(found)))
    names, at_truth, at_draws = _quantities(truth, found, told)
    y = np.concatenate([_flat(drawn[site]) for site in arguments], axis=1)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(tie_key)).tolist())
    distances = _distances(told[0], told[1], pointers(told[0], np.asarray(y, float)))
    at_truth = np.concatenate([at_truth, distances[0]], axis=1)
    at_draws = np.concatenate([at_draws, distances[1]], axis=2)
    names.append(COVERAGE)
    ranked = ranks(at_truth, at_draws, rng)
    p_values = uniformity(ranked, num_draws)
    adjusted = np.minimum(p_values * len(p_values), 1.0)
    table = pd.DataFrame(
        {"p_value": p_values, "adjusted": adjusted}, index=pd.Index(names, name="quantity")
    )
    verdict = _judge(names, adjusted, autocorrelation(at_draws), np.isfinite(at_draws).all())
    return Validation(table, ranked, num_draws, chosen.name, verdict)


def _observed_arguments(density: Density) -> dict[str, str]:
    """For each observed site the argument that holds its values.

    Raises:
        ModelError: it is no argument as it stands, or the model has factors or no observations.
    """
    program = density.program
    factors = [site for site in program.sites if site.role == "factor"]
    if factors:
        message = f"{factors[0]} is a factor, which has no data that could be simulated. "
        raise ModelError(message + "`validate` needs a model of sample sites alone.")
    observed = program.role("observed")
    if not observed:
        message = f"Model `{program.name}` observes nothing under `data_like`: give the observed "
        raise ModelError(message + "arguments as well, for their shapes.")
    hidden = [site for site in observed if not site.argument]
    if hidden:
        message = f"The values of {hidden[0]} are not an argument of the model as it stands, so "
        raise ModelError(message + "simulated ones cannot be put in their place.")
    return {site.name: str(site.argument) for site in observed}


@eqx.filter_jit
def _simulated(density: Density, keys: Array) -> dict[str, Array]:
    return jax.lax.map(density.simulate, keys, batch_size=_TOGETHER)


def _with_data(
    density: Density, arguments: Mapping[str, str], drawn: Mapping[str, np.ndarray]
) -> list[Any]:
    """Arrays that differ between simulations, with a leading axis; `None` for all others."""
    names = list(density.program.signature.array_names)
    leaves: list[Any] = [None] * len(names)
    for site, argument in arguments.items():
        index = names.index(argument)
        leaves[index] = np.asarray(drawn[site]).astype(np.asarray(density.leaves[index]).dtype)
    return leaves


def _of(density: Density, leaves: list[Any]) -> Density:
    """The density with the data of one simulation."""
    pairs = zip(density.leaves, leaves, strict=True)
    own = [old if new is None else new for old, new in pairs]
    return eqx.tree_at(lambda one: one.leaves, density, own)


def _count(leaves: list[Any]) -> int:
    return len(jax.tree.leaves(leaves)[0])


def _runs_together(method: Method) -> bool:
    """Whether chains on different data may run in one compiled program."""
    kind = type(method)
    parts = ("prepare", "period", "share_out", "settle")
    return isinstance(method, Kernel) and all(
        getattr(kind, part) is getattr(Kernel, part) for part in parts
    )


def _together(
    method: Method, density: Density, leaves: list[Any], key: Array, length: tuple[int, int, int]
) -> dict[str, np.ndarray]:
    """Draws by site, `(simulation, draw, ...)`, of all simulations at once."""
    assert isinstance(method, Kernel)
    count = _count(leaves)
    num_warmup, num_draws, thinning = length
    schedule = window(jax.tree.map(np.asarray, method.stages(num_warmup)), 0, max(num_warmup, 1))
    limits = Limits(0, num_warmup + num_draws * thinning, num_warmup, num_warmup, thinning)
    keys = jax.random.split(key, count)
    target = method.target(density)
    draws, started = _compiled(method, target, leaves, keys, schedule, limits, num_draws)
    if not np.all(started):
        message = f"No finite start was found in {int(np.sum(~np.asarray(started)))} of {count} "
        raise ModelError(message + "simulations. Check that the prior fits the model's supports.")
    return {name: np.asarray(value)[:, 0] for name, value in jax.device_get(draws).items()}


@eqx.filter_jit
def _compiled(
    method: Kernel,
    density: Density,
    leaves: list[Any],
    keys: Array,
    schedule: Any,
    limits: Limits,
    capacity: int,
) -> tuple[dict[str, Array], Array]:
    def one(entry: tuple[list[Any], Array]) -> tuple[dict[str, Array], Array]:
        target = _of(density, entry[0])
        chains = jnp.zeros(1, jnp.int32)
        begun = begin_here(method, AT_WILL, target, entry[1], chains, {}, ())
        carry, block = advance_here(
            method,
            capacity,
            False,  # noqa: FBT003
            lambda array: array,
            target,
            begun[1],
            begun[0],
            schedule,
            jax.tree.map(jnp.int32, limits),
            entry[1],
        )
        del carry
        return block.draws, begun[2][0]

    return jax.lax.map(one, (leaves, keys), batch_size=_TOGETHER)


def _one_by_one(
    model: Callable[..., Any],
    method: Method,
    density: Density,
    leaves: list[Any],
    key: Array,
    length: tuple[int, int, int],
    names: list[str],
) -> dict[str, np.ndarray]:
    """The same for methods that prepare, or learn, on the data before they draw."""
    num_warmup, num_draws, thinning = length
    settings: dict[str, Any] = {"num_samples": num_draws, "num_chains": 1, "progress": False}
    if isinstance(method, Kernel):
        settings |= {"num_warmup": num_warmup, "thinning": thinning}
    found = []
    for index in range(_count(leaves)):
        data = _of(density, jax.tree.map(operator.itemgetter(index), leaves)).data
        fit = infer(model, data, method, key=jax.random.fold_in(key, index), **settings)
        found.append({name: fit.posterior[name].values[0] for name in names})
    return {name: np.stack([draws[name] for draws in found]) for name in names}


@eqx.filter_jit
def _told(density: Density, leaves: list[Any], truth: Any, draws: Any) -> tuple[Array, ...]:
    """Positions, log likelihoods and joint densities of true values and of draws."""
    free = density.unconstrained

    def at(target: Density, values: Any) -> tuple[Array, Array, Array]:
        z = target.unconstrain(values)
        prior, likelihood = target.log_terms(z)
        return z, likelihood, prior + likelihood

    def one(entry: tuple) -> tuple[Array, ...]:
        target = _of(free, entry[0])
        z, likelihood, joint = at(target, entry[1])
        found = jax.vmap(functools.partial(at, target))(entry[2])
        return z, found[0], likelihood, found[1], joint, found[2]

    return jax.lax.map(one, (leaves, truth, draws), batch_size=_TOGETHER)


def _quantities(
    truth: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], told: tuple
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, true values `(simulation, quantity)`, draws `(simulation, draw, quantity)`."""
    names, draws = flatten(found)
    _, true = flatten({name: value[:, None] for name, value in truth.items()})
    likelihood, joint = told[2:4], told[4:6]
    true = np.concatenate([true[:, 0], likelihood[0][:, None], joint[0][:, None]], axis=1)
    draws = np.concatenate([draws, likelihood[1][..., None], joint[1][..., None]], axis=2)
    return [*names, LIKELIHOOD, JOINT], true, draws


def _flat(values: np.ndarray) -> np.ndarray:
    return np.asarray(values).reshape(len(values), -1)


def _distances(
    truth: np.ndarray, draws: np.ndarray, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the points that data lead to, in prior sds of each coordinate."""
    scale = truth.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    mine = np.linalg.norm((truth - points) / scale, axis=-1)
    theirs = np.linalg.norm((draws - points[:, None]) / scale, axis=-1)
    return mine[:, None], theirs[..., None]


def _judge(names: list[str], adjusted: np.ndarray, dependence: np.ndarray, finite: Any) -> Verdict:
    findings = []
    order = np.argsort(adjusted, kind="stable")
    wrong = [index for index in order if adjusted[index] < _SUSPECT]
    look = "Look at `plot()`, and compare with another method on data from the model."
    for index in wrong[:5]:
        status = "failed" if adjusted[index] < _FAILED else "suspect"
        reason = f"Ranks of '{names[index]}' are not uniform (p = {adjusted[index]:.2g}, adjusted)."
        findings.append(Finding(status, reason, look))
    if len(wrong) > 5:
        rest = listing([names[index] for index in wrong[5:]])
        findings.append(Finding("suspect", f"Nor are those of {rest}.", look))
    if not finite:
        overflow = "Look for overflow in the model's terms."
        findings.append(Finding("failed", "Some draws are not finite.", overflow))
    if dependence.max() > _DEPENDENT:
        name = names[int(np.argmax(dependence))]
        reason = f"Successive draws of '{name}' are correlated ({dependence.max():.2f}): ranks are "
        reason += "not uniform even for an exact method."
        findings.append(Finding("suspect", reason, "Raise `thinning`."))
    return Verdict.of(findings)
