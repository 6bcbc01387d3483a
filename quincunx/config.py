"""Settings of JAX that a user may want to change, in one place."""

from __future__ import annotations

from pathlib import Path

import jax


def configure(*, x64: bool | None = None, cache: str | Path | None = None) -> None:
    """Set numerical precision and the compilation cache; call it before the first array.

    Args:
        x64: compute in double precision.
        cache: folder in which compiled programs are kept between processes.
    """
    if x64 is not None:
        jax.config.update("jax_enable_x64", x64)
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
