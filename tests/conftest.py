"""Shape annotations are checked at run time while the tests run; compiled programs are kept."""

import gc
import os
from pathlib import Path

import jax  # reads the variables below when it is imported: they are for commands, not for this process
import pytest
from jaxtyping import install_import_hook

# Every program is waited for where it is called. The TPU interpreter calls back into jax while a program runs; one more
# dispatched meanwhile has locked both up, and what a test asks of its race detector must not come before the end.
jax.config.update("jax_cpu_enable_async_dispatch", False)

# Before any module of the package is imported; the traced functions are checked once per compilation.
ATTENTION = [f"attention.{name}" for name in ("causal", "decode", "decode_step", "heads", "shared_prefix")]
install_import_hook(
    [f"kinetics_jax.{name}" for name in (*ATTENTION, "engine.sampling", "language_model", "models")],
    "beartype.beartype",
)


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Every compiled CPU program holds memory maps; Linux allows 65,530 of them, which the whole suite would exceed."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session", autouse=True)
def _compiled_programs(request, tmp_path_factory):
    """A compilation cache, never the user's own: what one worker, test or command compiles, the next one loads.

    pytest's cache keeps it for the next run; `pytest --cache-clear` empties it.
    """
    assert jax.config.jax_compilation_cache_dir == os.environ.get("JAX_COMPILATION_CACHE_DIR")
    kept = getattr(request.config, "cache", None)
    folder = Path(kept.mkdir(f"compiled-{jax.__version__}")) if kept else tmp_path_factory.mktemp("compiled")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_compilation_cache_max_size", 2 << 30)  # and with a limit, access is locked between workers
