"""One abstract trace of a model: its sites, plates, shapes and supports."""

from __future__ import annotations

import functools
import operator
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.primitives import _PYRO_STACK, Messenger
from numpyro.primitives import plate as numpyro_plate

from quincunx.engine import arguments, source, tracing
from quincunx.engine.errors import ModelError, listing, unknown
from quincunx.engine.failures import explained
from quincunx.engine.language import observing
from quincunx.engine.storage import Stored


@dataclass(frozen=True)
class Plate:
    """Conditionally independent repetitions.

    Attributes:
        name: its name, also the name of the dimension.
        size: number of repetitions.
        is_data: whether its rows are data, so that methods may subsample or shard them.
        arrays: names of the arguments whose rows it runs over.
        as_given: whether these are all that it runs over, each as it was given.
        on_disk: whether rows of one of them are on disk.
    """

    name: str
    size: int
    is_data: bool = False
    arrays: tuple[str, ...] = ()
    as_given: bool = False
    on_disk: bool = False


_MATRICES: Mapping[str, Callable[[Any, Any], Any]] = {  # elements that are always the same
    "CorrCholesky": lambda row, column: (row < column) | ((row == 0) & (column == 0)),
    "CorrMatrix": operator.eq,
    "LowerCholesky": operator.lt,
    "SoftplusLowerCholesky": operator.lt,
    "ScaledUnitLowerCholesky": operator.lt,
}


@dataclass(frozen=True)
class Site:
    """A named quantity of the model.

    Attributes:
        name: the site's name.
        role: `latent`, `observed`, `factor` or `deterministic`.
        distribution: the distribution's name, empty for deterministic sites.
        support: a readable support, empty for deterministic sites.
        shape: shape of the value.
        dtype: dtype of the value.
        event_dim: number of trailing event dimensions of the value.
        dims: a name for each dimension.
        plates: names of the plates it lies in, outermost first.
        unconstrained_shape: shape of the unconstrained value, for latent sites.
        offset: where the unconstrained value starts in the flat position.
        is_real: whether the support is the whole real line.
        is_discrete: whether the support is discrete.
        is_sphere: whether the values are unit vectors.
        region: the support's kind where it is convex and simple: `real`, `half-line`, `box` or
            `simplex`; else empty.
        kink: the kind of the prior's nonsmooth term, empty where it has none.
        proximal: for factors with a proximal operator, the latent site that it belongs to.
        is_native: whether the flat position holds the site's values as they are.
        argument: name of the argument that was observed, where it is one as it stands.
        parameters: the distribution's parameters and the constraints on them.
        location: where in the model's source the site is.
    """

    name: str
    role: str
    distribution: str
    support: str
    shape: tuple[int, ...]
    dtype: str
    event_dim: int
    dims: tuple[str, ...]
    plates: tuple[str, ...]
    unconstrained_shape: tuple[int, ...] = ()
    offset: int = 0
    is_real: bool = False
    is_discrete: bool = False
    is_sphere: bool = False
    region: str = ""
    kink: str = ""
    proximal: str | None = None
    is_native: bool = False
    argument: str | None = None
    parameters: tuple[tuple[str, str], ...] = ()
    location: source.Location | None = field(default=None, compare=False)

    @property
    def size(self) -> int:
        """Number of unconstrained coordinates."""
        return int(np.prod(self.unconstrained_shape, dtype=int))

    @property
    def constant(self) -> np.ndarray:
        """Elements of a latent value to which the support leaves no choice, in its shape."""
        if self.size == 0:
            return np.ones(self.shape, bool)
        found = np.zeros(self.shape, bool)
        if self.support in _MATRICES:
            rows, columns = np.indices(self.shape[-2:])
            found[..., _MATRICES[self.support](rows, columns)] = True
        return found

    def __str__(self) -> str:
        return f"site '{self.name}'" + (f" ({self.location})" if self.location else "")


