"""Meshes, collectives, launching processes."""

from quincunx.inference.distributed.processes import initialize as initialize
