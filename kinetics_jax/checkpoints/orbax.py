"""Orbax checkpoints: config.json and tokenizer beside `weights/`, where Orbax keeps one array per parameter name, and
weights.json, the sizes of its files.

Written with Orbax's stable API; its `experimental.v1` reads the same files, and still renames its functions.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from kinetics_jax.checkpoints.digest import check_digest, write_digest
from kinetics_jax.checkpoints.files import (
    fault_line,
    list_orbax_files,
    new_checkpoint,
    orbax_file_faults,
    write_companions,
)
from kinetics_jax.checkpoints.resolve import ORBAX_WEIGHTS, Checkpoint
from kinetics_jax.checkpoints.tensors import (
    Placement,
    arrays_by_name,
    check_declared,
    expected_parameters,
    first_faults,
    sharding_for,
)
from kinetics_jax.config import ModelConfig
from kinetics_jax.errors import CheckpointError

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

FLOAT_DTYPES = ("float32", "bfloat16", "float16", "float64")
CONCURRENT_GB = 4  # read or written at a time; the largest tensor must fit (Qwen3-32B's embedding in float32: 3.1)


def save_orbax(
    directory: str | Path,
    config: ModelConfig,
    weights: nnx.State,
    *,
    companions: Path | None = None,
    source: str | None = None,
) -> Path:
    """Writes a new Orbax directory, each array in its own dtype and, on several devices, by its own shards.

    Configuration and tokenizer come from the directory `companions` (`write_companions`); `source` is the digest of the
    checkpoint that the weights are from. Nothing is at `directory`
    until all is written. Raises CheckpointError if it exists and is not empty.
    """
    import orbax.checkpoint as ocp

    directory = Path(directory)
    arrays = arrays_by_name(weights)
    with new_checkpoint(directory) as partial:
        write_companions(partial, companions, config, [array.dtype.name for array in arrays.values()])
        with _checkpointer() as checkpointer:
            try:
                checkpointer.save(partial / ORBAX_WEIGHTS, args=ocp.args.StandardSave(arrays))
            except Exception as error:  # Orbax's and TensorStore's errors have no other parent
                raise CheckpointError(f"{directory}: Orbax cannot write it: {_one_line(error)}") from error
        list_orbax_files(partial)
        write_digest(Checkpoint(partial, "orbax", directory.name), source)
    return directory


def load_orbax(
    directory: str | Path,
    config: ModelConfig,
    *,
    dtype: DTypeLike | None,
    sharding: Placement = None,
    mesh: Mesh | None = None,
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[nnx.GraphDef, nnx.State]:
    """Restores what `save_orbax` wrote, cast to `dtype` (None: as stored): `nnx.split` of the loaded model.

    Arrays go straight to `sharding` (one for all, or a function of the parameter's name): each device gets only its own
    part. The model computes on `mesh`. Orbax reads all arrays in one go; `on_tensor(done, total)` counts the checks
    that follow. Raises CheckpointError naming every missing or cut file at once, or every missing, extra, misshapen or
    non-finite array.
    """
    import orbax.checkpoint as ocp

    directory = Path(directory)
    folder = (directory / ORBAX_WEIGHTS).absolute()
    _refuse(directory, orbax_file_faults(directory))
    with _silent(), _checkpointer() as checkpointer:
        try:
            metadata = checkpointer.metadata(folder).item_metadata
        except Exception as error:  # Orbax's and TensorStore's errors have no other parent
            raise CheckpointError(f"{directory}: Orbax cannot read its metadata: {_one_line(error)}") from error
        if metadata is None:
            raise CheckpointError(f"{directory}: Orbax finds no arrays in {ORBAX_WEIGHTS}/")
        stored = metadata.tree
        if not isinstance(stored, Mapping):
            raise CheckpointError(f"{directory}: {ORBAX_WEIGHTS}/ holds no arrays by name")
        shapes = [getattr(each, "shape", None) or (0,) for each in stored.values()]
        check_declared(directory, config, len(stored), max(map(max, shapes), default=0))
        graph, wanted = expected_parameters(config, mesh)
        problems = fault_line("missing", [name for name in wanted if name not in stored])
        problems += fault_line("not part of this model", [name for name in stored if name not in wanted])
        targets, misfits = {}, []
        for name, (_, shape) in wanted.items():
            if name in stored:
                targets[name], fault = _target(name, shape, stored[name], dtype, sharding)
                misfits += [f"{name} {fault}"] if fault else []
        _refuse(directory, problems + first_faults(misfits))
        check_digest(Checkpoint(directory, "orbax", directory.name))  # of damaged files Orbax says pages
        try:
            arrays = checkpointer.restore(folder, args=ocp.args.StandardRestore(targets))
        except Exception as error:
            raise CheckpointError(f"{directory}: Orbax cannot read its arrays: {_one_line(error)}") from error
    for done, name in enumerate(wanted, start=1):
        bad = int(_count_bad(arrays[name]))
        misfits += [f"{name} holds {bad} values that are NaN or infinite in {arrays[name].dtype.name}"] if bad else []
        on_tensor(done, len(wanted))
    _refuse(directory, first_faults(misfits))
    return graph, nnx.from_flat_state([(path, nnx.Param(arrays[name])) for name, (path, _) in wanted.items()])


def _checkpointer() -> ocp.Checkpointer:
    import orbax.checkpoint as ocp

    handler = ocp.StandardCheckpointHandler(save_concurrent_gb=CONCURRENT_GB, restore_concurrent_gb=CONCURRENT_GB)
    return ocp.Checkpointer(handler)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what Orbax logs of a checkpoint that it cannot read: the error says it in one line."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _target(
    name: str, shape: tuple[int, ...], stored: Any, dtype: DTypeLike | None, placement: Placement
) -> tuple[jax.ShapeDtypeStruct | None, str]:
    """What to restore an array to, and why it cannot be ("" if it can)."""
    stored_shape, kept = getattr(stored, "shape", None), str(getattr(stored, "dtype", None))
    if stored_shape is None or kept == "None":
        return None, "is no array"
    if tuple(stored_shape) != tuple(shape):
        return None, f"has shape {list(stored_shape)}, expected {list(shape)}"
    if kept not in FLOAT_DTYPES:
        return None, f"is stored as {kept}, expected one of {', '.join(FLOAT_DTYPES)}"
    if dtype is None and kept == "float64":
        return None, "is stored as float64, which jax does not hold; name a dtype"
    sharding, fault = sharding_for(name, shape, placement)
    sharding = sharding or jax.device_put(0).sharding  # Orbax wants one: jax's default device
    return jax.ShapeDtypeStruct(shape, kept if dtype is None else dtype, sharding=sharding), fault


@jax.jit
def _count_bad(array: jax.Array) -> jax.Array:
    return jnp.sum(~jnp.isfinite(array))


def _refuse(directory: Path, problems: list[str]) -> None:
    if problems:
        raise CheckpointError(f"{directory}: cannot load this checkpoint\n  " + "\n  ".join(problems))


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
