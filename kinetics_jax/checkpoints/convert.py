"""From one checkpoint layout to another: Hugging Face ↔ Orbax, GGUF to either, in the stored dtype unless asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
from jax.sharding import SingleDeviceSharding

from kinetics_jax.checkpoints.digest import weights_digest
from kinetics_jax.checkpoints.files import check_new
from kinetics_jax.checkpoints.hf import save_hf
from kinetics_jax.checkpoints.loading import load_weights, open_config
from kinetics_jax.checkpoints.orbax import save_orbax
from kinetics_jax.checkpoints.resolve import resolve
from kinetics_jax.config import DTYPES, ConfigError
from kinetics_jax.errors import CheckpointError

SAVERS = {"hf": save_hf, "orbax": save_orbax}


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: Literal["hf", "orbax"] | None = None,
    dtype: str | None = None,
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Writes the checkpoint `source` (a built-in name, a Hugging Face or Orbax directory, a GGUF file, a hub id) to
    `target`.

    `to` is the layout written: by default Orbax, or Hugging Face from Orbax. `dtype` (float32, bfloat16, float16) casts
    all weights; by default each keeps the dtype it is stored in, bit by bit, and quantised ones become float32.
    digest.json holds the digest of what is written, by which damage is found, and that of the source. config.json and
    the tokenizer are copied byte for byte, or made from a GGUF file's metadata. Runs on the CPU; the
    host holds the weights once. `on_tensor(done, total)` counts tensors read.
    Raises CheckpointError if the target exists and is not empty, or saying what is wrong with the source, and
    ConfigError for a configuration or dtype that cannot be used.
    """
    check_new(Path(target))
    if to not in (None, *SAVERS):
        raise CheckpointError(f"convert: to {to!r} is not one of {', '.join(SAVERS)}")
    if dtype not in (None, *DTYPES):
        raise ConfigError(f"dtype {dtype} is not one of {', '.join(DTYPES)}")
    checkpoint = resolve(source)
    cpu = SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    save = SAVERS[to or ("hf" if checkpoint.kind == "orbax" else "orbax")]
    with open_config(checkpoint) as (config, directory):
        _, weights = load_weights(checkpoint, config, dtype=dtype, sharding=cpu, on_tensor=on_tensor)
        written = dataclasses.replace(config, dtype=dtype or config.dtype)
        return save(target, written, weights, companions=directory, source=weights_digest(checkpoint))