@dataclass(frozen=True, eq=False)
class Program:
    """What is known of a model before any number is computed.

    Attributes:
        model: the model function.
        name: its name.
        signature: the arguments' structure.
        sites: every site, in the order of the model.
        plates: every plate, by name.
        dim: number of coordinates of the flat position.
        base: for a program in native coordinates, the same in unconstrained ones.
    """

    model: Callable[..., Any]
    name: str
    signature: arguments.Signature
    sites: tuple[Site, ...]
    plates: Mapping[str, Plate]
    dim: int
    base: Program | None = None

    def role(self, *roles: str) -> tuple[Site, ...]:
        """Sites with one of the given roles."""
        return tuple(site for site in self.sites if site.role in roles)

    @property
    def latents(self) -> tuple[Site, ...]:
        """Latent sites, in the order of the flat position."""
        return self.role("latent")

    @property
    def data_plates(self) -> tuple[Plate, ...]:
        """Plates over rows of data."""
        return tuple(plate for plate in self.plates.values() if plate.is_data)

    def site(self, name: str) -> Site:
        """The site of that name."""
        for site in self.sites:
            if site.name == name:
                return site
        raise ModelError(unknown("site", name, [site.name for site in self.sites]))

    def split(self, z: Any) -> dict[str, Any]:
        """Cut a flat position into values by site, unconstrained ones unless they are native."""
        return {
            site.name: z[site.offset : site.offset + site.size].reshape(site.unconstrained_shape)
            for site in self.latents
        }

    def substitution(self, z: Any, rows: Mapping[str, Any]) -> tracing.Substitution:
        """What gives latent sites their values at a flat position."""
        native = frozenset(site.name for site in self.latents if site.is_native)
        return tracing.Substitution(self.split(z), rows, native)


class _Recorder(Messenger):
    """Note the source line of each site, and every plate, as the model runs."""

    def __init__(self, name: str, leaves: Mapping[str, Any]) -> None:
        super().__init__()
        self.name = name
        self.leaves = leaves
        self.locations: dict[str, source.Location | None] = {}
        self.plates: OrderedDict[str, Plate] = OrderedDict()
        self.values: dict[str, Any] = {}

    def argument(self, value: Any) -> str | None:
        return next((name for name, leaf in self.leaves.items() if leaf is value), None)

    def data_plate(self, name: str, size: int, arrays: Any) -> None:
        found = [self.argument(array) for array in arrays if array is not None]
        known = tuple(argument for argument in found if argument is not None)
        as_given = len(known) == len(found)
        on_disk = any(isinstance(array, Stored) for array in arrays)
        self._add(Plate(name, size, is_data=True, arrays=known, as_given=as_given, on_disk=on_disk))

    def _add(self, plate: Plate) -> None:
        known = self.plates.get(plate.name)
        if known is not None and known.size != plate.size:
            message = f"plate '{plate.name}' has size {known.size} in one place and {plate.size}"
            raise ModelError(f"{message} in another ({source.caller()}). Use one name per size.")
        if known is None or not known.is_data:
            self.plates[plate.name] = plate

    def process_message(self, msg: dict[str, Any]) -> None:
        name = msg.get("name")
        if msg["type"] == "plate":
            self._add(Plate(str(name), msg["args"][0], is_data=msg.get("subsampled", False)))
        elif msg["type"] == "subsample":
            for active in [entry for entry in _PYRO_STACK if isinstance(entry, numpyro_plate)]:
                self._add(Plate(active.name, active.size, is_data=True))
        elif msg["type"] == "param":
            message = f"Model `{self.name}` has `numpyro.param('{name}')` ({source.caller()}), "
            raise ModelError(message + "which is not random. Use `sample` with a prior.")
        elif msg["type"] in ("sample", "deterministic"):
            here = source.caller()
            if name in self.locations:
                message = f"Model `{self.name}` has two sites named '{name}': "
                message += f"{self.locations[name]} and {here}. "
                raise ModelError(message + "Give each site its own name.")
            self.locations[str(name)] = here

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] in ("sample", "deterministic"):
            self.values[msg["name"]] = msg["value"]


def _prototype(site: dict[str, Any]) -> Any:
    """Some value in the support of a latent site, for a trace that computes nothing."""
    if not tracing.is_latent(site):
        return None
    fn = site["fn"]
    shape = tuple(site["kwargs"].get("sample_shape", ())) + fn.shape()
    if fn.support.is_discrete:
        return jnp.zeros(shape, int)
    transform = tracing.bijection(fn.support)
    return transform(jnp.zeros(transform.inverse_shape(shape)))


