"""Hugging Face checkpoints, read and written tensor by tensor: config.json and one or many safetensors shards."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kinetics_jax.checkpoints.files import INDEX, check_new, fault_line, find_shards, write_companions
from kinetics_jax.checkpoints.tensors import (
    Placement,
    arrays_by_name,
    empty_aligned,
    expected_parameters,
    first_faults,
    sharding_for,
    stored_parts,
)
from kinetics_jax.config import ConfigError, ModelConfig, end_tokens
from kinetics_jax.errors import CheckpointError
from kinetics_jax.files import atomic_directory

FLOAT_DTYPES = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16, "F64": np.float64}
SLICE_BYTES = 16 << 20  # read, checked and cast at a time
SHARD_BYTES = 5_000_000_000


def read_config(directory: Path, *, name: str = "") -> ModelConfig:
    """config.json, with the end tokens of generation_config.json added if it exists (Qwen3 names two in it).

    The model is named `name`, or like the directory. Raises ConfigError naming the file and field.
    """
    config = ModelConfig.from_hf(directory, name=name or directory.resolve().name)
    path = directory / "generation_config.json"
    if path.exists():
        try:
            eos = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"{path}: not a JSON object ({error})") from error
        both = (*config.eos_token_ids, *end_tokens(eos, str(path)))
        config = dataclasses.replace(config, eos_token_ids=tuple(dict.fromkeys(both)))
    return config


def load_hf(
    directory: str | Path,
    config: ModelConfig,
    *,
    dtype: DTypeLike | None,
    sharding: Placement = None,
    mesh: Mesh | None = None,
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[nnx.GraphDef, nnx.State]:
    """Loads a directory's safetensors into the model's parameters, cast to `dtype`: `nnx.split` of the loaded model.

    None keeps each tensor's stored dtype. Arrays go straight to `sharding` (one for all, or a function of the
    parameter's name), and the model computes on `mesh`. Beside the weights themselves the host holds one tensor's file
    pages and one slice at a time. `on_tensor(done, total)` is called after each tensor. Raises CheckpointError naming
    every missing, extra, misshapen, non-finite or truncated tensor at once.
    """
    directory = Path(directory)
    graph, wanted = expected_parameters(config, mesh)
    shards, problems = find_shards(directory)

    locations: dict[str, tuple[Path, str]] = {}  # parameter name → (file, name in it)
    headers_complete = not problems
    for shard in shards:
        try:
            with safe_open(shard, framework="np") as file:
                names = list(file.keys())
        except (SafetensorError, OSError) as error:
            problems.append(f"{shard.name} is truncated or not safetensors ({error})")
            headers_complete = False
            continue
        for name in names:
            ours = name.removeprefix("model.")
            if ours in locations:
                problems.append(f"{ours} is in both {locations[ours][0].name} and {shard.name}")
            locations[ours] = (shard, name)
    names = dict.fromkeys(part for name, (_, shape) in wanted.items() for part, _ in stored_parts(name, shape))
    if headers_complete:  # an unreadable shard would make all its tensors look missing
        problems += fault_line("missing", [name for name in names if name not in locations])
    ignored = {"lm_head.weight"} if config.tie_word_embeddings else set()
    extra = [name for name in locations if name not in names and name not in ignored and "rotary_emb" not in name]
    problems += fault_line("not part of this model", extra)

    loaded: list[tuple[tuple, nnx.Param]] = []
    misfits: list[str] = []
    for done, (name, (path, shape)) in enumerate(wanted.items(), start=1):
        stored = stored_parts(name, shape)
        if all(part in locations for part, _ in stored):
            tensor, faults = _read(locations, stored, shape, None if dtype is None else np.dtype(dtype))
            place, unfit = sharding_for(name, shape, sharding)
            misfits += faults or ([f"{name} {unfit}"] if unfit else [])
            if tensor is not None and not problems and not misfits:
                loaded.append((path, nnx.Param(jax.device_put(tensor, place))))
        on_tensor(done, len(wanted))
    problems += first_faults(misfits)
    if problems:
        raise CheckpointError(f"{directory}: cannot load this checkpoint\n  " + "\n  ".join(problems))
    return graph, nnx.from_flat_state(loaded)


def save_hf(
    directory: str | Path,
    config: ModelConfig,
    weights: nnx.State,
    *,
    companions: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Writes a new directory in Hugging Face layout, each array in its own dtype, for transformers and `load_hf`.

    One model.safetensors, or shards of at most `shard_bytes` (a larger tensor gets its own) with their index.
    Configuration and tokenizer come from the directory `companions` (`write_companions`). The host holds one shard
    beside the weights. Nothing is at `directory` until all is written. Raises CheckpointError if it exists and is not
    empty.
    """
    directory = Path(directory)
    arrays = arrays_by_name(weights)
    groups: list[list[str]] = [[]]
    room = shard_bytes
    for name, array in arrays.items():
        if array.nbytes > room and groups[-1]:
            groups.append([])
            room = shard_bytes
        groups[-1].append(name)
        room -= array.nbytes
    cpu = jax.local_devices(backend="cpu")[0]
    weight_map: dict[str, str] = {}
    check_new(directory)
    with atomic_directory(directory) as partial:
        write_companions(partial, companions, config, [array.dtype.name for array in arrays.values()])
        for number, group in enumerate(groups, start=1):
            done = sum(map(len, groups[:number]))
            shard = f"model-{number:05d}-of-{len(groups):05d}.safetensors" if len(groups) > 1 else "model.safetensors"
            # Moved by device_put, because an array of another device keeps what np.asarray fetches of it.
            part: dict[str, np.ndarray] = {}
            for name in group:
                array = np.asarray(jax.device_put(arrays[name], cpu))
                stored = stored_parts(name, array.shape)
                matrices = [array] if len(stored) == 1 else array.swapaxes(1, 2)
                part |= {_hf_name(key): np.ascontiguousarray(m) for (key, _), m in zip(stored, matrices, strict=True)}
            save_file(part, partial / shard, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(part, shard)
            on_tensor(done, len(arrays))
        if len(groups) > 1:
            total = sum(array.nbytes for array in arrays.values())
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (partial / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return directory


def _hf_name(name: str) -> str:
    return name if name.startswith("lm_head.") else f"model.{name}"


def _read(
    locations: dict[str, tuple[Path, str]],
    stored: list[tuple[str, tuple[int, ...]]],
    shape: tuple[int, ...],
    dtype: np.dtype | None,
) -> tuple[np.ndarray | None, list[str]]:
    """A parameter from its `stored` tensors (`parts`), cast to `dtype` (None: as stored), and what is wrong with them.

    The file is opened anew for each tensor, so that its mapped pages leave memory with it.
    """
    tensor, faults = None, []
    for index, (name, stored_shape) in enumerate(stored):
        shard, key = locations[name]
        with safe_open(shard, framework="np") as file:
            source = file.get_slice(key)
            kept, fault = _stored_dtype(source, stored_shape, dtype)
            if tensor is None and kept is not None:
                tensor = empty_aligned(shape, kept)
            if tensor is not None and kept is not None:
                fault = _fill(tensor if len(stored) == 1 else tensor[index].T, source, kept)
        faults += [f"{name} {fault}"] if fault else []
    return (None, faults) if faults else (tensor, faults)


def _stored_dtype(source: Any, shape: tuple[int, ...], dtype: np.dtype | None) -> tuple[np.dtype | None, str]:
    """The dtype to read a tensor in, or why it cannot be read."""
    if tuple(source.get_shape()) != tuple(shape):
        return None, f"has shape {list(source.get_shape())}, expected {list(shape)}"
    if source.get_dtype() not in FLOAT_DTYPES:
        return None, f"is stored as {source.get_dtype()}, expected one of {', '.join(FLOAT_DTYPES)}"
    dtype = np.dtype(FLOAT_DTYPES[source.get_dtype()]) if dtype is None else dtype
    if dtype == np.float64:
        return None, "is stored as F64, which jax does not hold; name a dtype"
    return dtype, ""


def _fill(out: np.ndarray, source: Any, dtype: np.dtype) -> str:
    """Reads a tensor into `out` slice by slice; says what is wrong with its values ("" if nothing)."""
    if out.dtype != dtype:
        return f"is stored as {dtype.name}, and another expert as {out.dtype.name}; name a dtype"
    row_bytes = max(1, int(np.prod(out.shape[1:])) * 8)
    rows = max(1, SLICE_BYTES // row_bytes)
    bad = 0
    for start in range(0, out.shape[0], rows):
        end = min(start + rows, out.shape[0])
        with np.errstate(over="ignore"):  # an overflow shows as an infinity
            out[start:end] = source[start:end]
        part = out[start:end]
        bad += part.size - int(np.count_nonzero(np.isfinite(part)))
    return f"holds {bad} values that are NaN or infinite in {dtype.name}" if bad else ""
