"""From a checkpoint of any kind to a configuration and weights."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from kinetics_jax.checkpoints.digest import check_digest
from kinetics_jax.checkpoints.gguf import load_gguf, unpack_gguf
from kinetics_jax.checkpoints.hf import load_hf, read_config
from kinetics_jax.checkpoints.orbax import load_orbax
from kinetics_jax.checkpoints.resolve import Checkpoint
from kinetics_jax.checkpoints.tensors import Placement
from kinetics_jax.config import ModelConfig
from kinetics_jax.errors import spelled
from kinetics_jax.tokenizer import named_token, read_settings

LOADERS = {"hf": load_hf, "orbax": load_orbax, "gguf": load_gguf}


@contextlib.contextmanager
def open_config(checkpoint: Checkpoint) -> Iterator[tuple[ModelConfig, Path]]:
    """A checkpoint's configuration, and the directory of its config.json and tokenizer.

    That of a GGUF file is made from its metadata, named like the file, and removed at the end of the `with`. Raises
    ConfigError or CheckpointError saying what cannot be read.
    """
    if checkpoint.kind != "gguf":
        yield read_config(checkpoint.path, name=checkpoint.name), checkpoint.path
        return
    with tempfile.TemporaryDirectory(prefix="kinetics_jax-") as folder:
        directory = Path(folder) / checkpoint.name
        directory.mkdir()
        yield unpack_gguf(checkpoint.path, directory), directory


def warn_of_end_tokens(config: ModelConfig, directory: Path) -> None:
    """Warns of end tokens outside the vocabulary, and where none is left, so that every sample runs to its cap."""
    beyond = [token for token in config.eos_token_ids if token >= config.vocab_size]
    said = [
        f"end tokens {spelled(beyond)} lie outside its vocabulary of {config.vocab_size} and are never drawn"
    ] * bool(beyond)
    if len(beyond) == len(config.eos_token_ids):
        token = named_token(read_settings(directory), "eos_token")
        hint = f" (its tokenizer's is {spelled(token)})" if token else ""
        said.append(
            f"no end token can be drawn, so that every sample runs to max_tokens; name one{hint} in eos_token_id of "
            f"generation_config.json"
        )
    if said:
        warnings.warn(f"{config.name}: {'; '.join(said)}", stacklevel=3)


def load_weights(
    checkpoint: Checkpoint,
    config: ModelConfig,
    *,
    dtype: DTypeLike | None,
    sharding: Placement = None,
    mesh: Mesh | None = None,
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[nnx.GraphDef, nnx.State]:
    """`nnx.split` of the loaded model, which computes on `mesh` if there is one.

    Arrays are cast to `dtype` (None: as stored) and go straight to `sharding`: one for all, or a function of the
    parameter's name. `on_tensor(done, total)` is called after each tensor. Raises CheckpointError naming everything
    that is wrong, and for weights that are not those that their digest.json was written for.
    """
    load = LOADERS[checkpoint.kind]
    loaded = load(checkpoint.path, config, dtype=dtype, sharding=sharding, mesh=mesh, on_tensor=on_tensor)
    if checkpoint.kind == "hf":  # after what is missing or cut, which it would only call different
        check_digest(checkpoint)
    return loaded
