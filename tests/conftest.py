"""Checks jaxtyping's shape annotations at run time while the tests run, and forgets each file's compiled programs."""

import gc

import jax
import pytest
from jaxtyping import install_import_hook

# Before any module of the package is imported; the traced functions are checked once per compilation.
install_import_hook(
    [f"kinetics_jax.{name}" for name in ("attention", "language_model", "models", "sampling")],
    "beartype.beartype",
)


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Every compiled CPU program holds memory maps; Linux allows 65,530 of them, which the whole suite would exceed."""
    yield
    jax.clear_caches()
    gc.collect()
