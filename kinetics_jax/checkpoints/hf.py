"""Hugging Face checkpoints, read and written tensor by tensor: config.json and one or many safetensors shards."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from safetensors import SafetensorError
from safetensors.numpy import save_file

from kinetics_jax.checkpoints.digest import write_digest
from kinetics_jax.checkpoints.files import (
    INDEX,
    fault_line,
    find_shards,
    new_checkpoint,
    refuse_adapter,
    write_companions,
)
from kinetics_jax.checkpoints.resolve import Checkpoint
from kinetics_jax.checkpoints.safetensors_file import FLOAT_DTYPES, StoredTensor, read_rows, read_tensors, row_length
from kinetics_jax.checkpoints.tensors import (
    Part,
    Placement,
    arrays_by_name,
    check_declared,
    empty_aligned,
    expected_parameters,
    first_faults,
    sharding_for,
    stored_parts,
)
from kinetics_jax.config import ConfigError, ModelConfig, end_tokens
from kinetics_jax.errors import CheckpointError, shown, spelled
from kinetics_jax.files import open_regular, read_json
from kinetics_jax.models.qwen3 import llama3_frequencies

HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"
SLICE_BYTES = 16 << 20  # read, checked and cast at a time
SHARD_BYTES = 5_000_000_000


def read_config(directory: Path, *, name: str = "") -> ModelConfig:
    """config.json, with the end tokens of generation_config.json added if it exists (Qwen3 names two in it).

    Warns where the latter leaves out one that config.json names: other engines then take its word alone. The model is
    named `name`, or like the directory. Raises ConfigError naming the file and field.
    """
    refuse_adapter(directory)
    config = ModelConfig.from_hf(directory, name=name or directory.resolve().name)
    path = directory / "generation_config.json"
    try:
        eos = read_json(path, error=ConfigError).get("eos_token_id")
    except FileNotFoundError:
        return config
    more = end_tokens(eos, str(path))
    both = (*config.eos_token_ids, *more)
    if more and not set(config.eos_token_ids) <= set(more):
        warnings.warn(
            f"{directory}: config.json ends at {spelled(list(config.eos_token_ids))} and {path.name} at "
            f"{spelled(list(more))}; a sample ends at any of them",
            stacklevel=3,
        )
    return dataclasses.replace(config, eos_token_ids=tuple(dict.fromkeys(both)))


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
    stored, problems = _stored_tensors(directory)
    sides = (max(tensor.shape, default=0) for tensor in stored.values())
    check_declared(directory, config, len(stored), max(sides, default=0))
    graph, wanted = expected_parameters(config, mesh)
    parts = {name: stored_parts(name, shape, stored) for name, (_, shape) in wanted.items()}
    names = dict.fromkeys(part.name for each in parts.values() for part in each)
    problems += fault_line("missing", [name for name in names if name not in stored])
    tied = {HEAD} if config.tie_word_embeddings else set()
    extra = [shown(n) for n in stored if n not in names and n not in tied and "rotary_emb" not in n]
    problems += fault_line("not part of this model", extra)

    loaded: list[tuple[tuple, nnx.Param]] = []
    misfits: list[str] = []
    for done, (name, (path, shape)) in enumerate(wanted.items(), start=1):
        if all(part.name in stored for part in parts[name]):
            tensor, faults = _read(stored, parts[name], shape, None if dtype is None else np.dtype(dtype))
            place, unfit = sharding_for(name, shape, sharding)
            misfits += faults or ([f"{name} {unfit}"] if unfit else [])
            if tensor is not None and not problems and not misfits:
                loaded.append((path, nnx.Param(jax.device_put(tensor, place))))
        on_tensor(done, len(wanted))
    problems += first_faults(misfits)
    if not problems:
        problems += _head_fault(stored, config) + _rotation_fault(stored, config)
    if problems:
        raise _refusal(directory, problems)
    return graph, nnx.from_flat_state(loaded)


def save_hf(
    directory: str | Path,
    config: ModelConfig,
    weights: nnx.State,
    *,
    companions: Path | None = None,
    source: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Writes a new directory in Hugging Face layout, each array in its own dtype, for transformers and `load_hf`.

    One model.safetensors, or shards of at most `shard_bytes` (a larger tensor gets its own) with their index.
    Configuration and tokenizer come from the directory `companions` (`write_companions`); `source` is the digest of the
    checkpoint that the weights are from. The host holds one shard
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
    with new_checkpoint(directory) as partial:
        write_companions(partial, companions, config, [array.dtype.name for array in arrays.values()])
        for number, group in enumerate(groups, start=1):
            done = sum(map(len, groups[:number]))
            shard = f"model-{number:05d}-of-{len(groups):05d}.safetensors" if len(groups) > 1 else "model.safetensors"
            # Moved by device_put, because an array of another device keeps what np.asarray fetches of it.
            part: dict[str, np.ndarray] = {}
            for name in group:
                array = np.asarray(jax.device_put(arrays[name], cpu))
                stored = stored_parts(name, array.shape)
                matrices = array.swapaxes(1, 2) if array.ndim == 3 else [array]
                part |= {_hf_name(p.name): np.ascontiguousarray(m) for p, m in zip(stored, matrices, strict=True)}
            try:
                save_file(part, partial / shard, metadata={"format": "pt"})
            except SafetensorError as error:  # of a full disk, too
                raise CheckpointError(f"{directory}: cannot be written ({error})") from error
            weight_map |= dict.fromkeys(part, shard)
            on_tensor(done, len(arrays))
        if len(groups) > 1:
            total = sum(array.nbytes for array in arrays.values())
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (partial / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        write_digest(Checkpoint(partial, "hf", directory.name), source)
    return directory


def _hf_name(name: str) -> str:
    return name if name.startswith("lm_head.") else f"model.{name}"


def _stored_tensors(directory: Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """The tensors of all shards by name without a leading `model.`, and what is wrong with them.

    Raises CheckpointError where a shard cannot be read: all its tensors would look missing.
    """
    shards, problems = find_shards(directory)
    twice: list[str] = []
    stored: dict[str, StoredTensor] = {}
    for shard in shards:
        try:
            tensors = read_tensors(shard)
        except CheckpointError as error:
            problems.append(f"{shown(shard.name)} is truncated or not safetensors ({error})")
            continue
        for name, tensor in tensors.items():
            ours = name.removeprefix("model.")
            if ours in stored:
                twice.append(f"{shown(ours)} is in both {stored[ours].path.name} and {shard.name}")
            stored[ours] = tensor
    if problems:
        raise _refusal(directory, problems)
    return stored, first_faults(twice)


def _refusal(directory: Path, problems: list[str]) -> CheckpointError:
    return CheckpointError(f"{directory}: cannot load this checkpoint\n  " + "\n  ".join(problems))


def _read(
    stored: dict[str, StoredTensor], parts: list[Part], shape: tuple[int, ...], dtype: np.dtype | None
) -> tuple[np.ndarray | None, list[str]]:
    """A parameter from its `parts`, cast to `dtype` (None: as stored), and what is wrong with them.

    The parts of a parameter of three dimensions are the matrices [out, in] of its experts.
    """
    tensor, faults = None, []
    for index, part in enumerate(parts):
        source = stored[part.name]
        kept, fault = _stored_dtype(source, part.shape, dtype)
        if tensor is None and kept is not None:
            tensor = empty_aligned(shape, kept)
        if tensor is not None and kept is not None:
            out = tensor[index].T if len(shape) == 3 else tensor.reshape(-1, row_length(source))
            with open_regular(source.path, error=CheckpointError) as file:
                fault = _fill(out, file, source, part.row, kept)
        faults += [f"{part.name} {fault}"] if fault and f"{part.name} {fault}" not in faults else []
    return (None, faults) if faults else (tensor, faults)


def _stored_dtype(source: StoredTensor, shape: tuple[int, ...], dtype: np.dtype | None) -> tuple[np.dtype | None, str]:
    """The dtype to read a tensor in, or why it cannot be read."""
    if source.shape != tuple(shape):
        return None, f"has shape {list(source.shape)}, expected {list(shape)}"
    if source.dtype not in FLOAT_DTYPES:
        return None, f"is stored as {shown(source.dtype)}, expected one of {', '.join(FLOAT_DTYPES)}"
    dtype = np.dtype(FLOAT_DTYPES[source.dtype]) if dtype is None else dtype
    if dtype == np.float64:
        return None, "is stored as F64, which jax does not hold; name a dtype"
    return dtype, ""


def _fill(out: np.ndarray, file: IO[bytes], source: StoredTensor, row: int, dtype: np.dtype) -> str:
    """Reads rows of a tensor, from `row` on, into `out` slice by slice; says what is wrong with the values, or ""."""
    if out.dtype != dtype:
        return f"is stored as {dtype.name}, and another expert as {out.dtype.name}; name a dtype"
    rows = max(1, SLICE_BYTES // max(1, out.shape[1] * 8))
    bad = 0
    for start in range(0, out.shape[0], rows):
        end = min(start + rows, out.shape[0])
        with np.errstate(over="ignore"):  # an overflow shows as an infinity
            out[start:end] = read_rows(file, source, row + start, row + end)
        part = out[start:end]
        bad += part.size - int(np.count_nonzero(np.isfinite(part)))
    return f"holds {bad} values that are NaN or infinite in {dtype.name}" if bad else ""


def _head_fault(stored: dict[str, StoredTensor], config: ModelConfig) -> list[str]:
    """Whether a model that is to read its embedding as its head holds a head that is not its embedding."""
    head, embedding = stored.get(HEAD), stored[EMBEDDING]
    if not config.tie_word_embeddings or head is None:
        return []
    same = head.shape == embedding.shape and head.dtype in FLOAT_DTYPES
    rows = max(1, SLICE_BYTES // (8 * row_length(embedding)))
    with (
        open_regular(head.path, error=CheckpointError) as one,
        open_regular(embedding.path, error=CheckpointError) as two,
    ):
        for start in range(0, embedding.shape[0] if same else 0, rows):
            stop = min(start + rows, embedding.shape[0])
            if not np.array_equal(read_rows(one, head, start, stop), read_rows(two, embedding, start, stop)):
                same = False
                break
    return (
        []
        if same
        else [
            f"{HEAD} is not {EMBEDDING}, and config.json says that they are one (tie_word_embeddings): set it to false "
            f"there, or remove {HEAD}"
        ]
    )


def _rotation_fault(stored: dict[str, StoredTensor], config: ModelConfig) -> list[str]:
    """Whether the files hold frequencies of RoPE (as old checkpoints do) that are not those of the configuration."""
    half = config.head_dim // 2
    powers = -np.arange(half, dtype=np.float64) / half
    frequencies = np.asarray(config.rope_theta**powers, np.float32)
    if config.rope_scaling:
        frequencies = np.asarray(llama3_frequencies(jax.numpy.asarray(frequencies), config.rope_scaling))
    for name, tensor in stored.items():
        if name.endswith("rotary_emb.inv_freq") and tensor.dtype in FLOAT_DTYPES and tensor.shape == (half,):
            with open_regular(tensor.path, error=CheckpointError) as file:
                held = read_rows(file, tensor, 0, 1)[0].astype(np.float32)
            if not np.allclose(held, frequencies, rtol=2e-2, atol=1e-7):
                return [f"{shown(name)} holds other frequencies than rope_theta = {config.rope_theta:g} gives"]
    return []
