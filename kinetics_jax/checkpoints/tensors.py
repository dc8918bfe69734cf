"""What readers and writers of weights share: the parameters a model has, where arrays go, how faults are listed."""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, Sharding

from kinetics_jax.checkpoints.files import MAX_LISTED
from kinetics_jax.config import ModelConfig
from kinetics_jax.errors import CheckpointError
from kinetics_jax.models.qwen3 import Qwen3

# Where arrays go: everywhere the same, by parameter name (`layers.0.mlp.up_proj.weight`), or to jax's default device.
Placement = Sharding | Callable[[str], Sharding] | None

ALIGNMENT = 64  # bytes


def expected_parameters(
    config: ModelConfig, mesh: Mesh | None = None
) -> tuple[nnx.GraphDef, dict[str, tuple[tuple, tuple[int, ...]]]]:
    """The graph of a model that computes on `mesh`; and of each parameter, by name, its path in the state and shape."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0), dtype=jnp.float32, mesh=mesh)))
    return graph, {".".join(map(str, path)): (path, leaf.shape) for path, leaf in nnx.to_flat_state(state)}


class Part(NamedTuple):
    """What a Hugging Face checkpoint keeps a parameter, or one expert's matrix [out, in] of it, as: a tensor's name
    without its leading `model.`, the tensor's shape, and the part's first row in it.
    """

    name: str
    shape: tuple[int, ...]
    row: int = 0


def stored_parts(name: str, shape: tuple[int, ...], names: Container[str] = ()) -> list[Part]:
    """The parts of a parameter: itself or, of the stacked matrices [experts, in, out], one [out, in] for each expert.

    Each expert's matrix is a tensor of its own; or rows of one for all experts, where `names` (of what is stored) has
    it: transformers 5 without `save_original_format`, gate above up.
    """
    before, stacked, after = name.partition(".experts.")
    if not stacked:
        return [Part(name, shape)]
    experts, inputs, outputs = shape
    matrix = after.removesuffix(".weight")
    fused, rows = ("gate_up_proj", 2 * outputs) if matrix in ("gate_proj", "up_proj") else (matrix, outputs)
    if (whole := f"{before}.experts.{fused}") in names:
        first = outputs if matrix == "up_proj" else 0
        return [Part(whole, (experts, rows, inputs), rows * expert + first) for expert in range(experts)]
    return [Part(f"{before}.experts.{expert}.{after}", (outputs, inputs)) for expert in range(experts)]


def check_declared(where: str | Path, config: ModelConfig, tensors: int, largest: int) -> None:
    """Holds the counts of a configuration against a file of `tensors` tensors, the longest side of which is `largest`.

    Before a model is built: one of a million layers takes hours and much memory. Raises CheckpointError.
    """
    for count, least, name in (
        (config.num_layers, tensors, "layers"),
        (config.num_experts, max(tensors, largest), "experts"),
    ):
        if count > least:
            raise CheckpointError(
                f"{where}: its configuration says {count:,} {name}, and its files hold {tensors:,} tensors"
            )


def arrays_by_name(weights: nnx.State) -> dict[str, jax.Array]:
    """A model's arrays by parameter name (`layers.0.mlp.up_proj.weight`)."""
    return {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(weights)}


def empty_aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array that jax adopts on the CPU instead of copying it."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % ALIGNMENT
    return raw[offset : offset + size].view(dtype).reshape(shape)


def sharding_for(name: str, shape: tuple[int, ...], placement: Placement) -> tuple[Sharding | None, str]:
    """The sharding a placement gives an array, and why the array cannot have it ("" if it can)."""
    sharding = placement(name) if callable(placement) else placement
    if sharding is not None:
        try:
            sharding.shard_shape(tuple(shape))
        except ValueError as error:
            return None, f"of shape {list(shape)} cannot be laid out as {sharding}: {str(error).splitlines()[0]}"
    return sharding, ""


def first_faults(faults: list[str]) -> list[str]:
    """A line for each of the first faults, and how many more there are."""
    return faults[:MAX_LISTED] + ([f"and {len(faults) - MAX_LISTED} more"] if len(faults) > MAX_LISTED else [])
