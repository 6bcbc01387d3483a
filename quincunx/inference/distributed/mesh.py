"""Meshes of devices with the axes that runs are spread over."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from quincunx.engine.errors import MethodError, unknown
from quincunx.inference.method import integer

AXES = ("chains", "data", "agents")


def mesh(*, chains: int = 1, data: int = 1, agents: int = 1) -> Mesh:
    """A mesh of devices for `infer(mesh=...)`.

    Args:
        chains: devices that chains are spread over.
        data: devices that the rows of the data plates are spread over; the likelihood is then
            summed over them.
        agents: devices that the parties of a distributed sampler are spread over, one each.

    Returns:
        A JAX mesh with these three axes, of the first `chains * data * agents` devices.

    Raises:
        MethodError: a size that is not a positive integer, or more devices than there are.
    """
    sizes = {"chains": chains, "data": data, "agents": agents}
    for name, size in sizes.items():
        integer(name, size, "mesh")
    wanted, devices = chains * data * agents, jax.devices()
    several = jax.process_count() > 1
    if wanted > len(devices) or (several and wanted != len(devices)):
        message = f"A mesh of {' x '.join(map(str, sizes.values()))} takes {wanted} devices, and "
        message += f"there are {len(devices)}" + (" in all processes. " if several else ". ")
        message += "On a processor set XLA_FLAGS=--xla_force_host_platform_device_count=N before "
        raise MethodError(message + "Python starts, or use `quincunx launch`.")
    placed = np.asarray(devices[:wanted]).reshape(tuple(sizes.values()))
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def with_all_axes(given: Mesh) -> Mesh:
    """A user's mesh with all axes of a run, in their order; those that it lacks have size 1.

    Raises:
        MethodError: an axis of another name.
    """
    for name in given.axis_names:
        if name not in AXES:
            raise MethodError(unknown("axis", str(name), AXES, " of `mesh`"))
    order = [given.axis_names.index(name) for name in AXES if name in given.axis_names]
    sizes = [given.shape.get(name, 1) for name in AXES]
    placed = given.devices.transpose(order).reshape(sizes)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def place(tree: PyTree, specs: PyTree, on: Mesh) -> PyTree:
    """Put arrays that every process has on a mesh, each device with its part.

    Arrays that lie on the mesh already stay where they are.

    Args:
        tree: arrays or keys.
        specs: how each lies.
        on: the mesh.
    """

    def one(spec: PartitionSpec, leaf: Any) -> Array:
        lies = leaf.sharding if isinstance(leaf, jax.Array) else None
        if isinstance(lies, NamedSharding) and lies.mesh == on:
            return leaf
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            bits = one(spec, jax.random.key_data(leaf))
            return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))
        array = np.asarray(leaf)
        array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
        sharding = NamedSharding(on, spec)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    def each(spec: PartitionSpec, part: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: one(spec, leaf), part)

    return jax.tree.map(each, specs, tree, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))


def everywhere(tree: PyTree, on: Mesh | None) -> PyTree:
    """Arrays that every process has, on all devices of a mesh alike; as they are without one."""
    return tree if on is None else place(tree, PartitionSpec(), on)


def on_host(tree: PyTree) -> PyTree:
    """Arrays as the host has them, whichever devices of whichever process they lie on."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
