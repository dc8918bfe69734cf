"""Checks jaxtyping's shape annotations at run time while the tests run; commands that tests start share one cache."""

import os

import jax  # reads the variables below when it is imported: they are for commands, not for this process
import pytest
from jaxtyping import install_import_hook

# Before any module of the package is imported; the traced functions are checked once per compilation.
install_import_hook(
    [f"kinetics_jax.{name}" for name in ("attention", "language_model", "models", "sampling")],
    "beartype.beartype",
)


@pytest.fixture(scope="session", autouse=True)
def compiled_by_commands(tmp_path_factory):
    """Never the user's own cache; what one command compiles, the next one has."""
    assert jax.config.jax_compilation_cache_dir == os.environ.get("JAX_COMPILATION_CACHE_DIR")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
