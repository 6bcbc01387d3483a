"""Meshes, collectives, launching processes."""