def _conditioning(model: Any) -> list[tuple[str, str]]:
    """Names given to `condition`, `substitute` and `do` handlers wrapped around a model."""
    found = []
    while isinstance(model, Messenger):
        if isinstance(model, (handlers.condition, handlers.substitute, handlers.do)):
            names = getattr(model, "data", None) or {}
            found += [(type(model).__name__, name) for name in names]
        model = model.fn
    return found


def _support(constraint: Any) -> str:
    """A readable support, such as `Positive` or `Interval(lower_bound=0, upper_bound=2)`."""
    constraint = tracing.base_support(constraint)
    text = type(constraint).__name__.strip("_")
    if text in (
        "Interval",
        "OpenInterval",
        "GreaterThan",
        "GreaterThanEq",
        "LessThan",
        "LessThanEq",
    ):
        return text if tracing.has_traced_bounds(constraint) else repr(constraint).strip("_")
    return text


def _region(message: Mapping[str, Any]) -> str:
    """The kind of a latent site's support, empty where it has no simple geometry."""
    support = tracing.base_support(message["fn"].support)
    if support is constraints.real:
        return "real"
    if "_scan_current_index" in message["infer"]:
        return ""
    if support is constraints.simplex:
        return "simplex"
    bounded = sum(hasattr(support, bound) for bound in ("lower_bound", "upper_bound"))
    return ("", "half-line", "box")[bounded]


def _dims(name: str, shape: tuple[int, ...], event_dim: int, message: Any) -> tuple[str, ...]:
    """Name the dimensions: plates, then the given event dims, then numbered ones."""
    dims: list[str | None] = [None] * len(shape)
    batch = len(shape) - event_dim
    for frame in message.get("cond_indep_stack", ()):
        axis = batch + frame.dim
        if 0 <= axis < batch and shape[axis] == frame.size:
            dims[axis] = frame.name
    given = (message.get("infer") or {}).get("event_dims")
    if given is not None:
        free = [axis for axis, dim in enumerate(dims) if dim is None]
        if len(given) != len(free):
            message = f"site '{name}' names {len(given)} event dims ({listing(given)}) but has "
            raise ModelError(message + f"{len(free)} dimensions outside plates, shape {shape}.")
        for axis, dim in zip(free, given, strict=True):
            dims[axis] = dim
    return tuple(dim or f"{name}_dim_{axis}" for axis, dim in enumerate(dims))


def _holds(shape: tuple[int, ...], event_dim: int, message: Any) -> bool:
    """Whether all plates around a value have an axis, if its last axes are event dimensions."""
    batch = len(shape) - event_dim
    axes = [(batch + frame.dim, frame.size) for frame in message.get("cond_indep_stack", ())]
    return all(0 <= axis < batch and shape[axis] == size for axis, size in axes)


def _site(name: str, message: dict[str, Any], recorder: _Recorder, offset: int) -> Site:
    value, location = message["value"], recorder.locations.get(name)
    shape, dtype = tuple(jnp.shape(value)), str(jnp.result_type(value))
    plates = tuple(frame.name for frame in message.get("cond_indep_stack", ()))
    if message["type"] == "deterministic":
        fitting = [event for event in range(len(shape) + 1) if _holds(shape, event, message)]
        frames = message.get("cond_indep_stack", ())
        known = message if len(fitting) == 1 or not frames else {}
        dims = _dims(name, shape, fitting[0] if len(fitting) == 1 else 0, known)
        return Site(name, "deterministic", "", "", shape, dtype, 0, dims, plates, location=location)
    fn = message["fn"]
    event_dim = fn.event_dim
    role = "factor" if tracing.is_factor(message) else "observed"
    if tracing.is_latent(message):
        role = "latent"
    discrete = bool(fn.support.is_discrete) if role != "factor" else False
    unconstrained: tuple[int, ...] = ()
    if role == "latent" and not discrete:
        unconstrained = tuple(tracing.bijection(fn.support).inverse_shape(shape))
    return Site(
        name=name,
        role=role,
        distribution=type(tracing.unwrap(fn)).__name__ if role != "factor" else "",
        support=_support(fn.support) if role != "factor" else "",
        shape=shape,
        dtype=dtype,
        event_dim=event_dim,
        dims=() if role == "factor" else _dims(name, shape, event_dim, message),
        plates=plates,
        unconstrained_shape=unconstrained,
        offset=offset,
        is_real=role == "latent" and not discrete and tracing.is_real(fn.support),
        is_discrete=discrete,
        is_sphere=role == "latent" and tracing.is_sphere(fn.support),
        region="" if role != "latent" or discrete else _region(message),
        kink="" if role != "latent" or discrete else tracing.kink(message),
        proximal=next(iter(message["infer"].get("prox", {})), None) if role == "factor" else None,
        argument=recorder.argument(value) if role == "observed" else None,
        parameters=tuple(
            (key, _support(c)) for key, c in tracing.unwrap(fn).arg_constraints.items()
        ),
        location=location,
    )


