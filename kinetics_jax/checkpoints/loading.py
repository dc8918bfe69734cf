"""From a checkpoint of any kind to a configuration and weights."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kinetics_jax.checkpoints.gguf import load_gguf, unpack_gguf
from kinetics_jax.checkpoints.hf import load_hf, read_config
from kinetics_jax.checkpoints.orbax import load_orbax
from kinetics_jax.checkpoints.resolve import checkpoint_kind
from kinetics_jax.config import ModelConfig

LOADERS = {"hf": load_hf, "orbax": load_orbax, "gguf": load_gguf}


@contextlib.contextmanager
def configured(path: Path, *, name: str = "") -> Iterator[tuple[ModelConfig, Path]]:
    """A checkpoint's configuration, under `name` or its own, and the directory of its config.json and tokenizer.

    That of a GGUF file is made of its metadata, named like the file, and gone after the `with`.
    """
    if checkpoint_kind(path) != "gguf":
        yield read_config(path, name=name), path
        return
    with tempfile.TemporaryDirectory(prefix="kinetics_jax-") as folder:
        directory = Path(folder) / path.stem
        directory.mkdir()
        yield unpack_gguf(path, directory), directory
