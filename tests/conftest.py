"""Checks jaxtyping's shape annotations at run time while the tests run."""

from jaxtyping import install_import_hook

# Before any module of the package is imported; the traced functions are checked once per compilation.
install_import_hook(
    [f"kinetics_jax.{name}" for name in ("attention", "language_model", "models", "sampling")],
    "beartype.beartype",
)