def _fits(shape: tuple[int, ...], into: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, into) == into
    except ValueError:
        return False


def _check_shapes(model_name: str, site: Site, message: dict[str, Any]) -> None:
    """Refuse a site that was silently broadcast: against its observation, or against a plate."""
    if site.role == "latent" and "_scan_current_index" not in message["infer"]:
        sizes = {frame.size: frame.name for frame in message.get("cond_indep_stack", ())}
        batch = zip(site.dims, site.shape[: len(site.shape) - site.event_dim], strict=False)
        for dim, size in batch:
            if size > 1 and size in sizes and dim.startswith(f"{site.name}_dim_"):
                text = f"Model `{model_name}`, {site}: in plate '{sizes[size]}' of size {size} the "
                text += f"variable has shape {site.shape}: an argument of its distribution has a "
                text += "trailing axis of length 1 and broadcasts silently. "
                raise ModelError(text + "Drop that axis, e.g. `x.squeeze(-1)`.")
    if site.role != "observed":
        return
    batch = site.shape[: len(site.shape) - site.event_dim]
    fn_batch = tuple(message["fn"].batch_shape)
    if site.shape[len(batch) :] != tuple(message["fn"].event_shape):
        expected = fn_batch + tuple(message["fn"].event_shape)
    elif not _fits(fn_batch, batch):
        expected = fn_batch
    else:
        return
    text = f"Model `{model_name}`, {site}: the distribution has shape {expected} "
    text += f"but the observation has shape {site.shape}; they would broadcast silently. "
    raise ModelError(text + "Reshape one of them, e.g. `x[:, 0]` or `x.squeeze(-1)`.")


@functools.lru_cache(maxsize=128)
def trace_program(
    model: Callable[..., Any], signature: arguments.Signature, read: tuple[Any, ...] = ()
) -> Program:
    """Trace a model once, abstractly: no array is computed and nothing is compiled.

    Args:
        model: a Quincunx or NumPyro model.
        signature: the structure of its arguments.
        read: what the model reads beside its arguments.

    Returns:
        The program; the same object for the same model, structure and surroundings.

    Raises:
        ModelError: the model cannot be traced, or its names or shapes do not fit; the message
            names the site and the line.
    """
    del read
    name = str(getattr(model, "__name__", type(model).__name__))
    sites: list[Site] = []
    plates: dict[str, Plate] = {}

    def run(leaves: list[Any]) -> None:
        recorder = _Recorder(name, dict(zip(signature.array_names, leaves, strict=True)))
        with tracing.ALONE, explained(name, recorder), observing(recorder.data_plate), recorder:
            trace = tracing.at_point(model, signature.rebuild(leaves), _prototype)
            offset = 0
            for key, message in trace.items():
                if message["type"] not in ("sample", "deterministic"):
                    continue
                site = _site(key, message, recorder, offset)
                _check_shapes(name, site, message)
                sites.append(site)
                offset += site.size if site.role == "latent" else 0
        plates.update(recorder.plates)

    jax.eval_shape(run, signature.specs())
    known = {site.name for site in sites}
    for handler, conditioned in _conditioning(model):
        if conditioned not in known:
            where = f" given to `{handler}` around model `{name}`"
            raise ModelError(unknown("site", conditioned, known, where))
    dim = sum(site.size for site in sites if site.role == "latent")
    return Program(model, name, signature, tuple(sites), plates, dim)
