"""The one call: a model and its data in, a posterior with a verdict out."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array
from rich.console import Console

from quincunx.engine.density import Density, compile
from quincunx.engine.errors import MethodError, unknown
from quincunx.engine.preflight import preflight
from quincunx.engine.sharding import check_separable, cut
from quincunx.inference import registry
from quincunx.inference.approximate import check_settings
from quincunx.inference.checkpoint import Checkpoint
from quincunx.inference.distributed.mesh import mesh as make_mesh
from quincunx.inference.distributed.mesh import on_host, place, with_all_axes
from quincunx.inference.distributed.network import Networked, check_agents
from quincunx.inference.distributed.processes import is_first
from quincunx.inference.driver import density_specs, prepared_specs
from quincunx.inference.fit import Fit
from quincunx.inference.handle import Run
from quincunx.inference.job import Job
from quincunx.inference.learning import Learning
from quincunx.inference.method import Approximation, Kernel, Kind, Method, as_integer, as_key
from quincunx.inference.moments import Moments, MomentsSink
from quincunx.inference.output import told_start
from quincunx.inference.progress import Report, reporting
from quincunx.inference.session import Group, Plan, Session
from quincunx.inference.sinks import Memory, Sink
from quincunx.inference.start import begin, check_start, given_values
from quincunx.inference.stopping import Until
from quincunx.inference.store import StoreError, ZarrStore


class Settings(TypedDict, total=False):
    """The keyword arguments of `infer`, but for `blocking`; there they are described."""

    num_warmup: int
    num_samples: int
    num_chains: int
    key: int | Array
    thinning: int
    init: str | Mapping[str, Any] | None
    coords: Mapping[str, Any] | None
    chain_method: str
    mesh: Mesh | None
    store: str | Path | Moments | None
    checkpoint: str | Path | Checkpoint | None
    resume: bool
    until: Until | None
    keep_warmup: bool
    progress: bool | Report


@overload
def infer(
    model: Callable[..., Any],
    data: Mapping[str, Any] | None = None,
    method: str | Method | type[Method] = "nuts",
    *,
    blocking: Literal[True] = True,
    **settings: Unpack[Settings],
) -> Fit: ...


@overload
def infer(
    model: Callable[..., Any],
    data: Mapping[str, Any] | None = None,
    method: str | Method | type[Method] = "nuts",
    *,
    blocking: Literal[False],
    **settings: Unpack[Settings],
) -> Run: ...


def infer(
    model: Callable[..., Any],
    data: Mapping[str, Any] | None = None,
    method: str | Method | type[Method] = "nuts",
    *,
    num_warmup: int = 1000,
    num_samples: int = 1000,
    num_chains: int = 4,
    key: int | Array = 0,
    thinning: int = 1,
    init: str | Mapping[str, Any] | None = None,
    coords: Mapping[str, Any] | None = None,
    chain_method: str = "vectorized",
    mesh: Mesh | None = None,
    store: str | Path | Moments | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    resume: bool = False,
    until: Until | None = None,
    keep_warmup: bool = False,
    progress: bool | Report = True,
    blocking: bool = True,
    **unknown_arguments: Any,
) -> Fit | Run:
    """Draw from the posterior of a model.

    Args:
        model: a Quincunx model, a NumPyro model function, or `from_log_density(...)`.
        data: the model's arguments by name. Arrays and lists of numbers are traced; Python
            scalars, strings and `None` are constants of the compiled program.
        method: a method object such as `NUTS(target_accept=0.9)`, or a registered name.
        num_warmup: adapting transitions of each chain, not kept. Methods that learn a sampler
            have no chains: for them leave out this and all other settings that are about chains.
        num_samples: draws kept of each chain.
        num_chains: number of chains; for methods that learn a sampler that of independent
            batches of `num_samples` weighted draws.
        key: an integer seed or a JAX key. Draws depend on (key, chain, transition) alone.
        thinning: keep one of so many transitions; `num_samples` counts the kept ones.
        init: where chains start: 'uniform' (uniform on (-2, 2) in unconstrained coordinates),
            'prior', or a dict of values by site, for all chains or with a leading axis over
            chains; sites that it leaves out start as by 'uniform'. `None` leaves it to the
            method: 'uniform' for most, about the mode for those that search for it.
        coords: labels by dimension name.
        chain_method: 'vectorized' (all chains at once), 'sequential' (one after the other) or
            'parallel' (spread over all devices).
        mesh: devices to spread the run over, from `mesh(chains=..., data=..., agents=...)`:
            chains, rows of the data plates, and parties of distributed samplers.
        store: path ending in `.zarr` to which draws are appended while sampling, so that memory
            does not grow with their number; the fit reads them from there as they are used. Or
            a `Moments`, for draws too many to keep: figures of all of them and a subsample.
        checkpoint: folder in which the run is saved every 30 seconds, at the end of warm-up and
            at its end; or a `Checkpoint` with another interval. Of methods that learn a sampler
            it is the training that is saved, and the sampler.
        resume: continue the run saved in `checkpoint`, if there is one, wherever it stopped; the
            draws are those of an uninterrupted run. `num_samples` may be larger than before.
        until: stop earlier, once the draws are good enough or a budget is spent.
        keep_warmup: whether warm-up draws are kept, in groups of their own.
        progress: show progress on a terminal and print the verdict; or a function that is
            called with a `Progress` after each chunk.
        blocking: `False` to return at once, once all arguments have been looked at, with a `Run`
            that compiles and samples in a thread; it shows no bar and prints no verdict.
        **unknown_arguments: refused, with the nearest valid name.

    Returns:
        The fit: draws, verdict, costs. On Ctrl-C or SIGTERM the current chunk ends, the checkpoint
        is written and the fit holds the draws so far; a second Ctrl-C leaves at once. With
        `blocking=False` a handle of the run, whose `wait` returns the fit.

    Raises:
        ModelError: the model or its data are wrong.
        MethodError: the method cannot run on this model, or a setting is wrong.
        CheckpointError: the checkpoint cannot be written, is damaged, in use, or of another run.
        StoreError: the store cannot be made, is in use, or exists already.
    """
    if unknown_arguments:
        _refuse(unknown_arguments)
    method = registry.resolve(method)
    plan = Plan(
        as_integer("num_warmup", num_warmup, 0),
        as_integer("num_samples", num_samples, 1),
        as_integer("thinning", thinning, 1),
        keep_warmup,
    )
    num_chains = as_integer("num_chains", num_chains, 1)
    key = as_key(key)
    clock = time.perf_counter()
    density = compile(model, data, coords)
    registry.require(method, density.program.name, density)
    if resume and checkpoint is None:
        raise MethodError("`resume=True` needs `checkpoint=`, the folder to resume from.")
    title = f"{method.name} on {density.program.name}"
    shown = progress if callable(progress) or (blocking and is_first()) else False
    job: Job | Learning
    with reporting(title, progress=shown) as report:
        if isinstance(method, Approximation):
            given = {
                "num_warmup": (plan.num_warmup, 1000),
                "thinning": (plan.thinning, 1),
                "init": (init, None),
                "chain_method": (chain_method, "vectorized"),
                "mesh": (mesh, None),
                "store": (store, None),
                "keep_warmup": (keep_warmup, False),
            }
            check_settings(method, given, until)
            preflight(density, compares=True)
            shape = (num_chains, plan.num_samples)
            saver = _saver(checkpoint)
            job = Learning(method, density, key, shape, until, saver, resume=resume)
        elif isinstance(method, Kernel):
            preflight(density, compares=method.promise in (Kind.EXACT, Kind.WEIGHTED))
            density = method.target(density)
            on, layout = _layout(chain_method, mesh, num_chains)
            target = _spread_rows(method, density, on, key)
            prepared = method.prepare(target, key, mesh=on)
            groups = _groups(method, target, key, layout, on, init, prepared.value)
            sink = _sink(store, groups, density, plan)
            label = chain_method if mesh is None else "parallel"
            settings = (groups, on, sink, key, label, prepared)
            start = told_start(init)
            session = Session(method, density, plan, *settings, target=target, start=start)
            session.compile_seconds = time.perf_counter() - clock
            job = Job(session, _saver(checkpoint), until, resume=resume)
        else:
            raise MethodError(f"`{type(method).__name__}` is not a kernel that the driver can run.")
        if not blocking:
            return Run(job, report, title)
        fit = job.run(report)
    if jax.process_count() > 1:
        fit.verdict  # noqa: B018 - a bias report is made by all processes together
    if progress is True and is_first():
        Console(stderr=True, soft_wrap=True).print(fit.verdict)
    return fit


def _groups(
    method: Kernel,
    density: Density,
    key: Array,
    layout: list[np.ndarray],
    mesh: Mesh | None,
    init: str | Mapping[str, Any] | None,
    prepared: Any,
) -> list[Group]:
    """The chains at their starts, in groups that run together."""
    strategy, given = given_values(density, init, sum(map(len, layout)))
    groups = []
    for chains in layout:
        chosen = {name: value[chains] for name, value in given.items()}
        given_here: Any = (key, chains, chosen, prepared)
        if mesh is not None:
            along, everywhere = PartitionSpec("chains"), PartitionSpec()
            given_here = place(given_here, (everywhere, along, along, prepared_specs(method)), mesh)
        carry, keys, found, positions = begin(method, strategy, density, *given_here, mesh=mesh)
        check_start(density, *on_host((found, positions)))
        groups.append(Group(keys, carry))
    return groups


def _saver(checkpoint: str | Path | Checkpoint | None) -> Checkpoint | None:
    if checkpoint is None or isinstance(checkpoint, Checkpoint):
        return checkpoint
    return Checkpoint(checkpoint)


def _sink(
    store: str | Path | Moments | None, groups: list[Group], density: Density, plan: Plan
) -> Sink:
    """Where the draws are to go."""
    if store is None:
        return Memory()
    if jax.process_count() > 1:
        message = "`store` is written by one process, and this run has several: leave it out, and "
        raise StoreError(message + "save the fit in the first process.")
    if isinstance(store, Moments):
        if plan.keep_warmup:
            message = "`store=Moments()` does not keep warm-up draws: leave out `keep_warmup`, "
            raise MethodError(message + "or store the draws in a path.")
        return MomentsSink(store, len(groups), density)
    if Path(store).suffix != ".zarr":
        raise StoreError(f"`store='{store}'` must end in `.zarr`.")
    sizes = [group.size for group in groups]
    phases = ("posterior", "warmup") if plan.keep_warmup and plan.num_warmup else ("posterior",)
    return ZarrStore(store, sizes, density.labels.dims, density.labels.coords, phases)


def _refuse(arguments: Mapping[str, Any]) -> None:
    name = next(iter(arguments))
    valid = [key for key in inspect.signature(infer).parameters if key != "unknown_arguments"]
    raise TypeError(unknown("argument", name, valid, " of `infer`"))


def _layout(
    chain_method: str, mesh: Mesh | None, num_chains: int
) -> tuple[Mesh | None, list[np.ndarray]]:
    """The mesh to use, and the groups of chains that run together."""
    chains = np.arange(num_chains, dtype=np.int32)
    valid = ("vectorized", "sequential", "parallel")
    if chain_method not in valid:
        raise MethodError(unknown("chain_method", str(chain_method), valid))
    if chain_method == "sequential":
        if mesh is not None:
            message = "`chain_method='sequential'` runs one chain after the other on one device: "
            raise MethodError(message + "leave out `mesh`, or `chain_method`.")
        return None, [chains[index : index + 1] for index in range(num_chains)]
    if mesh is None:
        if chain_method == "vectorized":
            return None, [chains]
        mesh = make_mesh(chains=len(jax.devices()))
    mesh = with_all_axes(mesh)
    devices = mesh.shape["chains"]
    if num_chains % devices:
        message = f"{num_chains} chains cannot be shared evenly by {devices} devices. "
        raise MethodError(message + "Change `num_chains`, or give a `mesh` that divides it.")
    return mesh, [chains]


def _spread_rows(method: Kernel, density: Density, mesh: Mesh | None, key: Array) -> Density:
    """The density as the devices have it: with its rows spread over them, if they are to be."""
    parted = method.share_out(density)
    if isinstance(method, Networked):
        check_separable(density, method.count, key)
        check_agents(method, mesh)
    elif mesh is not None and mesh.shape["agents"] > 1:
        message = f"`{type(method).__name__}` has no agents, and `mesh` has an axis of them. "
        raise MethodError(message + "Write `mesh(chains=..., data=...)`.")
    if mesh is None:
        return parted
    if mesh.shape["data"] == 1:
        return place(parted, density_specs(parted), mesh)
    parts = mesh.shape["data"]
    check_separable(density, parts, key)
    spread = cut(density, parts, axis="data")
    return place(spread, density_specs(spread), mesh)
