"""From one checkpoint layout to another: Hugging Face ↔ Orbax, every tensor in its stored dtype unless asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
from jax.sharding import SingleDeviceSharding

from kinetics_jax.checkpoints.files import check_new
from kinetics_jax.checkpoints.hf import load_hf, read_config, save_hf
from kinetics_jax.checkpoints.orbax import load_orbax, save_orbax
from kinetics_jax.checkpoints.resolve import CheckpointError, checkpoint_kind, resolve
from kinetics_jax.config import DTYPES, ConfigError

LOADERS = {"hf": load_hf, "orbax": load_orbax}
SAVERS = {"hf": save_hf, "orbax": save_orbax}


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: Literal["hf", "orbax"] | None = None,
    dtype: str | None = None,
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Writes the checkpoint `source` (a built-in name, a Hugging Face or Orbax directory, a hub id) to `target`.

    `to` is the layout written: by default Orbax, or Hugging Face from Orbax. `dtype` (float32, bfloat16, float16) casts
    all weights; by default each keeps the dtype it is stored in, bit by bit. config.json and the tokenizer go along
    byte for byte. Runs on the CPU; the host holds the weights once. `on_tensor(done, total)` counts tensors read.
    Raises CheckpointError for a target that exists and is not empty, and whatever is wrong with the source.
    """
    check_new(Path(target))
    if to not in (None, *SAVERS):
        raise CheckpointError(f"convert: to {to!r} is not one of {', '.join(SAVERS)}")
    if dtype not in (None, *DTYPES):
        raise ConfigError(f"dtype {dtype} is not one of {', '.join(DTYPES)}")
    directory = resolve(source)
    kind = checkpoint_kind(directory)
    config = read_config(directory, name="" if Path(source).is_dir() else str(source))
    cpu = SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    _, weights = LOADERS[kind](directory, config, dtype=dtype, sharding=cpu, on_tensor=on_tensor)
    save = SAVERS[to or ("hf" if kind == "orbax" else "orbax")]
    return save(target, dataclasses.replace(config, dtype=dtype or config.dtype), weights, companions=directory)
