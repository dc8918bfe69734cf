"""Checks jaxtyping's shape annotations at run time while the tests run; forgets each file's compiled programs, and lets
the commands that tests start share theirs.
"""

import gc
import os

import jax  # reads the variables below when it is imported: they are for commands, not for this process
import pytest
from jaxtyping import install_import_hook

# Every program is waited for where it is called. The TPU interpreter calls back into jax while a program runs; one more
# dispatched meanwhile has locked both up, and what a test asks of its race detector must not come before the end.
jax.config.update("jax_cpu_enable_async_dispatch", False)

# Before any module of the package is imported; the traced functions are checked once per compilation.
install_import_hook(
    [f"kinetics_jax.{name}" for name in ("attention", "language_model", "models", "engine.sampling")],
    "beartype.beartype",
)


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Every compiled CPU program holds memory maps; Linux allows 65,530 of them, which the whole suite would exceed."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session", autouse=True)
def _compiled_by_commands(tmp_path_factory):
    """Never the user's own cache; what one command compiles, the next one has."""
    assert jax.config.jax_compilation_cache_dir == os.environ.get("JAX_COMPILATION_CACHE_DIR")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
